"""Gradients of weights in half types, whose sums would lose what is small beside what is large."""

from __future__ import annotations

import pytest
import torch

from intermoe import backends
from intermoe.kernels.contract import Experts, Route, Select
from intermoe.ops.moe import moe

SMALL = {"chunks of tokens": ("moe.BACKWARD_CHUNK_BYTES", 1), "segments of pairs": ("experts.SEGMENT_ROWS", 1)}


@pytest.mark.parametrize("parts", SMALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weights_gradient_is_exact_however_its_pairs_are_parted(
    parts: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One expert whose activation is 1 for each of 8 tokens: the gradient of W_down is the sum of those of ``out``."""
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    name, size = SMALL[parts]
    monkeypatch.setattr(f"intermoe.kernels.native.{name}", size)
    large = 2 / torch.finfo(dtype).eps  # 1 is lost beside it, seven of them are not
    grad_out = torch.tensor([[large], *[[1.0]] * 7], dtype=dtype)
    route = Route(torch.full((8, 1), 16.0, dtype=dtype, requires_grad=True), torch.zeros(1, 1), normalise=False)
    up = torch.tensor([[[1.0], [1 / 256]]], dtype=dtype)  # silu(16) is 16 and 16 / 256 is its inverse
    down = torch.ones(1, 1, 1, dtype=dtype, requires_grad=True)
    out = moe(route, Select(torch.tensor([-0.4])), Experts(up, down), backend="native").out
    assert out.tolist() == [[1.0]] * 8
    out.backward(grad_out)
    assert down.grad is not None
    assert down.grad.item() == torch.tensor(large + 7).to(dtype).item()
