"""route and its backward against the reference in float64, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from intermoe.kernels.triton import route_backward, route_forward
from intermoe.ops.route import route_reference

SHAPES = [
    # tokens, experts, dim, offset rows, scale rows, normalise
    (1, 1, 7, 1, 1, True),  # least of everything, fewer columns than a block
    (33, 7, 40, 11, 1, True),  # odd everything; one row of scale for all tokens, as a LayerNorm's weight
    (24, 4, 260, 3, 3, True),  # several blocks of columns with a tail
    (20, 64, 33, 20, 20, True),  # the most experts; a condition per token
    (18, 5, 20, 2, None, False),  # tokens handed through
    (70, 3, 17, None, None, True),  # no condition at all, several chunks of tokens
    (140, 2, 16, 1, 2, True),  # more tokens in a row than one program adds
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "experts", "dim", "offset_rows", "scale_rows", "normalise"), SHAPES)
def test_forward_and_every_gradient(
    tokens, experts, dim, offset_rows, scale_rows, normalise, dtype, relative_error, tolerance
):
    hidden, weight = (torch.randn(tokens, dim) * 2 + 3).to(dtype), torch.randn(experts, dim).to(dtype)
    offset = torch.randn(offset_rows, experts) if offset_rows else None
    scale, shift = torch.randn(2, scale_rows, dim).to(dtype).unbind() if scale_rows else (None, None)
    found = route_forward(hidden, weight, offset, scale, shift, 1e-6, normalise)
    inputs = [None if t is None else t.double().requires_grad_() for t in (hidden, weight, offset, scale, shift)]
    expected = route_reference(*inputs, normalise=normalise)
    assert found[0].dtype == dtype
    assert found[1].dtype == torch.float32
    assert relative_error(found[0], expected[0]) < tolerance(dtype, dim)
    assert relative_error(found[1], expected[1]) < tolerance(torch.float32, dim)

    grads = torch.randn(tokens, dim).to(dtype), torch.randn(tokens, experts)
    torch.autograd.backward(expected, tuple(g.double() for g in grads))
    rows = offset_rows or 1
    results = route_backward(*grads, hidden, *found[2:], weight, scale, normalise, rows)
    longest = max(dim, tokens)
    for name, result, given in zip(("hidden", "weight", "offset", "scale", "shift"), results, inputs, strict=True):
        if given is not None:
            assert result.shape == given.shape
            assert relative_error(result, given.grad) < tolerance(dtype, longest), name
    assert (results[3] is None) == (scale is None)
    assert results[2].shape == (rows, experts)


def test_no_tokens():
    hidden, weight, row = torch.zeros(0, 8), torch.randn(3, 8), torch.zeros(1, 8)
    tokens, logits, mean, rstd = route_forward(hidden, weight, torch.zeros(1, 3), row, row)
    assert (tokens.shape, logits.shape) == ((0, 8), (0, 3))
    grads = route_backward(tokens, logits, hidden, mean, rstd, weight, row, True, 1)
    assert [tuple(g.shape) for g in grads] == [(0, 8), (3, 8), (1, 3), (1, 8), (1, 8)]
    assert all((g == 0).all() for g in grads)


def test_variance_survives_a_large_mean(relative_error):
    hidden = torch.randn(5, 300) * 0.1 + 1000
    bound = torch.finfo(torch.float32).eps * 1000 / 0.1  # what rounding the mean costs; squares would lose it all
    found = route_forward(hidden, torch.zeros(2, 300), None, None, None)[0]
    assert relative_error(found, route_reference(hidden.double(), torch.zeros(2, 300), None, None, None)[0]) < bound


def test_half_hidden_with_a_float32_router(relative_error):
    hidden, weight = torch.randn(6, 40).half(), torch.randn(3, 40)
    found = route_forward(hidden, weight, None, None, None)[1]
    assert relative_error(found, hidden.double() @ weight.double().T) < 1e-6
