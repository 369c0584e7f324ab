"""Merged folders and composed pairs, number by number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe.data.merge import _entries, _listings, merge
from intermoe.data.solo import SoloClip, SoloReader, compose, join_captions, partners


def tagged(**activities: str | None) -> dict[str, Any]:
    return {
        name: {"name": name, "tags": {"activity": activity} if activity else {}}
        for name, activity in activities.items()
    }


def test_listings_by_activity_are_the_nearest_whole_numbers() -> None:
    """``times`` clips' worth for all, shared by the activities, shared by the clips of each; at least one each."""
    entries, rng = tagged(a="wave", b="wave", c="bow"), np.random.default_rng(0)
    for times, expected in ((1.25, [1, 1, 2]), (3.0, [2, 2, 4]), (3.7, [3, 3, 6]), (0.01, [1, 1, 1]), (0.0, [0, 0, 0])):
        assert _listings("abc", entries, times, rng) == expected, times
    entries = tagged(a="wave", b="bow", c="bow", d="bow", e="nod")
    assert _listings("abcde", entries, 3.6, rng) == [6, 2, 2, 2, 6]


def test_a_fraction_is_listed_by_chance() -> None:
    """Once more with the probability of the fraction, by a draw of each clip's own."""
    names = [str(number) for number in range(4000)]
    for times, least in ((0.25, 0), (2.25, 2)):
        counts = Counter(_listings(names, {}, times, np.random.default_rng(1)))
        assert counts.keys() == {least, least + 1}
        assert counts[least + 1] / 4000 == pytest.approx(0.25, abs=0.03)
    assert _listings("abc", tagged(a="wave", b=None, c="bow"), 2.0, np.random.default_rng(0)) == [2, 2, 2]
    drawn = np.random.default_rng(5).random(6)
    expected = [int(number >= 0.5) for number in drawn]
    assert _listings("abcdef", {}, 0.5, np.random.default_rng(5)) == expected


def clip(name: str, positions: Sequence[Any], captions: tuple[str, ...] = ("a person waves.",)) -> SoloClip:
    places = np.array(positions, np.float32).reshape(len(positions), 66)
    return SoloClip(name, captions, places, np.zeros((len(places), 126), np.float32))


class Angles:
    """Draws the turn and the bearing that are given."""

    def __init__(self, *angles: float) -> None:
        self.angles = angles

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (0, 2 * np.pi, 2)
        return np.array(self.angles)


def test_a_second_person_is_turned_counterclockwise_and_put_down_on_its_bearing() -> None:
    """A quarter turn: what it did along X is along Y; seen from the first person's start it stands along X."""
    first, second = np.zeros((2, 22, 3)), np.zeros((3, 22, 3))
    first[:, :] = [5.0, 7.0, 0.9]
    second[:, :] = [1.0, 2.0, 0.8]
    second[0, 9] += [0.3, 0.1, 0.4]  # a joint before it, a little to its left, and up
    second[1, :, 0] += 0.5  # a step forward
    own, placed = compose(clip("a", first), clip("b", second), Angles(np.pi / 2, 0.0))  # type: ignore[arg-type]
    assert own.shape == placed.shape == (2, 66)
    placed = placed.reshape(2, 22, 3)
    np.testing.assert_allclose(placed[0, 0], [6.2, 7.0, 0.8], atol=1e-6)
    np.testing.assert_allclose(placed[0, 9], [6.2 - 0.1, 7.0 + 0.3, 1.2], atol=1e-6)
    np.testing.assert_allclose(placed[1, 0], [6.2, 7.5, 0.8], atol=1e-6)
    np.testing.assert_array_equal(own.reshape(2, 22, 3), first.astype(np.float32))


def test_a_second_person_keeps_away_by_steps_of_a_quarter_of_a_metre() -> None:
    """It walks towards the first for 1 m, along -Y from a bearing of +Y: 2.2 m are the least, 2.2 of 1.2 + n / 4."""
    first, second = np.zeros((2, 22, 3)), np.zeros((2, 22, 3))
    second[1, :, 1] = -0.99
    _, placed = compose(clip("a", first), clip("b", second), Angles(0.0, np.pi / 2))  # type: ignore[arg-type]
    np.testing.assert_allclose(placed.reshape(2, 22, 3)[:, 0, :2], [[0, 2.2], [0, 1.21]], atol=1e-6)
    second[1, :, 1] = -1.01
    _, placed = compose(clip("a", first), clip("b", second), Angles(0.0, np.pi / 2))  # type: ignore[arg-type]
    np.testing.assert_allclose(placed.reshape(2, 22, 3)[:, 0, :2], [[0, 2.45], [0, 1.44]], atol=1e-6)


@pytest.mark.parametrize("subject", ["A person", "someone", "Somebody", "one person"], ids=["a", "some", "body", "one"])
def test_each_way_to_begin_with_a_person_is_joined(subject: str) -> None:
    for first, second, said in (
        (f"{subject}  waves. ", "a person bows.", "waves, while the other bows"),
        ("someone bows..", f"{subject} hops", "bows, while the other hops"),
    ):
        assert join_captions(first, second) == f"one person {said}."
    assert join_captions("he hops.", f"{subject} waves.") == f"he hops. {subject} waves."
    assert join_captions(f"{subject} waves.", "he hops.") == f"{subject} waves. he hops."
    assert join_captions(f"{subject}ality", "a person waves") == f"{subject}ality a person waves"


