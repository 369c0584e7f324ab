"""The native steps compute what was asked for, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intermoe import backends


@pytest.fixture
def native() -> Any:
    """The package of the native backend."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    return backends.load("native")


@pytest.mark.parametrize("needed", [True, False])
def test_a_router_that_does_not_learn_has_no_gradient(native: Any, needed: bool) -> None:
    from intermoe.kernels.native.route import route_backward

    tokens, logits, hidden = torch.randn(4, 8), torch.randn(4, 3), torch.randn(4, 8)
    statistics = (torch.zeros(4), torch.ones(4))
    found = route_backward(tokens, logits, hidden, statistics, torch.randn(3, 8), None, True, 2, weight_needed=needed)
    assert (found[1] is not None) == needed
    if needed:
        torch.testing.assert_close(found[1], logits.T @ hidden)
    torch.testing.assert_close(found[2], logits.unflatten(0, (2, 2)).sum(dim=1))


def test_a_choice_is_of_pairs(native: Any) -> None:
    """Without a bias ``valid`` is the choice itself; a column of tokens is none."""
    with pytest.raises(ValueError, match=r"^valid: "):
        native.select(torch.randn(5, 3), None, torch.ones(5, dtype=torch.bool))
