"""Caches: the same items as their source, made once, whole or not at all, and open in no time."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from intermoe.data import DATA_SETS, InterHumanDataset, MotionDataset, collate, prepare
from intermoe.data.cache import INDEX, VERSION, CachedClips, _digest, read_index
from intermoe.data.sets import train_statistics
from intermoe.data.statistics import compute_statistics
from intermoe.files import write_sealed
from intermoe.motion.statistics import Statistics

INTERHUMAN = DATA_SETS["interhuman"]
OPTIONS = {"mirror": True, "swap_persons": True, "seed": 3}


@pytest.fixture
def folder(interhuman_folder) -> Path:
    return interhuman_folder({"train": {"1": 40, "2": 350, "3": 30}, "val": {"4": 25, "2": 350}})


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    return prepare(INTERHUMAN, folder, tmp_path / "cache").folder


def test_items_are_those_of_the_source(folder: Path, cache: Path) -> None:
    for split in ("train", "val"):
        source, cached = (InterHumanDataset(root, split, **OPTIONS) for root in (folder, cache))
        assert source.names == cached.names
        for epoch in range(3):
            for index in range(len(source)):
                one, other = source.draw(index, epoch), cached.draw(index, epoch)
                assert torch.equal(one["motion"], other["motion"])
                assert one["caption"] == other["caption"]
    assert len(read_index(cache)["clips"]["names"]) == 4, "a sequence of two splits is stored once"


def test_statistics_are_those_of_the_augmented_training_split(folder: Path, cache: Path) -> None:
    stored = Statistics.load(cache / "statistics.json")
    expected = compute_statistics(InterHumanDataset(folder, "train", mirror=True, swap_persons=True), passes=4)
    np.testing.assert_array_equal(stored.mean, expected.mean)
    np.testing.assert_array_equal(stored.std, expected.std)
    augmented = InterHumanDataset(cache, "train", mirror=True, swap_persons=True)
    np.testing.assert_array_equal(train_statistics(augmented).mean, stored.mean)
    plain = InterHumanDataset(cache, "train")
    assert not np.array_equal(train_statistics(plain).mean, stored.mean), "another augmentation"


def test_a_cache_belongs_to_its_source(folder: Path, cache: Path) -> None:
    before = (cache / "index.json").stat().st_mtime_ns
    again = prepare(INTERHUMAN, folder, cache)
    assert not again.written
    assert again.reports["train"].total == 3
    assert (cache / "index.json").stat().st_mtime_ns == before
    (folder / "annots" / "1.txt").write_text("two people bow\n", encoding="utf-8")
    assert prepare(INTERHUMAN, folder, cache).written
    assert InterHumanDataset(cache, "train").captions(0) == ("two people bow",)


def test_how_far_it_is_is_told_and_a_source_of_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    prepare(INTERHUMAN, folder, tmp_path / "cache", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    for name in ("1", "2", "3", "4"):
        (folder / "motions_processed" / "person1" / f"{name}.npy").unlink()
    with pytest.raises(
        ValueError, match=r"3 of 3 items cannot be used\n  missing partner: 3 \(1: no file person1/1\.npy"
    ):
        prepare(INTERHUMAN, folder, tmp_path / "other")


def test_known_missing_files_are_told_but_no_problem(folder: Path, tmp_path: Path) -> None:
    with (folder / "split" / "train.txt").open("a", encoding="utf-8") as file:
        file.write("\n3945\n4106\n17")
    for name in ("3945", "4106", "17"):
        (folder / "annots" / f"{name}.txt").write_text("two people\n", encoding="utf-8")
    report = prepare(INTERHUMAN, folder, tmp_path / "cache").reports["train"]
    assert report.known_missing == ["3945", "4106"]
    assert report.problems == {"no motion file": ["17: no file person1/17.npy or person2/17.npy"]}
    (folder / "ignore_list.txt").write_text("17\n", encoding="utf-8")
    prepare(INTERHUMAN, folder, tmp_path / "cache")
    for root in (folder, tmp_path / "cache"):
        dataset = InterHumanDataset(root, "train", strict=True)
        assert len(dataset) == 3
        assert dataset.report.ignored == 1


def test_problems_outlive_the_source(folder: Path, tmp_path: Path) -> None:
    (folder / "motions_processed" / "person2" / "1.npy").unlink()
    cache = prepare(INTERHUMAN, folder, tmp_path / "cache").folder
    with pytest.warns(UserWarning, match=r"missing partner: 1 \(1: no file person2/1\.npy\)"):
        InterHumanDataset(cache, "train")
    with pytest.raises(ValueError, match="1 of 3 items cannot be used"):
        InterHumanDataset(cache, "train", strict=True)


def test_a_failed_preparation_leaves_what_was_there(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (folder / "annots" / "1.txt").write_text("two people bow\n", encoding="utf-8")
    before = (cache / "index.json").read_bytes()
    monkeypatch.setattr("intermoe.data.sets.compute_statistics", lambda *_, **__: pytest.fail("disk full"))
    with pytest.raises(pytest.fail.Exception):
        prepare(INTERHUMAN, folder, cache)
    assert (cache / "index.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-cache", "cache", "interhuman"]
    monkeypatch.undo()
    assert prepare(INTERHUMAN, folder, cache).written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "interhuman"]


def test_what_is_not_a_fitting_cache_is_refused(folder: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split 'test' in this cache, only train, val"):
        InterHumanDataset(cache, "test")
    with pytest.raises(ValueError, match="expected a cache of humanml3d, got one of interhuman"):
        MotionDataset(DATA_SETS["humanml3d"], cache, "train")
    with pytest.raises(FileExistsError, match="exists and is not a cache"):
        prepare(INTERHUMAN, folder, folder)
    with pytest.raises(NotADirectoryError, match="root: not a folder"):
        prepare(INTERHUMAN, tmp_path / "absent", cache)
    with pytest.raises(FileNotFoundError, match="lists no split"):
        prepare(INTERHUMAN, tmp_path, tmp_path / "other")
    with pytest.raises(ValueError, match="options: expected none for interhuman, got source_fps"):
        prepare(INTERHUMAN, folder, cache, source_fps=120)


@pytest.mark.parametrize(
    ("file", "hurt", "message"),
    [
        ("motion.f32", lambda path: os.truncate(path, 100), r"motion\.f32: expected \d+ bytes, got 100: run"),
        ("motion.f32", lambda path: path.unlink(), r"motion\.f32: expected \d+ bytes, got 0: run"),
        ("motion.f32", lambda path: edit(path, 5), r"motion\.f32: 1 is not as it was written: run"),
        ("index.json", lambda path: path.unlink(), r"index\.json: no such file, but a motion\.f32 beside it: run"),
        ("index.json", lambda path: path.write_text(""), r"index\.json: expected valid JSON"),
        (
            "index.json",
            lambda path: path.write_text("[]"),
            r"index\.json: expected the index of a cache, got another file: run",
        ),
        (
            "index.json",
            lambda path: path.write_bytes(b"\xff\xfe{"),
            r"index\.json: line 1: expected UTF-8 text, got UTF-16",
        ),
        (
            "index.json",
            lambda path: path.write_text(path.read_text().replace("turns right 1", "turns left 1")),
            r"index\.json: not as it was written: run",
        ),
        (
            "index.json",
            lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0})),
            "expected a cache of version 2, got 0: run intermoe prepare again",
        ),
        (
            "index.json",
            lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "version": 3})),
            "expected a cache of version 2, got 3: run intermoe prepare again",
        ),
        ("statistics.json", lambda path: path.unlink(), r"statistics\.json: no such file: run"),
        (
            "statistics.json",
            lambda path: path.write_text(path.read_text().replace("]", "1]", 1)),
            r"statistics\.json: not as it was written: run",
        ),
    ],
)
def test_a_damaged_cache_is_refused_by_name_and_made_again(
    file: str, hurt: Callable[[Path], object], message: str, folder: Path, cache: Path
) -> None:
    content = {path.name: path.read_bytes() for path in cache.iterdir()}
    hurt(cache / file)
    assert content != {path.name: path.read_bytes() for path in cache.iterdir()}
    with pytest.raises(ValueError, match=message):
        train_statistics(InterHumanDataset(cache, "train", mirror=True, swap_persons=True))
    assert prepare(INTERHUMAN, folder, cache).written
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == content
    assert not prepare(INTERHUMAN, folder, cache).written


def edit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_an_edited_source_of_the_same_size_and_time_is_seen(folder: Path, cache: Path) -> None:
    path = folder / "annots" / "1.txt"
    before = path.stat()
    path.write_text(path.read_text().replace("right 1", "right 2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prepare(INTERHUMAN, folder, cache).written


def test_links_to_nothing_matter_only_where_they_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("motions_processed/person1/77.npy", "annots/1.txt"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "nothing")
    prepared = prepare(INTERHUMAN, folder, tmp_path / "cache")
    assert prepared.reports["train"].problems == {"no caption": ["1: no file annots/1.txt"]}
    assert not prepare(INTERHUMAN, folder, tmp_path / "cache").written


def test_what_lies_beside_a_cache_is_not_lost(folder: Path, cache: Path) -> None:
    (cache / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"exists and is not a cache: it holds notes\.txt"):
        prepare(INTERHUMAN, folder, cache)
    assert (cache / "notes.txt").exists()


def test_workers_map_the_file_themselves(cache: Path) -> None:
    dataset = InterHumanDataset(cache, "train", **OPTIONS)
    assert len(pickle.dumps(dataset._clips)) < (cache / "motion.f32").stat().st_size / 10
    alone = [dataset[i]["motion"] for i in range(3)]
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert all(torch.equal(one, item["motion"]) for one, item in zip(alone, loader, strict=True))


def test_no_clip_is_read_twice_before_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many sequences as InterHuman has, short ones: what counts before the first batch is their number."""
    sequences, frames = 7779, 20
    rng = np.random.default_rng(0)
    block = rng.normal(size=(frames, 2, 192)).astype("<f4").tobytes()
    clips = {
        "names": [str(i) for i in range(sequences)],
        "captions": [
            [f"{words} {i}" for words in ("two people bow", "one turns left", "they walk")] for i in range(sequences)
        ],
        "starts": [i * frames for i in range(sequences)],
        "frames": [frames] * sequences,
        "hashes": [_digest(block)] * sequences,
    }
    split = {"clips": list(range(sequences)), "total": sequences, "ignored": 0, "known_missing": [], "problems": {}}
    index = {"version": VERSION, "kind": "interhuman", "clips": clips, "splits": {"train": split}}
    write_sealed(tmp_path / INDEX, index)
    (tmp_path / "motion.f32").write_bytes(block * sequences)
    read: list[int] = []
    get = CachedClips.__getitem__
    monkeypatch.setattr(CachedClips, "__getitem__", lambda clips, index: read.append(index) or get(clips, index))
    dataset = MotionDataset(INTERHUMAN, tmp_path, "train", **OPTIONS)
    assert len(dataset) == sequences
    assert len(read) == len(set(read))  # each is checked once at most
    read.clear()
    drawn = list(range(0, sequences, sequences // 64))
    batch = collate([dataset.draw(index, 0) for index in drawn])
    assert read == drawn
    assert batch["motion"].shape == (65, 2, 20, 262)  # 19 frames of motion and one of padding
