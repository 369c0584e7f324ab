"""The order in which a run reads its data, as a function of the batch's number alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from intermoe.data.interhuman import MotionItem

Draw = tuple[int, int]


class DrawnDataset(Protocol):
    """A dataset whose items are functions of (its seed, index, epoch)."""

    def __len__(self) -> int: ...

    def draw(self, index: int, epoch: int) -> MotionItem:
        """Item ``index`` as it is drawn in ``epoch``."""
        ...


class StreamSampler(Sampler[list[Draw]]):
    """Batches ``numbers`` of an endless stream of shuffled epochs over ``length`` items, as (index, epoch) pairs.

    Batch n is items [n * batch_size, (n + 1) * batch_size) of the stream; a batch may cross from one epoch to the next,
    so no item is left out and a set may be smaller than a batch.
    """

    def __init__(self, length: int, batch_size: int, numbers: Iterable[int], seed: int) -> None:
        self.length, self.batch_size, self.numbers, self.seed = length, batch_size, numbers, seed

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for number in self.numbers:
            batch: list[Draw] = []
            for position in range(number * self.batch_size, (number + 1) * self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                batch.append((int(order[position % self.length]), epoch))
            yield batch


class Draws(Dataset[MotionItem]):
    """``dataset`` indexed by (index, epoch) pairs."""

    def __init__(self, dataset: DrawnDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> MotionItem:
        return self.dataset.draw(*draw)
