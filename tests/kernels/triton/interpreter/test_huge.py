"""Index arithmetic beyond 2^31 elements: the last program of a huge launch computes what it does on its own.

The huge arrays are reserved, not filled: memory is taken only where something is written.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from intermoe.kernels.triton import select, select_backward
from intermoe.kernels.triton.combine import combine_constants, combine_kernel
from intermoe.kernels.triton.experts import grouped_product_kernel, up_kernel
from intermoe.kernels.triton.experts_backward import grad_weight_kernel, swiglu_backward_kernel
from intermoe.kernels.triton.route import route_constants, route_kernel
from intermoe.kernels.triton.route_backward import (
    grad_input_constants,
    grad_input_kernel,
    grad_router_constants,
    grad_router_kernel,
    sums_kernel,
)
from intermoe.kernels.triton.tiles import round_kernel

ROWS = 2**26  # before the rows that are looked at; times DIM it is beyond 2^31 elements
FEW, DIM, EXPERTS = 16, 64, 3
MANY = 33
"""Experts; times ROWS these, too, are beyond 2^31 elements."""


@pytest.fixture
def first_program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the number of the first program of the launches that follow."""
    start = [0]

    def program_id(self: Any, axis: int) -> Any:
        number = self.grid_idx[axis] + (start[0] if axis == 0 else 0)
        return interpreter.TensorHandle(np.array([number], dtype=np.int32), interpreter.tl.int32)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_get_program_id", program_id)
    return lambda number: start.__setitem__(0, number)


