"""Modules that are built to be filled draw nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from intermoe import InterMoEBlock
from intermoe.nn.init import SkipRandomInit

BUILT: dict[str, Callable[[], object]] = {
    "linear": lambda: nn.Linear(3, 4),
    "embedding": lambda: nn.Embedding(5, 3),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "block": lambda: InterMoEBlock(dim=8, num_experts=3, expert_dim=4, cond_dim=5),
    "by function": lambda: (nn.init.normal_(torch.empty(3)), nn.init.uniform_(tensor=torch.empty(3))),
    "by method": lambda: (torch.empty(3).normal_(), torch.empty(3).uniform_()),
}


@pytest.mark.parametrize("name", BUILT)
def test_no_number_is_drawn_within(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with SkipRandomInit():
        BUILT[name]()
    assert torch.equal(torch.get_rng_state(), before)
    BUILT[name]()
    assert not torch.equal(torch.get_rng_state(), before), "and outside it is"
    with SkipRandomInit():
        assert (nn.init.constant_(torch.empty(3), 2.0) == 2).all()  # what is no draw is done
