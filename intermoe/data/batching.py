"""Items of different length in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from intermoe.data.items import MotionItem

# The VAE's downsampling in time: padded lengths are multiples of it.
FRAME_MULTIPLE = 4


class MotionBatch(TypedDict):
    """``motion`` float32 (B, P, T, ...), zero from ``lengths`` (int64 (B,), true numbers of frames) on."""

    names: list[str]
    captions: list[str]
    motion: torch.Tensor
    lengths: torch.Tensor


def collate(items: Sequence[MotionItem]) -> MotionBatch:
    """Zero-pad to the longest item, rounded up to a multiple of 4 frames.

    Zeros are added to what comes in: normalise first, or mask by ``lengths`` after normalising.
    """
    if not items:
        raise ValueError("items: expected at least one, got none")
    motion, lengths = pad_motion([item["motion"] for item in items], multiple=FRAME_MULTIPLE)
    return {
        "names": [item["name"] for item in items],
        "captions": [item["caption"] for item in items],
        "motion": motion,
        "lengths": lengths,
    }


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