def reserved(rows: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros of (rows, *shape) that take no memory."""
    count = rows * int(np.prod(shape))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE of Linux, which Python names from 3.13 on
    try:
        memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    except OSError:
        pytest.skip("the system does not reserve tens of GB of addresses")
    return torch.frombuffer(memory, dtype=dtype).view(rows, *shape)


class Pair:
    """The same last rows, in a huge array and alone."""

    def __init__(self, few: torch.Tensor, before: int = ROWS) -> None:
        self.few, self.huge = few, reserved(before + len(few), *few.shape[1:], dtype=few.dtype)
        self.huge[before:] = few

    def of(self, huge: bool) -> torch.Tensor:
        return self.huge if huge else self.few


def numbers(*shape: int) -> Pair:
    return Pair(torch.randn(*shape))


def outputs(*shape: int) -> Pair:
    return Pair(torch.zeros(*shape))


def check(first_program, kernel, programs, start, arguments, constants, results) -> None:
    """Results of both launches must be the same, not all 0; constants that only the compiler reads are left out."""
    constants = {name: value for name, value in constants.items() if name not in ("num_warps", "num_stages")}
    for huge in (False, True):
        first_program(start if huge else 0)
        kernel[programs](*arguments(huge), **constants)
    for result in results:
        assert result.few.abs().sum() > 0
        assert torch.equal(result.huge[-len(result.few) :], result.few)


def test_combine(first_program) -> None:
    expert_out, gates, out = numbers(FEW, DIM), numbers(FEW), outputs(FEW, DIM)
    few = torch.full((FEW, MANY), -1)
    few[:, 1] = torch.arange(FEW)
    slots = Pair(few)
    slots.huge[ROWS:, 1] += ROWS
    sizes = combine_constants(DIM, MANY)
    inputs = (expert_out, gates, slots, out)
    check(
        first_program, combine_kernel, (1, 1, 1), ROWS // sizes["BLOCK_S"],
        lambda huge: (*(x.of(huge) for x in inputs), huge * ROWS + FEW), {**sizes, "HAS_GATES": True}, [out],
    )  # fmt: skip
    assert sizes["BLOCK_S"] == FEW


def test_route_and_its_gradient(first_program) -> None:
    """A row of the condition for every token, so that these are beyond, too."""
    hidden, scale, shift, grad = (numbers(FEW, DIM) for _ in range(4))
    offset, grad_logits = numbers(FEW, MANY), numbers(FEW, EXPERTS)
    weight = torch.randn(MANY, DIM)
    tokens, logits, mean, rstd = (outputs(FEW, *shape) for shape in ((DIM,), (MANY,), (), ()))
    sizes = route_constants(DIM, MANY)
    assert sizes["BLOCK_S"] == FEW
    flags = {"NORMALISE": True, "HAS_SCALE": True}

    def forward(huge: bool) -> tuple[Any, ...]:
        h, *rest = (x.of(huge) for x in (hidden, offset, scale, shift, tokens, logits, mean, rstd))
        return h, weight, *rest, huge * ROWS + FEW, 1, 1, 1e-6

    everything = {**sizes, **flags, "HAS_OFFSET": True}
    results = [tokens, logits, mean, rstd]
    check(first_program, route_kernel, (1, 1, 1), ROWS // FEW, forward, everything, results)

    grad_hidden, grad_scale, grad_shift = (outputs(FEW, DIM) for _ in range(3))

    def backward(huge: bool) -> tuple[Any, ...]:
        before = (x.of(huge) for x in (grad, grad_logits, hidden, mean, rstd))
        after = (x.of(huge) for x in (scale, grad_hidden, grad_scale, grad_shift))
        return *before, weight[:EXPERTS], *after, 1, 1

    constants = {**grad_input_constants(DIM, EXPERTS), **flags}
    results = [grad_hidden, grad_scale, grad_shift]
    check(first_program, grad_input_kernel, (FEW, 1, 1), ROWS, backward, constants, results)

    constants = grad_router_constants(DIM, EXPERTS)
    start = ROWS // constants["BLOCK_S"]
    sums = Pair(torch.zeros(1, EXPERTS, DIM), start)
    check(
        first_program, grad_router_kernel, (1, 1, 1), start,
        lambda huge: (grad_logits.of(huge), hidden.of(huge), sums.of(huge), huge * ROWS + FEW, 1), constants, [sums],
    )  # fmt: skip


def test_many_chunks_of_the_router_s_gradient(first_program) -> None:
    """Here it is the sums that lie beyond, not the tokens."""
    grad_logits, hidden, start = torch.randn(16, EXPERTS), torch.randn(16, DIM), 2**24
    sums = Pair(torch.zeros(1, EXPERTS, DIM), start)
    check(
        first_program, grad_router_kernel, (1, 1, 1), 0, lambda _: (grad_logits, hidden, sums.few, 16, 1),
        grad_router_constants(DIM, EXPERTS), [],
    )  # fmt: skip
    huge = Pair(grad_logits, start * 16), Pair(hidden, start * 16)
    first_program(start)
    grad_router_kernel[(1, 1, 1)](
        *(x.huge for x in huge), sums.huge, start * 16 + 16, 1, **grad_router_constants(DIM, EXPERTS)
    )
    assert torch.equal(sums.huge[-1:], sums.few)


def test_sums_of_chunks(first_program) -> None:
    """Of rows far into their arrays; the gradient of the router's weight is one row."""
    chunks, out = Pair(torch.randn(1, 2, DIM), 2**25), Pair(torch.zeros(1, DIM), 2**25)
    sizes = {"DIM": DIM, "NUM_EXPERTS": 1, "PADDED_EXPERTS": 2, "BLOCK_S": 4, "BLOCK_R": 2, "BLOCK_C": DIM}
    flags = {"HAS_OFFSET": False, "HAS_SCALE": True, "HAS_WEIGHT": False}

    def arguments(huge: bool) -> tuple[Any, ...]:
        scale = (chunks.of(huge), out.of(huge))
        return None, None, *scale, *scale, None, None, 0, 0, huge * 2**25 + 1, 2, 0

    check(first_program, sums_kernel, (1, 1, 1), 2**25, arguments, {**sizes, **flags}, [out])


def test_swiglu_backward(first_program) -> None:
    h, gates, weighted = numbers(FEW, 2 * DIM), numbers(FEW), numbers(FEW, DIM)
    grad_h, grad_gates = outputs(FEW, 2 * DIM), outputs(FEW)
    constants = {"EXPERT_DIM": DIM, "NUM_EXPERTS": 1, "BLOCK_P": FEW, "BLOCK_F": DIM, "ROUND": False}
    check(
        first_program, swiglu_backward_kernel, (1, 1, 1), ROWS // FEW,
        lambda huge: (
            h.of(huge), gates.of(huge), torch.tensor([0, huge * ROWS + FEW]), grad_h.of(huge), weighted.of(huge),
            grad_gates.of(huge),
        ),
        constants, [grad_h, grad_gates, weighted],
    )  # fmt: skip


TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 1024, "PRECISION": "ieee", "HALF_SUMS": False}
BEFORE, NUM_EXPERTS = 2**20, 64
ALONE, LAST = ({"NUM_EXPERTS": n, "PADDED_EXPERTS": max(2, n)} for n in (1, NUM_EXPERTS))
"""An expert of its own; the last of 64, whose weights of 8192 x 8192 lie beyond, as do its pairs and their tokens."""


def pairs_of_the_last() -> torch.Tensor:
    """Offsets: the first expert has all pairs before."""
    return torch.tensor([0, *[BEFORE] * (NUM_EXPERTS - 1), BEFORE + FEW])


