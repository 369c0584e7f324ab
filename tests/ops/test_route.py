"""Routing: every backend against the reference, forward and every gradient."""

from __future__ import annotations

import pytest
import torch

from intermoe.ops.route import EPS, route_reference


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("kind", ["conditioned", "plain norm", "no norm"])
def test_route(steps, case, dtype, kind: str, relative_error, tolerance) -> None:
    # In float32: a sum of two gradients that cancel is not judged by the rounding of either.
    hidden = case.hidden.to(dtype).float().requires_grad_()
    weight, offset = case.router_weight.requires_grad_(), case.router_offset.requires_grad_()
    normalise, modulated = kind != "no norm", kind == "conditioned"
    scale, shift = (case.scale.requires_grad_(), case.shift.requires_grad_()) if modulated else (None, None)
    tokens, logits = route_reference(hidden, weight, offset, scale, shift, normalise=normalise)
    constants = [None if t is None else t.detach() for t in (hidden.to(dtype), weight, offset, scale, shift)]
    actual_tokens, actual_logits, mean, rstd = steps.route_forward(*constants, EPS, normalise)
    assert actual_tokens.dtype == dtype
    assert actual_logits.dtype == torch.float32
    assert relative_error(actual_tokens, tokens) <= tolerance(dtype)
    assert relative_error(actual_logits, logits) <= 1e-5

    grad_tokens, grad_logits = torch.randn_like(tokens).to(dtype), torch.randn_like(logits)
    leaves = [t for t in (hidden, weight, offset, scale, shift) if t is not None]
    wanted = torch.autograd.grad((tokens, logits), leaves, (grad_tokens.float(), grad_logits))
    found = steps.route_backward(
        grad_tokens, grad_logits, constants[0], (mean, rstd), constants[1], constants[3], normalise, len(offset)
    )
    names = ("hidden", "router_weight", "router_offset", "scale", "shift")
    for name, actual, expected in zip(names, found, wanted, strict=False):
        assert relative_error(actual, expected) <= tolerance(dtype), name


def test_statistics_of_a_large_mean(steps, relative_error) -> None:
    """Two passes, and what the first left of the mean: the tokens of x + 1000 are those of x."""
    hidden = torch.randn(5, 300) + 1000
    tokens, *_ = steps.route_forward(hidden, torch.zeros(2, 300), None, None, None, EPS, True)
    exact = torch.nn.functional.layer_norm(hidden.double(), (300,), eps=EPS)
    assert relative_error(tokens, exact) < 1e-4


@pytest.mark.parametrize(("mean", "spread"), [(1e4, 10.0), (1e6, 1.0)])
def test_statistics_of_a_mean_that_a_sum_loses(steps, mean: float, spread: float) -> None:
    """A sum of so many numbers of that size is off: the mean that is saved is right to its last bit all the same."""
    hidden = spread * torch.randn(5, 3001, generator=torch.Generator().manual_seed(0)) + mean
    exact, ulp = hidden.double(), mean * 2.0**-23
    found, rstd = steps.route_forward(hidden, torch.zeros(2, 3001), None, None, None, EPS, True)[2:]
    assert (found.double().view(-1) - exact.mean(1)).abs().max() <= ulp
    wanted = (exact.var(1, unbiased=False) + EPS).rsqrt()
    torch.testing.assert_close(rstd.double().view(-1), wanted, rtol=2e-5, atol=0)


def test_non_contiguous(steps, relative_error) -> None:
    wide = torch.randn(12, 40)
    weight = torch.randn(20, 3).T
    tokens, logits, _, _ = steps.route_forward(wide[::2, 1::2], weight, None, None, None, EPS, True)
    dense = steps.route_forward(wide[::2, 1::2].contiguous(), weight.contiguous(), None, None, None, EPS, True)
    assert relative_error(tokens, dense[0]) == 0
    assert relative_error(logits, dense[1]) == 0


def test_bad_arguments(steps) -> None:
    with pytest.raises((TypeError, ValueError), match="hidden"):
        steps.route_forward(torch.randn(4, 3).double(), torch.randn(2, 3), None, None, None, EPS, True)
    with pytest.raises((TypeError, ValueError), match="router_weight"):
        steps.route_forward(torch.randn(4, 3), torch.randn(2, 4), None, None, None, EPS, True)
