from __future__ import annotations

import torch
from torch import nn

from intermoe.train.ema import WeightAverage


def test_average_follows_its_formula() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = WeightAverage([weight], decay=0.3)
    expected = torch.zeros(3)
    for n in range(12):
        with torch.no_grad():
            weight.add_(1.0)
        average.update()
        decay = min(0.3, (1 + n) / (10 + n))  # the warm-up rules until n = 2, the given decay after it
        expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(average.shadow[0], expected)  # after every step: the warm-up is soon forgotten


def test_applied_lends_the_average_and_returns_the_weights() -> None:
    weight = nn.Parameter(torch.ones(2))
    average = WeightAverage([weight], decay=0.9)
    with torch.no_grad():
        weight.fill_(5.0)
    with average.applied():
        assert torch.equal(weight, torch.ones(2))
    assert torch.equal(weight, torch.full((2,), 5.0))


def test_decay_zero_keeps_the_last_weights() -> None:
    weight = nn.Parameter(torch.ones(2))
    average = WeightAverage([weight], decay=0.0)
    with torch.no_grad():
        weight.fill_(0.1)
    average.update()
    assert torch.equal(average.shadow[0], weight)
