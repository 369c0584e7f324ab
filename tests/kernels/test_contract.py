"""What tells calls apart whose launches differ: all of it, and nothing that does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intermoe.kernels.contract import described


class Stub:
    """A tensor as ``described`` looks at it, on whatever device."""

    def __init__(self, **changes: Any) -> None:
        self.shape, self.dtype = torch.Size((3, 4)), torch.float32
        self.device, self.dense, self.start = 0, True, 4096
        self.__dict__ |= changes

    def get_device(self) -> int:
        return self.device

    def is_contiguous(self) -> bool:
        return self.dense

    def data_ptr(self) -> int:
        return self.start


@pytest.mark.parametrize(
    "change",
    [
        {"shape": torch.Size((4, 3))},
        {"dtype": torch.float16},
        {"device": 1},
        {"dense": False},
        {"start": 4096 + 8},
        {"start": 0},  # without memory, as on the meta device, which has the CPU's number
    ],
)
def test_calls_that_are_launched_in_other_ways_are_told_apart(change: dict[str, Any]) -> None:
    one: Any = Stub()
    other: Any = Stub(**change)
    assert described([one, None]) != described([other, None])
    assert described([one, one]) != described([one, other]) != described([other, one])


def test_no_memory_is_neither_at_a_boundary_nor_off_one() -> None:
    kinds = [described([one]) for one in (torch.zeros(8)[4:], torch.zeros(8)[1:5], torch.zeros(4, device="meta"))]
    assert len(set(kinds)) == 3


def test_other_memory_of_the_same_kind_is_alike() -> None:
    one: Any = Stub()
    other: Any = Stub(start=8192)
    assert described([one, None]) == described([other, None])
    assert described([one, None]) != described([None, one])
    assert hash(described([torch.zeros(2), None])) == hash(described([torch.ones(2), None]))
