"""Combine: every backend against the reference."""

from __future__ import annotations

import pytest
import torch

from intermoe.ops.combine import combine_reference
from intermoe.ops.select import select_reference


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("weighted", [True, False])
def test_combine(steps, case, dtype, weighted: bool, relative_error, tolerance) -> None:
    pairs = select_reference(case.hidden @ case.router_weight.T, case.selection_bias, case.valid)
    expert_out = torch.randn(pairs.token_idx.numel(), case.hidden.shape[1]).to(dtype)
    gates = pairs.gates if weighted else None
    actual = steps.combine(expert_out, gates, pairs.slots)
    assert actual.dtype == dtype
    assert (actual[(pairs.slots < 0).all(1)] == 0).all()
    assert relative_error(actual, combine_reference(expert_out.double(), gates, pairs.slots)) <= tolerance(dtype)


def test_is_deterministic(steps) -> None:
    pairs = select_reference(torch.randn(300, 5), torch.full((5,), -0.5))
    expert_out = torch.randn(pairs.token_idx.numel(), 70)
    first = steps.combine(expert_out, pairs.gates, pairs.slots)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(first, steps.combine(expert_out, pairs.gates, pairs.slots))
    finally:
        torch.set_num_threads(before)
