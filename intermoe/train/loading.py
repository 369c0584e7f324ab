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
    largest = collate([dataset.draw(longest, 0)])
    tensors = [value for value in largest.values() if isinstance(value, Tensor)]
    kept = SharedMemory(collate, workers, sum(_aligned(sampler.batch_size * value.nbytes) for value in tensors))
    loader = DataLoader(
        Draws(dataset, kept.new) if _is_plain(largest) else Draws(dataset),
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
        collate: a batch of items.
        workers: processes.
        size: bytes of the largest batch; a larger one goes torch's way.
    """

    def __init__(self, collate: Collate, workers: int, size: int) -> None:
        self.collate, self.size, self.made, self.used = collate, size, 0, 0
        self.memory = [_shared((_AHEAD + 1) * size) for _ in range(workers)]

    def new(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """In a process: memory for the next batch, at the begin of its place if it has room there."""
        worker, size = get_worker_info(), math.prod(shape) * like.itemsize
        self.used = _aligned(size)
        if worker is None or self.used > self.size:
            self.used = 0
            return like.new_empty(shape)
        return self._lying(worker.id, self._place, like.dtype, torch.Size(shape))

    def __call__(self, items: Sequence[Any]) -> Batch | _Lying:
        """In a process: the batch, its tensors in the next place."""
        batch, worker = self.collate(items), get_worker_info()
        if worker is None:
            return batch
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        lying = {name: at for name, value in tensors.items() if (at := self._at(worker.id, value)) is not None}
        others = {name: value for name, value in tensors.items() if name not in lying}
        start, self.used = self._place + self.used, 0
        if start + sum(_aligned(value.nbytes) for value in others.values()) > self._place + self.size:
            return {name: value.clone() if name in tensors else value for name, value in batch.items()}
        for name, value in others.items():
            lying[name] = start, value.dtype, value.shape
            self._lying(worker.id, *lying[name]).copy_(value)
            start += _aligned(value.nbytes)
        self.made += 1
        return _Lying(worker.id, {name: batch[name] for name in batch if name not in tensors}, lying)

    @property
    def _place(self) -> int:
        return self.made % (_AHEAD + 1) * self.size

    def _at(self, worker: int, value: Tensor) -> tuple[int, torch.dtype, torch.Size] | None:
        """Where ``value`` lies in the memory, if it does."""
        start = value.data_ptr() - self.memory[worker].data_ptr()
        inside = 0 <= start < self.memory[worker].nbytes and value.is_contiguous()
        return (start, value.dtype, value.shape) if inside else None

    def taken(self, batch: Batch | _Lying) -> Batch:
        """In the parent, before it asks for the next: the batch in its own memory."""
        if not isinstance(batch, _Lying):
            return batch
        return {**batch.batch, **{name: self._lying(batch.worker, *at).clone() for name, at in batch.tensors.items()}}

    def _lying(self, worker: int, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        return self.memory[worker][start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _is_plain(batch: Batch) -> bool:
    """Whether ``batch`` has, beside tensors, nothing that could hold a part of an item: numbers and texts alone."""
    others = [value for value in batch.values() if not isinstance(value, Tensor)]
    parts = [part for value in others for part in (value if isinstance(value, list) else [value])]
    return all(isinstance(part, (str, int, float)) for part in parts)


def _shared(size: int) -> Tensor:
    """So many bytes for several processes, which take room when they are first written."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
