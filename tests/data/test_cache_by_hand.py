"""What a cache depends on, holds and tells, one thing after the other."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe.data import DATA_SETS, InterHumanDataset, MotionDataset, pieces, prepare, sets
from intermoe.data import cache as caches
from intermoe.data.cache import CachedClips, fingerprint, read_index
from intermoe.data.items import DataSet, ItemError, RawClip
from intermoe.data.pieces import JOURNAL, digest, read_all

INTERHUMAN = DATA_SETS["interhuman"]


@pytest.fixture
def folder(interhuman_folder: Callable[..., Path]) -> Path:
    return interhuman_folder({"train": {"1": 20, "2": 35}, "val": {"3": 25}})


class Files:
    """A reader of the files that it is given."""

    layout = "any"

    def __init__(self, *paths: Path, **settings: Any) -> None:
        self.paths, self.settings = list(paths), settings

    def files(self) -> list[Path]:
        return self.paths


def key(root: Path, *paths: Path, data_set: DataSet = INTERHUMAN, **settings: Any) -> str:
    return fingerprint(data_set, Files(*paths, **settings), root)  # type: ignore[arg-type]


def test_a_fingerprint_is_of_data_set_version_names_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two files are one, under two names: of the same size and times."""
    first, other = tmp_path / "a" / "1.npy", tmp_path / "a" / "2.npy"
    first.parent.mkdir()
    first.write_bytes(b"content")
    os.link(first, other)
    gone = tmp_path / "a" / "gone.npy"
    gone.symlink_to(tmp_path / "nothing")
    found = [
        key(tmp_path, first),
        key(tmp_path, other),
        key(tmp_path, first, other),
        key(tmp_path, first, gone),
        key(tmp_path, first, fps=30),
        key(tmp_path, first, fps=60),
        key(tmp_path, first, data_set=DATA_SETS["solo"]),
    ]
    monkeypatch.setattr(caches, "VERSION", caches.VERSION + 1)
    found.append(key(tmp_path, first))
    assert len(set(found)) == len(found)
    assert all(len(each) == 64 for each in found)


def test_a_fingerprint_is_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    beside = tmp_path / "skeleton.npy"
    beside.write_bytes(b"rest")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.npy").write_bytes(b"content")
    before = key(tmp_path / "a", tmp_path / "a" / "1.npy", beside)
    (tmp_path / "a").rename(tmp_path / "b")
    assert key(tmp_path / "b", tmp_path / "b" / "1.npy", beside) == before
    assert key(tmp_path / "b", tmp_path / "b" / "1.npy") != before


def test_splits_that_a_source_does_not_have_are_told_with_their_files(folder: Path, tmp_path: Path) -> None:
    for written in (True, False):
        prepared = prepare(INTERHUMAN, folder, tmp_path / "cache")
        assert prepared.written is written
        assert prepared.folder == tmp_path / "cache"
        assert prepared.absent == {"test": ["split/test.txt"]}
        assert {name: report.total for name, report in prepared.reports.items()} == {"train": 2, "val": 1}
    (folder / "split" / "train.txt").unlink()
    assert prepare(INTERHUMAN, folder, tmp_path / "cache").absent == {
        "train": ["split/train.txt"], "test": ["split/test.txt"],
    }  # fmt: skip


def test_the_index_says_where_each_clip_lies(folder: Path, tmp_path: Path) -> None:
    (folder / "split" / "train.txt").write_text("2\n4\n1\n", encoding="utf-8")
    (folder / "annots" / "4.txt").write_text("two people\n", encoding="utf-8")
    (folder / "split" / "val.txt").write_text("3\n1\n4\n", encoding="utf-8")
    (folder / "ignore_list.txt").write_text("9\n3\n", encoding="utf-8")
    index = read_index(prepare(INTERHUMAN, folder, tmp_path / "cache").folder)
    problems = {"no motion file": ["4: no file person1/4.npy or person2/4.npy"]}
    empty: list[str] = []
    assert index["splits"] == {
        "train": {"clips": [0, 1], "total": 3, "ignored": 0, "known_missing": empty, "problems": problems},
        "val": {"clips": [1], "total": 2, "ignored": 1, "known_missing": empty, "problems": problems},
    }
    clips = index["clips"]
    assert (clips["names"], clips["frames"], clips["starts"]) == (["2", "1"], [35, 20], [0, 35])
    assert clips["captions"][0] == ["the first person waves to the left", "one turns right 2"]
    content = (tmp_path / "cache" / "motion.f32").read_bytes()
    cut = 35 * 2 * 192 * 4
    assert clips["hashes"] == [digest(content[:cut]), digest(content[cut:])]
    assert (index["version"], index["kind"], index["frame"], index["settings"]) == (2, "interhuman", [2, 192], {})
    source = INTERHUMAN.reader(folder).read("train", "1")[0].source
    np.testing.assert_array_equal(CachedClips(INTERHUMAN, tmp_path / "cache", "val")[0], source)


