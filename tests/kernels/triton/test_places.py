"""Where a plan puts memory in between: what is in use at once must not overlap, what is not may."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from intermoe.benchmarks.harness import host, standin
from intermoe.kernels import triton as package
from intermoe.kernels.contract import Needs
from intermoe.kernels.triton import plan
from intermoe.kernels.triton.registry import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter takes the Python code")


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_memory_in_use_at_once_does_not_overlap(sizes: list[tuple[int, int, int]]) -> None:
    between = [plan.Between(size, min(a, b), max(a, b)) for size, a, b in sizes]
    offsets, total = plan.placed(between)
    assert all(plan.aligned(offset) == offset for offset in offsets)
    assert all(offset + one.size <= total for offset, one in zip(offsets, between, strict=True))
    for launch in range(10):
        places = zip(offsets, between, strict=True)
        used = sorted((offset, one.size) for offset, one in places if one.first <= launch <= one.last)
        assert all(low + size <= after for (low, size), (after, _) in itertools.pairwise(used))


def test_what_is_read_no_more_makes_room() -> None:
    kilo = 1024
    uses = [(3, 0, 2), (2, 1, 1), (2, 2, 4), (1, 3, 4)]
    between = [plan.Between(size * kilo, first, last) for size, first, last in uses]
    assert plan.placed(between) == ([0, 3 * kilo, 3 * kilo, 0], 5 * kilo)
    assert plan.placed([]) == ([], 0)


def test_a_backward_holds_two_arrays_of_its_pairs_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the activation and that of h: in their place later those of the pairs and of the tokens."""
    seen: list[list[plan.Between]] = []
    original = plan.placed
    monkeypatch.setattr(plan, "placed", lambda between: (seen.append(between), original(between))[1])
    with standin.stand_in() as driver:
        driver.recording = False
        route, select, experts = host._arguments(host.STATIC, torch.bfloat16)
        out, _, saved = package.moe_forward(route, select, experts)
        package.moe_backward(out, None, route, experts, saved, Needs(*[True] * 7))
        (backward,) = (made for key, made in plan._plans.items() if key[0].__name__ == "_gradients")
    array = 9600 * 64 * 2
    large = {(one.size // array, one.first, one.last) for one in seen[-1] if one.size >= array}
    # by launches: da 0, SwiGLU 1, down's weights 2, up's 3, pairs 4, combine 5, the softmax 6, the input 7
    assert large == {(1, 0, 2), (2, 1, 4), (1, 4, 5), (1, 5, 7)}
    assert backward is not None
    assert backward.arena < 3.5 * array < sum(one.size for one in seen[-1])


@pytest.mark.parametrize("name", host.MODEL)
def test_memory_of_forward_and_backward_in_the_models_size(name: str) -> None:
    """h, tokens and what is as small as they are, beside results and gradients: the published form takes 251 MB."""
    found = host.memory(host.MODEL[name])
    pairs, tokens = 9600 * 2048 * 2, 9600 * 768 * 2
    assert found["results and gradients"] > 2 * tokens + 8 * 3 * 768 * 1024 * 2
    assert found["peak"] - found["results and gradients"] < pairs + 0.2 * tokens, "the tokens' memory is a gradient's"
    assert found["peak"] < 0.45 * 251e6
