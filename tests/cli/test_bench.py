"""``intermoe bench``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from intermoe import backends
from intermoe.benchmarks.harness.report import si
from intermoe.cli import app
from intermoe.cli import bench as command


def bench(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the smallest level."""
    out = tmp_path_factory.mktemp("results")
    code, output = bench("--quick", "--only", "select", "--only", "moe", "--device", "cpu", "--out", out)
    assert code == 0, output
    (path,) = out.glob("*/*.json")
    return path


def test_writes_numbers_table_and_figure(run: Path) -> None:
    assert {path.suffix for path in run.parent.iterdir()} == {".json", ".md", ".png", ".svg"}
    report = json.loads(run.read_text(encoding="utf-8"))
    entries = {row["entry"] for row in report["rows"] if row["step"] == "moe"}
    assert {"reference", "authors' form", "expert loop", "dense network"} <= entries
    assert report["level"] == "quick"
    assert {"megablocks", "sonic-moe"} <= {skipped["entry"] for skipped in report["skipped"]}


def test_compare(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[list[list[str]]] = []
    monkeypatch.setattr(command, "print_table", tables.append)
    code, output = bench("--compare", run, run)
    assert code == 0
    assert "0 slower beyond the spread" in output
    report = json.loads(run.read_text(encoding="utf-8"))
    row = report["rows"][0]
    for name in ("median", "low", "high"):
        row[name] *= 1000
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(report), encoding="utf-8")
    code, output = bench("--compare", run, slower)
    assert code == 1
    header, line = tables[-1][:2]
    assert header == ["case", "old", "new", "new / old", "beyond the spread"]
    assert line[3:] == ["1000.00", "slower"]
    assert [line[1], line[2]] == [si(row["median"] / 1000, "s"), si(row["median"], "s")]
    assert "1 slower beyond the spread" in output


def test_a_failure_leaves_the_rest_and_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(backends.load("native"), "select", broken)
    code, output = bench("--quick", "--only", "select", "--match", "forward", "--device", "cpu", "--out", tmp_path)
    assert code == 1
    assert "[1/1] select forward float32 S=48" in output  # a line for each case where there is no terminal
    assert "native: no kernel image" in output.splitlines()[-1]
    (path,) = tmp_path.glob("*/*.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert {row["entry"] for row in report["rows"]} == {"reference"}
    assert "| native | no kernel image |" in path.with_suffix(".md").read_text(encoding="utf-8")


def test_profile(tmp_path: Path) -> None:
    code, output = bench("--quick", "--profile", "--device", "cpu", "--out", tmp_path)
    assert code == 0, output
    assert "from first to last" in output
    assert len(list(tmp_path.glob("*/profile-*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--full", "--quick"), "--quick: expected without --full"),
        (("--only", "nothing"), "--only: expected one of moe"),
        (
            ("--only", "vae", "--match", "S=1", "--match", "B=2"),
            "of this run, got 'S=1' and 'B=2'",
        ),
        (("--device", "toaster"), "--device: expected a device of this machine, got 'toaster'"),
        (("--compare", "absent.json", "absent.json"), "absent.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, output = bench("--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message in output
    assert len(output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
