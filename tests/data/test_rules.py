"""Rules of drawing and of caches that an average item would not show."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from intermoe.data import DATA_SETS, InterHumanDataset, collate, prepare
from intermoe.data.cache import fingerprint
from intermoe.data.statistics import compute_statistics

CAPTION = "the first person waves to the left"  # the first of two, as the folders of the tests have them
EPOCHS = 400


@pytest.fixture
def folder(interhuman_folder: Callable[..., Path]) -> Path:
    return interhuman_folder({"train": {"1": 40}})


def test_mirroring_and_exchange_are_drawn_apart_in_half_of_the_cases(folder: Path) -> None:
    dataset = InterHumanDataset(folder, "train", mirror=True, swap_persons=True)
    choices = [dataset.choose(0, epoch)[0] for epoch in range(EPOCHS)]
    cases = Counter((choice.mirrored, choice.swapped) for choice in choices)
    for case in itertools.product((False, True), repeat=2):
        assert cases[case] / EPOCHS == pytest.approx(0.25, abs=0.08), case


def test_a_mirror_changes_sides_and_an_exchange_roles(folder: Path) -> None:
    """A mirrored first person is the first still; an exchanged one waves to the same side."""
    dataset = InterHumanDataset(folder, "train", mirror=True, swap_persons=True)
    seen = set()
    for epoch in range(100):
        choice, caption = dataset.choose(0, epoch)
        if "waves" in caption:
            who, side = ("second" if choice.swapped else "first"), ("right" if choice.mirrored else "left")
            assert caption == f"the {who} person waves to the {side}"
            seen.add((who, side))
    assert len(seen) == 4


def test_every_caption_is_drawn_as_often_as_another(folder: Path) -> None:
    dataset = InterHumanDataset(folder, "train")
    counts = Counter(dataset.choose(0, epoch)[1] for epoch in range(EPOCHS))
    assert set(counts) == set(dataset.captions(0))
    assert counts[CAPTION] / EPOCHS == pytest.approx(0.5, abs=0.1)
    fixed = InterHumanDataset(folder, "train", training=False)
    assert {fixed.choose(0, epoch)[1] for epoch in range(20)} == {CAPTION}


def test_window_caption_mirror_and_exchange_are_drawn_independently(interhuman_folder: Callable[..., Path]) -> None:
    """Each of the 16 ways to draw an item of two captions, in an early or a late window, is as likely as another."""
    root = interhuman_folder({"train": {"1": 24}})
    dataset = InterHumanDataset(root, "train", max_frames=20, mirror=True, swap_persons=True)
    draws = (dataset.choose(0, epoch) for epoch in range(4 * EPOCHS))
    cases = Counter((each.start < 2, "waves" in words, each.mirrored, each.swapped) for each, words in draws)
    for case in itertools.product((False, True), repeat=4):
        assert cases[case] / (4 * EPOCHS) == pytest.approx(1 / 16, abs=0.025), case


@pytest.mark.parametrize(
    ("options", "needed"), [({}, 15), ({"min_frames": 20}, 20), ({"min_frames": 24, "max_frames": 24}, 24)]
)
def test_the_shortest_item_that_is_used(
    interhuman_folder: Callable[..., Path], options: dict[str, int], needed: int
) -> None:
    """The last frame of a file is lost to its velocity."""
    root = interhuman_folder({"train": {"short": needed, "enough": needed + 1}})
    with pytest.warns(UserWarning, match=f"shorter than {needed + 1} frames: 1"):
        dataset = InterHumanDataset(root, "train", **options)
    assert dataset.names == ["enough"]
    assert dataset[0]["motion"].shape[1] == dataset.num_frames(0) == needed


def test_the_longest_item_is_a_window_at_any_place(interhuman_folder: Callable[..., Path]) -> None:
    root = interhuman_folder({"train": {"1": 24}})
    dataset = InterHumanDataset(root, "train", max_frames=20)
    assert {dataset.choose(0, epoch)[0].start for epoch in range(60)} == {0, 1, 2, 3}
    assert dataset[0]["motion"].shape[1] == 20


@pytest.mark.parametrize(
    ("name", "fps", "persons", "shortest", "longest"),
    [("interhuman", 30, 2, 15, 300), ("interx", 30, 2, 24, 150), ("humanml3d", 20, 1, 40, 196)],
)
def test_published_bounds(name: str, fps: int, persons: int, shortest: int, longest: int) -> None:
    own = DATA_SETS[name].representation
    assert (own.fps, own.persons, own.min_frames, own.max_frames) == (fps, persons, shortest, longest)


@pytest.mark.parametrize(("longest", "padded"), [(33, 36), (36, 36), (37, 40)])
def test_batches_are_padded_to_whole_latent_frames(longest: int, padded: int) -> None:
    items = [{"name": "", "caption": "", "motion": torch.ones(2, frames, 3)} for frames in (longest, 5)]
    batch = collate(items)  # type: ignore[arg-type]
    assert batch["motion"].shape == (2, 2, padded, 3)
    assert batch["motion"].sum() == (longest + 5) * 2 * 3
    assert batch["lengths"].dtype == torch.int64


def test_statistics_keep_the_small_deviations_that_velocities_have() -> None:
    motion = torch.zeros(1000, 2, 3)
    motion[::2, :, 0], motion[::2, :, 1] = 0.004, 1e-4
    found = compute_statistics([{"motion": motion}])
    np.testing.assert_allclose(found.std, [0.002, 1e-3, 1e-3], rtol=1e-4)
    np.testing.assert_allclose(found.mean, [0.002, 5e-5, 0], rtol=1e-4, atol=1e-9)


def test_statistics_of_several_passes_take_another_draw_in_each(interhuman_folder: Callable[..., Path]) -> None:
    dataset = InterHumanDataset(interhuman_folder({"train": {"1": 60}}), "train", min_frames=16, max_frames=16)
    found = compute_statistics(dataset, passes=3)
    frames = torch.cat([dataset.draw(0, epoch)["motion"] for epoch in range(3)], dim=1).flatten(0, 1).double()
    np.testing.assert_allclose(found.mean, frames.mean(dim=0), rtol=1e-4, atol=1e-5)
    once, first = compute_statistics(dataset), dataset.draw(0, 0)["motion"].flatten(0, 1).double()
    np.testing.assert_allclose(once.mean, first.mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["size", "time", "added"])
def test_a_cache_follows_size_time_and_number_of_its_files(folder: Path, tmp_path: Path, change: str) -> None:
    cache, path = tmp_path / "cache", folder / "annots" / "1.txt"
    assert prepare(DATA_SETS["interhuman"], folder, cache).written
    assert not prepare(DATA_SETS["interhuman"], folder, cache).written
    status = path.stat()
    if change == "size":
        path.write_text("they bow\n", encoding="utf-8")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    else:
        (folder / "annots" / "2.txt").write_text("they bow\n", encoding="utf-8")
    assert prepare(DATA_SETS["interhuman"], folder, cache).written


def test_neither_seed_stands_for_an_epoch(folder: Path) -> None:
    """Numbers of (seed, epoch) are not those of their sum."""
    one, other = (InterHumanDataset(folder, "train", min_frames=16, max_frames=16, seed=seed) for seed in (3, 4))
    assert not np.array_equal(one._numbers(1), other._numbers(0))
    assert len({tuple(one._numbers(epoch)[0]) for epoch in range(50)}) == 50


def test_a_digest_is_of_every_name_caption_and_number(interhuman_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = interhuman_folder({"train": {"1": 20, "2": 20}})
    first = InterHumanDataset(root, "train").digest()
    cache = prepare(DATA_SETS["interhuman"], root, tmp_path / "cache").folder
    assert InterHumanDataset(cache, "train").digest() == first  # wherever they lie
    path = root / "motions_processed" / "person2" / "2.npy"
    motion = np.load(path)
    motion[-1, 311] += 1  # the last number that is read
    np.save(path, motion)
    numbers = InterHumanDataset(root, "train").digest()
    (root / "annots" / "2.txt").write_text("they bow\n", encoding="utf-8")
    captions = InterHumanDataset(root, "train").digest()
    (root / "split" / "train.txt").write_text("2\n1", encoding="utf-8")
    assert len({first, numbers, captions, InterHumanDataset(root, "train").digest()}) == 4


def test_a_fingerprint_is_of_the_settings_and_of_no_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = DATA_SETS["interhuman"]
    reader = data_set.reader(folder)
    before = fingerprint(data_set, reader, folder)
    files = reader.files()
    monkeypatch.setattr(reader, "files", lambda: files[::-1])
    assert fingerprint(data_set, reader, folder) == before
    reader.settings = {"source_fps": 120}
    assert fingerprint(data_set, reader, folder) != before
