"""Folders made one: what is copied, how single persons become pairs, how often a clip is listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from intermoe import cli
from intermoe.data import DATA_SETS, MotionDataset, prepare
from intermoe.data.items import ItemError
from intermoe.data.merge import _listings, merge
from intermoe.data.solo import APART, SoloReader, compose, join_captions, partners


@pytest.fixture
def solo_folder(tmp_path: Path) -> Callable[..., Path]:
    """``solo_folder({"train": {"a": 41}})``: clips of one person who walks along X, of so many frames."""

    def make(splits: dict[str, dict[str, int]], name: str = "solo") -> Path:
        root = tmp_path / name
        for folder in ("motions", "annots", "split"):
            (root / folder).mkdir(parents=True)
        rng = np.random.default_rng(0)
        for split, clips in splits.items():
            (root / "split" / f"{split}.txt").write_text("\n".join(clips), encoding="utf-8")
            for clip, frames in clips.items():
                body = rng.integers(0, 5000, size=(22, 3)) + np.arange(frames)[:, None, None] * [100, 0, 0]
                columns = np.tile([8192, 0, 0, 0, 8192, 0], (frames, 21, 1))
                np.savez(root / "motions" / f"{clip}.npz", pos=body.astype(np.int16), rot6d=columns.astype(np.int16))
                text = f"a person waves {clip}.\nsomeone waves the left hand, {clip}.\n"
                (root / "annots" / f"{clip}.txt").write_text(text, encoding="utf-8")
        return root

    return make


def test_pairs_have_as_many_captions_as_both_of_their_persons(solo_folder: Callable[..., Path], tmp_path: Path) -> None:
    solo = solo_folder({"train": {"a": 41, "b": 60, "c": 50, "d": 45}})
    for clip, captions in (("b", 1), ("c", 3)):
        text = "".join(f"a person waves {clip} {number}.\n" for number in range(captions))
        (solo / "annots" / f"{clip}.txt").write_text(text, encoding="utf-8")
    assert merge([solo], tmp_path / "all").left_out == []
    counts = {"a": 2, "b": 1, "c": 3, "d": 2}
    pairs = [name.removeprefix("solo-") for name in lines(tmp_path / "all" / "split" / "train.txt")]
    assert len(pairs) == 4
    for name in lines(tmp_path / "all" / "split" / "train.txt"):
        first, second = name[-3], name[-1]
        assert len(lines(tmp_path / "all" / "annots" / f"{name}.txt")) == min(counts[first], counts[second])


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_merged_folder_is_read_prepared_and_counted(
    interhuman_folder: Callable[..., Path], solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = interhuman_folder({"train": {"1": 40, "2": 44}, "val": {"3": 41}})
    solo = solo_folder({"train": {"a": 41, "b": 60, "c": 50}, "val": {"d": 41, "e": 45}})
    (solo / "LICENSE-DATA.txt").write_text("terms", encoding="utf-8")
    merged = merge([pairs, solo], tmp_path / "all")
    assert merged.listed == {"train": {"interhuman": 2, "solo": 3}, "val": {"interhuman": 1, "solo": 2}}
    assert merged.left_out == []
    for folder in ("motions_processed/person1/1.npy", "motions_processed/person2/3.npy", "annots/2.txt"):
        assert (tmp_path / "all" / folder).read_bytes() == (pairs / folder).read_bytes()
    assert (tmp_path / "all" / "LICENSE-DATA.solo.txt").read_text(encoding="utf-8") == "terms"
    sources = {item["name"]: item["source"] for item in json.loads((tmp_path / "all" / "items.json").read_text())}
    assert Counter(sources.values()) == {"interhuman": 3, "solo": 5}
    # every clip of one person is the first person of one pair, of its own length: the shortest has 41 frames
    names = [name for name in sources if "+" in name]
    assert sorted(name.split("+")[0] for name in names) == ["a", "b", "c", "d", "e"]
    dataset = MotionDataset(DATA_SETS["interhuman"], tmp_path / "all", "train", strict=True)
    assert {n: dataset.num_frames(i) for i, n in enumerate(dataset.names)}[names[0]] == 40
    cache = prepare(DATA_SETS["interhuman"], tmp_path / "all", tmp_path / "cache")
    assert cache.reports["train"].total == 5
    assert (tmp_path / "cache" / "statistics.json").is_file()


def test_the_same_seed_gives_the_same_folder(solo_folder: Callable[..., Path], tmp_path: Path) -> None:
    solo = solo_folder({"train": dict.fromkeys("abcdef", 41)})
    for out, seed in (("one", 0), ("two", 0), ("other", 1)):
        merge([solo], tmp_path / out, seed=seed)
    one, two, other = (
        {p.name: p.read_bytes() for p in (tmp_path / out / "annots").iterdir()} for out in ("one", "two", "other")
    )
    assert one == two != other
    merge([solo], tmp_path / "nothing said")
    assert {p.name: p.read_bytes() for p in (tmp_path / "nothing said" / "annots").iterdir()} == one


def test_a_pair_keeps_each_persons_motion_and_stays_apart(solo_folder: Callable[..., Path]) -> None:
    reader = SoloReader(solo_folder({"train": {"a": 41, "b": 70}}))
    first, second = reader.read("a"), reader.read("b")
    assert first.positions.shape == (41, 66)
    assert first.rotations.shape == (41, 126)
    assert first.rotations[0, :6].tolist() == [1, 0, 0, 0, 1, 0]
    step = np.diff(first.positions, axis=0)
    np.testing.assert_allclose(step.reshape(40, 22, 3), np.tile([0.02, 0, 0], (40, 22, 1)), atol=1e-6)
    for seed in range(20):
        own, other = compose(first, second, np.random.default_rng(seed))
        np.testing.assert_array_equal(own, first.positions)
        assert own.dtype == other.dtype == np.float32
        placed, alone = other.reshape(41, 22, 3).astype(float), second.positions[:41].reshape(41, 22, 3).astype(float)
        # rigid about the vertical: heights and distances stay
        np.testing.assert_allclose(placed[..., 2], alone[..., 2], atol=1e-6)
        distances = [np.linalg.norm(p[:, 1:] - p[:, :1], axis=-1) for p in (placed, alone)]
        np.testing.assert_allclose(*distances, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(np.diff(placed, axis=0), axis=-1), 0.02, atol=1e-5)
        gap = placed[:, 0, :2] - own.reshape(41, 22, 3)[:, 0, :2]
        assert np.linalg.norm(gap, axis=-1).min() >= APART - 1e-5


def test_a_second_person_is_turned_any_way_and_stands_as_near_as_may_be(solo_folder: Callable[..., Path]) -> None:
    reader = SoloReader(solo_folder({"train": {"a": 41, "b": 70}}))
    first, second = reader.read("a"), reader.read("b")
    headings, bearings = [], []
    for seed in range(60):
        own, other = (each.reshape(41, 22, 3) for each in compose(first, second, np.random.default_rng(seed)))
        walked, gap = (other[-1, 0] - other[0, 0])[:2], (other[:, 0] - own[:, 0])[:, :2]
        headings.append(np.arctan2(walked[1], walked[0]))
        bearings.append(np.arctan2(*gap[0, ::-1]))
        nearest = np.linalg.norm(gap, axis=-1).min()
        assert APART - 1e-5 <= nearest <= APART + 0.25 + 1e-5, "it comes nearer by steps of a quarter of a metre"
    for angles in (headings, bearings):
        quarters = np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0]
        assert quarters.min() >= 5, "each quarter of 60 has some 15"


def test_clips_as_long_as_others_are_partnered_at_random() -> None:
    chosen = partners([40] * 200, np.random.default_rng(0))
    earlier = sum(other < index for index, other in enumerate(chosen))
    assert 60 < earlier < 140, "about half have one that comes before them in the list"


def test_pairs_are_cut_to_the_shorter_from_their_start_and_a_clip_without_a_partner_is_told(
    solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    solo = solo_folder({"train": {"a": 41, "b": 70}, "val": {"c": 50}})
    arrays = dict(np.load(solo / "motions" / "b.npz"))
    arrays["rot6d"] = (np.arange(70)[:, None, None] + np.zeros((70, 21, 6))).astype(np.int16)  # says the frame
    np.savez(solo / "motions" / "b.npz", **arrays)
    merged = merge([solo], tmp_path / "all")
    motion = np.load(tmp_path / "all" / "motions_processed" / "person2" / "a+b.npy")
    np.testing.assert_allclose(motion[:, 186:312], np.arange(41)[:, None] / 8192 + np.zeros(126), atol=1e-7)
    assert merged.left_out == ["solo: no partner: split val: 1 clips"]
    assert merged.listed == {"train": {"solo": 2}}


def test_every_clip_of_an_activity_is_listed_at_least_once(solo_folder: Callable[..., Path], tmp_path: Path) -> None:
    """21 clips 0.1 times are 2.1 listings, 1.05 an activity: of the 20 that wave each would be listed 0.05 times."""
    solo = solo_folder({"train": {f"w{i}": 41 for i in range(20)} | {"bow": 41}})
    pairs = merge([solo], tmp_path / "pairs").folder
    items = json.loads((pairs / "items.json").read_text())
    for item in items:
        item["tags"] = {"activity": "bow" if item["name"].startswith("bow") else "wave"}
    (pairs / "items.json").write_text(json.dumps(items))
    merge([pairs], tmp_path / "all", times={"pairs": 0.1})
    listed = Counter(lines(tmp_path / "all" / "split" / "train.txt"))
    assert sorted(listed.values()) == [1] * 21


def test_folders_are_paired_by_draws_of_their_own(solo_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Two folders of clips of the same lengths: the number of a clip's partner is not the same in both."""
    folders = [solo_folder({"train": {f"{name}{i}": 41 for i in range(9)}}, name) for name in ("x", "y")]
    merge(folders, tmp_path / "all")
    names = lines(tmp_path / "all" / "split" / "train.txt")
    partner = {source: [name.split("+")[1][1:] for name in names if name[0] == source] for source in ("x", "y")}
    assert len(partner["x"]) == len(partner["y"]) == 9
    assert partner["x"] != partner["y"]


