"""What is drawn of an item, by hand: from which number each choice is made, and what is told of what cannot be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intermoe.data import DATA_SETS, InterHumanDataset, MotionDataset, prepare
from intermoe.data.cache import CachedClips
from intermoe.data.dataset import EpochNumbers, FolderClips, MotionChoice
from intermoe.data.items import ItemError
from intermoe.data.statistics import compute_statistics

INTERHUMAN = DATA_SETS["interhuman"]


@pytest.fixture
def folder(interhuman_folder: Callable[..., Path]) -> Path:
    """Two sequences of captions "the first person waves to the left" and "one turns right <name>"."""
    return interhuman_folder({"train": {"a": 24, "b": 40}})


NUMBERS = np.array([[0.5, 0.99, 0.49, 0.5], [0.49, 0.5, 0.5, 0.49]])
"""By item: of the caption, of the window's place, of the mirror image and of the exchange."""


def test_each_choice_is_made_from_a_number_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 20 converted frames take 21: 24 frames have 4 places for them, 40 have 20."""
    dataset = InterHumanDataset(folder, "train", max_frames=20, mirror=True, swap_persons=True)
    asked: list[int] = []
    monkeypatch.setattr(dataset, "_numbers", lambda epoch: asked.append(epoch) or NUMBERS)
    assert dataset.choose(0, 7) == (MotionChoice(0, 3, True, False), "one turns left a")
    assert dataset.choose(1, 8) == (MotionChoice(1, 10, False, True), "the second person waves to the left")
    dataset.set_epoch(5)
    assert dataset[0]["caption"] == "one turns left a"
    assert asked == [7, 8, 5]
    plain = InterHumanDataset(folder, "train", max_frames=20)  # neither mirrored nor exchanged, whatever the numbers
    monkeypatch.setattr(plain, "_numbers", lambda _: np.full((2, 4), [0.0, 0.24, 0.0, 0.0]))
    assert plain.choose(0, 0) == (MotionChoice(0, 0, False, False), "the first person waves to the left")
    assert plain.choose(1, 0)[0] == MotionChoice(1, 4, False, False)
    fixed = InterHumanDataset(folder, "train", max_frames=20, mirror=True, swap_persons=True, training=False)
    monkeypatch.setattr(fixed, "_numbers", lambda _: NUMBERS)
    assert fixed.choose(0, 0) == (MotionChoice(0, 0, True, False), "the first person waves to the right")
    assert fixed.choose(1, 0) == (MotionChoice(1, 0, False, True), "the second person waves to the left")


def test_a_choice_is_the_window_it_names(folder: Path) -> None:
    """Its first frame, person and side, out of the source by hand."""
    dataset = InterHumanDataset(folder, "train", max_frames=20)
    raw = [np.load(folder / "motions_processed" / person / "b.npy") for person in ("person1", "person2")]
    source = INTERHUMAN.reader(folder).read("train", "b")[0].source
    np.testing.assert_array_equal(source[:, 1, :66], raw[1][:, :66])
    for swapped in (False, True):
        for mirrored in (False, True):
            window = source[7 : 7 + 21, ::-1] if swapped else source[7 : 7 + 21]
            assert INTERHUMAN.mirror is not None
            expected = INTERHUMAN.convert(INTERHUMAN.mirror(window) if mirrored else window).transpose(1, 0, 2)
            found = dataset.motion(MotionChoice(1, 7, mirrored, swapped))
            np.testing.assert_array_equal(found.numpy(), expected)
            assert found.is_contiguous()


def test_numbers_of_an_epoch_are_drawn_from_seed_epoch_and_key() -> None:
    numbers = EpochNumbers(3, 2, 4, 7, 1)
    np.testing.assert_array_equal(numbers(5), np.random.default_rng((3, 5, 7, 1)).random((2, 4)))
    np.testing.assert_array_equal(EpochNumbers(3, 5, 2)(0), np.random.default_rng((3, 0)).random((5, 2)))


def test_items_draw_from_their_own_row_of_the_seed_and_epoch(folder: Path) -> None:
    dataset = InterHumanDataset(folder, "train", max_frames=20, mirror=True, swap_persons=True, seed=6)
    rows = np.random.default_rng((6, 2)).random((2, 4))
    for index, places in enumerate((4, 20)):
        _, place, mirror, swap = rows[index]
        expected = MotionChoice(index, int(place * places), bool(mirror < 0.5), bool(swap < 0.5))
        assert dataset.choose(index, 2)[0] == expected


def test_the_last_epochs_numbers_are_kept_and_the_first_of_them_goes() -> None:
    numbers = EpochNumbers(0, 3, 2)
    drawn = [numbers(epoch) for epoch in range(65)]  # one more than are kept
    assert all(numbers(epoch) is drawn[epoch] for epoch in range(1, 65))
    assert numbers(0) is not drawn[0]
    np.testing.assert_array_equal(numbers(0), drawn[0])
    assert numbers(1) is not drawn[1]


@pytest.mark.parametrize(("items", "columns", "kept"), [(0, 4, 64), (2**15, 2, 64), (2**17, 4, 8), (2**20, 4, 2)])
def test_numbers_of_large_sets_take_32_mebibytes_or_two_epochs(items: int, columns: int, kept: int) -> None:
    assert EpochNumbers(0, items, columns)._kept == kept


def test_parts_of_a_sequence_are_read_again_each_from_its_place(
    humanml3d_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = humanml3d_folder({"train": {"0": 100, "1": 120}})
    text = "he walks#x#0#0\nhe sits#x#0#2.5\nhe rises#x#2.5#5\n"  # two parts of the same length
    (root / "texts" / "1.txt").write_text(text, encoding="utf-8")
    kept = FolderClips(DATA_SETS["humanml3d"], root, "train")
    monkeypatch.setattr("intermoe.data.dataset._MEMORY_BYTES", 0)
    again = FolderClips(DATA_SETS["humanml3d"], root, "train")
    assert kept.names == again.names == ["0", "1", "1@0-2.5", "1@2.5-5"]
    assert all(source is None for source in again._sources)
    for index in range(4):
        np.testing.assert_array_equal(again[index], kept[index])
    (root / "texts" / "1.txt").write_text("he walks#x#0#0\nhe sits#x#0#2.5\n", encoding="utf-8")
    with pytest.raises(ItemError, match="changed since it was checked: 1"):
        again[3]


def test_a_folder_tells_what_everybody_misses_apart_from_its_own_problems(folder: Path) -> None:
    (folder / "split" / "train.txt").write_text("3945\na\nb\n4106\n17\n9\n", encoding="utf-8")
    for name in ("3945", "4106", "17"):
        (folder / "annots" / f"{name}.txt").write_text("two people\n", encoding="utf-8")
    (folder / "ignore_list.txt").write_text("9\n", encoding="utf-8")
    report = FolderClips(INTERHUMAN, folder, "train").report
    assert (report.total, report.ignored, report.known_missing) == (5, 1, ["3945", "4106"])
    assert report.problems == {"no motion file": ["17: no file person1/17.npy or person2/17.npy"]}


def test_the_warning_of_items_left_out_points_to_who_opens_the_data(folder: Path) -> None:
    (folder / "annots" / "a.txt").unlink()
    with pytest.warns(UserWarning, match="1 of 2 items cannot be used") as told:
        InterHumanDataset(folder, "train")
    assert [each.filename for each in told] == [__file__]


def test_an_index_beyond_the_items_is_refused_on_either_side(folder: Path) -> None:
    dataset = InterHumanDataset(folder, "train")
    for index in (-1, 2):
        with pytest.raises(IndexError, match=rf"index: expected a value in \[0, 2\), got {index}"):
            dataset.choose(index, 0)


def test_an_item_that_is_listed_twice_is_two_items_and_stored_once(folder: Path, tmp_path: Path) -> None:
    (folder / "split" / "train.txt").write_text("b\na\nb\n", encoding="utf-8")
    cache = prepare(INTERHUMAN, folder, tmp_path / "cache").folder
    for root in (folder, cache):
        dataset = InterHumanDataset(root, "train")
        assert dataset.names == ["b", "a", "b"]
        assert [dataset.num_frames(index) for index in range(3)] == [39, 23, 39]
        assert dataset.report.total == 3
    assert (cache / "motion.f32").stat().st_size == (24 + 40) * 2 * 192 * 4


def test_a_digest_is_of_each_clip_with_its_name_captions_shape_and_type(folder: Path) -> None:
    content = hashlib.blake2b(digest_size=8)
    for name, frames in (("a", 24), ("b", 40)):
        captions = ["the first person waves to the left", f"one turns right {name}"]
        content.update(json.dumps([name, captions, [frames, 2, 192], "float32"]).encode())
        content.update(INTERHUMAN.reader(folder).read("train", name)[0].source.tobytes())
    assert InterHumanDataset(folder, "train").digest() == content.hexdigest()


def test_pages_are_left_when_a_piece_of_the_statistics_is_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = MotionDataset(INTERHUMAN, prepare(INTERHUMAN, folder, tmp_path / "cache").folder, "train")
    left: list[object] = []
    monkeypatch.setattr(CachedClips, "leave", lambda clips: left.append(clips))
    monkeypatch.setattr("intermoe.data.statistics.PIECE", 1)
    compute_statistics(dataset, passes=3)
    assert len(left) == 2 * 3


def test_a_floor_belongs_to_its_person_when_they_change_places(folder: Path) -> None:
    """Both stand on their own lowest joint of the whole clip, which is not that of the frames asked for."""
    for person, height in (("person1", 0.0), ("person2", 50.0)):
        path = folder / "motions_processed" / person / "b.npy"
        motion = np.load(path)
        motion[:, 2:66:3] += height
        motion[0, 2] -= 5.0 + height / 10
        np.save(path, motion)
    dataset = InterHumanDataset(folder, "train")
    for swapped in (False, True):
        choice = MotionChoice(1, 0, False, swapped)
        whole = dataset.motion(choice)
        np.testing.assert_array_equal(dataset.motion(choice, slice(3, 11)), whole[:, 3:11])
        assert whole[:, :, 1:66:3].amin(dim=(1, 2)).abs().max() < 1e-4
