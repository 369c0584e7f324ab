"""Sums of outputs that lie elsewhere than their pairs: those of a part of the experts, or of tokens."""

from __future__ import annotations

import pytest
import torch

from intermoe import backends
from intermoe.kernels.native.registry import CODES, call
from intermoe.ops.combine import combine_reference


@pytest.mark.parametrize("dtype", list(CODES), ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("with_gates", [True, False])
def test_rows_are_found_by_what_each_expert_is_moved_by(dtype: torch.dtype, with_gates: bool) -> None:
    """Pairs 0 to 2 of expert 0, 3 and 4 of expert 1, 5 to 8 of expert 2; the outputs of 1 are elsewhere."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    slots = torch.tensor([[0, -1, 5], [-1, -1, -1], [1, -1, 6], [2, -1, -1], [-1, -1, 7], [-1, -1, 8]])
    shifts = torch.tensor([0, 3, 2])
    rows = torch.randn(7, 19).to(dtype)  # of the pairs 0 1 2 5 6 7 8
    gates = torch.rand(9) if with_gates else None
    whole = torch.full((9, 19), torch.nan, dtype=dtype)
    whole[[0, 1, 2, 5, 6, 7, 8]] = rows
    out = torch.full((6, 19), torch.nan, dtype=dtype)
    call("combine", rows, gates, slots, shifts, out, 9, 6, 19, 3, CODES[dtype])
    torch.testing.assert_close(out, combine_reference(whole, gates, slots))
