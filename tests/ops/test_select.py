"""Selection: every backend gives exactly the reference's pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intermoe import backends
from intermoe.ops.select import select_reference

NAMES = ("token_idx", "gates", "expert_offsets", "slots", "counts")


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("kind", ["all", "tokens", "pairs", "choice"])
def test_select(steps, case, kind: str) -> None:
    logits = case.hidden @ case.router_weight.T
    pairs = case.valid[:, None] & (torch.arange(logits.shape[1]) != 1)
    valid = {"all": None, "tokens": case.valid}.get(kind, pairs)
    bias = None if kind == "choice" else case.selection_bias
    expected = select_reference(logits, bias, valid)
    if kind == "choice":
        assert torch.equal(expected.slots >= 0, pairs)
    for name, actual in zip(NAMES, steps.select(logits, bias, valid), strict=True):
        wanted = getattr(expected, name)
        assert actual.dtype == wanted.dtype, name
        torch.testing.assert_close(actual, wanted, rtol=1e-6 if name == "gates" else 0, atol=0)


def test_a_choice_is_taken_as_it_is(steps, case) -> None:
    """Without a bias the mask says which pairs there are; their gates are the softmax's all the same."""
    logits = case.hidden @ case.router_weight.T
    chosen = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) > 0.4
    expected = select_reference(logits, None, chosen)
    assert torch.equal(expected.slots >= 0, chosen)
    for name, actual in zip(NAMES, steps.select(logits, None, chosen), strict=True):
        torch.testing.assert_close(actual, getattr(expected, name), rtol=1e-6 if name == "gates" else 0, atol=0)


@pytest.mark.parametrize(("level", "per_token"), [(-30.0, 0), (30.0, 3)], ids=["none selected", "all selected"])
def test_extremes(steps, level: float, per_token: int) -> None:
    logits = torch.full((600, 3), level)
    token_idx, gates, offsets, slots, counts = steps.select(logits, torch.full((3,), -0.5), None)
    assert token_idx.numel() == gates.numel() == offsets[-1] == 600 * per_token
    assert ((slots >= 0).sum(1) == per_token).all()
    assert (counts == 600 * (per_token > 0)).all()


def test_nan_selects_nothing(steps) -> None:
    logits = torch.randn(50, 4)
    logits[::3] = torch.nan
    _, gates, _, slots, _ = steps.select(logits, torch.full((4,), -0.5), None)
    assert (slots[::3] == -1).all()
    assert gates.isfinite().all()


def test_select_backward(steps, case) -> None:
    logits = (case.hidden @ case.router_weight.T).requires_grad_()
    expected = select_reference(logits, case.selection_bias, case.valid)
    grad_gates = torch.randn_like(expected.gates)
    (wanted,) = torch.autograd.grad(expected.gates, logits, grad_gates)
    actual = steps.select_backward(grad_gates, logits.detach(), expected.slots)
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1100), st.integers(1, 9), st.floats(-4, 4), st.integers(0, 100))
def test_invariants(tokens: int, experts: int, level: float, seed: int) -> None:
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) + level
    token_idx, _, offsets, slots, counts = backends.load("native").select(logits, torch.full((experts,), -0.5), None)
    assert (offsets.diff() == counts).all()
    for e in range(experts):
        pairs = token_idx[offsets[e] : offsets[e + 1]]
        assert (pairs.diff() > 0).all(), "tokens of an expert are in order"
        assert (slots[pairs, e] == torch.arange(offsets[e], offsets[e + 1])).all()
    assert (slots >= 0).sum() == token_idx.numel(), "every pair exactly once"


def test_bad_arguments(steps) -> None:
    bias = torch.full((3,), -0.5)
    with pytest.raises((TypeError, ValueError), match="logits"):
        steps.select(torch.randn(4, 3).double(), bias, None)
    with pytest.raises((TypeError, ValueError), match="selection_bias"):
        steps.select(torch.randn(4, 3), bias[:2], None)
    with pytest.raises((TypeError, ValueError), match="valid"):
        steps.select(torch.randn(4, 3), bias, torch.ones(5, dtype=torch.bool))


@pytest.mark.parametrize("outside", [3, 7])
def test_slots_out_of_range_are_refused(outside: int) -> None:
    """From the first pair that there is not; the last one is there."""
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    native = backends.load("native")
    slots = torch.full((4, 2), 2)
    native.select_backward(torch.zeros(3), torch.zeros(4, 2), slots), native.combine(torch.zeros(3, 5), None, slots)
    slots[3, 1] = outside
    with pytest.raises(RuntimeError, match=rf"native select_backward: slots holds {outside}, but there are 3 pairs"):
        native.select_backward(torch.zeros(3), torch.zeros(4, 2), slots)
    with pytest.raises(RuntimeError, match=rf"native combine: slots holds {outside}, but there are 3 pairs"):
        native.combine(torch.zeros(3, 5), None, slots)
