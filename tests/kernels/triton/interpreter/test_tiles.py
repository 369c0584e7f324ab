"""What the kernels round and how they divide their work, in Triton's interpreter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from intermoe.kernels.triton import experts_backward, experts_forward
from intermoe.kernels.triton.launch import blocks, cdiv, launch, power_of_2
from intermoe.kernels.triton.tiles import round_kernel
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import experts_reference
from intermoe.ops.select import select_reference


def rounded(x: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, torch.nan)
    launch(round_kernel, (cdiv(x.numel(), 64), 1, 1), (x, out, x.numel()), {"BLOCK": 64})
    return out


def test_rounding_takes_the_nearest_number_of_ten_bits():
    x = torch.randn(200) * torch.logspace(-20, 20, 200)
    mantissa, exponent = np.frexp(x.double().numpy())
    expected = np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5) / 2**11, exponent)
    assert torch.equal(rounded(x).double(), torch.from_numpy(expected))


def test_rounding_leaves_what_needs_none():
    special = torch.tensor([0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, 1023 / 1024])
    assert torch.equal(rounded(special), special)
    everywhere_ones = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert rounded(everywhere_ones).isnan().all()


def test_tf32_products_read_rounded_numbers(relative_error, monkeypatch):
    """In the interpreter products are exact, so what is left of the difference is the operands' rounding."""
    pairs = select_reference(2 * torch.randn(12, 3), torch.full((3,), -0.5))
    x, grad_out = torch.randn(2, 12, 16)
    w_gate_up, w_down = torch.randn(3, 16, 16) / 4, torch.randn(3, 16, 8) / 8**0.5
    routing = pairs.token_idx, pairs.expert_offsets
    wide = [value.double().requires_grad_() for value in (x, w_gate_up, w_down)]
    expected = experts_reference(wide[0], *routing, *wide[1:])
    combine_reference(expected, pairs.gates.double(), pairs.slots).backward(grad_out.double())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        out, h = experts_forward(x, *routing, w_gate_up, w_down)
        *_, grad_gate_up, grad_down = experts_backward(grad_out, x, *routing, pairs.gates, h, w_gate_up, w_down)
    finally:
        torch.set_float32_matmul_precision(before)
    for found, wanted in ((out, expected), (grad_gate_up, wide[1].grad), (grad_down, wide[2].grad)):
        assert 1e-5 < relative_error(found, wanted) < 1e-3


@pytest.mark.parametrize(
    ("width", "widest", "expected"),
    [
        (1, None, (16, 16, 1)),  # least of everything
        (768, None, (2, 1024, 1)),  # the model's width
        (5000, None, (1, 8192, 4)),  # one row is more than a program should hold: more warps
        (100_000, None, (1, 131_072, 16)),  # as many warps as there may be
        (5000, 1024, (2, 1024, 1)),  # columns in turns
    ],
)
def test_blocks(width, widest, expected):
    assert blocks(width, 2048, 2048, widest) == expected


def test_sizes():
    assert [power_of_2(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
