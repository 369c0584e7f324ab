"""The experts' products, forward and backward, against the reference in float64, in Triton's interpreter."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intermoe.kernels.triton import combine, experts_backward, experts_forward
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import experts_reference
from intermoe.ops.select import select_reference

backward: Any = import_module("intermoe.kernels.triton.experts_backward")  # the package has a function of this name

# Beside the shapes that every backend is given in ``tests/ops``.
SHAPES = [
    # tokens, experts, dim, expert_dim, bias
    (12, 2, 32, 16, 0.5),  # all selected; exact multiples of the tiles
    (5, 3, 16, 16, -1.0),  # nothing selected: gradients of the weights are zeros, not what was in memory
    (20, 9, 16, 16, -0.7),  # most experts take few tokens or none
]


def problem(tokens, experts, dim, expert_dim, bias, dtype):
    pairs = select_reference(2 * torch.randn(tokens, experts), torch.full((experts,), bias))
    x = torch.randn(tokens, dim).to(dtype)
    w_gate_up = (torch.randn(experts, 2 * expert_dim, dim) * dim**-0.5).to(dtype)
    w_down = (torch.randn(experts, dim, expert_dim) * expert_dim**-0.5).to(dtype)
    return pairs, x, w_gate_up, w_down


@pytest.mark.parametrize(("tokens", "experts", "dim", "expert_dim", "bias"), SHAPES)
def test_forward_and_every_gradient(tokens, experts, dim, expert_dim, bias, relative_error, tolerance):
    pairs, x, w_gate_up, w_down = problem(tokens, experts, dim, expert_dim, bias, torch.float32)
    grad_out = torch.randn(tokens, dim)
    out, h = experts_forward(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down)
    wide = [t.double().requires_grad_() for t in (x, pairs.gates, w_gate_up, w_down)]
    expected = experts_reference(wide[0], pairs.token_idx, pairs.expert_offsets, *wide[2:])
    combine_reference(expected, wide[1], pairs.slots).backward(grad_out.double())

    bound = tolerance(torch.float32)
    assert h.shape == (len(pairs.token_idx), 2 * expert_dim)
    assert relative_error(out, expected) < bound
    routing = (pairs.token_idx, pairs.expert_offsets, pairs.gates)
    grad_pairs, *others = experts_backward(grad_out, x, *routing, h, w_gate_up, w_down)
    found = [combine(grad_pairs, None, pairs.slots), *others]
    for name, result, given_ in zip(("x", "gates", "w_gate_up", "w_down"), found, wide, strict=True):
        assert result.shape == given_.shape
        assert relative_error(result, given_.grad) < bound, name


def test_columns_in_turns_have_the_gradients_of_columns_at_once(monkeypatch, relative_error):
    """Of wide experts a program takes some columns at a time; here 8 of 20, so that the last turn has a tail."""
    pairs, x, w_gate_up, w_down = problem(10, 2, 16, 20, -0.5, torch.float32)
    _, h = experts_forward(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down)
    arguments = (torch.randn(10, 16), x, pairs.token_idx, pairs.expert_offsets, pairs.gates, h, w_gate_up, w_down)
    at_once = experts_backward(*arguments)
    constants = backward.swiglu_constants
    assert constants(20, 2)["BLOCK_F"] == 32
    monkeypatch.setattr(backward, "swiglu_constants", lambda *sizes: {**constants(*sizes), "BLOCK_F": 8})
    for found, expected in zip(experts_backward(*arguments), at_once, strict=True):
        assert relative_error(found, expected) < 1e-6


def test_h_can_be_computed_again(relative_error):
    pairs, x, w_gate_up, w_down = problem(10, 2, 16, 16, -0.5, torch.float32)
    saved, h = experts_forward(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down)
    unsaved, nothing = experts_forward(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down, save_h=False)
    assert torch.equal(saved, unsaved)
    assert nothing.shape == (0, 32)
    arguments = (torch.randn(10, 16), x, pairs.token_idx, pairs.expert_offsets, pairs.gates)
    with_h = experts_backward(*arguments, h, w_gate_up, w_down)
    without = experts_backward(*arguments, None, w_gate_up, w_down)
    assert all(torch.equal(a, b) for a, b in zip(with_h, without, strict=True))


def test_static_buffers_give_the_same_results():
    pairs, x, w_gate_up, w_down = problem(12, 3, 16, 16, -0.5, torch.float32)
    used = len(pairs.token_idx)
    room = torch.zeros(36 - used, dtype=torch.int64)
    padded_idx, padded_gates = torch.cat([pairs.token_idx, room]), torch.cat([pairs.gates, room.float()])
    exact, h = experts_forward(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down)
    static, static_h = experts_forward(x, padded_idx, pairs.expert_offsets, w_gate_up, w_down)
    assert torch.equal(static[:used], exact)
    assert torch.equal(combine(static, padded_gates, pairs.slots), combine(exact, pairs.gates, pairs.slots))
    grad_out = torch.randn(12, 16)
    a = experts_backward(grad_out, x, pairs.token_idx, pairs.expert_offsets, pairs.gates, h, w_gate_up, w_down)
    b = experts_backward(grad_out, x, padded_idx, pairs.expert_offsets, padded_gates, static_h, w_gate_up, w_down)
    assert torch.equal(b[0][:used], a[0])
    assert torch.equal(b[1][:used], a[1])
    assert torch.equal(a[2], b[2])
    assert torch.equal(a[3], b[3])


def test_half_sums(relative_error, tolerance):
    pairs, x, w_gate_up, w_down = problem(10, 2, 40, 24, -0.5, torch.float16)
    routing = pairs.token_idx, pairs.expert_offsets
    out, _ = experts_forward(x, *routing, w_gate_up, w_down, save_h=False, half_sums=True)
    expected = experts_reference(x.double(), *routing, w_gate_up.double(), w_down.double())
    assert relative_error(out, expected) < tolerance(torch.float16)
    with pytest.raises(TypeError, match=r"half_sums: .* got torch.float32"):
        experts_forward(x.float(), *routing, w_gate_up.float(), w_down.float(), half_sums=True)


def test_weights_of_another_dtype_are_named():
    pairs, x, w_gate_up, w_down = problem(4, 2, 8, 8, -0.5, torch.float32)
    with pytest.raises(TypeError, match="w_down: expected the dtype of tokens"):
        experts_forward(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down.half())


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 20),
    experts=st.integers(1, 5),
    dim=st.integers(1, 40),
    expert_dim=st.integers(1, 20),
    density=st.floats(0, 1),
)
def test_any_shape(tokens, experts, dim, expert_dim, density):
    pairs, x, w_gate_up, w_down = problem(tokens, experts, dim, expert_dim, density - 1, torch.float32)
    out, _ = experts_forward(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down)
    expected = experts_reference(x, pairs.token_idx, pairs.expert_offsets, w_gate_up, w_down)
    assert (out - expected).norm() <= 1e-5 * expected.norm()
