"""The table of a trace: own times, launches, gaps."""

from __future__ import annotations

from typing import Any

import pytest

from intermoe.benchmarks.harness.profiling import summarise


def event(name: str, start: float, length: float, thread: int = 1, category: str = "cpu_op") -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "pid": 1, "tid": thread}


def test_time_of_an_operator_is_without_that_of_those_it_calls() -> None:
    events = [event("outer", 0, 100), event("inner", 10, 30), event("inner", 50, 20), event("innermost", 15, 5)]
    found = summarise("call", events, ("cpu_op",))
    assert {k.name: (k.launches, k.seconds) for k in found.kernels} == {
        "outer": (1, pytest.approx(50e-6)),
        "inner": (2, pytest.approx(45e-6)),
        "innermost": (1, pytest.approx(5e-6)),
    }
    assert found.span == pytest.approx(100e-6)
    assert found.gaps == 0


def test_gaps_are_where_no_thread_is_busy() -> None:
    events = [event("a", 0, 10), event("b", 5, 10, thread=2), event("a", 30, 10), event("other", 0, 99, category="x")]
    found = summarise("call", events, ("cpu_op",))
    assert found.launches == 3
    assert found.span == pytest.approx(40e-6)
    assert found.gaps == pytest.approx(15e-6)
    assert "40 µs from first to last, 3 launches, 25 µs busy, 15 µs in gaps (38%)" in found.markdown()


def test_empty_trace() -> None:
    with pytest.raises(ValueError, match=r"no events of kernel; .* \(CUPTI\)"):
        summarise("call", [event("a", 0, 1)], ("kernel",))
