"""Tensors that a call makes and another reads, in one allocation: an allocation costs the host as much as a launch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 256
"""Of memory in between, as the allocator's own."""


def aligned(size: int) -> int:
    """Bytes up to the next boundary."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Form(NamedTuple):
    """What a tensor is allocated by."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, like: Tensor) -> Form:
        """As another is."""
        return cls(tuple(like.shape), like.stride(), like.dtype)


Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]


def allocator(device: torch.device, seen: bool = False) -> Allocate:
    """What allocates by a ``Form`` on the current device, as code that torch compiles does: in half the time.

    ``seen``: as ``torch.empty_strided``, which modes see and which fills memory where ``torch.utils.deterministic``
    says so.
    """
    fast: Allocate | None = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if fast is not None and not seen:
        return fast
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=device)


class Spare:
    """Dense memory that is read no more, if there is any, which is handed out from its start on."""

    def __init__(self, memory: Tensor | None = None) -> None:
        whole = memory is not None and memory.is_contiguous() and memory.numel() > 0
        self._bytes = memory.view(-1).view(torch.uint8) if memory is not None and whole else None
        self._used = 0

    def new(self, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of the dtype of ``like``: there, or where it does not fit in new memory."""
        size = math.prod(shape) * like.element_size()
        if self._bytes is None or not size or self._used + size > self._bytes.numel():
            return like.new_empty(shape)
        start, self._used = self._used, aligned(self._used + size)
        return self._bytes[start : start + size].view(like.dtype).view(shape)


class Layout:
    """Where several tensors lie in one piece of memory."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.kinds = [(t.shape, t.dtype, t.nbytes) for t in tensors]
        self.offsets: list[int] = []
        self.size = 0
        """Bytes of all."""
        for tensor in tensors:
            self.offsets.append(self.size)
            self.size += aligned(tensor.nbytes)


class Together:
    """Tensors that are kept as long as each other: each on its own, or by a layout in one piece of memory."""

    __slots__ = ("_memory", "_tensors", "layout")

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._memory: Tensor | None = None
        self.layout: Layout | None = None

    @classmethod
    def of(cls, memory: Tensor, layout: Layout) -> Together:
        """In memory that a plan allocated by the layout."""
        made = cls.__new__(cls)
        made._tensors, made._memory, made.layout = (), memory, layout
        return made

    def data_ptr(self) -> int:
        """Of the one piece of memory."""
        if self._memory is None:
            raise RuntimeError("data_ptr: expected tensors in one piece of memory, got each on its own")
        return self._memory.data_ptr()

    def tensors(self) -> tuple[Tensor, ...]:
        """Each, as a view where they share memory."""
        if self._memory is None or self.layout is None:
            return self._tensors
        return tuple(
            self._memory[offset : offset + size].view(dtype).view(shape)
            for offset, (shape, dtype, size) in zip(self.layout.offsets, self.layout.kinds, strict=True)
        )

    def last(self, number: int) -> int:
        """The last element of an int64 tensor, which the host waits for."""
        if self._memory is None or self.layout is None:
            return int(self._tensors[number][-1])
        end = self.layout.offsets[number] + self.layout.kinds[number][2]
        return int(self._memory.view(torch.int64)[end // 8 - 1])
