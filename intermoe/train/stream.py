"""The order in which a run reads its data, as a function of the batch's number alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from intermoe.data.batching import gather
from intermoe.motion.representation import FRAMES_TOGETHER

Draw = tuple[int, int]


class DrawnDataset(Protocol):
    """A dataset whose items are functions of (its seed, index, epoch)."""

    def __len__(self) -> int: ...

    def draw(self, index: int, epoch: int) -> Mapping[str, Any]:
        """Item ``index`` as it is drawn in ``epoch``."""
        ...

    def num_frames(self, index: int) -> int:
        """Length of item ``index``, the same in every epoch."""
        ...


class StreamSampler(Sampler[list[Draw]]):
    """Batches ``numbers`` of an endless stream of shuffled epochs, as (index, epoch) pairs.

    ``parts`` batches make one step, so that a step has the same items however many ranks and micro-steps share it. The
    stream is cut into groups of ``GROUP`` steps. Within a group items of similar length come together, so that little
    is computed on padding, and the steps are shuffled. A group may cross from one epoch to the next, so no item is left
    out and a set may be smaller than a batch.

    Args:
        lengths: frames of every item.
        batch_size: items of a batch.
        numbers: which batches, in which order.
    """

    GROUP = 8

    def __init__(
        self, lengths: Sequence[int], batch_size: int, numbers: Iterable[int], seed: int, parts: int = 1
    ) -> None:
        self.lengths, self.batch_size, self.numbers, self.seed, self.parts = lengths, batch_size, numbers, seed, parts

    def __iter__(self) -> Iterator[list[Draw]]:
        return (batch for batch, _ in self._batches())

    def shares(self) -> Iterator[float]:
        """What each batch counts in its step: its part of the step's latent frames, 1 on average.

        A mean over the frames of a batch, times its share, averaged over the batches of a step, is the mean over all
        frames of the step.
        """
        for batch, step in self._batches():
            own, whole = (sum(self.lengths[index] // FRAMES_TOGETHER for index, _ in draws) for draws in (batch, step))
            yield self.parts * own / whole

    def _batches(self) -> Iterator[tuple[list[Draw], list[Draw]]]:
        """Each batch, and the step that it is a part of."""
        current, steps = -1, []
        for number in self.numbers:
            step, part = divmod(number, self.parts)
            if step // self.GROUP != current:
                current = step // self.GROUP
                steps = self._group(current)
            start = part * self.batch_size
            yield steps[step % self.GROUP][start : start + self.batch_size], steps[step % self.GROUP]

    def _group(self, group: int) -> list[list[Draw]]:
        step = self.batch_size * self.parts
        size = self.GROUP * step
        draws = sorted(self._stream(group * size, (group + 1) * size), key=lambda draw: self.lengths[draw[0]])
        order = np.random.default_rng((self.seed, group, self.GROUP)).permutation(self.GROUP)
        return [draws[i * step : (i + 1) * step] for i in order]

    def _stream(self, start: int, stop: int) -> Iterator[Draw]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for position in range(start, stop):
            if position // len(self.lengths) != epoch:
                epoch = position // len(self.lengths)
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
            yield int(order[position % len(self.lengths)]), epoch


class Draws(Dataset[Mapping[str, Any]]):
    """``dataset`` indexed by (index, epoch) pairs; those of a batch together by ``gather``, in ``new`` memory."""

    def __init__(
        self, dataset: DrawnDataset, new: Callable[[Tensor, Sequence[int]], Tensor] = Tensor.new_empty
    ) -> None:
        self.dataset, self.new = dataset, new

    def __getitem__(self, draw: Draw) -> Mapping[str, Any]:
        return self.dataset.draw(*draw)

    def __getitems__(self, draws: Sequence[Draw]) -> list[Mapping[str, Any]]:
        lengths = [self.dataset.num_frames(index) for index, _ in draws]
        return gather((self.dataset.draw(*draw) for draw in draws), lengths, self.new)
