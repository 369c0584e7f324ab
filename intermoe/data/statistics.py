"""Statistics of a data set, taken from its items as training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intermoe.data.dataset import MotionDataset
from intermoe.data.workers import in_order
from intermoe.files import read_sealed, write_sealed
from intermoe.motion.statistics import STD_FLOOR, Statistics

PIECE = 128
"""Items whose sums are taken together, so that they are the same whoever takes them."""
_SAVED_EVERY = 16

Sums = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]


def compute_statistics(
    dataset: MotionDataset | Sequence[dict[str, torch.Tensor]],
    *,
    passes: int = 1,
    workers: int = 1,
    unfinished: Path | None = None,
) -> Statistics:
    """Mean and deviation (C,) of the motion's last dimension over everything else, deviations floored at ``STD_FLOOR``.

    Takes the items as the data set yields them, augmentation included.

    Args:
        passes: epochs that are gone through, for a data set that draws windows or mirrors at random.
        workers: processes; their number changes no bit of the result.
        unfinished: file for the sums so far, with which the next call goes on after an interruption; removed at the
            end. It belongs to one data set: whoever gives the file sees to that.
    """
    if passes < 1:
        raise ValueError(f"passes: expected >= 1, got {passes}")
    pieces = [
        (epoch, start, min(start + PIECE, len(dataset)))
        for epoch in range(passes)
        for start in range(0, len(dataset), PIECE)
    ]
    done, (count, total, squares) = _taken_up(unfinished, len(pieces))
    left = pieces[done:]
    for number, sums in enumerate(in_order(_sums, dataset, left, workers=min(workers, len(left))), start=done + 1):
        count, total, squares = count + sums[0], total + sums[1], squares + sums[2]
        if unfinished is not None and number % _SAVED_EVERY == 0:
            kept = {"of": len(pieces), "done": number, "count": count}
            write_sealed(unfinished, {**kept, "total": total.tolist(), "squares": squares.tolist()})
    if unfinished is not None:
        unfinished.unlink(missing_ok=True)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return Statistics(mean.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32))


def _sums(dataset: Any, piece: tuple[int, int, int]) -> Sums:
    """Number, sum and sum of squares of the frames of some items of an epoch."""
    epoch, start, stop = piece
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for index in range(start, stop):
        item = dataset.draw(index, epoch) if isinstance(dataset, MotionDataset) else dataset[index]
        motion = item["motion"].flatten(0, -2).numpy().astype(np.float64)
        count += motion.shape[0]
        total = total + motion.sum(0)
        squares = squares + (motion**2).sum(0)
    if isinstance(dataset, MotionDataset):
        dataset.leave()
    return count, total, squares


def _taken_up(unfinished: Path | None, pieces: int) -> tuple[int, Sums]:
    """Sums of the pieces that are done, and their number; none where the file is not as it was written."""
    if unfinished is not None and unfinished.is_file():
        with suppress(ValueError):
            kept = read_sealed(unfinished, required=True)
            if kept["of"] == pieces:
                return kept["done"], (kept["count"], np.array(kept["total"]), np.array(kept["squares"]))
    return 0, (0, np.zeros(1), np.zeros(1))
