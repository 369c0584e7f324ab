"""The published evaluators: InterCLIP (InterHuman) and the BiGRU family (Inter-X, HumanML3D)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intermoe.checkpoints import StrictReader, load_tensors, read_checkpoint, require_setting, setting
from intermoe.evaluators.bigru import BiGRUConfig, BiGRUEvaluator, Recurrent
from intermoe.evaluators.evaluator import Evaluator, save_evaluator
from intermoe.evaluators.interclip import InterClip, InterClipConfig, InterClipMotionEncoder
from intermoe.evaluators.words import read_word_vectors
from intermoe.nn.init import SkipRandomInit
from intermoe.reading import read_npy
from intermoe.systems.published import Files, Layout, check_sinusoids, with_tower
from intermoe.text.protocol import TextConfig

TEXT_HEADS = 8
# The published file ``interclip.yaml``, for checkpoints that carry no configuration.
INTERCLIP = {
    "NUM_LAYERS": 8,
    "NUM_HEADS": 8,
    "DROPOUT": 0.1,
    "INPUT_DIM": 258,
    "LATENT_DIM": 1024,
    "FF_SIZE": 2048,
    "ACTIVATION": "gelu",
}
# Input columns, longest motion and text, and the prefix of the word vectors' files.
_BIGRU: dict[str, tuple[dict[str, int], str]] = {
    "humanml3d": ({"input_dim": 259, "max_frames": 196, "max_words": 20}, "our_vab"),
    "interx": ({"input_dim": 56 * 12, "max_frames": 150, "max_words": 35}, "hhi_vab"),
}


def load_evaluator_motion_encoder(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> InterClipMotionEncoder:
    """InterCLIP's motion encoder, in eval mode, from the published one's state dict.

    ``config`` needs ``INPUT_DIM`` (columns of a person's frame), ``LATENT_DIM``, ``FF_SIZE``, ``NUM_LAYERS`` and
    ``NUM_HEADS``, and may have ``DROPOUT`` and ``ACTIVATION`` (gelu).
    """
    reader = StrictReader(state_dict)
    encoder = InterClipMotionEncoder(_interclip_config(config, reader.peek("out.weight", 2)[0], TextConfig))
    _read_motion_encoder(reader, "", encoder)
    reader.finish()
    return encoder.eval()


def load_interclip(path: str | Path) -> InterClip:
    """The published InterCLIP from its checkpoint, in eval mode. CLIP's tokenizer is loaded by name at the first text.

    Raises:
        FileNotFoundError: no such file. ValueError: a key that is missing, unexpected or of the wrong shape.
    """
    state, config = read_checkpoint(path)
    reader = StrictReader({key.removeprefix("model."): value for key, value in state.items()}, str(path))
    vocab_size, width = reader.peek("token_embedding.weight", 2)

    def text(output_dim: int) -> TextConfig:
        return TextConfig(
            kind="clip",
            output_dim=output_dim,
            width=width,
            num_layers=len({key.split(".")[2] for key in reader.keys("textTransEncoder.layers.")}),
            num_heads=TEXT_HEADS,
            feedforward_dim=reader.peek("textTransEncoder.layers.0.linear1.weight", 2)[0],
            max_tokens=reader.peek("positional_embedding", 2)[0],
            vocab_size=vocab_size,
        )

    with SkipRandomInit():
        evaluator = InterClip(_interclip_config(INTERCLIP | config, reader.peek("out.weight", 2)[0], text))
    _read_motion_encoder(reader, "motion_encoder.", evaluator.motion)
    encoder = evaluator.text
    reader.copy(encoder.get_parameter("token_embedding.weight"), "token_embedding.weight")
    reader.copy(encoder.get_parameter("position_embedding"), "positional_embedding")
    for ours, theirs in (("transformer", "textTransEncoder"), ("norm", "text_ln"), ("out", "out")):
        _read_module(reader, theirs, encoder.get_submodule(ours))
    reader.copy(evaluator.scale, "latent_scale")
    reader.finish()
    return evaluator.eval()


def _interclip_config(
    config: Mapping[str, Any], embedding_dim: int, text: Callable[..., TextConfig]
) -> InterClipConfig:
    require_setting(config, "ACTIVATION", "gelu", "gelu")
    return InterClipConfig(
        input_dim=setting(config, "INPUT_DIM"),
        width=setting(config, "LATENT_DIM"),
        num_layers=setting(config, "NUM_LAYERS"),
        num_heads=setting(config, "NUM_HEADS"),
        feedforward_dim=setting(config, "FF_SIZE"),
        embedding_dim=embedding_dim,
        dropout=config.get("DROPOUT", 0.1),
        text=text(output_dim=embedding_dim),
    )


def _read_motion_encoder(reader: StrictReader, prefix: str, encoder: InterClipMotionEncoder) -> None:
    reader.copy(encoder.query, f"{prefix}query_token")
    for ours, theirs in (("embed", "embed_motion"), ("transformer", "transformer"), ("norm", "out_ln"), ("out", "out")):
        _read_module(reader, f"{prefix}{theirs}", encoder.get_submodule(ours))
    check_sinusoids(reader, f"{prefix}sequence_pos_encoder.pe", encoder.config.width)


def load_bigru(
    path: str | Path, representation: str, words: str | Path, stats: str | Path | None = None
) -> BiGRUEvaluator:
    """A published BiGRU evaluator (``finest.tar``), in eval mode. Its weights are read strictly, key by key.

    No weights were at hand when this was written: names and shapes are those of the published modules, and what feeds
    them follows the published preparation, but no published number was reproduced with it.

    Args:
        path: file with the state dicts ``movement_encoder``, ``motion_encoder`` and ``text_encoder``.
        representation: "humanml3d" or "interx".
        words: folder with the published word vectors.
        stats: HumanML3D: folder with the evaluator's own ``mean.npy`` and ``std.npy``; Inter-X has none.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a key that is missing, unexpected or of the wrong shape.
    """
    path = Path(path)
    if representation not in _BIGRU:
        raise ValueError(f"representation: expected one of {tuple(_BIGRU)}, got {representation!r}")
    sizes, prefix = _BIGRU[representation]
    if (stats is None) == (prefix == "our_vab"):
        raise ValueError(
            f"stats: expected {'some' if stats is None else 'none'} for the evaluator of {representation}, got "
            f"{'none' if stats is None else 'some'}"
        )
    listed, vectors = read_word_vectors(Path(words), prefix)
    loaded = load_tensors(path)
    readers = {}
    for part in ("movement_encoder", "motion_encoder", "text_encoder"):
        if not isinstance(loaded.get(part), dict):
            raise ValueError(f"{path}: missing key {part!r}")
        readers[part] = StrictReader(loaded[part], part)
    config = BiGRUConfig(
        representation=representation,
        **sizes,
        vocab_size=len(listed),
        word_dim=vectors.shape[1],
        movement_dim=readers["movement_encoder"].peek("main.0.weight", 3)[0],
        motion_dim=readers["motion_encoder"].peek("input_emb.weight", 2)[0],
        text_dim=readers["text_encoder"].peek("input_emb.weight", 2)[0],
        embedding_dim=readers["text_encoder"].peek("output_net.3.weight", 2)[0],
    )
    evaluator = BiGRUEvaluator(config, json.dumps(listed))
    evaluator.vectors.copy_(torch.from_numpy(vectors))
    if stats is not None:
        for buffer, name in ((evaluator.mean, "mean.npy"), (evaluator.std, "std.npy")):
            buffer.copy_(torch.from_numpy(_read_vector(Path(stats) / name, config.input_dim + 4))[: config.input_dim])
    modules: dict[str, dict[str, nn.Module]] = {
        "movement_encoder": {"main.0": evaluator.conv1, "main.3": evaluator.conv2, "out_net": evaluator.movement},
        "motion_encoder": _recurrent(evaluator.motion),
        "text_encoder": {"pos_emb": evaluator.category, **_recurrent(evaluator.text)},
    }
    for part, named in modules.items():
        for key, module in named.items():
            _read_module(readers[part], key, module)
    readers["motion_encoder"].copy(evaluator.motion.start, "hidden")
    readers["text_encoder"].copy(evaluator.text.start, "hidden")
    for reader in readers.values():
        reader.finish()
    return evaluator.eval()


def _recurrent(module: Recurrent) -> dict[str, nn.Module]:
    return {"input_emb": module.input, "gru": module.gru, "output_net": module.head}


def _read_module(reader: StrictReader, prefix: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        reader.copy(parameter, f"{prefix}.{name}")


def _read_vector(path: Path, size: int) -> npt.NDArray[np.float32]:
    try:
        values = read_npy(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"stats: no {path}; the evaluator's publisher has it") from None
    if values.shape != (size,):
        raise ValueError(f"{path}: expected shape ({size},), got {values.shape}")
    return values.astype(np.float32)


def _read_interclip(path: Path, files: Files) -> InterClip:
    evaluator = load_interclip(path)
    with_tower(evaluator.text, files)
    return evaluator


def _read_bigru(path: Path, files: Files) -> BiGRUEvaluator:
    if files.layout is None or files.words is None:
        raise ValueError(f"--layout, --words: expected both for {path}, {LAYOUT_OF_BIGRU.title}, got one or none")
    return load_bigru(path, files.layout, files.words, files.stats)


def _save(evaluator: Evaluator, folder: Path) -> None:
    save_evaluator(folder, evaluator)


LAYOUT = Layout(
    "InterCLIP",
    lambda keys: any(key.removeprefix("model.").startswith("motion_encoder.") for key in keys),
    ("tokenizer",),
    _read_interclip,
    _save,
)
LAYOUT_OF_BIGRU = Layout(
    "a recurrent evaluator",
    lambda keys: "movement_encoder" in keys,
    ("stats", "layout", "words"),
    _read_bigru,
    _save,
)
