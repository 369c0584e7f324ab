"""How published models lie in their files, and the layers that several of them write in the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intermoe.checkpoints import StrictReader, check_dtype
from intermoe.motion.statistics import Statistics
from intermoe.nn.attention import Attention
from intermoe.nn.layers import AdaLN, sinusoid
from intermoe.reading import read_npy
from intermoe.text.clip import ClipPrompts
from intermoe.text.protocol import TextEncoder


@dataclass(frozen=True)
class Files:
    """What a conversion is given beside the checkpoint; ``Layout.uses`` names what it has a use for.

    ``stats``: folder of the published statistics. ``tokenizer``: folder of CLIP's tokenizer. ``part``: second file, of
    a model that is published in two. ``text``: the CLIP model, a folder or a name, whose text tower the file leaves
    out. ``layout``, ``words``: data set and word vectors of a recurrent evaluator.
    """

    stats: Path | None = None
    tokenizer: Path | None = None
    part: Path | None = None
    text: str | None = None
    layout: str | None = None
    words: Path | None = None


@dataclass(frozen=True)
class Layout:
    """A published checkpoint: what it is called, whether a file's keys are of it, and how it is read and written.

    ``fits`` gets the keys of the state dict, those of a nested one as ``"part/key"``. ``read`` makes the model from
    checkpoint and files, strictly; ``save`` writes it as a folder.
    """

    title: str
    fits: Callable[[Collection[str]], bool]
    uses: tuple[str, ...]
    read: Callable[[Path, Files], Any]
    save: Callable[[Any, Path], None] = lambda model, folder: model.save_pretrained(folder)


def read_statistics(folder: Path, names: tuple[str, str], columns: int) -> Statistics:
    """Mean and deviation (columns,) of a folder's two .npy files.

    Raises:
        FileNotFoundError: one is missing. ValueError: another shape, or numbers that cannot be right; names the file.
    """
    arrays = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"stats: {folder} holds no {name}; the published repository has it")
        values = read_npy(path)
        if values.shape != (columns,):
            raise ValueError(f"{path}: expected shape ({columns},), got {values.shape}")
        arrays.append(values)
    try:
        return Statistics(*arrays)
    except ValueError as error:
        raise ValueError(f"{folder}: {names}: {error}") from error


def statistics_of(path: Path, files: Files, names: tuple[str, str], columns: int) -> Statistics:
    """``read_statistics`` of the folder that was given, or of the one that the checkpoint ``path`` lies in."""
    return read_statistics(path.parent if files.stats is None else files.stats, names, columns)


def with_tower(text: TextEncoder, files: Files) -> TextEncoder:
    """``text`` with the tokenizer of ``files``, where it is one on CLIP's tokens; its name on this machine goes."""
    if isinstance(text, ClipPrompts):
        if files.tokenizer is not None:
            text.load_tokenizer(str(files.tokenizer))
        if text.config.name_or_path is not None and Path(text.config.name_or_path).exists():
            text.config = dataclasses.replace(text.config, name_or_path=None)
    return text


INTERHUMAN_STATISTICS = ("global_mean.npy", "global_std.npy")
"""Files of InterHuman's published mean and deviation, which all its models share."""

SINUSOID_KEYS = ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe")
"""Tables of positions and of timesteps that published denoisers store; here they are computed."""


def read_parameters(reader: StrictReader, prefix: str, layer: nn.Module) -> None:
    """Every parameter of a layer whose names are torch's: linear, convolution, normalisation."""
    for name, parameter in layer.named_parameters():
        reader.copy(parameter, f"{prefix}.{name}")


def read_adaln(reader: StrictReader, prefix: str, norm: AdaLN) -> None:
    """The linear layer that gives scale and shift."""
    read_parameters(reader, f"{prefix}.emb_layers.1", norm.modulation)


def read_attention(reader: StrictReader, prefix: str, attention: Attention) -> None:
    """Query, key and value lie in one matrix, as torch's ``nn.MultiheadAttention`` has them."""
    dim = attention.out.in_features
    for part, shape in (("weight", (3 * dim, dim)), ("bias", (3 * dim,))):
        key = f"{prefix}.in_proj_{part}"
        value = reader.take(key, shape)
        check_dtype(value, attention.query.get_parameter(part), key, "state_dict")
        query, key_value = value.split([dim, 2 * dim])
        with torch.no_grad():
            attention.query.get_parameter(part).copy_(query)
            attention.key_value.get_parameter(part).copy_(key_value)
    read_parameters(reader, f"{prefix}.out_proj", attention.out)


def check_sinusoids(reader: StrictReader, key: str, dim: int, *, num_dims: int = 2) -> None:
    """Raise ``ValueError`` unless the table ``key`` holds the sinusoids (positions, dim) of ``intermoe.nn.layers``.

    It may be stored in any type that weights are, with dimensions of 1 between the two where ``num_dims`` is more.
    """
    shape = (reader.peek(key, num_dims)[0], *(1,) * (num_dims - 2), dim)
    table = reader.take(key, shape).flatten(1)
    check_dtype(table, torch.empty(0), key, "state_dict")
    near = max(1e-4, torch.finfo(table.dtype).eps)
    if not torch.allclose(table.float(), sinusoid(torch.arange(len(table)), dim), atol=near):
        raise ValueError(
            f"state_dict: {key!r}: expected the sinusoidal table that the model is defined with, got another"
        )