def test_partners_of_two_are_each_other() -> None:
    assert partners([7, 9], np.random.default_rng(0)) == [1, 0]
    assert partners([9, 7], np.random.default_rng(0)) == [1, 0]


@pytest.fixture
def solo(tmp_path: Path) -> Path:
    """Two clips whose numbers tell which they are, and that a frame is; the second has 3 frames more."""
    root = tmp_path / "solo"
    for folder in ("motions", "annots", "split"):
        (root / folder).mkdir(parents=True)
    (root / "split" / "train.txt").write_text("a\nb\n", encoding="utf-8")
    for number, (name, frames) in enumerate((("a", 5), ("b", 8)), start=1):
        body = np.arange(66).reshape(22, 3) * 100 + 1000 * number
        columns = np.tile(np.array([8192, 0, 0, 0, 8192, number]), (frames, 21, 1)) + np.arange(frames)[:, None, None]
        positions = (body + np.zeros((frames, 1, 1))).astype(np.int16)
        np.savez(root / "motions" / f"{name}.npz", pos=positions, rot6d=columns.astype(np.int16))
        text = f"a person waves {name}.\nsomeone hops {name}.\n"
        (root / "annots" / f"{name}.txt").write_text(text, encoding="utf-8")
    return root


def test_a_composed_pair_is_written_as_interhumans_files(solo: Path, tmp_path: Path) -> None:
    """Of 492 columns those of positions and rotations are filled; the first person says what comes first."""
    merged = merge([solo], tmp_path / "all")
    assert merged.folder == tmp_path / "all"
    assert SoloReader.reads(solo)
    assert not SoloReader.reads(tmp_path / "all")
    reader = SoloReader(solo)
    for name, own, other in (("a+b", "a", "b"), ("b+a", "b", "a")):
        motion = [np.load(tmp_path / "all" / "motions_processed" / f"person{n}" / f"{name}.npy") for n in (1, 2)]
        for columns, clip_name in zip(motion, (own, other), strict=True):
            assert (columns.shape, columns.dtype) == ((5, 492), np.float32)
            np.testing.assert_array_equal(columns[:, 186:312], reader.read(clip_name).rotations[:5])
            assert not columns[:, 66:186].any()
            assert not columns[:, 312:].any()
        np.testing.assert_array_equal(motion[0][:, :66], reader.read(own).positions[:5])
        np.testing.assert_allclose(motion[1][:, 2:66:3], reader.read(other).positions[:5, 2::3], atol=1e-6)
        assert (tmp_path / "all" / "annots" / f"{name}.txt").read_text().splitlines() == [
            f"one person waves {own}, while the other waves {other}.",
            f"one person hops {own}, while the other hops {other}.",
        ]
    assert (tmp_path / "all" / "split" / "train.txt").read_text() == "a+b\nb+a\n"
    assert json.loads((tmp_path / "all" / "items.json").read_text()) == [
        {"name": "a+b", "split": "train", "source": "solo"}, {"name": "b+a", "split": "train", "source": "solo"},
    ]  # fmt: skip


def test_every_folder_keeps_its_licence_under_its_own_name(
    solo: Path, interhuman_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = interhuman_folder({"train": {"1": 40}})
    for root in (solo, pairs):
        (root / "LICENSE-DATA.txt").write_text(f"terms of {root.name}", encoding="utf-8")
    monkeypatch.chdir(pairs)
    merged = merge([solo, Path()], tmp_path / "all", times={"interhuman": 3})
    assert merged.listed == {"train": {"solo": 2, "interhuman": 3}}
    licences = {path.name: path.read_text() for path in (tmp_path / "all").glob("LICENSE*")}
    assert licences == {
        "LICENSE-DATA.solo.txt": "terms of solo", "LICENSE-DATA.interhuman.txt": "terms of interhuman",
    }  # fmt: skip
    lines = (tmp_path / "all" / "split" / "train.txt").read_text().splitlines()
    assert lines == ["a+b", "b+a", "1", "1", "1"]


def test_wordings_are_of_training_clips_alone_whatever_other_splits_are(
    interhuman_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = interhuman_folder({"train": {"1": 20}, "val": {"2": 20}, "test": {"3": 20}})
    (pairs / "items.json").write_text(json.dumps(list(tagged(**dict.fromkeys("123", "bow")).values())))
    merge([pairs], tmp_path / "all", wordings={"bow": ["both bow"]})
    counts = {name: len((tmp_path / "all" / "annots" / f"{name}.txt").read_text().splitlines()) for name in "123"}
    assert counts == {"1": 3, "2": 2, "3": 2}


def test_entries_are_found_by_name_and_a_strange_one_is_shown_in_part(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    assert _entries(path) == {}
    path.write_text('[{"name": "b", "x": 1}, {"name": "a"}]', encoding="utf-8")
    assert _entries(path) == {"b": {"name": "b", "x": 1}, "a": {"name": "a"}}
    path.write_text(json.dumps([{"name": "a"}, "b" * 100]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"entry 1: expected a mapping with a name, got b{60}$"):
        _entries(path)


def test_a_folder_that_came_to_be_meanwhile_is_not_replaced(
    solo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()

    def finish(merging: object, out: Path) -> None:
        (tmp_path / "out" / "all").mkdir()
        (tmp_path / "out" / "all" / "notes.txt").write_text("mine")

    monkeypatch.setattr("intermoe.data.merge._Merging.finish", finish)
    with pytest.raises(FileExistsError):
        merge([solo], tmp_path / "out" / "all")
    assert (tmp_path / "out" / "all" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["all"]
