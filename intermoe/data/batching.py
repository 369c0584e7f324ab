"""Items of different length in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import torch

from intermoe.data.items import MotionItem
from intermoe.motion.representation import FRAMES_TOGETHER


class MotionBatch(TypedDict):
    """``motion`` float32 (B, P, T, ...), zero from ``lengths`` (int64 (B,), true numbers of frames) on."""

    names: list[str]
    captions: list[str]
    motion: torch.Tensor
    lengths: torch.Tensor


def collate(items: Sequence[MotionItem]) -> MotionBatch:
    """Zero-pad to the longest item, rounded up to a multiple of ``FRAMES_TOGETHER``.

    Zeros are added to what comes in: normalise first, or mask by ``lengths`` after normalising.
    """
    if not items:
        raise ValueError("items: expected at least one, got none")
    motions = [item["motion"] for item in items]
    if isinstance(items, Gathered):
        motion, lengths = items.motion, torch.tensor([motion.shape[1] for motion in motions], dtype=torch.int64)
    else:
        motion, lengths = pad_motion(motions, multiple=FRAMES_TOGETHER)
    return {
        "names": [item["name"] for item in items],
        "captions": [item["caption"] for item in items],
        "motion": motion,
        "lengths": lengths,
    }


class Gathered(list[Any]):
    """Items whose motions lie where ``collate`` would put them, in ``motion`` (B, P, T, ...): it takes that."""

    def __init__(self, items: Iterable[Any], motion: torch.Tensor) -> None:
        super().__init__(items)
        self.motion = motion


def gather(
    items: Iterable[Any],
    lengths: Sequence[int],
    new: Callable[[torch.Tensor, Sequence[int]], torch.Tensor] = torch.Tensor.new_empty,
) -> list[Any]:
    """``items``, each moved to its place in the batch as soon as it comes, while the processor has it at hand.

    Args:
        items: mappings, one for each of ``lengths``; without ``motion`` (P, T, ...) they stay as they are.
        lengths: T of each.
        new: called with a motion and a shape, makes the batch's, on the CPU.
    """
    padded, gathered, motion = -(-max(lengths) // FRAMES_TOGETHER) * FRAMES_TOGETHER, list[Any](), None
    for number, (item, length) in enumerate(zip(items, lengths, strict=True)):
        if "motion" not in item:
            gathered.append(item)
            continue
        persons, _, *frame = item["motion"].shape
        if motion is None:
            motion = new(item["motion"], (len(lengths), persons, padded, *frame))
            rows = motion.numpy()  # a call of numpy's costs less than one of torch's
        place = motion[number, :, :length]
        if place.shape != item["motion"].shape:
            raise ValueError(f"items: expected motion {tuple(place.shape)}, got {tuple(item['motion'].shape)}")
        rows[number, :, :length] = item["motion"].numpy()
        rows[number, :, length:] = 0
        gathered.append({**item, "motion": place})
    return gathered if motion is None else Gathered(gathered, motion)


def pad_motion(motions: Sequence[torch.Tensor], *, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Motions (P, T_i, ...) zero-padded to the longest, rounded up to ``multiple``: (B, P, T, ...), lengths (B,)."""
    lengths = [motion.shape[1] for motion in motions]
    if len(set(lengths)) == 1 and lengths[0] % multiple == 0:
        # nothing to pad
        return torch.stack(list(motions)), torch.tensor(lengths, dtype=torch.int64)
    persons, _, *frame = motions[0].shape
    padded = motions[0].new_empty(len(motions), persons, -(-max(lengths) // multiple) * multiple, *frame)
    for row, motion in zip(padded, motions, strict=True):
        row[:, : motion.shape[1]] = motion
        row[:, motion.shape[1] :] = 0
    return padded, torch.tensor(lengths, dtype=torch.int64)
