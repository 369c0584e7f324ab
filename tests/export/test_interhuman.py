"""InterHuman's own files as motion to look at and to write for other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intermoe import export
from intermoe.data.interhuman import DATA_SET, InterHumanReader
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.rotations import about_axis, from_rot6d


def test_an_item_is_both_persons(duets: Path) -> None:
    clip = InterHumanReader(duets).read("train", "181202")[0]
    wanted = DATA_SET.convert(clip.source).transpose(1, 0, 2)
    take = export.load(duets / "motions_processed" / "person1" / "181202.npy")
    np.testing.assert_array_equal(take.motion, wanted)
    assert not take.rig.fitted
    paths = [duets / "motions_processed" / person / "181202.npy" for person in ("person1", "person2")]
    np.testing.assert_array_equal(export.load(paths).joints, take.joints)
    assert export.load(paths[1]).joints.shape == (1, *take.joints.shape[1:])


def test_a_person_keeps_the_rotations_of_the_file(tmp_path: Path) -> None:
    """Stored column after column, Z up; they are the joints' own, not fitted to bones."""
    rng = np.random.default_rng(0)
    turns = about_axis(2, rng.uniform(-2, 2, (5, 21))) @ about_axis(0, rng.uniform(-2, 2, (5, 21)))
    places = at_rest(REST_POSE) + np.arange(5)[:, None, None] * (0.03, 0.0, 0.01) + (0.4, 0.9, 0.2)
    stored = np.zeros((5, 492))
    stored[:, :66] = (places[..., [0, 2, 1]] * (1, -1, 1)).reshape(5, 66)
    stored[:, 186:312] = turns[..., :2].swapaxes(-1, -2).reshape(5, 126)
    np.save(tmp_path / "a.npy", stored)
    take = export.load(tmp_path / "a.npy")
    assert (take.fps, take.motion.shape) == (30, (1, 4, 262))
    np.testing.assert_array_equal(take.motion[..., :66].reshape(take.joints.shape), take.joints)
    assert not take.rig.fitted
    kept = from_rot6d(take.motion[0, :, 132:258].reshape(4, 21, 6))
    np.testing.assert_allclose(kept, turns[:4], atol=1e-5)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((5, 66)), r"expected floats \(T >= 2, 492\), got float64 \(5, 66\)"),
        (np.zeros((1, 492)), r"expected floats \(T >= 2, 492\)"),
        (np.full((5, 492), np.nan), "expected finite values"),
        (np.zeros((5, 492)), "expected a facing direction in frame 0, got hips that lie above each other"),
        (np.array([object()]), "expected a readable array of numbers"),
    ],
)
def test_other_arrays_are_named(tmp_path: Path, array: np.ndarray, told: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy: {told}|a\.npy: .*{told}"):
        export.load(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"path: expected a suffix of \.npz"):
        export.save(tmp_path / "b.npy", np.zeros((1, 2, 22, 3)))


def test_persons_of_other_lengths_are_told_with_their_lengths_and_rate(tmp_path: Path) -> None:
    for name, frames in (("a", 5), ("b", 7)):
        np.save(tmp_path / f"{name}.npy", np.zeros((frames, 492)))
    told = r"^persons: expected the same length and rate, got a\.npy: 5 frames, 30 fps, b\.npy: 7 frames, 30 fps$"
    with pytest.raises(ValueError, match=told):
        export.load([tmp_path / "a.npy", tmp_path / "b.npy"])


def test_more_than_two_persons_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.npy" for name in "abc"]
    for path in paths:
        np.save(path, np.zeros((5, 492)))
    with pytest.raises(ValueError, match="persons: expected one or two files, got 3"):
        export.load(paths)
