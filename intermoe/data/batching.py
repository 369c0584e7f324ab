"""Items of different length in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from intermoe.data.items import MotionItem

# The VAE's downsampling in time: padded lengths are multiples of it.
FRAME_MULTIPLE = 4


class MotionBatch(TypedDict):
    """``motion`` float32 (B, T, P, ...), zero from ``lengths`` (int64 (B,), true numbers of frames) on."""

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
    lengths = [item["motion"].shape[0] for item in items]
    frames = -(-max(lengths) // FRAME_MULTIPLE) * FRAME_MULTIPLE
    motion = items[0]["motion"].new_zeros(len(items), frames, *items[0]["motion"].shape[1:])
    for row, item in zip(motion, items, strict=True):
        row[: item["motion"].shape[0]] = item["motion"]
    return {
        "names": [item["name"] for item in items],
        "captions": [item["caption"] for item in items],
        "motion": motion,
        "lengths": torch.tensor(lengths, dtype=torch.int64),
    }
