"""Checkpoints of a training run: complete or absent, never half written.

A checkpoint is a folder ``step-<number>`` of ``model.safetensors`` and ``average.safetensors`` (weights and buffers,
and the same with averaged weights), ``optimizer.pt`` (tensors and numbers only) and ``state.json``. It is written under
a temporary name and renamed when all of it is on disk, so a folder with a final name is a complete checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from intermoe.files import WRITING, require_finite, stopped_cleanly, write_json, write_tensors

MODEL, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "average.safetensors", "optimizer.pt", "state.json"
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
    """The weights of a checkpoint: (of the last step, averaged)."""
    return load_file(path / MODEL), load_file(path / AVERAGE)


def read_optimizer(path: Path) -> dict[str, Any]:
    """The optimiser's state of a checkpoint."""
    state: dict[str, Any] = torch.load(path / OPTIMIZER, weights_only=True, map_location="cpu")
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The counters of a checkpoint: ``step`` and what ``write_checkpoint`` was given as ``state``."""
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state


def _complete(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


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
