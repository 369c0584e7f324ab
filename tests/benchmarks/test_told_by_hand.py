"""What the commands beside ``intermoe bench`` tell, by hand: predictions, shares, memory, names of cases."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks import bench_generation
from intermoe.benchmarks.harness import shares, suite
from intermoe.benchmarks.harness.case import Scope
from intermoe.benchmarks.harness.goals import least, most
from intermoe.benchmarks.harness.report import Row, Skipped
from intermoe.benchmarks.harness.shares import Figure
from intermoe.benchmarks.harness.timing import Ceilings, Summary

CPU = torch.device("cpu")


class Here:
    """A pool of processes that is this one."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], **_: Any) -> Iterable[Any]:
        return map(function, items)


def test_a_total_is_the_sum_of_its_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import roofline
    from intermoe.kernels.triton.aot import Resources

    monkeypatch.setattr(roofline, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(roofline, "_compile", lambda product: Resources(64, 0, 30_000, 128))
    lines = roofline.report(roofline.CARDS[:2])
    totals = [line for line in lines if line.kernel == "total"]
    calls = [
        (card.name, s, p) for card in roofline.CARDS[:2] for p, s in (("half", 9600), ("half", 300), ("tf32", 9600))
    ]
    assert [(t.card, t.tokens, t.precision, t.direction) for t in totals] == [
        (*call, direction) for call in calls for direction in ("forward", "backward", "inference")
    ]
    for total in totals:
        call = (total.card, total.tokens, total.precision, total.direction)
        own = [n for n in lines if n is not total and (n.card, n.tokens, n.precision, n.direction) == call]
        assert total.bound == pytest.approx(sum(line.bound for line in own))
        assert total.predicted == pytest.approx(sum(line.predicted for line in own))
        assert total.bound < total.predicted
        assert {line.registers for line in own} == {64, None}


def test_predictions_are_printed_with_what_is_reached_of_the_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import roofline

    line = roofline.Line("A100", 300, "half", "forward", "up", 64, 3000, 2, bound=30.0, predicted=40.0)
    monkeypatch.setattr(roofline, "report", lambda: [line])
    monkeypatch.setattr(sys, "argv", ["roofline", "--json", str(tmp_path / "lines.json")])
    roofline.main()
    told = capsys.readouterr().out.splitlines()
    header = "card S type call kernel regs shared blocks bound predicted reached"
    assert [" ".join(each.split()) for each in told[1:]] == [header, "A100 300 half forward up 64 3000 2 30.0 40.0 75%"]
    (saved,) = json.loads((tmp_path / "lines.json").read_text())
    assert saved == {
        "card": "A100", "tokens": 300, "precision": "half", "direction": "forward", "kernel": "up", "registers": 64,
        "shared": 3000, "blocks": 2, "bound": 30.0, "predicted": 40.0,
    }  # fmt: skip


def test_shares_are_told_by_median_and_range() -> None:
    made = [
        Figure("a case", "share of it", Summary(0.5, 0.25, 0.75), least(0.5)),
        Figure("a case", "memory", Summary(2.0, 1.0, 3.0), most(1.5)),
        Figure("another", "time", Summary(4.0, 3.5, 5.0), None),
    ]
    lines = shares.report(made, ["a note"]).splitlines()
    assert lines[-5:] == [
        "| a case | share of it | ≥ 0.5 | 0.5 | 0.25 to 0.75 | yes |",
        "| a case | memory | ≤ 1.5 | 2 | 1 to 3 | no |",
        "| another | time |  | 4 | 3.5 to 5 |  |",
        "",
        "- a note",
    ]
    assert lines[0].endswith(f", {torch.get_num_threads()} thread(s)")


def test_memory_of_results_and_gradients_in_bytes() -> None:
    """64 tokens of width 16, 4 experts of width 8, 2 rows: out and hidden's gradient, the router's, the weights'."""
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import host
    from intermoe.kernels.triton.registry import INTERPRETED

    if INTERPRETED:
        pytest.skip("stands in for a driver, which the interpreter has no use for")
    s, d, e, f, r = 64, 16, 4, 8, 2
    half, single = 2 * (2 * s * d + 3 * e * f * d), 4 * (e * d + r * e + 2 * r * d)
    found = host.memory((s, d, e, f, r, None))
    assert found["results and gradients"] == half + single
    assert found["peak"] > half + single


@pytest.mark.parametrize("level", ["quick", "default", "full"])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_case_of_a_run_has_a_name_of_its_own(kind: str, level: str) -> None:
    """By which runs are compared; a capacity is told wherever it is what is varied."""
    names = [case.name for case in suite.cases(Scope(torch.device(kind), level))]
    assert len(set(names)) == len(names)
    varied = [name.rpartition("capacity=")[2] for name in names if name.startswith("scaling capacity")]
    assert varied == {"quick": ["0.5", "2"], "default": [], "full": ["0.5", "1", "2", "4"]}[level]


@pytest.mark.parametrize(
    ("kind", "level", "training", "generation"),
    [
        ("cpu", "quick", [2, 4, 16], [(16, 2), (16, 10)]),
        ("cpu", "default", [2, 4, 16], [(120, 10), (120, 50), (300, 10)]),
        ("cpu", "full", [8, 4, 16], [(120, 10), (120, 50), (300, 10), (300, 50)]),
        ("cuda", "default", [8, 64, 256], [(120, 10), (120, 50), (300, 10), (300, 50)]),
    ],
)
def test_how_much_a_level_trains_and_generates(
    kind: str, level: str, training: list[int], generation: list[tuple[int, int]]
) -> None:
    """Layers and samples of the denoiser's step, windows of the autoencoder's; frames and steps."""
    listed = suite.cases(Scope(torch.device(kind), level), ("training", "generation"))
    denoiser, vae, *generated = [case.shape for case in listed]
    assert [denoiser["layers"], denoiser["B"], vae["B"]] == training
    assert [(shape["frames"], shape["steps"]) for shape in generated] == generation


@pytest.mark.parametrize("frames", [16, 120])
def test_generation_counts_the_seconds_that_it_makes(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def pipeline(prompts: list[str], **options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(joints=torch.zeros(1))

    monkeypatch.setattr(bench_generation.InterMoEPipeline, "from_pretrained", lambda *_, **__: pipeline)
    contest = bench_generation.shipped(Scope(CPU, "quick"), frames, 7)
    assert contest.seconds_of_motion == frames / 30
    next(iter(contest.entries.values()))(0)
    assert asked == [{"num_frames": frames, "num_inference_steps": 7, "seed": 0}]


@pytest.mark.parametrize("level", ["quick", "default", "full"])
def test_a_report_is_of_its_run(level: str, make_row: Callable[..., Row]) -> None:
    skipped = Skipped("a", "x", "absent")
    ceilings = Ceilings(3.0, {"float32": 5.0})
    made = suite.assemble(Scope(CPU, level), [make_row()], [skipped, skipped], ceilings, 4)
    assert (made.level, made.rows, made.skipped, made.ceilings, made.to_do) == (
        level, (make_row(),), (skipped,), ceilings, 4
    )  # fmt: skip
    assert (made.schema, made.machine.kind) == (1, "cpu")
    assert len(made.date) == len("2026-01-02T03:04:05Z")