def test_a_clip_of_any_split_that_was_edited_is_found(folder: Path, tmp_path: Path) -> None:
    cache = prepare(INTERHUMAN, folder, tmp_path / "cache").folder
    content = bytearray((cache / "motion.f32").read_bytes())
    content[-1] ^= 1  # of the last clip, to validate with
    (cache / "motion.f32").write_bytes(content)
    assert prepare(INTERHUMAN, folder, cache).written


def test_a_source_of_nothing_leaves_nothing_and_is_told_by_its_first_split(folder: Path, tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (folder / "annots" / f"{name}.txt").unlink()
    with pytest.raises(ValueError, match="interhuman: 2 of 2 items cannot be used"):
        prepare(INTERHUMAN, folder, tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["interhuman"]


def test_a_file_in_the_place_of_a_cache_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not a cache: it holds cache"):
        prepare(INTERHUMAN, folder, tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "mine"


def test_pages_are_left_while_clips_are_checked(
    interhuman_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that more was read than may stay since the last time, of clips of 20, 35 and 5 frames."""
    root = interhuman_folder({"train": {"1": 20, "2": 35, "3": 5}})
    prepare(INTERHUMAN, root, tmp_path / "cache")
    left: list[CachedClips] = []
    monkeypatch.setattr(CachedClips, "leave", lambda clips: left.append(clips))
    for most, times in ((0, 3), (4, 3), (5, 2), (19, 2), (20, 1), (54, 1), (55, 1), (59, 1), (60, 0)):
        left.clear()
        monkeypatch.setattr(caches, "_LEFT_BYTES", most * 2 * 192 * 4)
        assert CachedClips(INTERHUMAN, tmp_path / "cache", "train").frames == [20, 35, 5]
        assert len(left) == times, most
        CachedClips(INTERHUMAN, tmp_path / "cache", "train", check=False)
        assert len(left) == times


def test_a_worker_does_not_check_clips_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = CachedClips(INTERHUMAN, prepare(INTERHUMAN, folder, tmp_path / "cache").folder, "val")
    read: list[int] = []
    get = CachedClips.__getitem__
    monkeypatch.setattr(CachedClips, "__getitem__", lambda clips, index: read.append(index) or get(clips, index))
    again = pickle.loads(pickle.dumps(clips))
    assert read == []
    assert (again.names, again.frames) == (["3"], [25])
    np.testing.assert_array_equal(again[0], get(clips, 0))


def test_what_cannot_be_used_is_in_the_reports_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "annots" / "1.txt").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = prepare(INTERHUMAN, folder, tmp_path / "cache").reports
    assert reports["train"].problems == {"no caption": ["1: no file annots/1.txt"]}


def test_an_option_of_nothing_is_not_the_default(interx_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = interx_folder({"train": {"G1": np.zeros((30, 55, 24))}})
    with pytest.raises(ValueError, match="source_fps: expected a multiple of 30, got 0"):
        prepare(DATA_SETS["interx"], root, tmp_path / "cache", source_fps=0)
    given = prepare(DATA_SETS["interx"], root, tmp_path / "cache", source_fps=None)
    assert read_index(given.folder)["settings"] == {"source_fps": 30, "skeleton": None}


def test_statistics_of_a_cache_are_taken_from_it_where_its_items_are_drawn_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, as for a folder, from four epochs of the items themselves."""
    cache = prepare(INTERHUMAN, folder, tmp_path / "cache").folder
    no_swap = replace(INTERHUMAN, representation=replace(INTERHUMAN.representation, name="interhuman", persons=1))
    asked: list[tuple[Any, dict[str, int]]] = []
    monkeypatch.setattr(sets, "compute_statistics", lambda dataset, **options: asked.append((dataset, options)))
    stored = sets.train_statistics(InterHumanDataset(cache, "train", mirror=True, swap_persons=True))
    assert stored.mean.shape == (262,)
    alone = sets.train_statistics(MotionDataset(no_swap, cache, "train", mirror=True))
    np.testing.assert_array_equal(alone.mean, stored.mean)
    assert asked == []
    for root, options in (
        (cache, {"mirror": True}), (cache, {"swap_persons": True}), (cache, {}),
        (folder, {"mirror": True, "swap_persons": True}),
    ):  # fmt: skip
        dataset = InterHumanDataset(root, "train", **options)
        sets.train_statistics(dataset)
        assert asked.pop() == (dataset, {"passes": 4})


class Numbers:
    """A reader of sequences of one clip each: as many frames of (3,) as the name says, of which "2" is broken."""

    layout, settings = "none", dict[str, Any]()

    def read(self, split: str, name: str) -> list[RawClip]:
        if name == "2":
            raise ItemError("no frame", f"{split} {name}")
        return [RawClip(name, (f"{split} {name}",), np.full((int(name), 3), int(name), np.float64))]  # type: ignore[arg-type]


def reading(folder: Path, progress: Callable[[int], None] = lambda _: None) -> Iterator[Any]:
    names = [("train", "3"), ("train", "2"), ("val", "5"), ("val", "1"), ("val", "4")]
    return read_all(Numbers(), names, 12, folder / "m", folder / JOURNAL, "k", progress=progress)  # type: ignore[arg-type]


def test_what_is_told_lies_in_the_files_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed after a piece finds it whole: its bytes and its line."""
    monkeypatch.setattr("intermoe.data.pieces.PIECE", 2)
    told: list[int] = []
    rows = reading(tmp_path, told.append)
    first, second = next(rows), next(rows)
    assert told == [2]
    content = np.full((3, 3), 3, "<f4").tobytes()
    assert (tmp_path / "m").read_bytes() == content
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == 2
    assert first == ([("3", ["train 3"], 3, digest(content))], [])
    assert second == ([], ["no frame", "train 2"])
    third = next(rows)
    assert (third.clips[0].name, third.clips[0].frames) == ("5", 5)
    assert len((tmp_path / "m").read_bytes()) == 9 * 12
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == 3
    rows.close()  # type: ignore[attr-defined]
    told.clear()
    whole = list(reading(tmp_path, told.append))
    assert told == [2, 4, 5]
    assert whole[:3] == [first, second, third]
    assert [[clip.name for clip in row.clips] for row in whole] == [["3"], [], ["5"], ["1"], ["4"]]
    frames = np.frombuffer((tmp_path / "m").read_bytes(), "<f4").reshape(-1, 3)
    assert frames[:, 0].tolist() == [3] * 3 + [5] * 5 + [1] + [4] * 4


def test_bytes_beyond_the_last_whole_piece_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intermoe.data.pieces.PIECE", 2)
    whole = list(reading(tmp_path))
    content, journal = (tmp_path / "m").read_bytes(), (tmp_path / JOURNAL).read_bytes()
    (tmp_path / "m").write_bytes(content + b"more than there was")
    assert list(reading(tmp_path)) == whole
    assert (tmp_path / "m").read_bytes() == content
    assert (tmp_path / JOURNAL).read_bytes() == journal


def test_no_more_processes_are_started_than_there_are_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def alone(task: Any, context: Any, parts: Any, workers: int) -> Iterator[Any]:
        asked.append(workers)
        return (task(context, part) for part in parts)

    monkeypatch.setattr(pieces, "PIECE", 2)
    monkeypatch.setattr(pieces, "in_order", alone)
    names = [("train", "1")] * 5
    for number, workers in enumerate((2, 3, 9)):
        folder = tmp_path / str(number)
        folder.mkdir()
        list(read_all(Numbers(), names, 12, folder / "m", folder / JOURNAL, "k", workers=workers))  # type: ignore[arg-type]
        list(read_all(Numbers(), names, 12, folder / "m", folder / JOURNAL, "k", workers=workers))  # type: ignore[arg-type]
    assert asked == [2, 0, 3, 0, 3, 0]


def test_content_is_known_by_32_digits() -> None:
    assert len(digest(b"")) == 32
    assert digest(b"a") != digest(b"b")
