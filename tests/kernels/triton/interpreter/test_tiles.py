"""What the kernels round and how they divide their work, in Triton's interpreter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from intermoe import backends
from intermoe.kernels.triton import combine, experts_backward, experts_forward
from intermoe.kernels.triton.experts import ROUND_BLOCK
from intermoe.kernels.triton.launch import blocks, cdiv, launch, power_of_2
from intermoe.kernels.triton.registry import refusal
from intermoe.kernels.triton.tiles import round_kernel
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


def nearest(x: torch.Tensor) -> torch.Tensor:
    """Float64 numbers rounded to TF32's ten bits."""
    mantissa, exponent = np.frexp(x.numpy())
    return torch.from_numpy(np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5) / 2**11, exponent))


def test_tf32_products_read_rounded_numbers(relative_error):
    """In the interpreter products are exact: what is left are the operands' roundings, of every one of them.

    Without one of them the results differ by 1e-4 of themselves. More elements than a program rounds, and a tail.
    """
    pairs = select_reference(2 * torch.randn(8, 2), torch.full((2,), -0.5))
    x, grad_out = torch.randn(2, 8, 72)
    w_gate_up, w_down = torch.randn(2, 30, 72) / 8, torch.randn(2, 72, 15) / 4
    assert w_gate_up.numel() > ROUND_BLOCK
    routing = pairs.token_idx, pairs.expert_offsets
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        out, h = experts_forward(x, *routing, w_gate_up, w_down)
        found = experts_backward(grad_out, x, *routing, pairs.gates, h, w_gate_up, w_down)
    finally:
        torch.set_float32_matmul_precision(before)

    tokens, grads, up, down = (nearest(value.double()) for value in (x, grad_out, w_gate_up, w_down))
    wanted = [[], [], [], [], []]
    start = 0
    for e, idx in enumerate(pairs.token_idx.split(pairs.counts.tolist())):
        gates = pairs.gates[start : start + len(idx), None].double()
        start += len(idx)
        gate, linear = (tokens[idx] @ up[e].T).chunk(2, dim=-1)
        chance = torch.sigmoid(gate)
        activation = gate * chance * linear
        inner = grads[idx] @ down[e]
        slopes = linear * chance * (1 + gate * (1 - chance)), gate * chance
        grad_h = nearest(gates * torch.cat([inner * slope for slope in slopes], dim=1))
        wanted[0].append(nearest(activation) @ down[e].T)
        wanted[1].append(grad_h @ up[e])
        wanted[2].append((inner * activation).sum(1))
        wanted[3].append((grad_h.T @ tokens[idx])[None])
        wanted[4].append((grads[idx].T @ nearest(gates * activation))[None])
    for number, (actual, expected) in enumerate(zip((out, *found), map(torch.cat, wanted), strict=True)):
        assert relative_error(actual, expected) < 2e-5, number


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


def test_bfloat16_is_refused_as_the_interpreter_computes_it_wrongly():
    cpu, wrong = torch.device("cpu"), "Triton's interpreter computes bfloat16 wrongly"
    assert refusal(cpu, torch.bfloat16) == f"{wrong}; use float32 or float16 with it"
    assert refusal(cpu, torch.float16) is refusal(cpu, torch.float32) is None
    with pytest.raises(RuntimeError, match=wrong):
        backends.resolve(cpu, torch.bfloat16, "triton")
    assert backends.resolve(cpu, torch.float16, "triton") == "triton"
    rows, slots = torch.ones(2, 4, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"^expert_out: expected float32 or float16, as {wrong}, got it$"):
        combine(rows, None, slots)
