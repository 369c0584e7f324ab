"""The file a run writes, and the comparison of two."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from intermoe import backends
from intermoe.benchmarks.harness.report import OURS, Report, Row, compare, is_ours, markdown, si
from intermoe.cli import app


def test_save_and_load(tmp_path: Path, make_report: Callable[..., Report]) -> None:
    report = make_report()
    path = report.save(tmp_path)
    assert path == tmp_path / "some-cpu-r-3-ghz" / "2026-01-02T030405Z.json"
    assert Report.load(path) == report
    assert "| moe forward float32 S=300 | native |" in path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema: expected 1, got 99"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"rows": [{"step": "moe"}]}, r"rows\[0\]: missing key 'call'"),
        ({"machine": 3}, "machine: expected a mapping"),
    ],
)
def test_broken_file_is_named(
    tmp_path: Path, make_report: Callable[..., Report], change: dict[str, object], message: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**make_report().to_dict(), **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Report.load(path)


def test_markdown_states_the_conditions(make_report: Callable[..., Report]) -> None:
    text = markdown(make_report())
    assert "2 threads, AVX2" in text
    assert "copy 20 GB/s" in text
    assert "No AMX" in text
    assert "| megablocks | 1 | not here |" in text


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        (2.1, "same"),  # within both ranges
        (2.39, "same"),  # the ranges of 10 % just overlap
        (2.6, "slower"),
        (1.6, "faster"),
    ],
)
def test_compare_flags_what_lies_beyond_the_spread(
    make_report: Callable[..., Report], make_row: Callable[..., Row], new: float, verdict: str
) -> None:
    (change,) = compare(make_report(make_row()), make_report(make_row(median=new)))
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(new / 2.0)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_ranges_that_touch_overlap(kind: str, make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    """By the last bit more they do not."""
    past = make_report(make_row(low=1.0, high=3.0))
    past = replace(past, machine=replace(past.machine, kind=kind))
    for low, high, verdict in ((3.0, 4.0, "same"), (0.5, 1.0, "same"), (3.001, 4.0, "slower"), (0.5, 0.999, "faster")):
        now = replace(past, rows=(make_row(low=low, high=high),))
        assert [change.verdict for change in compare(past, now)] == [verdict]


def test_entries_of_this_package_are_its_backends_with_what_follows_their_names() -> None:
    assert set(OURS) == set(backends.NAMES)
    assert all(is_ours(name) and is_ours(f"{name}, static") for name in backends.NAMES)
    assert not any(is_ours(name) for name in ("authors' form", "native-like", "dense network, triton"))


def test_compare_matches_cases_and_entries(make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    old = make_report(make_row(), make_row("reference"), make_row(call="forward + backward"))
    new = make_report(make_row("reference"), make_row(dtype="bfloat16"))
    assert [change.key for change in compare(old, new)] == ["moe forward float32 S=300: reference"]
    with pytest.raises(ValueError, match="a case in common, got none"):
        compare(old, make_report(make_row(dtype="bfloat16")))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("inf"), "inf s"),
        (float("nan"), "nan s"),
        (0.00123, "1.23 ms"),
        (2.5e-8, "25 ns"),
        (3e12, "3 Ts"),
        (0.0, "0 s"),
        (1.0, "1 s"),
        (None, ""),
    ],
)
def test_si(value: float | None, text: str) -> None:
    assert si(value, "s") == text


@pytest.mark.parametrize(
    ("ours", "theirs", "verdicts"),
    [
        (2.0, 2.0, ["same", "same"]),  # a machine that is busy with other work
        (2.0, 1.0, ["slower", "same"]),
        (0.5, 1.0, ["faster", "same"]),
        (1.0, 2.0, ["same", "slower"]),
    ],
)
def test_on_a_cpu_a_change_shows_against_what_took_turns(
    make_report: Callable[..., Report], make_row: Callable[..., Row], ours: float, theirs: float, verdicts: list[str]
) -> None:
    def run(ours: float, theirs: float) -> Report:
        ratio = 3 * theirs / ours
        ratios = {"ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.1 * ratio}
        return make_report(make_row(median=ours), make_row("authors' form", median=3 * theirs, **ratios))

    assert [change.verdict for change in compare(run(1.0, 1.0), run(ours, theirs))] == verdicts


@pytest.mark.parametrize(
    ("old", "new", "cells", "slower"),
    [(2.0, 5.0, ["2 s", "5 s", "2.50", "slower"], 1), (5.0, 2.0, ["5 s", "2 s", "0.40", "faster"], 0)],
)
def test_two_runs_are_shown_old_then_new(
    make_report: Callable[..., Report],
    make_row: Callable[..., Row],
    tmp_path: Path,
    old: float,
    new: float,
    cells: list[str],
    slower: int,
) -> None:
    """What is slower alone is counted, and is an error."""
    runs = (make_report(make_row(median=m), make_row("reference", median=3e-3)) for m in (old, new))
    files = [str(run.save(tmp_path / str(number))) for number, run in enumerate(runs)]
    done = CliRunner().invoke(app, ["bench", "--compare", *files], env={"COLUMNS": "250"})
    assert done.exit_code == slower, done.output
    lines = [line.replace("┃", "│") for line in done.stdout.splitlines()]
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line[:1] == "│"] == [
        ["case", "old", "new", "new / old", "beyond the spread"],
        ["moe forward float32 S=300: native", *cells],
        ["moe forward float32 S=300: reference", "3 ms", "3 ms", "1.00", ""],
    ]
    assert lines[-1] == f"2 rows in common, {slower} slower beyond the spread"
