"""Runs the cases under pytest-benchmark, and prints this package's own table behind its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from intermoe.benchmarks.harness import report as reports
from intermoe.benchmarks.harness import suite
from intermoe.benchmarks.harness.case import Case, Scope, checked, left_out, reason_to_skip, timed
from intermoe.benchmarks.harness.timing import Ceilings, ceilings, synchronise

Found = tuple[list[reports.Row], list[reports.Skipped], Ceilings]
FOUND = pytest.StashKey[Found]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("intermoe")
    group.addoption("--full", action="store_true", help="all sizes and the scaling curves, not the 5-minute selection")
    group.addoption("--quick", action="store_true", help="tiny shapes: does everything run? The times mean nothing.")
    group.addoption("--out", default=None, help="also write <out>/<device>/<date>.json and .md")


def _scope(config: pytest.Config) -> Scope:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    level = "full" if config.getoption("--full") else "quick" if config.getoption("--quick") else "default"
    return Scope(device, level)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        scope = _scope(metafunc.config)
        metafunc.parametrize("case", [_marked(case, scope) for case in metafunc.module.cases(scope)])


def _marked(case: Case, scope: Scope) -> Any:
    """What the goals on a GPU are judged by, and captured loops, are marked ``gpu``, like the tests that need one."""
    judged = scope.device.type == "cuda" and case.step in ("moe", "generation", "training")
    return pytest.param(case, id=case.name, marks=[pytest.mark.gpu] if judged else [])


@pytest.fixture(scope="session")
def scope(request: pytest.FixtureRequest) -> Scope:
    return _scope(request.config)


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest, scope: Scope) -> Found:
    suite.prepare(scope)
    made: Found = ([], [], ceilings(scope.device, scope.dtypes, small=scope.quick))
    request.config.stash[FOUND] = made
    return made


@pytest.fixture
def measured(benchmark: Any, scope: Scope, found: Found) -> Iterator[Callable[[Case], None]]:
    """Check a case, then time its entries in turns; pytest-benchmark's own table has the first of them."""

    def measure(case: Case) -> None:
        try:
            contest = case.prepare()
            calls, differences = checked(contest)
        except (RuntimeError, ModuleNotFoundError) as error:
            if (reason := reason_to_skip(error)) is None:
                raise
            pytest.skip(reason)
        found[1].extend(left_out(case, contest))
        if calls and benchmark.enabled:  # with --benchmark-disable everything is checked and nothing timed
            made = timed(case, contest, calls, differences, found[2], scope)
            found[0].extend(made)
            benchmark.extra_info.update({row.entry: row.to_dict() for row in made})
            first = next(iter(calls.values()))
            benchmark.pedantic(lambda: (first(0), synchronise(scope.device)), rounds=scope.budget.min_rounds)
        if contest.failed:
            pytest.fail("; ".join(f"{name}: {reason}" for name, reason in contest.failed.items()))
        if not calls:
            pytest.skip("; ".join(f"{name}: {reason}" for name, reason in contest.skipped.items()))

    yield measure
    suite.release(scope.device)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if FOUND not in config.stash or not config.stash[FOUND][0]:
        return
    report = suite.assemble(_scope(config), *config.stash[FOUND])
    terminalreporter.write_sep("=", "intermoe benchmarks")
    terminalreporter.write_line(reports.markdown(report))
    if folder := config.getoption("--out"):
        terminalreporter.write_line(f"wrote {report.save(folder)}")
