"""A model's folder: config.json, model.safetensors and, for an own tokenizer, tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from intermoe.checkpoints import keeps_float32, load_module, load_safetensors, load_statistics
from intermoe.config import Config
from intermoe.files import replacing, write_json, write_tensors
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from intermoe.reading import read_text
from intermoe.text.build import build_text_encoder
from intermoe.text.protocol import TextConfig, TextEncoder


def write_model(
    folder: str | Path,
    config: Config,
    modules: Mapping[str, nn.Module],
    statistics: Statistics,
    tokenizer_json: str | None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model as ``MotionPipeline.save_pretrained`` says; each file whole or not at all.

    Args:
        modules: the parts with weights by name. dtype: storage type of the weights; what must stay in float32 does.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"statistics.mean": torch.tensor(statistics.mean), "statistics.std": torch.tensor(statistics.std)}
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            narrow = dtype is not None and value.is_floating_point() and not keeps_float32(key)
            tensors[f"{name}.{key}"] = value.detach().cpu().to(dtype if narrow else value.dtype).contiguous()
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata={"format": "pt"})
    if tokenizer_json is not None:
        with replacing(folder / TOKENIZER_FILE) as temporary:
            temporary.write_text(tokenizer_json, encoding="utf-8")
    write_json(folder / CONFIG_FILE, config.to_dict())


def read_text_encoder(folder: Path, config: TextConfig) -> TextEncoder:
    """The text encoder of a model, its weights still to be read. Raises ``ValueError`` that names the file."""
    path = folder / TOKENIZER_FILE
    content = read_text(path) if path.exists() else None
    try:
        return build_text_encoder(config, content)
    except ValueError as error:
        raise ValueError(f"{folder if content is None else path}: {error}") from error


def read_weights(folder: Path, modules: Mapping[str, nn.Module], columns: int) -> Statistics:
    """Fill the parts of a model that ``write_model`` wrote; returns its statistics, of so many columns.

    Raises:
        ValueError: the file is broken, or a key is missing, unexpected or of the wrong shape; names file and key.
    """
    path = folder / WEIGHTS_FILE
    tensors = load_safetensors(path)
    for name, module in modules.items():
        load_module(module, tensors, path, prefix=f"{name}.")
    statistics = load_statistics(tensors, path, columns=columns)
    if tensors:
        raise ValueError(f"{path}: unexpected keys {sorted(tensors)}")
    return statistics
