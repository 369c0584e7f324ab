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
def test_counts_are_those_of_the_roofline(tokens: int, direction: str) -> None:
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import roofline

    shape = Shape(tokens)
    launches = roofline.launches(direction, 86, "half", tokens)
    theirs = [w for w in launches if w.flops]
    ours = work.experts(shape, 2, True) if direction == "forward" else work.experts_backward(shape, 2)
    assert [w.flops for w in theirs] == [w.flop for w in ours]
    moved = [w.bytes for w in theirs]
    if direction == "backward":
        # the activation's gradient is a pass of its own there; the bound has it in the product's epilogue
        moved[0] += sum(w.bytes for w in launches if w.name == "swiglu_backward") - 2 * shape.pairs * shape.width * 2
    assert moved == [w.bytes for w in ours]


def test_the_bound_is_the_slower_ceiling() -> None:
    assert Work(100.0, 10.0).seconds(10.0, 10.0) == 10.0
    assert Work(100.0, 10.0).seconds(1000.0, 10.0) == 1.0


def test_memory_grows_with_capacity_and_tokens() -> None:
    small, large = (work.total(work.moe(Shape(4800, capacity=c), 4, False)) for c in (0.5, 2.0))
    assert small.flop < large.flop
    assert small.bytes < large.bytes
