"""InterHuman's files of both persons, by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intermoe import export
from intermoe.export import interhuman
from intermoe.motion.interhuman import process_pair
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.rotations import about_axis

Save = Callable[[str, np.ndarray], Path]


def person(seed: int, frames: int = 5) -> np.ndarray:
    """(T, 192): places, Z up, then rotations in the order that our columns have; who stands and walks aside."""
    rng = np.random.default_rng(seed)
    places = at_rest(REST_POSE) + rng.uniform(-0.03, 0.03, (frames, 22, 3)) + rng.uniform(-1, 1, 3) + (0, 2, 0)
    turns = about_axis(2, rng.uniform(-2, 2, (frames, 21))) @ about_axis(0, rng.uniform(-2, 2, (frames, 21)))
    flat = (places[..., [0, 2, 1]] * (1, -1, 1)).reshape(frames, 66)
    return np.concatenate([flat, turns[..., :2].reshape(frames, 126)], axis=1).astype(np.float32)


def stored(raw: np.ndarray) -> np.ndarray:
    """(T, 492) as published: places, 120 columns of their velocities and others, rotations by columns, the rest."""
    whole = np.random.default_rng(9).uniform(size=(len(raw), 492)).astype(np.float32)
    whole[:, 100] = np.nan  # what is not used may be anything
    whole[:, 450] = np.inf
    whole[:, :66] = raw[:, :66]
    whole[:, 186:312] = raw[:, 66:].reshape(len(raw), 21, 3, 2).swapaxes(-1, -2).reshape(len(raw), 126)
    return whole


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    """``saved("person1/x", array)`` is the file."""

    def save(name: str, array: np.ndarray) -> Path:
        path = tmp_path / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, array)
        return path

    return save


def test_a_file_stands_for_both_persons_where_the_other_is_beside_its_folder(saved: Save) -> None:
    first, second = person(0), person(1)
    one, two = saved("person1/x.y", stored(first)), saved("person2/x.y", stored(second))
    wanted = np.stack(process_pair(first, second))
    for paths in (one, [one], [one, two]):
        take = export.load(paths)
        assert take.fps == 30
        np.testing.assert_allclose(take.motion, wanted, atol=1e-6)
        np.testing.assert_array_equal(take.joints, take.motion[..., :66].reshape(2, 4, 22, 3))
    # in the order in which they are given, the first from where it stands
    swapped = export.load([two, saved("other/x.y", stored(first))])
    np.testing.assert_allclose(swapped.motion, np.stack(process_pair(second, first)), atol=1e-6)
    alone = export.load(two)
    np.testing.assert_allclose(alone.motion, process_pair(second, second)[:1], atol=1e-6)


def test_a_file_stands_for_itself_where_there_is_no_other(saved: Save) -> None:
    one = saved("person1/x", stored(person(0)))
    saved("person2/y", stored(person(1)))
    (saved("person2/z", stored(person(1))).parent / "x.npy").mkdir()
    assert interhuman.partner_files(one) == [one]
    elsewhere = saved("person3/y", stored(person(0)))
    assert interhuman.partner_files(elsewhere) == [elsewhere]


def test_rotations_come_back_as_they_were(saved: Save) -> None:
    raw = person(3)
    take = export.load(saved("a", stored(raw)))
    assert take.motion is not None
    np.testing.assert_allclose(take.motion[0, :, 132:258], raw[:4, 66:], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda whole: whole[:, :491], r"expected floats \(T >= 2, 492\), got float32 \(5, 491\)"),
        (lambda whole: whole[:1], r"expected floats \(T >= 2, 492\), got float32 \(1, 492\)"),
        (lambda whole: whole[0], r"expected floats \(T >= 2, 492\), got float32 \(492,\)"),
        (lambda _: np.ones((5, 492), int), r"expected floats \(T >= 2, 492\), got int64 \(5, 492\)"),
        (lambda whole: np.where(np.arange(492) == 65, np.nan, whole), "expected finite values, got NaN or infinity"),
        (lambda whole: np.where(np.arange(492) == 311, np.inf, whole), "expected finite values, got NaN or infinity"),
    ],
    ids=["width", "frames", "axes", "integers", "place", "rotation"],
)
def test_what_is_wrong_is_told_of_the_file(
    change: Callable[[np.ndarray], np.ndarray], told: str, saved: Save, tmp_path: Path
) -> None:
    good, bad = saved("a", stored(person(0))), saved("b", change(stored(person(1))))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/b\.npy: {told}$"):
        export.load([good, bad])
