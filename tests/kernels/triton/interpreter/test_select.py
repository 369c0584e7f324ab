"""select and its backward against the reference and its own invariants, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intermoe.kernels.triton import raise_on_overflow, select, select_backward
from intermoe.ops.select import select_reference

SHAPES = [
    (0, 3, -0.5, "all"),  # no tokens
    (1, 1, -0.1, "all"),  # least of everything
    (33, 7, -0.5, "token"),  # one token more than a block, odd experts, padding
    (70, 64, -0.8, "all"),  # the most experts, several chunks
    (40, 4, 1.0, "token"),  # all valid pairs selected
    (40, 4, -1.0, "all"),  # none selected
    (33, 7, -0.5, "pair"),  # mask and bias decide
    (33, 7, None, "pair"),  # a choice
    (0, 3, None, "pair"),  # no tokens to choose
]


@pytest.mark.parametrize(("tokens", "experts", "bias", "masked"), SHAPES)
def test_pairs_equal_the_reference(tokens, experts, bias, masked):
    logits, biases = torch.randn(tokens, experts), None if bias is None else torch.full((experts,), bias)
    valid = {"all": None, "token": torch.rand(tokens) > 0.3, "pair": torch.rand(tokens, experts) > 0.6}[masked]
    found, expected = select(logits, biases, valid), select_reference(logits, biases, valid)
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if name == "gates":
            torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
        else:
            assert torch.equal(a, b), name


def test_an_expert_may_take_nobody():
    found = select(torch.randn(50, 3), torch.tensor([-0.5, -1.0, -0.5]))
    assert found[2][1] == found[2][2]
    assert found[4][1] == 0


def test_nan_selects_nothing():
    logits = torch.randn(5, 3)
    logits[2] = torch.nan
    found = select(logits, torch.full((3,), 0.5))
    assert (found[3][2] == -1).all()
    assert found[4].tolist() == [4, 4, 4]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(tokens=st.integers(1, 100), experts=st.integers(1, 9), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_invariants(tokens, experts, density, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator)
    token_idx, gates, offsets, slots, counts = select(logits, torch.full((experts,), density - 1))
    assert offsets[0] == 0
    assert torch.equal(offsets.diff(), counts)
    assert sorted(slots[slots >= 0].tolist()) == list(range(token_idx.numel()))  # every pair once
    rows, columns = (slots >= 0).nonzero(as_tuple=True)
    assert torch.equal(token_idx[slots[rows, columns]], rows)
    assert (gates > 0).all()
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        assert (token_idx[start:end].diff() > 0).all()  # ordered by token within the expert


def test_static_mode_gives_the_same_pairs():
    logits, biases = torch.randn(37, 5), torch.full((5,), -0.5)
    exact, static = select(logits, biases), select(logits, biases, max_pairs=37 * 5)
    pairs = exact[0].numel()
    assert static[0].shape == (37 * 5,)
    assert torch.equal(static[0][:pairs], exact[0])
    assert torch.equal(static[1][:pairs], exact[1])
    assert (static[0][pairs:] == 0).all()  # valid indices all the same
    for a, b in zip(static[2:], exact[2:], strict=True):
        assert torch.equal(a, b)


def test_static_mode_raises_with_the_numbers_instead_of_dropping_pairs():
    logits, biases = torch.randn(37, 5), torch.full((5,), 0.5)
    with pytest.raises(RuntimeError, match=r"185 .* were selected but only 100 allocated"):
        select(logits, biases, max_pairs=100)
    raise_on_overflow(logits.device)  # raised once, then reset
    assert select(logits, biases, max_pairs=185)[0].numel() == 185


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"experts must be in 1\.\.64, got 65"):
        select(torch.randn(2, 65), torch.zeros(65))
    with pytest.raises(ValueError, match=r"max_pairs: must be >= 0 and < 2\*\*31, got -1"):
        select(torch.randn(2, 3), torch.zeros(3), max_pairs=-1)
    with pytest.raises(ValueError, match=r"valid: expected the choice \(2, 3\) where there is no bias, got \(2,\)"):
        select(torch.randn(2, 3), None, torch.ones(2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="bfloat16"):
        select(torch.randn(2, 3, dtype=torch.bfloat16), torch.zeros(3))


@pytest.mark.parametrize(("tokens", "experts", "bias"), [(0, 3, -0.5), (1, 1, 0.5), (33, 7, -0.5), (20, 64, -0.5)])
def test_backward(tokens, experts, bias, relative_error):
    logits, biases = torch.randn(tokens, experts), torch.full((experts,), bias)
    _, gates, _, slots, _ = select(logits, biases)
    grad = torch.randn_like(gates)
    wide = logits.double().requires_grad_()
    (torch.softmax(wide, -1)[slots >= 0] * grad[slots[slots >= 0]]).sum().backward()
    found = select_backward(grad, logits, slots)
    assert found.dtype == torch.float32
    # each gradient is a difference of terms as large as itself: eps of those, not of it
    assert (found - wide.grad).norm() <= 1e-6 * max(1.0, grad.norm().item())
    if experts > 1 and tokens:
        assert relative_error(found, wide.grad) < 1e-5
