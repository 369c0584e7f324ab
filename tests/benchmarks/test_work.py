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


S, D, E, F, P = 6, 5, 3, 7, 9  # sizes of no common multiple: each array has its own number of bytes
WIDE, INDEX = 4, 8  # bytes of a float32 and of an index


@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize(
    ("step", "flop", "stored", "others"),
    [  # operations; elements of the storage type; bytes of the others
        ("route", 2 * S * D * E, [S * D, S * D], [S * E * WIDE]),  # hidden and tokens; logits
        ("route_backward", 4 * S * D * E, [S * D, S * D, S * D], [S * E * WIDE]),  # both gradients and hidden; logits'
        ("select", 0, [], [S * E * WIDE, S * E * INDEX, P * INDEX, P * WIDE]),  # logits, slots, token_idx, gates
        ("select_backward", 0, [], [S * E * WIDE, S * E * INDEX, S * E * WIDE, P * WIDE]),  # the same and gradients
        ("experts", 6 * P * D * F, [P * D, 2 * E * D * F, 3 * P * F, P * F, E * D * F, P * D], []),
        ("combine", 2 * P * D, [P * D, S * D], [S * E * INDEX, P * WIDE]),  # outputs, out; slots, gates
        ("combine_backward", 2 * P * D, [P * D, S * D], [S * E * INDEX]),  # the same, without gates
        (
            "experts_backward",
            12 * P * D * F,
            [
                *(P * D, E * D * F, 2 * P * F, 2 * P * F, P * F),  # of h and its gradient, and the weighted activation
                *(2 * P * F, 2 * E * D * F, P * D),  # of the pairs
                *(2 * P * F, P * D, 2 * E * D * F),  # of w_gate_up
                *(P * D, P * F, E * D * F),  # of w_down
            ],
            [],
        ),
    ],
)
def test_every_array_is_moved_once(step: str, flop: int, stored: list[int], others: list[int], element: int) -> None:
    shape = Shape(S, D, E, F, capacity=P / S)
    arguments = {"select": (), "select_backward": (), "experts": (element, True)}.get(step, (element,))
    counted = work.total(getattr(work, step)(shape, *arguments))
    assert (counted.flop, counted.bytes) == (flop, element * sum(stored) + sum(others))


def test_a_training_step_is_made_of_both_directions() -> None:
    shape, steps = Shape(S, D, E, F, capacity=P / S), ("route", "experts", "combine", "experts_backward")
    parts = [
        getattr(work, s)(shape, *((2, True) if s == "experts" else (2,)))
        for s in (*steps, "combine_backward", "route_backward")
    ]
    parts += [work.select(shape), work.select_backward(shape)]
    whole = work.total(work.moe(shape, 2, True))
    assert (whole.flop, whole.bytes) == (
        sum(one.flop for part in parts for one in part), sum(one.bytes for part in parts for one in part)
    )  # fmt: skip
    one = work.total(work.dense(shape, 2, False))
    assert (one.flop, one.bytes) == (6 * S * D * F, 2 * (2 * S * D + 2 * S * F + 3 * D * F))


def test_the_bound_is_the_slower_ceiling() -> None:
    assert Work(100.0, 10.0).seconds(10.0, 10.0) == 10.0
    assert Work(100.0, 10.0).seconds(1000.0, 10.0) == 1.0


def test_memory_grows_with_capacity_and_tokens() -> None:
    small, large = (work.total(work.moe(Shape(4800, capacity=c), 4, False)) for c in (0.5, 2.0))
    assert small.flop < large.flop
    assert small.bytes < large.bytes