def test_partners_are_others_as_long_or_longer() -> None:
    lengths = [50, 41, 300, 41, 120, 300]
    for seed in range(20):
        chosen = partners(lengths, np.random.default_rng(seed))
        assert all(other != index for index, other in enumerate(chosen))
        assert all(lengths[other] >= lengths[index] for index, other in enumerate(chosen))


def test_partners_are_among_the_next_32_by_length() -> None:
    """Of a hundred clips, each a frame longer than the one before; the longest has the one before it."""
    farthest = 0
    for seed in range(20):
        chosen = np.array(partners(list(range(40, 140)), np.random.default_rng(seed)))
        ahead = chosen - np.arange(100)
        assert ((ahead[:-1] >= 1) & (ahead[:-1] <= 32)).all()
        assert ahead[-1] == -1
        farthest = max(farthest, int(ahead.max()))
    assert farthest == 32


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("a person waves.", "someone sweeps the floor.", "one person waves, while the other sweeps the floor."),
        ("One person bows", "a person sits, then rises.", "one person bows, while the other sits, then rises."),
        ("he runs.", "a person waves.", "he runs. a person waves."),
    ],
)
def test_captions_are_joined(first: str, second: str, joined: str) -> None:
    assert join_captions(first, second) == joined


def test_times_list_training_clips_and_even_out_activities(
    interhuman_folder: Callable[..., Path], solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = interhuman_folder({"train": {"1": 40, "2": 40, "3": 40, "4": 40}, "val": {"5": 40}})
    tags = {"1": "bow", "2": "dance", "3": "dance", "4": "dance", "5": "dance"}
    items = [{"name": name, "tags": {"activity": activity}} for name, activity in tags.items()]
    (pairs / "items.json").write_text(json.dumps(items), encoding="utf-8")
    solo = solo_folder({"train": {f"s{i}": 41 for i in range(200)}})
    merge([pairs, solo], tmp_path / "all", times={"interhuman": 6, "solo": 0.25})
    listed = Counter(lines(tmp_path / "all" / "split" / "train.txt"))
    assert {name: listed[name] for name in "1234"} == {"1": 12, "2": 4, "3": 4, "4": 4}
    assert 25 <= sum(count for name, count in listed.items() if "+" in name) <= 75
    assert lines(tmp_path / "all" / "split" / "val.txt") == ["5"]


def test_activities_are_evened_out_where_every_clip_has_one() -> None:
    """Of three clips two wave; where nothing is known of the third, each is listed as often as is asked for."""
    entries = {name: {"name": name, "tags": {"activity": "wave"}} for name in "ab"}
    rng = np.random.default_rng(0)
    assert _listings("abc", entries, 2.0, rng) == [2, 2, 2]
    assert _listings("abc", {**entries, "c": {"name": "c", "tags": {"activity": "bow"}}}, 4.0, rng) == [3, 3, 6]


@pytest.mark.parametrize(("more", "repeated"), [(1, 1), (2, 1), (3, 2), (4, 2), (6, 3)])
def test_own_captions_are_repeated_by_the_nearest_whole_number(
    interhuman_folder: Callable[..., Path], tmp_path: Path, more: int, repeated: int
) -> None:
    pairs = interhuman_folder({"train": {"1": 40}})
    (pairs / "items.json").write_text(json.dumps([{"name": "1", "tags": {"activity": "bow"}}]), encoding="utf-8")
    own, further = lines(pairs / "annots" / "1.txt"), [f"both bow, {i}" for i in range(more)]
    assert len(own) == 2
    merge([pairs], tmp_path / "all", wordings={"bow": further})
    assert lines(tmp_path / "all" / "annots" / "1.txt") == repeated * own + further


def test_wordings_are_further_captions_of_training_clips_of_an_activity(
    interhuman_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = interhuman_folder({"train": {"1": 40, "2": 40, "3": 40}, "val": {"4": 40}})
    tags = {"1": "bow", "2": "dance", "4": "bow"}
    items = [{"name": name, "tags": {"activity": activity}} for name, activity in tags.items()]
    (pairs / "items.json").write_text(json.dumps(items), encoding="utf-8")
    own = {name: lines(pairs / "annots" / f"{name}.txt") for name in "1234"}
    more = [f"both bow, {i}" for i in range(2 * len(own["1"]))]
    merge([pairs], tmp_path / "all", wordings={"bow": more})
    found = {name: lines(tmp_path / "all" / "annots" / f"{name}.txt") for name in "1234"}
    assert found == own | {"1": 2 * own["1"] + more}  # drawn as often as its own
    kept = {item["name"]: item for item in json.loads((tmp_path / "all" / "items.json").read_text(encoding="utf-8"))}
    assert kept == {
        **{item["name"]: {**item, "source": "interhuman"} for item in items},
        "3": {"name": "3", "split": "train", "source": "interhuman"},
    }
    merge([pairs], tmp_path / "few", wordings={"bow": more[:1]})
    assert lines(tmp_path / "few" / "annots" / "1.txt") == own["1"] + more[:1]
    wrong = {"sit": "expected activities that training clips are tagged with, got 'sit'"}
    (pairs / "items.json").write_text(json.dumps([{"name": "4", "tags": {"activity": "bow"}}]), encoding="utf-8")
    wrong |= {"bow": "expected activities that training clips are tagged with, got 'bow'"}  # of val alone
    for activity, message in wrong.items():
        with pytest.raises(ValueError, match=f"wordings: {message}"):
            merge([pairs], tmp_path / "none", wordings={activity: ["both bow"]})
    for captions in ([], ["two\nlines"], [" "]):
        with pytest.raises(ValueError, match="wordings: expected captions of one line for bow"):
            merge([pairs], tmp_path / "none", wordings={"bow": captions})
    assert not (tmp_path / "none").exists()


def test_a_training_split_of_nothing_is_not_written(
    interhuman_folder: Callable[..., Path], solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pairs, solo = interhuman_folder({"val": {"1": 40}}), solo_folder({"train": {"a": 41, "b": 44}})
    (tmp_path / "again").mkdir()
    other = (tmp_path / "again" / "others").resolve()
    pairs.rename(other)
    with pytest.raises(ValueError, match="times: expected a number > 0 for any of solo, got 0 for each"):
        merge([solo], tmp_path / "all", times={"solo": 0})
    with pytest.raises(ValueError, match="times: expected a number > 0 for any of solo, others, got 0 for each"):
        merge([solo, other], tmp_path / "all", times={"solo": 0, "others": 0})
    for times in ({"solo": 0}, {"solo": 1e-9}):  # the other folder has nothing to train on; the second by chance
        with pytest.raises(ValueError, match="times: expected some clip to be listed in split train, got none of solo"):
            merge([solo, other], tmp_path / "all", times=times)
    assert not (tmp_path / "all").exists()
    merged = merge([interhuman_folder({"train": {"2": 40}}), solo], tmp_path / "all", times={"solo": 0})
    assert merged.listed == {"train": {"interhuman": 1, "solo": 0}}
    assert merge([other], tmp_path / "val alone").listed == {"val": {"others": 1}}


def test_what_cannot_be_merged_is_named(
    interhuman_folder: Callable[..., Path], solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = interhuman_folder({"train": {"1": 40}})
    (tmp_path / "again").mkdir()
    with pytest.raises(ValueError, match="folders: expected names that differ, got interhuman, interhuman"):
        merge([pairs, pairs], tmp_path / "all")
    other = tmp_path / "again" / "others"
    pairs.rename(other)
    pairs = interhuman_folder({"train": {"1": 40}})
    with pytest.raises(ValueError, match="folders: expected names that differ, got 1 in others and interhuman"):
        merge([other, pairs], tmp_path / "all")
    with pytest.raises(ValueError, match="times: expected any of interhuman, got 'salsa'"):
        merge([pairs], tmp_path / "all", times={"salsa": 2})
    with pytest.raises(ValueError, match="times: expected a number from 0 to 10000 for interhuman, got -1"):
        merge([pairs], tmp_path / "all", times={"interhuman": -1})
    assert merge([pairs], tmp_path / "most", times={"interhuman": 1e4}).listed == {"train": {"interhuman": 10_000}}
    with pytest.raises(NotADirectoryError, match="folders: not a folder"):
        merge([tmp_path / "absent"], tmp_path / "all")
    with pytest.raises(FileNotFoundError, match="no clip that can be used"):
        merge([tmp_path / "again"], tmp_path / "all")
    (tmp_path / "full").mkdir()
    with pytest.raises(FileExistsError, match="full"):
        merge([pairs], tmp_path / "full")
    assert not (tmp_path / "all").exists(), "nothing is left of what failed"


def test_clips_that_cannot_be_used_are_left_out_by_name(solo_folder: Callable[..., Path], tmp_path: Path) -> None:
    solo = solo_folder({"train": {"a": 41, "b": 41, "c": 41, "d": 41}})
    (solo / "motions" / "b.npz").write_bytes(b"no archive")
    np.savez(solo / "motions" / "c.npz", pos=np.zeros((41, 22, 3), np.float32), rot6d=np.zeros((41, 21, 6), np.int16))
    merged = merge([solo], tmp_path / "all")
    assert merged.listed == {"train": {"solo": 2}}
    assert merged.left_out[0].startswith("solo: unreadable file: b: motions/b.npz")
    assert "expected integers of shape (T, 22, 3), got float32 (41, 22, 3)" in merged.left_out[1]
    with pytest.raises(ItemError, match=r"b: motions/b\.npz"):
        merge([solo], tmp_path / "strict", strict=True)


def test_the_command_says_what_it_made(solo_folder: Callable[..., Path], tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, ["data", "merge", *map(str, arguments)], env={"COLUMNS": "200"})

    solo, out = solo_folder({"train": {"a": 41, "b": 41}}), tmp_path / "all"
    made = run(solo, "--out", out, "--times", "solo=3")
    assert made.exit_code == 0, made.output
    assert made.stderr.strip() == "train: 6 of solo"
    assert made.stdout.strip() == str(out)
    (tmp_path / "words.tsv").write_text("wave: hello", encoding="utf-8")
    unread = run(solo, "--out", tmp_path / "more", "--wordings", tmp_path / "words.tsv")
    assert unread.exit_code == 2
    assert "error: --wordings: " in unread.stderr
    assert "words.tsv: line 1: expected an activity, a tabulator" in unread.stderr
    absent = run(solo, "--out", tmp_path / "more", "--wordings", tmp_path / "none.tsv")
    assert absent.exit_code == 2
    assert "error: --wordings: " in absent.stderr
    shipped = run(solo, "--out", tmp_path / "more", "--wordings", "duets")
    assert "wordings: expected activities that training clips are tagged with, got" in shipped.stderr
    wrong = run(solo, "--out", tmp_path / "more", "--times", "solo")
    assert wrong.exit_code == 2
    assert "--times: expected FOLDER=NUMBER, got 'solo'" in wrong.stderr


def test_the_shared_clips_of_single_persons(shared_folder: Path) -> None:
    root = shared_folder / "data" / "solo"
    if not root.is_dir():
        pytest.skip(f"real motion is absent: {root} not found")
    reader = SoloReader(root)
    assert (len(reader.names("train")), len(reader.names("val"))) == (848, 91)
    clip = reader.read(reader.names("val")[0])
    height = clip.positions.reshape(len(clip), 22, 3)[..., 2]
    assert -0.05 < float(height.min()) < 0.1
    assert 1.2 < float(height.max()) < 2.6
    columns = clip.rotations.reshape(len(clip), 21, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=-1), 1, atol=1e-3)


def spoil(root: Path, what: str) -> None:
    """Make the clip "a" of a folder of single persons one that cannot be used."""
    path = root / "motions" / "a.npz"
    with np.load(path) as arrays:
        whole = dict(arrays)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "one array":
        with path.open("wb") as file:
            np.save(file, whole["pos"])
    elif what == "no frame":
        np.savez(path, pos=whole["pos"][:0], rot6d=whole["rot6d"][:0])
    elif what == "no dimension":
        np.savez(path, pos=np.int16(3), rot6d=whole["rot6d"])
    elif what == "rotations out of range":
        np.savez(path, pos=whole["pos"], rot6d=whole["rot6d"].astype(np.int64) * 2**40)
    elif what == "no direction":
        np.savez(path, pos=whole["pos"][:, :1].repeat(22, axis=1), rot6d=whole["rot6d"])
    elif what == "folder for captions":
        (root / "annots" / "a.txt").unlink()
        (root / "annots" / "a.txt").mkdir()
    else:
        (root / "split" / "train.txt").write_text("../motions/a\nb\nc\nd\n", encoding="utf-8")


@pytest.mark.parametrize(
    "what",
    [
        "cut",
        "empty",
        "one array",
        "no frame",
        "no dimension",
        "rotations out of range",
        "no direction",
        "folder for captions",
        "name that leads out",
    ],
)
def test_a_clip_that_cannot_be_used_is_named_and_stops_no_other(
    what: str, solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = solo_folder({"train": {"a": 41, "b": 44, "c": 47, "d": 50}})
    spoil(root, what)
    merged = merge([root], tmp_path / "all")
    assert len(merged.left_out) == 1
    assert "a" in merged.left_out[0].removeprefix("solo: ").split(": ")[1]
    assert merged.listed == {"train": {"solo": 3}}
    assert len(MotionDataset(DATA_SETS["interhuman"], tmp_path / "all", "train", strict=True)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "solo"]
    with pytest.raises(ItemError):
        merge([root], tmp_path / "strict", strict=True)
    with pytest.warns(UserWarning, match="1 of 4 items cannot be used"):
        assert len(MotionDataset(DATA_SETS["solo"], root, "train", min_frames=4)) == 3


def test_names_with_folders_are_merged_and_such_that_lead_out_are_not(
    interhuman_folder: Callable[..., Path], solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pairs, solo = interhuman_folder({"train": {"1": 40, "2": 44}}), solo_folder({"train": {"a": 41, "b": 44}})
    for root, kinds in ((pairs, {"motions_processed/person1": "npy", "motions_processed/person2": "npy"}), (solo, {})):
        first = (root / "split" / "train.txt").read_text().split()[0]
        for folder, suffix in {**kinds, **({} if kinds else {"motions": "npz"}), "annots": "txt"}.items():
            (root / folder / "my" / "own").mkdir(parents=True)
            (root / folder / f"{first}.{suffix}").rename(root / folder / "my" / "own" / f"{first}.{suffix}")
        (root / "split" / "train.txt").write_text(f"my/own/{first}\n../{first}\n{'b' if root is solo else '2'}\n")
    merged = merge([pairs, solo], tmp_path / "all")
    assert sorted(line.split(":")[0] for line in merged.left_out) == ["interhuman", "solo"]
    assert all("leads out" in line for line in merged.left_out)
    names = MotionDataset(DATA_SETS["interhuman"], tmp_path / "all", "train", strict=True).names
    assert names[:2] == ["my/own/1", "2"]
    assert sorted(names[2:]) == ["b+my/own/a", "my/own/a+b"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('["a"]', "entry 0"),
        ('{"a": 1}', "expected a list"),
        ('[{"name": "a"}, {"x": 1}]', "entry 1"),
        ('[{"name": [1]}]', "entry 0"),
        ('[{"name": "a", "x": NaN}]', "finite"),
        ("[{", "expected valid JSON"),
    ],
)
def test_items_that_are_malformed_are_told_by_file_before_any_work(
    content: str, told: str, solo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = solo_folder({"train": {"a": 41, "b": 44}})
    (root / "items.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"items\.json: .*{told}"):
        merge([root], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_what_cannot_be_merged_is_refused_before_anything_is_read(
    solo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = solo_folder({"train": {"a": 41, "b": 44}})
    monkeypatch.setattr(SoloReader, "read", lambda *_: pytest.fail("read before all was checked"))
    with pytest.raises(NotADirectoryError, match="folders: not a folder"):
        merge([root, tmp_path / "absent"], tmp_path / "all")
    with pytest.raises(ValueError, match="times: expected a number from 0 to 10000 for solo"):
        merge([root], tmp_path / "all", times={"solo": 1e9})  # a list of billions of lines ends no run
    with pytest.raises(
        ValueError, match="wordings: expected activities that training clips are tagged with, got 'bow'"
    ):
        merge([root], tmp_path / "all", wordings={"bow": ["they bow"]})
    monkeypatch.undo()
    (root / "items.json").write_text('[{"name": "a+b", "tags": {"activity": [1]}}]', encoding="utf-8")
    assert merge([root], tmp_path / "all", times={"solo": 2}).listed == {"train": {"solo": 4}}  # no activity: no tag
    told = CliRunner().invoke(
        cli.app, ["data", "merge", str(root), "--out", "x", "--times", "solo=1", "--times", "solo=2"]
    )
    assert told.exit_code == 2
    assert "--times: expected 'solo' once" in told.output
