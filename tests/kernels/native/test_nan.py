"""Logits that are no numbers: harmless, and reported on request, whatever the backend."""

from __future__ import annotations

import pytest
import torch

from intermoe import backends
from intermoe.nn.moe import InterMoEBlock


@pytest.fixture(params=["reference", "native"])
def block(request: pytest.FixtureRequest) -> InterMoEBlock:
    if not backends.available()[request.param].usable:
        pytest.skip(f"{request.param} backend: {backends.available()[request.param].reason}")
    return InterMoEBlock(dim=8, num_experts=3, expert_dim=8, cond_dim=None, backend=request.param)


def test_nan_stays_with_its_token(block: InterMoEBlock) -> None:
    hidden = torch.randn(2, 5, 8)
    clean = block(hidden)
    hidden[1, 2, 4] = torch.nan
    out = block(hidden)
    assert (out[1, 2] == 0).all(), "a token of NaN logits is taken by no expert"
    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[1, 2] = False
    torch.testing.assert_close(out[keep], clean[keep])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_detect_nan_names_the_token(block: InterMoEBlock, value: float) -> None:
    hidden = torch.randn(2, 5, 8)
    hidden[1, 2, 4] = value
    block(hidden)
    with backends.detect_nan(), pytest.raises(ValueError, match=r"logits: .* of token 7 and expert 0"):
        block(hidden)
    block(hidden)


def test_padding_may_hold_anything(block: InterMoEBlock) -> None:
    hidden, mask = torch.randn(1, 4, 8), torch.tensor([[True, True, False, False]])
    hidden[0, 3] = torch.nan
    with backends.detect_nan():
        assert (block(hidden, mask=mask)[0, 2:] == 0).all()
