"""A model's folder: config.json, model.safetensors and, for an own tokenizer, tokenizer.json."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from intermoe.checkpoints import check_weight_dtype, keeps_float32, load_module, load_safetensors, load_statistics
from intermoe.config import Config
from intermoe.files import uninterrupted, write_json, write_tensors, write_text
from intermoe.hub import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from intermoe.motion.statistics import Statistics
from intermoe.nn.init import SkipRandomInit
from intermoe.reading import first_line, read_text
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
        modules: the parts with weights by name.
        dtype: storage type of the weights; what must stay in float32 does.

    Raises:
        TypeError: a ``dtype`` that no weights are read in.
    """
    if dtype is not None:
        check_weight_dtype(dtype, "dtype")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"statistics.mean": torch.tensor(statistics.mean), "statistics.std": torch.tensor(statistics.std)}
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            narrow = dtype is not None and value.is_floating_point() and not keeps_float32(key)
            tensors[f"{name}.{key}"] = value.detach().cpu().to(dtype if narrow else value.dtype).contiguous()
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata={"format": "pt"})
    if tokenizer_json is not None:
        write_text(folder / TOKENIZER_FILE, tokenizer_json)
    write_json(folder / CONFIG_FILE, config.to_dict())


@contextmanager
def to_be_filled(path: Path) -> Iterator[None]:
    """Modules that are built inside the ``with`` block are filled from the safetensors file ``path`` afterwards.

    Nothing is drawn at random, and what a configuration asks for far beyond the file's weights is not built: its
    numbers may be anything, and memory ends. Twice the file's are allowed, for parts that are made and exchanged.

    Raises:
        ValueError: a configuration of more weights than the file has, or a broken file; names the file.
    """
    try:
        with uninterrupted(), safe_open(path, "pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a readable safetensors file: {error}") from error
    count, size, thread = len(shapes), sum(map(math.prod, shapes)), threading.get_ident()
    refusal = f"{path}: expected as many weights as the configuration says, got {size} in {count} tensors"
    room = [2 * count, 2 * size]

    def take(_: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == thread:
            room[0], room[1] = room[0] - 1, room[1] - parameter.numel()
            if min(room) < 0:
                raise ValueError(refusal)

    hook = register_module_parameter_registration_hook(take)
    try:
        with SkipRandomInit():
            yield
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:  # torch's words for sizes that nobody has
        raise ValueError(f"{refusal}: {first_line(error)}") from error
    finally:
        hook.remove()


def read_text_encoder(folder: Path, config: TextConfig) -> TextEncoder:
    """The text encoder of a model, its weights still to be read. Raises ``ValueError`` that names the file."""
    path = folder / TOKENIZER_FILE
    content = read_text(path) if path.exists() else None
    own = config.kind != "huggingface"  # that one's weights are not in the file
    with to_be_filled(folder / WEIGHTS_FILE) if own else SkipRandomInit():
        try:
            return build_text_encoder(config, content)
        except ValueError as error:
            if str(error).startswith(str(folder)):  # too many weights, told with their file
                raise
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
