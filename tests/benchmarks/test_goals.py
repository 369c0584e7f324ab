"""Goals are judged by what was measured, and only by that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from intermoe.benchmarks.harness import goals, suite
from intermoe.benchmarks.harness.case import Scope, tolerance
from intermoe.benchmarks.harness.report import Report, Row, markdown
from intermoe.benchmarks.harness.timing import name_of


def rows(make_row: Callable[..., Row]) -> list[Row]:
    shape: dict[str, Any] = {"shape": {"S": 4800.0, "D": 768.0}, "difference": 2e-7}
    training = {**shape, "call": "forward + backward"}
    return [
        make_row(peak_bytes=100, **shape),
        make_row("authors' form", ratio=1.9, **shape),
        make_row("dense network", ratio=0.9, **shape),
        make_row(peak_bytes=100, **training),
        make_row("authors' form", ratio=1.8, peak_bytes=400, **training),
    ]


def test_what_was_measured_is_judged(make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    report = make_report(*rows(make_row))
    assert {j.goal.name: (round(j.measured, 3), j.reached) for j in goals.judge(report)} == {
        "forward S=4800 float32, authors' form": (1.9, False),
        "forward S=4800 float32, over a dense network": (1.111, True),
        "with backward S=4800 float32, authors' form": (1.8, True),
        "peak memory with backward S=4800, over the authors' form": (0.25, True),
        "difference from the reference, float32": (0.0, True),
    }
    assert not goals.judge(replace(report, level="quick"))


def test_the_report_shows_them(make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    text = markdown(make_report(*rows(make_row)))
    assert "| forward S=4800 float32, authors' form | ≥ 2 × | 1.9 × | no |" in text
    assert "## Goals" not in markdown(make_report(make_row(dtype="float16")))


def test_every_measure_by_hand(make_row: Callable[..., Row]) -> None:
    """A time of ours is 2, that of what stands beside it 6: no two figures of a goal may be exchanged."""

    def row(entry: str, call: str, dtype: str, tokens: float, median: float, **values: Any) -> Row:
        return make_row(entry, median, call=call, dtype=dtype, shape={"S": tokens}, **values)

    forward, training, half, single = goals.FORWARD, goals.TRAINING, goals.HALF, goals.SINGLE
    found = goals.Rows(
        [
            row("triton", training, half, 9600.0, 1.0, peak_bytes=100),
            row("triton, graph", forward, half, 9600.0, 2.0),
            row("dense network, graph", forward, half, 9600.0, 6.0),
            row("triton, graph", training, half, 9600.0, 5.0),
            row("dense network, graph", training, half, 9600.0, 20.0),
            row("triton, graph", forward, half, 300.0, 3e-6),
            row("authors' form", forward, half, 300.0, 60e-6, difference=9.0),  # another's difference is its own affair
            row("dense network", forward, half, 300.0, 1.0, difference=8.0),
            row("triton, static", forward, half, 9600.0, 1.0, host_reads=0, difference=0.5),
            row("triton, static", training, half, 9600.0, 1.0, host_reads=7, difference=0.25),
            row("authors' form", training, half, 9600.0, 1.0, peak_bytes=400),
            row("native", "overhead", single, 2.0, 1.0),
            row("native, operator", "overhead", single, 2.0, 9e-6),
            row("native, kernels alone", "overhead", single, 2.0, 4e-6),
            row("native", "loading", single, 2.0, 1.0, step="loader", difference=7.0),  # no step of the block
            make_row("authors' block", step="denoiser", call="call with guidance", shape={}, ratio=4.0),
        ]
    )
    assert found.graphs(forward) == 3.0
    assert found.graphs(training) == 4.0
    assert found.graph(300) == 3e-6
    assert [found.host_reads(call) for call in (forward, training)] == [0, 7]
    assert found.memory(half, 9600) == 0.25
    assert found.overhead() == pytest.approx(5.0)
    assert found.denoiser(single) == 0.25
    assert found.worst(half) == 0.5
    with pytest.raises(KeyError):
        found.worst(single)
    of_cuda = {goal.name: goal for goal in goals.GOALS["cuda"]}
    assert of_cuda["forward S=300 bfloat16 in a graph"].measure(found) == pytest.approx(3.0)
    assert of_cuda["forward S=300 bfloat16 in a graph, authors' form"].measure(found) == pytest.approx(20.0)


@pytest.mark.parametrize(("kind", "level"), [("cpu", "full"), ("cuda", "default")])
def test_a_run_has_the_cases_of_every_goal(
    kind: str, level: str, make_report: Callable[..., Report], make_row: Callable[..., Row]
) -> None:
    """Rows of all cases and of the entries that goals speak of judge all of them."""
    entries = (
        ("native", "native, operator", "native, kernels alone", "authors' form", "authors' block", "dense network")
        if kind == "cpu"
        else (
            "triton",
            "triton, static",
            "triton, graph",
            "authors' form",
            "expert loop",
            "dense network",
            "dense network, graph",
        )
    )
    found: dict[str, Any] = {"peak_bytes": 1, "host_reads": 0, "difference": 0.0}
    made = [
        make_row(entry, step=case.step, call=case.call, dtype=name_of(case.dtype), shape=case.shape, **found)
        for case in suite.cases(Scope(torch.device(kind), level))
        for entry in entries
    ]
    report = make_report(*made)
    judged = goals.judge(replace(report, machine=replace(report.machine, kind=kind)))
    assert [j.goal.name for j in judged] == [goal.name for goal in goals.GOALS[kind]]
    for good in (True, False):  # a goal is reached where ours is ahead, and missed where it is behind
        report = make_report(*(_told(row, good) for row in made))
        judged = goals.judge(replace(report, machine=replace(report.machine, kind=kind)))
        assert {j.goal.name: j.reached for j in judged} == {goal.name: good for goal in goals.GOALS[kind]}


def _told(row: Row, good: bool) -> Row:
    """The row of a run in which ours is far ahead of everything, or far behind; times are told in seconds."""
    ours = row.entry.startswith(("native", "triton"))
    kernels = row.entry.endswith("kernels alone")
    much, little = (1e6, 1e-6) if good else (1e-6, 1e6)
    return replace(
        row,
        median=0.0 if kernels else (9e-6 if good else 11e-6) if row.call == "overhead" else little if ours else 1.0,
        ratio=1.0 if ours else much,
        peak_bytes=1 if ours == good else 1000,
        host_reads=0 if good else 1,
        difference=0.0 if good else 0.5,
    )


@pytest.mark.parametrize("kind", list(goals.GOALS))
def test_a_difference_is_to_be_what_is_timed_at_all(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU float32 products are TF32."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high" if kind == "cuda" else "highest")
    found = {goal.name.split()[-1]: goal.bound for goal in goals.GOALS[kind] if "difference" in goal.name}
    single = "TF32" if kind == "cuda" else "float32"
    assert found == {
        single: goals.most(tolerance(torch.float32)), "bfloat16": goals.most(tolerance(torch.bfloat16))
    }  # fmt: skip
    (reads, *_) = [goal for goal in goals.GOALS["cuda"] if goal.name.startswith("host reads")]
    assert (reads.bound, reads.unit) == (goals.most(0.0), "")


@pytest.mark.parametrize(
    ("kind", "promised"),
    [
        ("cpu", ["≥ 2 ×", "≤ 1.15 ×", "≥ 7 ×", "≤ 1.5 ×", "≥ 1.6 ×", "≥ 3 ×", "≥ 1.7 ×", "≥ 4 ×", "≤ 0.333 ×",
                 "≤ 0.5 ×", "≤ 0.15 ×", "≤ 10 µs"]),
        ("cuda", ["≥ 0.75 ×", "≥ 0.75 ×", "≥ 0.7 ×", "≥ 6 ×", "≥ 1.3 ×", "≥ 0.7 ×", "≥ 4 ×", "≤ 70 µs", "≥ 15 ×",
                  "≥ 2.5 ×", "≥ 2.5 ×", "≤ 0", "≤ 0", "≤ 0.25 ×"]),
    ],
)  # fmt: skip
def test_no_goal_becomes_easier_by_itself(kind: str, promised: list[str]) -> None:
    """But for differences, which follow from the types."""
    own = [goal for goal in goals.GOALS[kind] if "difference" not in goal.name]
    assert [f"{goal.bound} {goal.unit}".strip() for goal in own] == promised
