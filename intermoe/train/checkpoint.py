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
from safetensors.torch import load_file, save_file
from torch import Tensor

MODEL, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "average.safetensors", "optimizer.pt", "state.json"
TEMPORARY = ".writing-"
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
    """Write ``folder/step-<step>`` and remove all but the ``keep`` newest checkpoints. Returns its path."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{TEMPORARY}{final.name}"
    remove_unfinished(folder)
    temporary.mkdir(parents=True)
    save_file(model, temporary / MODEL)
    save_file(average, temporary / AVERAGE)
    torch.save(optimizer, temporary / OPTIMIZER)
    (temporary / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n", encoding="utf-8")
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _sync(folder)
    for _, old in _complete(folder)[:-keep]:
        # renamed first: a removal cut short must not leave half a checkpoint under a final name
        doomed = old.with_name(f"{TEMPORARY}{old.name}")
        os.replace(old, doomed)
        shutil.rmtree(doomed)
    return final


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left half written. Only one process may write below ``folder``."""
    for path in folder.glob(f"{TEMPORARY}*"):
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
