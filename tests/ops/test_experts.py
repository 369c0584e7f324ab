"""Experts: every backend against the reference, forward and every gradient."""

from __future__ import annotations

import pytest
import torch

from intermoe import backends
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import experts_reference
from intermoe.ops.select import select_reference


@pytest.fixture
def own_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Who multiplies in the native backend, whatever the size and whether the CPU has units for half types."""
    if backend == "native":
        own = request.param == "own"
        monkeypatch.setattr("intermoe.kernels.native.experts.own_products", lambda *_, **__: own)
        monkeypatch.setattr("intermoe.kernels.native.products.choice", lambda *_: request.param)


@pytest.mark.usefixtures("nan_filled_memory", "own_products")
@pytest.mark.parametrize("saved", [True, False], ids=["h saved", "h recomputed"])
def test_experts(steps, case, dtype, saved: bool, relative_error, tolerance) -> None:
    pairs = select_reference(case.hidden @ case.router_weight.T, case.selection_bias, case.valid)
    tokens, gate_up, down = (t.to(dtype) for t in (case.hidden, case.w_gate_up, case.w_down))
    index = (pairs.token_idx, pairs.expert_offsets)
    # The reference in float64 on the values that are stored: the bound then covers one side's rounding only.
    leaves = [t.double().requires_grad_() for t in (tokens, gate_up, down)]
    gates = pairs.gates.double().requires_grad_()
    expected = experts_reference(leaves[0], *index, leaves[1], leaves[2])
    out = combine_reference(expected, gates, pairs.slots)
    grad_out = torch.randn_like(tokens)
    wanted = torch.autograd.grad(out, (expected, gates, leaves[1], leaves[2]), grad_out.double(), retain_graph=True)
    wanted_tokens = torch.autograd.grad(out, leaves[0], grad_out.double())[0]

    expert_out, h = steps.experts_forward(tokens, *index, gate_up, down, save_h=saved)
    assert relative_error(expert_out, expected) <= tolerance(dtype)
    found = steps.experts_backward(grad_out, tokens, *index, pairs.gates, h if saved else None, gate_up, down)
    grad_pairs, grad_gates, grad_gate_up, grad_down = found
    assert relative_error(steps.combine(grad_pairs, None, pairs.slots), wanted_tokens) <= tolerance(dtype)
    assert relative_error(grad_gates, wanted[1]) <= tolerance(dtype)
    assert relative_error(grad_gate_up, wanted[2]) <= tolerance(dtype)
    assert relative_error(grad_down, wanted[3]) <= tolerance(dtype)


def test_experts_of_several_segments(monkeypatch: pytest.MonkeyPatch, relative_error) -> None:
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    from intermoe.kernels.native import experts

    g = torch.Generator().manual_seed(0)
    tokens, gates = torch.randn(40, 12, generator=g), torch.rand(50, generator=g)
    token_idx, offsets = torch.randint(0, 40, (50,), generator=g), torch.tensor([0, 8, 8, 33, 50])
    gate_up, down = torch.randn(4, 20, 12, generator=g), torch.randn(4, 12, 10, generator=g)
    grad_out = torch.randn(40, 12, generator=g)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        arguments = [t.to(dtype) for t in (tokens, gate_up, down, grad_out)]
        t, up, lower, grad = arguments
        monkeypatch.setattr(experts, "SEGMENT_ROWS", 8)
        few = experts.experts_backward(grad, t, token_idx, offsets, gates, None, up, lower)
        monkeypatch.setattr(experts, "SEGMENT_ROWS", 100)
        many = experts.experts_backward(grad, t, token_idx, offsets, gates, None, up, lower)
        for a, b in zip(few, many, strict=True):
            assert relative_error(a, b) < bound


def test_bad_arguments(steps) -> None:
    tokens, gate_up, down = torch.randn(4, 3), torch.randn(2, 10, 3), torch.randn(2, 3, 5)
    idx, offsets = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 3])
    with pytest.raises((TypeError, ValueError), match="w_gate_up"):
        steps.experts_forward(tokens, idx, offsets, gate_up[:, :9], down)
    with pytest.raises((TypeError, ValueError), match=r"w_gate_up|w_down"):
        steps.experts_forward(tokens, idx, offsets, gate_up.half(), down.half())


@pytest.mark.parametrize(
    ("idx", "offsets", "message"),
    [
        ([0, 1, 4], [0, 1, 3], r"token_idx\[\d\] = 4 is outside 0 .. 4"),
        ([0, 1, -1], [0, 1, 3], r"token_idx\[\d\] = -1 is outside"),
        ([0, 1, 2], [0, 4, 3], "expert_offsets: expected a rise from 0"),
        ([0, 1, 2], [0, 1, 9], "expert_offsets: expected a rise from 0"),
    ],
)
def test_native_never_indexes_outside(idx: list[int], offsets: list[int], message: str) -> None:
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    arguments = (
        torch.randn(4, 3),
        torch.tensor(idx),
        torch.tensor(offsets),
        torch.randn(2, 10, 3),
        torch.randn(2, 3, 5),
    )
    with pytest.raises((RuntimeError, ValueError), match=message):
        backends.load("native").experts_forward(*arguments)
