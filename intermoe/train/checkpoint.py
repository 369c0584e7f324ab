"""Checkpoints of a training run: complete or absent, never half written.

A checkpoint is a folder ``step-<number>`` of ``model.safetensors`` and ``average.safetensors`` (weights and buffers,
and the same with averaged weights), ``optimizer.pt`` (tensors and numbers only), ``state.json``, and ``contents.json``
with the hash of each. It is written under a temporary name and renamed when all of it is on disk, so a folder with a
final name is a complete checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intermoe.checkpoints import load_safetensors
from intermoe.files import (
    WRITING,
    file_digest,
    read_sealed,
    require_finite,
    stopped_cleanly,
    write_json,
    write_sealed,
    write_tensors,
)
from intermoe.reading import first_line, read_json

MODEL, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "average.safetensors", "optimizer.pt", "state.json"
CONTENTS = "contents.json"
_NAME = re.compile(r"step-(\d{8,})")


def write_checkpoint(
    folder: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    average: dict[str, Tensor],
    optimizer: dict[str, Any],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``folder/step-<step>`` and remove all but the ``keep`` newest checkpoints. Returns its path.

    Raises:
        FloatingPointError: a number is not finite; names the tensor. OSError: the disk is full or the like.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{WRITING}{final.name}"
    remove_unfinished(folder)
    temporary.mkdir(parents=True)
    with stopped_cleanly():
        try:
            write_tensors(temporary / MODEL, model)
            write_tensors(temporary / AVERAGE, average)
            require_finite(temporary / OPTIMIZER, _tensors(optimizer))
            try:
                torch.save(optimizer, temporary / OPTIMIZER)
            except RuntimeError as error:  # torch's word for a full disk
                raise OSError(f"{temporary / OPTIMIZER}: cannot be written: {error}") from error
            write_json(temporary / STATE, {"step": step, **state})
            digests = {name: file_digest(temporary / name) for name in (MODEL, AVERAGE, STATE)}
            write_sealed(temporary / CONTENTS, {**digests, OPTIMIZER: _digest(optimizer)})
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            if final.exists():
                _remove(final)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _sync(folder)
    for _, old in _complete(folder)[:-keep]:
        _remove(old)
    return final


def _remove(path: Path) -> None:
    """Renamed first: a removal cut short must not leave half a checkpoint under a final name."""
    doomed = path.with_name(f"{WRITING}old-{path.name}")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left half written. Only one process may write below ``folder``."""
    for path in folder.glob(f"{WRITING}*"):
        shutil.rmtree(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, or ``None``."""
    complete = _complete(folder)
    return complete[-1][1] if complete else None


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a checkpoint: (of the last step, averaged). Raises ``ValueError`` that names a broken file."""
    return load_safetensors(path / MODEL), load_safetensors(path / AVERAGE)


def read_optimizer(path: Path) -> dict[str, Any]:
    """The optimiser's state of a checkpoint. Raises ``ValueError`` that names a broken file."""
    try:
        state: dict[str, Any] = torch.load(path / OPTIMIZER, weights_only=True, map_location="cpu")
    except Exception as error:  # of broken bytes the unpickler raises whatever it stumbles over
        raise ValueError(f"{path / OPTIMIZER}: expected an optimiser's state: {first_line(error)}") from error
    if _contents(path).get(OPTIMIZER) not in (None, _digest(state)):
        raise ValueError(_edited(path / OPTIMIZER))
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The counters of a checkpoint: ``step`` and what ``write_checkpoint`` was given as ``state``.

    Raises:
        ValueError: a file of the checkpoint is not as it was written; named. OSError: one is missing.
    """
    for name, digest in _contents(path).items():
        if name != OPTIMIZER and file_digest(path / name) != digest:
            raise ValueError(_edited(path / name))
    state = read_json(path / STATE)
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path / STATE}: expected the counters of a checkpoint, got other values")
    return state


def _complete(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


def _contents(path: Path) -> dict[str, Any]:
    """The hash of each file's content; checkpoints of earlier versions do not know them."""
    return read_sealed(path / CONTENTS) if (path / CONTENTS).exists() else {}


def _edited(file: Path) -> str:
    return f"{file}: not as it was written; remove {file.parent.name} to resume from the one before"


def _digest(state: Any) -> str:
    """The hash of an optimiser's state: how it is laid out in a file depends on how it came to be."""
    content = hashlib.blake2b(digest_size=16)
    _feed(content, state)
    return content.hexdigest()


def _feed(content: hashlib.blake2b, state: Any) -> None:
    if isinstance(state, Tensor):
        content.update(f"{state.dtype}{tuple(state.shape)}".encode())
        content.update(state.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(state, dict):
        for key, value in state.items():
            content.update(f"{key!r}:".encode())
            _feed(content, value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            content.update(b",")
            _feed(content, value)
    else:
        content.update(repr(state).encode())


def _tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {name: state}
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    found: dict[str, Tensor] = {}
    for key, value in parts:
        found |= _tensors(value, f"{name}.{key}" if name else str(key))
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
