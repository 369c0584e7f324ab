"""Cases under pytest-benchmark: what is collected, checked, timed and told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks import conftest as plugin
from intermoe.benchmarks.harness.case import Case, Contest, Scope
from intermoe.benchmarks.harness.report import Report, Row, Skipped, markdown
from intermoe.benchmarks.harness.timing import Ceilings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LIMITS = Ceilings(3.0, {"float32": 5.0})


def config(**options: Any) -> Any:
    given = {"--full": False, "--quick": False, "--out": None, **{f"--{name}": on for name, on in options.items()}}
    return SimpleNamespace(getoption=given.__getitem__, stash={})


@pytest.mark.parametrize(
    ("options", "level"), [({}, "default"), ({"quick": True}, "quick"), ({"full": True, "quick": True}, "full")]
)
@pytest.mark.parametrize("gpu", [True, False])
def test_cases_are_those_of_the_level_and_of_this_machine(
    options: dict[str, bool], level: str, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, what the goals are judged by can be chosen like the tests that need one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    scope = Scope(CUDA if gpu else CPU, level)
    steps = ("moe", "generation", "training", "select")
    listed = [Case(step, "forward", torch.float32, {"S": 6}, lambda: Contest({}, None, 0.0)) for step in steps]
    asked: list[Any] = []
    made = SimpleNamespace(
        fixturenames=["case"],
        config=config(**options),
        module=SimpleNamespace(cases=lambda of: listed if of == scope else []),
        parametrize=lambda *given: asked.append(given),
    )
    plugin.pytest_generate_tests(made)  # type: ignore[arg-type]
    ((name, parameters),) = asked
    assert name == "case"
    assert [parameter.values for parameter in parameters] == [(case,) for case in listed]
    assert [parameter.id for parameter in parameters] == [f"{step} forward float32 S=6" for step in steps]
    marks = [[mark.name for mark in parameter.marks] for parameter in parameters]
    assert marks == [["gpu"] if gpu and step != "select" else [] for step in steps]
    made.fixturenames = ["other"]
    plugin.pytest_generate_tests(made)  # type: ignore[arg-type]
    assert len(asked) == 1


def test_ceilings_are_measured_once_after_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    scope, given = Scope(CPU, "quick"), config()
    monkeypatch.setattr(plugin.suite, "prepare", order.append)
    monkeypatch.setattr(plugin, "ceilings", lambda *of, small: order.append((*of, small)) or LIMITS)
    found = inspect.unwrap(plugin.found)(SimpleNamespace(config=given), scope)
    assert order == [scope, (CPU, scope.dtypes, True)]
    assert found == ([], [], LIMITS)
    assert given.stash[plugin.FOUND] is found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, make_row: Callable[..., Row]) -> Callable[..., Any]:
    """``measured(contest, enabled)``: what is found and told of a case that prepares it or raises it."""

    def run(contest: Any, enabled: bool = True) -> Any:
        told = SimpleNamespace(order=[], error=None)
        scope, found = Scope(CPU, "full"), ([], [], LIMITS)

        def prepare() -> Contest:
            if isinstance(contest, Exception):
                raise contest
            return contest

        def timed(case: Case, given: Contest, calls: Any, differences: Any, limits: Ceilings, of: Scope) -> list[Row]:
            assert (given, limits, of) == (contest, LIMITS, scope)
            assert list(differences) == list(calls)
            return [make_row(name) for name in calls]

        def pedantic(call: Callable[[], Any], rounds: int) -> None:
            told.order.append(rounds)
            call()

        monkeypatch.setattr(plugin, "timed", timed)
        monkeypatch.setattr(plugin, "synchronise", lambda device: told.order.append(f"wait for {device}"))
        monkeypatch.setattr(plugin.suite, "release", lambda device: told.order.append(f"release {device}"))
        benchmark = SimpleNamespace(enabled=enabled, extra_info={}, pedantic=pedantic)
        steps = inspect.unwrap(plugin.measured)(benchmark, scope, found)
        measure = next(steps)
        try:
            measure(Case("moe", "forward", torch.float32, {"S": 6}, prepare))
        except (pytest.fail.Exception, pytest.skip.Exception, RuntimeError) as error:
            told.error = error
        assert list(steps) == []
        told.rows, told.left, told.info = [row.entry for row in found[0]], found[1], benchmark.extra_info
        return told

    return run


def contest(*right: str, wrong: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> Contest:
    entries: dict[str, Any] = {name: lambda _: (torch.ones(2),) for name in right}
    entries |= {name: lambda _: (torch.zeros(2),) for name in wrong}
    return Contest(entries, lambda: (torch.ones(2),), 1e-5, skipped=dict.fromkeys(absent, "not here"))


def test_what_is_right_is_timed_and_the_first_is_pytest_benchmarks(
    measured: Callable[..., Any], make_row: Callable[..., Row]
) -> None:
    told = measured(contest("native", "loop", absent=("megablocks",)))
    assert told.rows == ["native", "loop"]
    assert told.left == [Skipped("moe forward float32 S=6", "megablocks", "not here")]
    assert told.info == {name: make_row(name).to_dict() for name in ("native", "loop")}
    assert told.order == [5, "wait for cpu", "release cpu"]
    assert told.error is None


def test_with_benchmarks_disabled_everything_is_checked_and_nothing_timed(measured: Callable[..., Any]) -> None:
    told = measured(contest("native", wrong=("loop",)), enabled=False)
    assert (told.rows, told.info, told.order) == ([], {}, ["release cpu"])
    assert isinstance(told.error, pytest.fail.Exception)


def test_what_is_wrong_fails_and_the_others_are_timed(measured: Callable[..., Any]) -> None:
    told = measured(contest("native", wrong=("loop", "form")))
    assert told.rows == ["native"]
    said = "relative difference 1.0e+00 exceeds 1.0e-05, not timed"
    assert isinstance(told.error, pytest.fail.Exception)
    assert told.error.msg == f"loop: {said}; form: {said}"
    assert [(skipped.entry, skipped.failed) for skipped in told.left] == [("loop", True), ("form", True)]


def test_where_nothing_can_run_it_is_skipped_with_every_reason(measured: Callable[..., Any]) -> None:
    told = measured(contest(absent=("a", "b")))
    assert isinstance(told.error, pytest.skip.Exception)
    assert told.error.msg == "a: not here; b: not here"


def test_what_a_machine_lacks_is_skipped_and_what_fails_is_not(measured: Callable[..., Any]) -> None:
    told = measured(torch.OutOfMemoryError("no room\nfor it"))
    assert isinstance(told.error, pytest.skip.Exception)
    assert told.error.msg == "no room"
    told = measured(RuntimeError("broken"))
    assert str(told.error) == "broken"
    assert told.order == ["release cpu"]


def test_the_table_follows_pytest_benchmarks(
    make_report: Callable[..., Report],
    make_row: Callable[..., Row],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """And is written where it was asked for; without a row there is none."""
    report, asked, told = make_report(), [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(plugin.suite, "assemble", lambda *given: asked.append(given) or report)
    terminal = SimpleNamespace(write_sep=lambda *line: told.append(line), write_line=told.append)
    found = ([make_row()], [Skipped("a", "b", "c")], LIMITS)
    for given in (config(), config()):
        plugin.pytest_terminal_summary(terminal, given)
        given.stash[plugin.FOUND] = ([], *found[1:])
        plugin.pytest_terminal_summary(terminal, given)
    assert not told
    plain, out = config(quick=True), config(quick=True, out=str(tmp_path))
    for given in (plain, out):
        given.stash[plugin.FOUND] = found
        plugin.pytest_terminal_summary(terminal, given)
    assert asked == [(Scope(CPU, "quick"), *found)] * 2
    table = [("=", "intermoe benchmarks"), markdown(report)]
    (path,) = tmp_path.glob("*/*.json")
    assert told == [*table, *table, f"wrote {path}"]


def test_options_of_the_command() -> None:
    """Flags are off and no folder is there unless they are given."""
    added: dict[str, Any] = {}
    group = SimpleNamespace(addoption=lambda name, **how: added.update({name: how}))
    plugin.pytest_addoption(SimpleNamespace(getgroup=lambda name: group))  # type: ignore[arg-type]
    assert {name: (how.get("action"), how.get("default")) for name, how in added.items()} == {
        "--full": ("store_true", None), "--quick": ("store_true", None), "--out": (None, None)
    }  # fmt: skip
