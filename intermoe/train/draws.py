"""Random numbers of a batch, drawn item by item, so that they do not depend on how a step is shared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ItemDraws:
    """One generator per item, seeded by (``key``, the item's number): the same numbers in whatever batch the item is.

    Args:
        key: of everything that the items share, such as (seed, step). numbers: of the items, in the batch's order.
    """

    def __init__(self, key: Sequence[int], numbers: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.generators = [
            torch.Generator(device).manual_seed(int(np.random.SeedSequence((*key, n)).generate_state(1, np.uint64)[0]))
            for n in numbers
        ]

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) from [0, 1)."""
        return torch.stack([torch.rand(shape, generator=g, device=self.device) for g in self.generators])

    def normal(self, frames: Sequence[int] | int, *shape: int) -> Tensor:
        """(B, T, *shape) normal numbers in the first ``frames[i]`` frames of item i (or in all), zeros after them.

        An item's numbers do not depend on how far its batch is padded.
        """
        if isinstance(frames, int):
            frames = [frames] * len(self.generators)
        rows = [
            torch.randn((n, *shape), generator=g, device=self.device)
            for n, g in zip(frames, self.generators, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
