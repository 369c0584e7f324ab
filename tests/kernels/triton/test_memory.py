"""Memory that is handed out again, and rows of a condition that stand for tokens; no kernel runs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from intermoe.kernels.triton.arguments import expect_divisor, expect_rows
from intermoe.kernels.triton.together import ALIGNMENT, Form, Spare, allocator


def test_spare_memory_is_handed_out_at_boundaries_and_never_twice() -> None:
    memory = torch.zeros(3 * ALIGNMENT, dtype=torch.uint8)
    spare, half, wide = Spare(memory), torch.zeros(0, dtype=torch.float16), torch.zeros(0)
    parts = [spare.new(half, 3), spare.new(wide, 2, 5), spare.new(half, ALIGNMENT // 2)]
    assert [part.data_ptr() - memory.data_ptr() for part in parts] == [0, ALIGNMENT, 2 * ALIGNMENT]
    assert [(part.dtype, tuple(part.shape)) for part in parts] == [
        (torch.float16, (3,)), (torch.float32, (2, 5)), (torch.float16, (ALIGNMENT // 2,)),
    ]  # fmt: skip
    for number, part in enumerate(parts):
        part.fill_(number + 1)
    assert [set(part.flatten().tolist()) for part in parts] == [{1.0}, {2.0}, {3.0}]
    more = spare.new(half, 1)
    assert not 0 <= more.data_ptr() - memory.data_ptr() < memory.nbytes, "what does not fit is new"
    assert Spare(None).new(wide, 2).shape == (2,)
    strided = torch.zeros(8, 8)[:, ::2]
    assert Spare(strided).new(wide, 2).data_ptr() != strided.data_ptr(), "of dense memory alone"


@pytest.mark.parametrize(("rows", "tokens"), [(1, 6), (3, 6), (6, 6), (0, 0), (4, 0)])
def test_rows_that_divide_the_tokens_are_taken(rows: int, tokens: int) -> None:
    expect_divisor("scale", rows, tokens)
    expect_rows("scale", torch.zeros(rows, 5), tokens, 5)
    expect_rows("scale", None, tokens, 5)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 6), (4, 6), (12, 6)])
def test_other_rows_are_refused(rows: int, tokens: int) -> None:
    told = f"^scale: expected a number of rows that divides the number of tokens {tokens}, got {rows}$"
    with pytest.raises(ValueError, match=told):
        expect_rows("scale", torch.zeros(rows, 5), tokens, 5)


@pytest.mark.parametrize("device", ["cpu", "meta"])  # what compiled code allocates by is there for the first alone
@pytest.mark.parametrize("seen", [False, True])
def test_memory_is_allocated_by_its_form(device: str, seen: bool) -> None:
    allocate = allocator(torch.device(device), seen)
    for shape, dtype in (((3, 5), torch.bfloat16), ((0, 5), torch.float32), ((8,), torch.int64), ((), torch.uint8)):
        wanted = torch.empty(shape, dtype=dtype, device=device)
        made = allocate(*Form.of(wanted))
        found = (made.shape, made.dtype, made.stride(), made.device, made.untyped_storage().nbytes())
        expected = (wanted.shape, dtype, wanted.stride(), wanted.device, wanted.untyped_storage().nbytes())
        assert found == expected
