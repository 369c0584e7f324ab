"""Selection with pairs that may not be taken, and with logits that are no numbers."""

from __future__ import annotations

import pytest
import torch

from intermoe import backends
from intermoe.kernels.native.registry import call


@pytest.fixture
def native():
    """The native backend's steps."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    return backends.load("native")


@pytest.mark.parametrize(("tokens", "experts"), [(0, 3), (1, 1), (1100, 5), (40, 64)])
def test_allowed_pairs(native, tokens: int, experts: int) -> None:
    """A pair that is not allowed is not taken; what the others get does not change."""
    g = torch.Generator().manual_seed(0)
    logits, bias = torch.randn(tokens, experts, generator=g), torch.full((experts,), -0.5)
    allowed = torch.rand(tokens, experts, generator=g) > 0.3
    free = native.select(logits, bias, None)[3] >= 0
    token_idx, gates, offsets, slots, counts = native.select(logits, bias, allowed)
    assert torch.equal(slots >= 0, free & allowed)
    assert torch.equal(counts, (free & allowed).sum(0))
    expert_idx, expected_idx = (free & allowed).T.nonzero(as_tuple=True)
    assert torch.equal(token_idx, expected_idx)
    assert torch.equal(offsets.diff(), counts)
    torch.testing.assert_close(gates, torch.softmax(logits, -1)[token_idx, expert_idx])


def test_a_mask_of_tokens_is_one_of_all_their_pairs(native) -> None:
    logits, bias, valid = torch.randn(70, 6), torch.full((6,), -0.6), torch.rand(70) > 0.5
    by_token = native.select(logits, bias, valid)
    by_pair = native.select(logits, bias, valid[:, None].expand(70, 6))
    assert all(torch.equal(a, b) for a, b in zip(by_token, by_pair, strict=True))


@pytest.mark.parametrize("shape", [(5,), (4, 3), (6, 1), (6, 4, 1)])
def test_a_mask_of_another_shape(native, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="valid: expected shape"):
        native.select(torch.randn(6, 4), torch.full((4,), -0.5), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers(native, value: float) -> None:
    """A NaN selects nothing, its token's other experts stay within bounds; infinities are plain very likely or not."""
    logits = torch.randn(30, 4)
    logits[::3, 1] = value
    token_idx, gates, offsets, slots, counts = native.select(logits, torch.full((4,), -0.5), None)
    assert bool((slots[::3, 1] >= 0).all()) == (value == float("inf"))
    assert torch.equal(counts, (slots >= 0).sum(0))
    assert int(offsets[-1]) == len(token_idx) == len(gates)
    assert torch.equal(slots[slots >= 0].sort().values, torch.arange(len(token_idx)))
    native.select_backward(torch.ones_like(gates), logits, slots)


@pytest.mark.parametrize("columns", [0, 2, 4])
def test_the_library_refuses_a_mask_of_other_columns(native, columns: int) -> None:
    """One for a token or one for each expert: of any other number it would read what is not there."""
    logits, slots = torch.randn(6, 3), torch.empty(6, 3, dtype=torch.int64)
    scratch, valid = slots.new_empty(1, 3), torch.ones(6, 4, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=f"expected V = 1 or E = 3, got V={columns}"):
        call("select_count", logits, None, valid, 6, 3, columns, slots, slots.new_empty(3), slots.new_empty(4), scratch)


@pytest.mark.parametrize("outside", [-1, 3])
def test_the_library_refuses_tokens_that_there_are_not(native, outside: int) -> None:
    """The first number below and the first above; the last token itself is there."""
    tokens, offsets = torch.randn(3, 8), torch.tensor([0, 2])
    weights = torch.randn(1, 8, 8), torch.randn(1, 8, 4)
    native.experts_forward(tokens, torch.tensor([0, 2]), offsets, *weights)
    index = torch.tensor([0, outside])
    refused = pytest.raises(RuntimeError, match=rf"token_idx\[1\] = {outside} is outside 0 .. 3")
    with refused:
        native.experts_forward(tokens, index, offsets, *weights)
    with refused:
        call("gather", tokens, index, 2, 3, 8 * 4, torch.empty(2, 8))
