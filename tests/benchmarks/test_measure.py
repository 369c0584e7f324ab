"""Statistics, turns and memory."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch

from intermoe.benchmarks.harness import timing
from intermoe.benchmarks.harness.timing import (
    Budget,
    largest_allocation,
    machine,
    peak_memory,
    ratios,
    summarise,
    take_turns,
    thread_seconds,
)

CPU = torch.device("cpu")


def test_summarise() -> None:
    found = summarise([float(v) for v in range(11)])
    assert (found.median, found.low, found.high) == (5.0, 1.0, 9.0)
    assert summarise([3.0]).high == 3.0
    with pytest.raises(ValueError, match="values: expected at least one"):
        summarise([])


def test_ratios_survive_a_disturbance_of_whole_rounds() -> None:
    """A machine that is ten times slower in one round changes times, not ratios."""
    ours, theirs = [1.0, 10.0, 1.0, 1.0], [2.0, 20.0, 2.0, 2.0]
    assert ratios(theirs, ours).median == ratios(theirs, ours).high == 2.0


def test_everyone_takes_the_same_number_of_turns_and_is_first_in_turn() -> None:
    order: list[str] = []

    def clock(name: str) -> float:
        order.append(name)
        return 1.0

    clocks = {name: partial(clock, name) for name in "abc"}
    times = take_turns(clocks, Budget(0.0, min_rounds=3, max_rounds=9))
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order) == "abcbcacab"


def test_rounds_end_at_the_limit() -> None:
    assert take_turns({"a": lambda: 1.0}, Budget(60.0, 1, 4)) == {"a": [1.0] * 4}


def test_peak_memory_counts_what_exists_at_the_same_time() -> None:
    def call(_: int) -> torch.Tensor:
        first = torch.empty(1000, 1000)
        second = torch.empty(500, 1000)
        del first
        return torch.empty(100, 1000) + second[:100]

    assert peak_memory(call, CPU) == 6_000_000


def test_largest_allocation_is_that_of_one_tensor() -> None:
    assert largest_allocation(lambda _: (torch.empty(1000, 1000), torch.empty(500, 1000))) == 4_000_000
    assert largest_allocation(lambda _: None) == 0


def test_a_thread_that_is_alone_is_not_charged_for_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several threads the caller's own time would leave out what the others compute."""
    taken = {}
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        taken[threads] = thread_seconds(lambda: time.sleep(0.05))
    assert taken[1] < 0.04 <= 0.05 <= taken[2]


@pytest.mark.parametrize(
    ("seconds", "sets", "repeats"),
    [(1.0, 1, 1), (1e-3, 1, 1), (0.4e-3, 1, 3), (0.1e-3, 4, 3), (1e-7, 1, 100), (1e-7, 4, 100)],
)
def test_on_a_gpu_a_millisecond_lies_between_two_events(
    seconds: float, sets: int, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as that takes, but at most 100 times; every other input set has run before."""
    asked: list[tuple[int, ...]] = []
    ran: list[int] = []
    monkeypatch.setattr(timing, "clock", lambda call, device, *given: (asked.append(given), seconds)[1])
    told = timing.clock_of(ran.append, torch.device("cuda"), sets)
    assert ran == list(range(1, sets))
    assert asked == [(sets,)]
    assert told() == seconds
    assert asked[1:] == [(sets, repeats)]


def test_a_clock_of_a_gpu_tells_seconds_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are 12 ms apart, between which three input sets ran twice."""
    order: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("event")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 12.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert timing.clock(order.append, torch.device("cuda"), 3, 2) == pytest.approx(0.002)
    assert order == ["event", 0, 1, 2, 0, 1, 2, "event", "wait"]


def test_machine() -> None:
    found = machine(CPU)
    assert found.kind == "cpu"
    assert found.threads == torch.get_num_threads()
    assert found.versions["torch"] == torch.__version__
    assert found.label == "".join(c for c in found.label if c.isalnum() or c == "-").lower()
    assert type(found).from_dict(found.to_dict()) == found
