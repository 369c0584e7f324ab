"""route and its backward against the reference in float64, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from intermoe.kernels.triton import route_backward, route_forward
from intermoe.ops.route import route_reference

# Beside the shapes that every backend is given in ``tests/ops``.
SHAPES = [
    # tokens, experts, dim, offset rows, scale rows, stored in
    (33, 7, 40, 11, 1, torch.float32),  # one row of scale for all tokens, as a LayerNorm's weight
    (33, 7, 40, 11, 1, torch.float16),  # router and modulation of a half type, too
    (24, 4, 260, 3, 3, torch.float32),  # several blocks of columns with a tail
    (20, 64, 33, 20, 20, torch.float32),  # the most experts; a condition per token
    (70, 3, 17, None, None, torch.float32),  # no condition at all, several chunks of tokens
    (140, 2, 16, 1, 2, torch.float32),  # more tokens in a row than one program adds
]


@pytest.mark.parametrize(("tokens", "experts", "dim", "offset_rows", "scale_rows", "dtype"), SHAPES)
def test_forward_and_every_gradient(tokens, experts, dim, offset_rows, scale_rows, dtype, relative_error, tolerance):
    hidden, weight = (torch.randn(tokens, dim) * 2 + 3).to(dtype), torch.randn(experts, dim).to(dtype)
    offset = torch.randn(offset_rows, experts) if offset_rows else None
    scale, shift = torch.randn(2, scale_rows, dim).to(dtype).unbind() if scale_rows else (None, None)
    found = route_forward(hidden, weight, offset, scale, shift)
    inputs = [None if t is None else t.double().requires_grad_() for t in (hidden, weight, offset, scale, shift)]
    expected = route_reference(*inputs)
    assert found[0].dtype == dtype
    assert found[1].dtype == torch.float32
    assert relative_error(found[0], expected[0]) < tolerance(dtype)
    assert relative_error(found[1], expected[1]) < tolerance(torch.float32)

    grads = torch.randn(tokens, dim).to(dtype), torch.randn(tokens, experts)
    torch.autograd.backward(expected, tuple(g.double() for g in grads))
    rows = offset_rows or 1
    results = route_backward(*grads, hidden, *found[2:], weight, scale, True, rows)
    for name, result, given in zip(("hidden", "weight", "offset", "scale", "shift"), results, inputs, strict=True):
        if given is not None:
            assert result.shape == given.shape
            assert relative_error(result, given.grad) < tolerance(dtype), name
    assert (results[3] is None) == (scale is None)
    assert results[2].shape == (rows, experts)
