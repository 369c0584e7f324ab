"""By what weights are known again: names, types, shapes and values, in whatever order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intermoe.evaluators.evaluator import weights_digest

WEIGHTS = {"a": torch.zeros(2, 3), "b": torch.ones(4)}


def test_the_order_of_names_and_memory_says_nothing() -> None:
    assert weights_digest(dict(reversed(WEIGHTS.items()))) == weights_digest(WEIGHTS)
    assert weights_digest({**WEIGHTS, "a": torch.zeros(3, 2).T}) == weights_digest(WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},  # the same bytes
        {"a": torch.zeros(2, 3, dtype=torch.float64)},
        {"a": torch.ones(2, 3)},
        {"c": torch.zeros(0)},
    ],
)
def test_other_weights_have_another(change: dict[str, Tensor]) -> None:
    assert weights_digest(WEIGHTS | change) != weights_digest(WEIGHTS)
    moved = {"a0": WEIGHTS["a"], "b": WEIGHTS["b"]}
    assert weights_digest(moved) != weights_digest(WEIGHTS)
