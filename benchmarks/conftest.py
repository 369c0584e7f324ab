"""Runs the cases under pytest-benchmark, and prints this package's own table behind its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from intermoe.benchmarks import results, suite
from intermoe.benchmarks.case import Case, Contest, Scope, checked, left_out, reason_to_skip, rows
from intermoe.benchmarks.measure import Ceilings, ceilings, clock, synchronise, take_turns

FOUND = pytest.StashKey[tuple[list[results.Row], list[results.Skipped], Ceilings]]()


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
        metafunc.parametrize("case", list(metafunc.module.cases(_scope(metafunc.config))), ids=lambda case: case.name)


@pytest.fixture(scope="session")
def scope(request: pytest.FixtureRequest) -> Scope:
    return _scope(request.config)


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest, scope: Scope) -> tuple[list[results.Row], list[results.Skipped], Ceilings]:
    suite.prepare(scope)
    made: tuple[list[results.Row], list[results.Skipped], Ceilings] = (
        [],
        [],
        ceilings(scope.device, scope.dtypes, small=scope.quick),
    )
    request.config.stash[FOUND] = made
    return made


@pytest.fixture
def measured(benchmark: Any, scope: Scope, found: Any) -> Iterator[Callable[[Case], None]]:
    """Check a case, then time it: the first entry is pytest-benchmark's, the others take turns with it."""

    def measure(case: Case) -> None:
        try:
            contest = case.prepare()
            calls, differences = checked(contest)
        except (RuntimeError, ModuleNotFoundError) as error:
            if (reason := reason_to_skip(error)) is None:
                raise
            pytest.skip(reason)
        found[1].extend(left_out(case, contest))
        times = _times(benchmark, scope, contest, calls) if calls else None
        if times is not None:
            made = rows(case, contest, times, differences, found[2], scope.device)
            found[0].extend(made)
            benchmark.extra_info.update({row.entry: row.to_dict() for row in made})
        if contest.failed:
            pytest.fail("; ".join(f"{name}: {reason}" for name, reason in contest.failed.items()))
        if not calls:
            pytest.skip("; ".join(f"{name}: {reason}" for name, reason in contest.skipped.items()))

    yield measure
    suite.release(scope.device)


def _times(benchmark: Any, scope: Scope, contest: Contest, calls: dict[str, Any]) -> dict[str, list[float]] | None:
    first, *others = calls
    budget = scope.budget
    if scope.device.type == "cuda":
        times = take_turns(calls, scope.device, budget, contest.sets)

        def once() -> None:
            calls[first](0)
            synchronise(scope.device)

        benchmark.pedantic(once, rounds=budget.min_rounds)
        return times
    times = {name: [] for name in others}

    def turn() -> None:
        for name in others:
            times[name].append(clock(calls[name], scope.device))

    own = [clock(calls[first], scope.device)]
    turn()
    rounds = int(budget.seconds / (own[0] + sum(times[name][0] for name in others)))
    rounds = min(max(rounds, budget.min_rounds), budget.max_rounds)
    benchmark.pedantic(calls[first], (0,), setup=turn, rounds=max(rounds - 1, 1))
    if benchmark.stats is None:  # --benchmark-disable: checked, not timed
        return None
    return {first: own + list(benchmark.stats.stats.data), **times}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if FOUND not in config.stash or not config.stash[FOUND][0]:
        return
    report = suite.assemble(_scope(config), *config.stash[FOUND])
    terminalreporter.write_sep("=", "intermoe benchmarks")
    terminalreporter.write_line(results.markdown(report))
    if folder := config.getoption("--out"):
        terminalreporter.write_line(f"wrote {report.save(folder)}")
