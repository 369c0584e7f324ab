"""Batches that processes make, in memory that they share with their parent and use again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from intermoe.data.workers import end_with_parent, told_in_one_line
from intermoe.train.stream import DrawnDataset, Draws, StreamSampler

Batch = Mapping[str, Any]
Collate = Callable[[Sequence[Any]], Batch]

_AHEAD = 2  # batches of each process that are made ahead
_ALIGNED = 64


def batches(dataset: DrawnDataset, sampler: StreamSampler, collate: Collate, workers: int = 0) -> Iterator[Batch]:
    """``collate`` of the items of each batch of ``sampler``, in its order, by ``workers`` processes; 0: by this one.

    The processes start, and torch's generator is drawn from, when this is called.

    Raises:
        ChildProcessError: a process was killed. Otherwise the type of error that was met, in one line.
    """
    if workers == 0:
        return told_in_one_line(iter(DataLoader(Draws(dataset), batch_sampler=sampler, collate_fn=collate)))
    longest = max(range(len(dataset)), key=dataset.num_frames)
    tensors = [value for value in collate([dataset.draw(longest, 0)]).values() if isinstance(value, Tensor)]
    kept = SharedMemory(collate, workers, sum(_aligned(sampler.batch_size * value.nbytes) for value in tensors))
    loader = DataLoader(
        Draws(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=kept,
        prefetch_factor=_AHEAD,
        worker_init_fn=end_with_parent,
    )
    return map(kept.taken, told_in_one_line(iter(loader)))


class _Lying(NamedTuple):
    """A batch whose tensors, by name, lie in a process's memory: at which byte, of which type and shape."""

    worker: int
    batch: Batch
    tensors: dict[str, tuple[int, torch.dtype, torch.Size]]


class SharedMemory:
    """``collate``, for the processes of a loader; its parent has the batch from ``taken``, at once.

    New shared memory for every batch, as torch has it, costs more time than to fill it: the system clears each of its
    pages. A process has a place for every batch made ahead and one for that which the parent takes, in turn.

    Args:
        collate: a batch of items. workers: processes. size: bytes of the largest batch; a larger one goes torch's way.
    """

    def __init__(self, collate: Collate, workers: int, size: int) -> None:
        self.collate, self.size, self.made = collate, size, 0
        self.memory = [_shared((_AHEAD + 1) * size) for _ in range(workers)]

    def __call__(self, items: Sequence[Any]) -> Batch | _Lying:
        """In a process: the batch, its tensors in the next place."""
        batch, worker = self.collate(items), get_worker_info()
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        if worker is None or sum(_aligned(value.nbytes) for value in tensors.values()) > self.size:
            return batch
        start, lying = self.made % (_AHEAD + 1) * self.size, {}
        self.made += 1
        for name, value in tensors.items():
            lying[name] = start, value.dtype, value.shape
            self._lying(worker.id, *lying[name]).copy_(value)
            start += _aligned(value.nbytes)
        return _Lying(worker.id, {name: batch[name] for name in batch if name not in tensors}, lying)

    def taken(self, batch: Batch | _Lying) -> Batch:
        """In the parent, before it asks for the next: the batch in its own memory."""
        if not isinstance(batch, _Lying):
            return batch
        return {**batch.batch, **{name: self._lying(batch.worker, *at).clone() for name, at in batch.tensors.items()}}

    def _lying(self, worker: int, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        return self.memory[worker][start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _shared(size: int) -> Tensor:
    """So many bytes for several processes, which take room when they are first written."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
