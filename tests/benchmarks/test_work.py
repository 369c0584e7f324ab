"""Counted work against the published table's figures and the roofline's counts."""

from __future__ import annotations

import pytest

from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.work import Shape, Work


def test_products_of_one_expert_per_token() -> None:
    """Three products of D x F per pair, two operations each: 45.3 GFLOP for 9600 tokens; twice that backwards."""
    shape = Shape(9600)
    forward = work.total(work.experts(shape, 2, True)).flop
    assert forward == 6 * 9600 * 768 * 1024
    assert work.total(work.experts_backward(shape, 2)).flop == 2 * forward
    assert work.total(work.dense(shape, 2, True)).flop == 3 * forward


@pytest.mark.parametrize("tokens", [300, 9600])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_counts_of_the_roofline(tokens: int, direction: str) -> None:
    """Of each product: two operations a number of both factors; its factors read and its result written, of 2 bytes."""
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import roofline

    d, f, weight = tokens * 768, tokens * 1024, 8 * 768 * 1024  # numbers of a row's width, and of one projection
    products = {
        "forward": {
            "up": (2, d + 3 * f + 2 * weight),  # the activation, and both before it for the backward
            "down": (1, f + d + weight),
        },
        "backward": {
            "grad_hidden": (1, d + f + weight),
            "grad_pairs": (2, 2 * f + d + 2 * weight),
            "grad_weight up": (2, 2 * f + d + 2 * weight),
            "grad_weight down": (1, d + f + weight),
        },
    }[direction]
    found = {w.name: (w.flops, w.bytes) for w in roofline.launches(direction, 86, "half", tokens) if w.flops}
    assert found == {name: (2 * number * tokens * 768 * 1024, 2 * moved) for name, (number, moved) in products.items()}


def test_the_bound_is_the_slower_ceiling() -> None:
    assert Work(100.0, 10.0).seconds(10.0, 10.0) == 10.0
    assert Work(100.0, 10.0).seconds(1000.0, 10.0) == 1.0


def test_memory_grows_with_capacity_and_tokens() -> None:
    small, large = (work.total(work.moe(Shape(4800, capacity=c), 4, False)) for c in (0.5, 2.0))
    assert small.flop < large.flop
    assert small.bytes < large.bytes
