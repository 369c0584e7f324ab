"""combine against the reference, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from intermoe.kernels.triton import combine
from intermoe.ops.combine import combine_reference
from intermoe.ops.select import select_reference

# tokens, experts, dim, bias: beside the shapes that every backend is given in ``tests/ops``
SHAPES = [
    (5, 2, 530, -0.5),  # more columns than a block
    (6, 3, 16, -1.0),  # nothing selected: zeros, though no pair exists
    (6, 64, 16, 0.5),  # all of the most experts
]


@pytest.mark.parametrize(("tokens", "experts", "dim", "bias"), SHAPES)
@pytest.mark.parametrize("with_gates", [True, False])
def test_sums_equal_the_reference(tokens, experts, dim, bias, with_gates, relative_error, tolerance):
    pairs = select_reference(torch.randn(tokens, experts), torch.full((experts,), bias))
    outputs = torch.randn(pairs.token_idx.numel(), dim)
    gates = pairs.gates if with_gates else None
    found = combine(outputs, gates, pairs.slots)
    expected = combine_reference(outputs.double(), None if gates is None else gates.double(), pairs.slots)
    assert relative_error(found, expected) < tolerance(torch.float32)


def test_unused_rows_are_not_read():
    slots = torch.tensor([[0, -1], [-1, -1]])
    outputs = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
    assert combine(outputs, None, slots).tolist() == [[1.0, 2.0], [0.0, 0.0]]
