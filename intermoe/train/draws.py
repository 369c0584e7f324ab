"""Random numbers of a batch, drawn item by item, so that they do not depend on how a step is shared."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ItemDraws:
    """One generator per item, seeded by (``key``, the item's number): the same numbers in whatever batch the item is.

    Args:
        key: of everything that the items share, such as (seed, step).
        numbers: of the items, in the batch's order.
    """

    def __init__(self, key: Sequence[int], numbers: Sequence[int], device: torch.device) -> None:
        self.device = device
        seeds = np.random.SeedSequence(key).generate_state(max(numbers) + 1, np.uint64)
        self.generators = [torch.Generator(device).manual_seed(int(seeds[n])) for n in numbers]
        # single numbers are drawn on the host: a kernel for each would take longer than the numbers
        self.host = self.generators
        if device.type != "cpu":
            self.host = [torch.Generator().manual_seed(int(seeds[n])) for n in numbers]

    def on_host(self) -> ItemDraws:
        """The same source for numbers that the host looks at first, and that stay there: no wait for the device."""
        host = copy.copy(self)
        host.device, host.generators = torch.device("cpu"), self.host
        return host

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) from [0, 1)."""
        numbers = torch.stack([torch.rand(shape, generator=g) for g in self.host])
        return numbers.to(self.device, non_blocking=True)

    def uniform_over(self, frames: Sequence[int], *shape: int) -> Tensor:
        """(B, T, *shape) from [0, 1) in the first ``frames[i]`` frames of item i, zeros after them; as ``normal``."""
        numbers = torch.zeros(len(self.host), max(frames), *shape)
        for row, n, generator in zip(numbers, frames, self.host, strict=True):
            row[:n].uniform_(generator=generator)
        return numbers.to(self.device, non_blocking=True)

    def normal(self, frames: Sequence[int] | int, *shape: int) -> Tensor:
        """(B, T, *shape) normal numbers in the first ``frames[i]`` frames of item i (or in all), zeros after them.

        An item's numbers do not depend on how far its batch is padded.
        """
        if isinstance(frames, int):
            frames = [frames] * len(self.generators)
        numbers = torch.zeros(len(self.generators), max(frames), *shape, device=self.device)
        for row, n, generator in zip(numbers, frames, self.generators, strict=True):
            row[:n].normal_(generator=generator)
        return numbers
