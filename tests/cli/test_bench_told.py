"""What ``intermoe bench`` tells while it measures and after, of measurements that are made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from intermoe.benchmarks.harness import figure, goals, profiling, report, suite
from intermoe.cli import app
from intermoe.cli import bench as command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "200"})


class Found:
    """A report so far: the entries of the cases that are done, and what failed."""

    def __init__(self, rows: tuple[str, ...], to_do: int, failed: tuple[Any, ...] = ()) -> None:
        self.rows, self.to_do, self.failed = rows, to_do, failed

    def save(self, out: Path) -> Path:
        out.mkdir(parents=True, exist_ok=True)
        (out / "saved").write_text(" ".join(self.rows), encoding="utf-8")
        return out / "cpu.json"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Three cases, of which the last fails where ``failed`` is there."""
    found: dict[str, Any] = {"failed": (), "judged": ["a goal"], "drawn": []}
    todo = [SimpleNamespace(name=name) for name in ("one", "two", "three")]

    def cases(scope: Any, steps: Any, match: Any) -> list[Any]:
        found.update(scope=scope, steps=steps, match=match)
        return todo

    def measure(scope: Any, given: Any) -> Any:
        assert given is todo
        for done in range(4):
            yield Found(("a", "b", "c")[:done], 3 - done, found["failed"] if done == 3 else ())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "cases", cases)
    monkeypatch.setattr(suite, "measure", measure)
    monkeypatch.setattr(report, "line", lambda made, case: f"{case}: {len(made.rows)} rows")
    monkeypatch.setattr(report, "table", lambda rows: ["the table", *rows])
    monkeypatch.setattr(goals, "judge", lambda made: found["judged"])
    monkeypatch.setattr(goals, "table", lambda judged: [f"judged {len(judged)}"])
    monkeypatch.setattr(figure, "roofline", lambda made, path: found["drawn"].append(path))
    return found


def test_each_case_is_told_when_it_is_done_and_all_in_the_end(asked: dict[str, Any]) -> None:
    done = run("--device", "cpu", "--out", "r")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert lines == ["[1/3] one: 1 rows", "[2/3] two: 2 rows", "[3/3] three: 3 rows"]
    assert done.stdout.splitlines() == ["the table", "a", "b", "c", "", "judged 1", "", "r/cpu.json"]
    assert asked["drawn"] == [Path("r/cpu.png"), Path("r/cpu.svg")]
    assert Path("r/saved").read_text(encoding="utf-8") == "a b c"
    assert (asked["steps"], asked["match"]) == (suite.STEPS, ())


def test_without_goals_there_is_no_table_of_them_and_failures_come_last(asked: dict[str, Any]) -> None:
    asked.update(judged=[], failed=(SimpleNamespace(case="three", entry="native", reason="no kernel"),))
    done = run("--device", "cpu", "--out", "r", "--only", "moe", "--only", "vae", "--match", "S=4")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == ["the table", "a", "b", "c", "r/cpu.json"]
    assert done.stderr.splitlines()[-1] == "error: three: native: no kernel"
    assert (asked["steps"], asked["match"]) == (("moe", "vae"), ("S=4",))


@pytest.mark.parametrize(("option", "level"), [("--full", "full"), ("--quick", "quick"), (None, "default")])
def test_a_run_is_of_its_level(option: str | None, level: str, asked: dict[str, Any]) -> None:
    assert run("--device", "cpu", "--out", "r", *([] if option is None else [option])).exit_code == 0
    assert (asked["scope"].level, asked["scope"].device) == (level, torch.device("cpu"))


def test_a_step_without_counted_work_has_no_figure(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(made: Any, path: Path) -> None:
        raise ValueError("report: expected rows of the step 'moe' to draw, got none")

    monkeypatch.setattr(figure, "roofline", refuse)
    done = run("--device", "cpu", "--out", "r")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "r/cpu.json")


def test_a_folder_is_refused_before_any_work(asked: dict[str, Any], tmp_path: Path) -> None:
    Path("file").touch()
    done = run("--device", "cpu", "--out", "file/r")
    assert (done.exit_code, done.stderr) == (2, f"error: --out: {tmp_path}/file is not a folder\n")
    assert "scope" not in asked


def test_a_profile_is_told_by_its_text_and_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("a text", encoding="utf-8")
    monkeypatch.setattr(
        profiling, "write", lambda scope, out: [out / "a.json", out / "a.md"] if scope.level == "full" else []
    )
    done = run("--profile", "--full", "--device", "cpu", "--out", tmp_path)
    assert (done.exit_code, done.stdout.splitlines()) == (0, [f"{tmp_path}/a.json", "a text", f"{tmp_path}/a.md"])


def test_only_what_is_slower_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[list[list[str]]] = []
    changes = [report.Change("a", 2e-3, 1e-3, "faster"), report.Change("b", 4e-6, 5e-6, "same")]
    monkeypatch.setattr(command, "print_table", tables.append)
    monkeypatch.setattr(report.Report, "load", lambda path: path)
    monkeypatch.setattr(report, "compare", lambda old, new: changes if (old.name, new.name) == ("o", "n") else [])
    done = run("--compare", "o", "n")
    assert (done.exit_code, done.stdout) == (0, "2 rows in common, 0 slower beyond the spread\n")
    assert tables[0][1:] == [
        ["a", report.si(2e-3, "s"), report.si(1e-3, "s"), "0.50", "faster"],
        ["b", report.si(4e-6, "s"), report.si(5e-6, "s"), "1.25", ""],
    ]
    changes += [report.Change("c", 1.0, 2.0, "slower"), report.Change("d", 1.0, 3.0, "slower")]
    done = run("--compare", "o", "n")
    assert (done.exit_code, done.stdout) == (1, "4 rows in common, 2 slower beyond the spread\n")
