"""Commands on folders of motion: what they tell of a data set, and what they hand on where data sets differ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from intermoe.cli import app, data
from intermoe.data import DatasetReport
from intermoe.data.cache import PreparedCache
from intermoe.data.merge import Merged


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_a_split_is_told_with_all_that_it_has_not() -> None:
    usable = DatasetReport(total=9, ignored=1, known_missing=["12", "7"])
    assert data._describe("val", usable) == "val: 7 of 9 sequences, 1 on the ignore list, 2 known to be missing (12, 7)"
    broken = DatasetReport(total=30, ignored=4, problems={"short": ["3", "5"], "no caption": ["8: no file"]})
    assert data._describe("train", broken).splitlines() == [
        "train: 27 of 30 sequences, 4 on the ignore list",
        "3 of 30 items cannot be used",
        "  no caption: 1 (8: no file)",
        "  short: 2 (3, 5)",
    ]
    assert data._describe("test", DatasetReport(total=2)) == "test: 2 of 2 sequences"


@pytest.mark.parametrize(
    ("problems", "strict", "written", "code"),
    [((0, 0), True, True, 0), ((2, 1), False, True, 0), ((2, 1), True, True, 2), ((0, 0), False, False, 0)],
)
def test_what_is_broken_counts_when_it_must_not_be(
    problems: tuple[int, int], strict: bool, written: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items of all splits together; the folder itself is told where all is well."""
    reports = {
        split: DatasetReport(total=5, problems={"short": ["x"] * count} if count else {})
        for split, count in zip(("train", "val"), problems, strict=True)
    }
    absent = {"test": ["test.txt", "test.npy"]}
    cache = PreparedCache(tmp_path / "c", written, reports, absent)
    monkeypatch.setattr("intermoe.data.prepare", lambda *_, **__: cache)
    done = run("prepare", "interhuman", "raw", "--out", tmp_path / "c", *(["--strict"] if strict else []))
    assert done.exit_code == code, done.output
    told = done.stderr.splitlines()
    assert f"train: {5 - problems[0]} of 5 sequences" in told
    assert f"val: {5 - problems[1]} of 5 sequences" in told
    assert "test: none, there is no test.txt and no test.npy" in told
    assert (f"{tmp_path}/c is up to date" in told) is not written
    assert done.stdout == ("" if code else f"{tmp_path}/c\n")
    if code:
        assert told[-1] == "error: raw: expected usable items alone (--strict), got 3 items that cannot be used"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("prepare interhuman raw --out c --workers 0", "--workers: expected >= 1, got 0"),
        ("prepare interhuman raw --out file/c", "--out: PLACE/file is not a folder"),
        ("stats --data raw --out file/s.json", "--out: PLACE/file is not a folder"),
        ("stats --data raw --out there.npz", "--out: there.npz: exists already; choose another name, or remove it"),
        ("stats --data raw --out new.npy", "--out: expected a .json or .npz file, got new.npy"),
        ("data merge raw --out file/c", "--out: PLACE/file is not a folder"),
        ("data merge raw --out c --times raw", "--times: expected FOLDER=NUMBER, got 'raw'"),
    ],
    ids=range(7),
)
def test_places_and_numbers_are_refused_before_any_work(
    command: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("file", "there.npz"):
        Path(name).touch()
    for work in ("prepare", "MotionDataset", "merge.merge"):
        monkeypatch.setattr(f"intermoe.data.{work}", lambda *_, **__: pytest.fail("work began"))
    done = run(*command.split())
    assert (done.exit_code, done.stderr) == (2, f"error: {told.replace('PLACE', str(tmp_path))}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "there.npz"}


@pytest.mark.parametrize(
    ("kind", "augment", "mirrored", "swapped", "passes"),
    [
        ("interhuman", True, True, True, 4),
        ("interhuman", False, False, False, 1),
        ("solo", True, True, False, 4),
        ("interx", True, False, True, 4),
        ("humanml3d", True, False, False, 1),
    ],
)
def test_statistics_are_of_what_training_draws_from_each_data_set(
    kind: str,
    augment: bool,
    mirrored: bool,
    swapped: bool,
    passes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mirrored where the data set is, exchanged where there are two; four passes where something is drawn."""
    asked: dict[str, Any] = {}

    def dataset(chosen: Any, folder: Path, split: str, **options: Any) -> str:
        asked.update(options, kind=chosen.name, folder=folder, split=split)
        return "the data"

    def statistics(of: str, *, passes: int) -> Any:
        asked.update(of=of, passes=passes)
        return SimpleNamespace(save=lambda path, exclusive=False: asked.update(path=path, exclusive=exclusive))

    monkeypatch.setattr("intermoe.data.MotionDataset", dataset)
    monkeypatch.setattr("intermoe.data.statistics.compute_statistics", statistics)
    out = tmp_path / "new" / "deeper" / "s.npz"
    options = ("--augment" if augment else "--no-augment", "--strict", "--split", "val")
    done = run("stats", "--data", tmp_path, "--out", out, "--kind", kind, *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}\n"
    assert out.parent.is_dir()
    assert asked == {
        "kind": kind, "folder": tmp_path, "split": "val", "mirror": mirrored, "swap_persons": swapped,
        "training": False, "strict": True, "of": "the data", "passes": passes, "path": out, "exclusive": True,
    }  # fmt: skip


def test_what_is_merged_is_counted_by_split_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"train": {"duets": 12, "solo": 5}, "val": {"duets": 3}}
    merged = Merged(tmp_path / "m", listed, ["duets/7: too short", "solo/2: no file"])
    monkeypatch.setattr("intermoe.data.merge.merge", lambda *_, **__: merged)
    done = run("data", "merge", tmp_path, "--out", tmp_path / "m")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        "left out: duets/7: too short", "left out: solo/2: no file", "train: 12 of duets, 5 of solo", "val: 3 of duets",
    ]  # fmt: skip
    assert done.stdout == f"{tmp_path}/m\n"
