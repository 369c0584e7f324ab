"""route and its backward against the reference in float64, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from intermoe.kernels.triton import route_backward, route_forward
from intermoe.kernels.triton.route_backward import sums_kernel
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
    (40, 2, 260, 1, 2, torch.float32),  # the same of wide tokens, of which a program takes few at a time
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
    results = route_backward(*grads, hidden, found[2:], weight, scale, True, rows)
    for name, result, given in zip(("hidden", "weight", "offset", "scale", "shift"), results, inputs, strict=True):
        if given is not None:
            assert result.shape == given.shape
            assert relative_error(result, given.grad) < tolerance(dtype), name
    assert (results[3] is None) == (scale is None)
    assert results[2].shape == (rows, experts)


def test_a_gradient_of_the_router_alone_is_the_same():
    hidden, weight = torch.randn(33, 40), torch.randn(7, 40)
    grad_tokens, grad_logits = torch.randn(33, 40), torch.randn(33, 7)
    _, _, mean, rstd = route_forward(hidden, weight, None, None, None)
    arguments = (grad_logits, hidden, (mean, rstd), weight, None, True, 11)
    _, wanted_weight, wanted_offset, *_ = route_backward(grad_tokens, *arguments)
    grad_hidden, grad_weight, grad_offset, *_ = route_backward(None, *arguments)
    assert grad_hidden is None
    assert torch.equal(grad_weight, wanted_weight)
    assert torch.equal(grad_offset, wanted_offset)
    assert route_backward(None, *arguments, (False, True))[1] is None
    assert torch.equal(route_backward(None, *arguments, (False, True))[2], wanted_offset)
    assert route_backward(None, *arguments, (True, False))[2] is None
    assert torch.equal(route_backward(None, *arguments, (True, False))[1], wanted_weight)


@pytest.mark.parametrize("left_out", [None, "OFFSET", "SCALE", "WEIGHT"])
def test_sums_of_several_blocks_with_tails(left_out, relative_error):
    """Every sum is longer and wider than a block, and none is a whole number of blocks."""
    rows, tokens, experts, scale_rows, chunks, dim, weight_chunks = 2, 9, 3, 3, 7, 11, 5
    grad_logits, weight = torch.randn(rows, tokens, experts), torch.randn(1, weight_chunks, experts * dim)
    scale, shift = torch.randn(2, scale_rows, chunks, dim)
    given = {"OFFSET": (grad_logits,), "SCALE": (scale, shift), "WEIGHT": (weight,)}
    arguments, results = [], []
    for name, chunked in given.items():
        for one in chunked:
            out = None if name == left_out else torch.full((one.shape[0], one.shape[2]), float("nan"))
            arguments += [one if name == "OFFSET" or out is not None else None, out]
            if out is not None:
                results.append((out, one.double().sum(1)))
    programs = {"OFFSET": rows, "SCALE": 2 * scale_rows * 3, "WEIGHT": 9}
    flags = {f"HAS_{name}": name != left_out for name in given}
    grid = sum(count for name, count in programs.items() if name != left_out)
    sums_kernel[(grid, 1, 1)](
        *arguments, rows, tokens, scale_rows, chunks, weight_chunks,
        DIM=dim, NUM_EXPERTS=experts, PADDED_EXPERTS=4, BLOCK_S=4, BLOCK_R=2, BLOCK_C=4, **flags,
    )  # fmt: skip
    for found, wanted in results:
        assert relative_error(found, wanted) < 1e-6
