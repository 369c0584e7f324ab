"""A whole run by hand: which cases, what is set before, and what is told after each."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks.harness import suite
from intermoe.benchmarks.harness.case import DeviceLost, Scope
from intermoe.benchmarks.harness.report import Row, Skipped
from intermoe.benchmarks.harness.timing import Ceilings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_cases_are_of_the_steps_in_their_order_and_hold_every_text() -> None:
    scope = Scope(CPU)
    listed = suite.cases(scope, ("combine", "moe"), ("float32", "S=4800"))
    assert [(case.step, case.call, case.shape["S"]) for case in listed] == [
        ("combine", "forward", 4800), ("combine", "backward", 4800),
        ("moe", "forward", 4800), ("moe", "forward + backward", 4800),
    ]  # fmt: skip
    assert {case.dtype for case in listed} == {torch.float32}
    with pytest.raises(ValueError, match=r"--only: expected one of moe, denoiser, .* scaling, got 'odd'"):
        suite.cases(scope, ("moe", "odd"))
    with pytest.raises(ValueError, match=r"--match: expected text of a case of this run, got 'S=1' and 'x'"):
        suite.cases(scope, ("moe",), ("S=1", "x"))
    with pytest.raises(ValueError, match="got none"):
        suite.cases(scope, ("scaling",))  # which only other levels have


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_gpu_multiplies_as_the_published_model_trains(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In TF32; what a case leaves in the allocator's pools is given back."""
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("emptied"))
    monkeypatch.setattr(suite.gc, "collect", lambda: asked.append("collected"))
    suite.prepare(Scope(device))
    suite.release(device)
    assert asked == (["collected"] if device is CPU else ["high", "collected", "emptied"])


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("level", ["quick", "default"])
def test_a_report_after_every_case(
    level: str, lost: bool, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is skipped is told once; a device that is lost ends the run, with what there is."""
    limits = Ceilings(3.0, {"float32": 5.0})
    scope, absent = Scope(CPU, level), Skipped("a", "x", "absent")
    rows = {"a": [make_row("one"), make_row("two")], "b": [], "c": [make_row("three")]}
    done: list[Any] = []

    def run(case: Any, of: Scope, given: Ceilings) -> Any:
        assert (of, given) == (scope, limits)
        done.append(case.name)
        if lost and case.name == "c":
            raise DeviceLost("c: an illegal address")
        return rows[case.name], [absent, Skipped(case.name, "y", "no room")]

    def ceilings(*given: Any, small: bool) -> Ceilings:
        assert (given, small) == ((CPU, scope.dtypes), level == "quick")
        done.append("ceilings")
        return limits

    monkeypatch.setattr(suite, "prepare", lambda of: done.append(of))
    monkeypatch.setattr(suite, "ceilings", ceilings)
    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(suite, "release", lambda device: done.append(device))
    todo: Any = [SimpleNamespace(name=name) for name in "abc"]
    reports = list(suite.measure(scope, todo))
    assert done == [scope, "ceilings", "a", CPU, "b", CPU, "c", *([] if lost else [CPU])]
    assert all((r.level, r.ceilings, r.machine.kind) == (level, limits, "cpu") for r in reports)
    assert [r.to_do for r in reports] == [3, 2, 1, 1 if lost else 0]
    told = [[row.entry for row in report.rows] for report in reports]
    assert told == [[], ["one", "two"], ["one", "two"], ["one", "two", *([] if lost else ["three"])]]
    assert suite.assemble(scope, (), (), limits).to_do == 0, "nothing is left where nothing is said of it"
    own = [Skipped(name, "y", "no room") for name in "abc"]
    gone = Skipped("c", "all", "the device is lost: c: an illegal address", failed=True)
    assert [report.skipped for report in reports] == [
        (), (absent, own[0]), (absent, *own[:2]), (absent, *own[:2], gone if lost else own[2])
    ]  # fmt: skip