def test_up(first_program) -> None:
    dim, width = 8192, 4096
    x, h, activation = (Pair(torch.zeros(FEW, n), BEFORE) for n in (dim, 2 * width, width))
    x.few[:] = x.huge[BEFORE:] = torch.randn(FEW, dim)
    weight = Pair(torch.randn(1, 2 * width, dim) / 90, NUM_EXPERTS - 1)
    idx = Pair(torch.arange(FEW), BEFORE)
    idx.huge[BEFORE:] += BEFORE
    flags = {"DIM": dim, "EXPERT_DIM": width, "SAVE_H": True, "SAVE_ACTIVATION": True, "ROUND": False}
    for huge in (False, True):
        first_program(huge * BEFORE // 16 * width // 16)
        offsets = pairs_of_the_last() if huge else torch.tensor([0, FEW])
        arrays = (x.of(huge), idx.of(huge), offsets, weight.of(huge), h.of(huge), activation.of(huge))
        up_kernel[(1, 1, 1)](*arrays, **(LAST if huge else ALONE), **TILE, **flags)
    for result in (h, activation):
        assert result.few[:, :16].abs().min() > 0
        assert torch.equal(result.huge[BEFORE:], result.few)


@pytest.mark.parametrize(("gathered", "transposed"), [(False, False), (True, True)])
def test_product(first_program, gathered: bool, transposed: bool) -> None:
    size = 8192
    x, out = Pair(torch.randn(FEW, size), BEFORE), Pair(torch.zeros(FEW, size), BEFORE)
    weight = Pair(torch.randn(1, size, size) / 90, NUM_EXPERTS - 1)
    idx = Pair(torch.arange(FEW), BEFORE)
    idx.huge[BEFORE:] += BEFORE
    flags = {"INNER": size, "OUTER": size, "GATHER": gathered, "TRANSPOSED": transposed}
    for huge in (False, True):
        first_program(huge * BEFORE // 16 * size // 16)
        offsets = pairs_of_the_last() if huge else torch.tensor([0, FEW])
        arrays = (x.of(huge), idx.of(huge), offsets, weight.of(huge), out.of(huge))
        grouped_product_kernel[(1, 1, 1)](*arrays, **(LAST if huge else ALONE), **TILE, **flags)
    assert out.few[:, :16].abs().min() > 0
    assert torch.equal(out.huge[BEFORE:], out.few)


@pytest.mark.parametrize("transposed", [False, True])
def test_product_with_the_end_of_one_huge_matrix(first_program, transposed: bool) -> None:
    """Of more than 2^31 elements of its own: the last columns of the result are those of a matrix of no others."""
    inner, outer = (1024, 2**21 + 2**14) if transposed else (2**15 + 2**10, 2**16)
    few, x = torch.randn((inner, FEW) if transposed else (FEW, inner)) / 90, torch.randn(FEW, inner)
    matrix = reserved(*((inner, outer) if transposed else (outer, inner)))
    end = matrix[:, -FEW:] if transposed else matrix[-FEW:]
    end[:] = few
    assert matrix.numel() > 2**31
    results = []
    for weight, columns in ((few, FEW), (matrix, outer)):
        out = reserved(FEW, columns)
        first_program(columns // 16 - 1)
        grouped_product_kernel[(1, 1, 1)](
            x, None, torch.tensor([0, FEW]), weight[None], out, INNER=inner, OUTER=columns, GATHER=False,
            TRANSPOSED=transposed, **ALONE, **TILE,
        )  # fmt: skip
        results.append(out[:, -FEW:])
    assert results[0].abs().min() > 0
    assert torch.equal(*results)


def test_gradients_of_weights(first_program) -> None:
    """Tokens and pairs far into their arrays, and an expert far into the result."""
    left, right, out = numbers(FEW, DIM), numbers(FEW, DIM), Pair(torch.zeros(1, DIM, DIM), 2**20)
    index = Pair(torch.arange(FEW))
    index.huge[ROWS:] += ROWS
    offsets = Pair(torch.tensor([0, FEW]), 2**20)
    offsets.huge[2**20 :] += ROWS
    inputs = (left, right, index, offsets, out)
    for gathered in (True, False):
        constants = {
            "HEIGHT": DIM, "WIDTH": DIM, "BLOCK_M": DIM, "BLOCK_N": DIM, "BLOCK_K": 16, "PRECISION": "ieee",
            "GATHER_LEFT": gathered, "GATHER_RIGHT": not gathered,
        }  # fmt: skip
        check(
            first_program, grad_weight_kernel, (1, 1, 1), 2**20,
            lambda huge: tuple(x.of(huge) for x in inputs), constants, [out],
        )  # fmt: skip


def test_rounding(first_program) -> None:
    x, out = Pair(torch.randn(16), 2**32), Pair(torch.zeros(16), 2**32)
    check(
        first_program, round_kernel, (1, 1, 1), 2**28,
        lambda huge: (x.of(huge), out.of(huge), huge * 2**32 + 16), {"BLOCK": 16}, [out],
    )  # fmt: skip


def test_selections_that_32_bits_do_not_count_are_refused() -> None:
    logits = torch.zeros(1, 1).expand(2**25, 64)
    with pytest.raises(ValueError, match=r"expected tokens \* experts < 2\*\*31, got 33554432 \* 64"):
        select(logits, torch.zeros(64))
    with pytest.raises(ValueError, match=r"expected tokens \* experts < 2\*\*31"):
        select_backward(torch.zeros(1), logits, torch.zeros(1, 1, dtype=torch.int64).expand(2**25, 64))
