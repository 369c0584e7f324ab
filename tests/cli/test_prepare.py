"""``intermoe prepare``: tells what is missing, writes a cache that training and evaluation take as their data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from intermoe import cli
from intermoe.data import InterHumanDataset


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def few(two_people: Callable[..., Path], tmp_path: Path) -> Path:
    """Three sequences, and two names without files: one of them known to be missing everywhere."""
    splits = {"train": {"100": 40, "103": 50}, "val": {"105": 60}}
    root = two_people(tmp_path / "few", splits, "two people sway")
    (root / "split" / "train.txt").write_text("100\n3945\n103\n99999\n", encoding="utf-8")
    return root


def test_prepare_reports_by_name_and_is_done_once(few: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run("prepare", "interhuman", few, "--out", cache)
    assert first.exit_code == 0, first.output
    assert "train: 2 of 4 sequences, 1 known to be missing (3945)" in first.stderr
    assert "  no caption: 1 (99999: no file annots/99999.txt)" in first.stderr
    assert "val: 1 of 1 sequences\n" in first.stderr
    assert "test: none, there is no split/test.txt\n" in first.stderr
    assert first.stdout.strip() == str(cache)
    again = run("prepare", "interhuman", few, "--out", cache)
    assert f"{cache} is up to date" in again.stderr
    assert "train: 2 of 4 sequences" in again.stderr
    assert len(InterHumanDataset(cache, "val", strict=True)) == 1
    strict = run("prepare", "interhuman", few, "--out", cache, "--strict")
    assert strict.exit_code == 2
    assert "1 items that cannot be used" in strict.stderr


def test_twenty_of_a_kind_are_told_by_name(few: Path, tmp_path: Path) -> None:
    names = [str(name) for name in range(80_000, 80_025)]
    (few / "split" / "train.txt").write_text("\n".join(["100", *names]), encoding="utf-8")
    done = run("prepare", "interhuman", few, "--out", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert "train: 1 of 26 sequences\n" in done.stderr
    told = ", ".join(f"{name}: no file annots/{name}.txt" for name in names[:20])
    assert f"  no caption: 25 ({told}, and 5 more)\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dancing", "."), "representation: expected one of interhuman, interx, humanml3d, solo, got 'dancing'"),
        (("interhuman", "absent"), "root: not a folder: absent"),
        (("interhuman", "tests"), "tests: lists no split (expected interhuman's layout: split/<split>.txt, motions_"),
        (("interx", "tests"), "tests: lists no split (expected interx's layout: splits/<split>.txt, motions/<split>"),
        (("humanml3d", "tests"), "tests: lists no split (expected humanml3d's layout: <split>.txt, new_joint_vecs/"),
        (("interhuman", "tests", "--source-fps", 120), "options: expected none for interhuman, got source_fps"),
        (("interx", "tests", "--skeleton", "absent.npy"), "absent.npy"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    arguments: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    result = run("prepare", *arguments, "--out", "cache")
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr or message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "cache").exists()
