"""AMASS's arrays, number by number."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.export import amass
from intermoe.motion.rig import REST_POSE, at_rest, forward_kinematics
from intermoe.motion.rotations import about_axis, rotation_matrices
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS

UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""(x, y, z) becomes (x, -z, y): Y up becomes Z up."""


def test_every_entry_of_every_persons_file(posed: Any, tmp_path: Path) -> None:
    rig = posed.rig
    paths = [tmp_path / "a.amass.npz", tmp_path / "b.amass.npz"]
    amass.write(paths, SimpleNamespace(rig=rig, fps=29.97, prompt="they bow"))
    for person, path in enumerate(paths):
        with np.load(path, allow_pickle=False) as archive:
            found = dict(archive)
        np.testing.assert_allclose(found.pop("trans"), rig.offsets[person, :, 0] @ UP.T)
        root = rotation_matrices(found.pop("root_orient"))
        np.testing.assert_allclose(root, UP @ rig.rotations[person, :, 0], atol=1e-12)
        assert found["pose_body"].shape == (3, 63)
        body = rotation_matrices(found.pop("pose_body").reshape(3, 21, 3))
        np.testing.assert_allclose(body, rig.rotations[person, :, 1:], atol=1e-12)
        np.testing.assert_array_equal(found.pop("rest_offsets"), rig.rest[person])
        offsets = found.pop("offsets")
        np.testing.assert_array_equal(offsets[:, 0], np.zeros((3, 3)))
        np.testing.assert_array_equal(offsets[:, 1:], rig.offsets[person, :, 1:])
        assert {name: values.tolist() for name, values in found.items()} == {
            "betas": [0.0] * 16, "gender": "neutral", "mocap_framerate": 29.97, "surface_model_type": "smplh",
            "rotations_fitted": True, "joint_names": list(JOINT_NAMES), "parents": list(PARENTS), "prompt": "they bow",
        }  # fmt: skip


def test_a_body_whose_bones_keep_their_places_has_no_offsets(posed: Any, tmp_path: Path) -> None:
    rigid = replace(posed.rig, sliding=(), fitted=False)
    amass.write([tmp_path / "a.amass.npz"], SimpleNamespace(rig=rigid, fps=30, prompt=""))
    with np.load(tmp_path / "a.amass.npz") as archive:
        assert "offsets" not in archive
        assert not archive["rotations_fitted"]


def entries(frames: int = 3) -> dict[str, Any]:
    """Somebody of AMASS who turns all joints; Z up."""
    rng = np.random.default_rng(0)
    return {
        "trans": rng.uniform(-1, 1, (frames, 3)),
        "root_orient": rng.uniform(-1, 1, (frames, 3)),
        "pose_body": rng.uniform(-1, 1, (frames, 63)),
        "mocap_framerate": 50.0,
    }


def joints_of(given: dict[str, Any], offsets: np.ndarray) -> np.ndarray:
    """Joints (T, 22, 3), Y up, of offsets (22, 3) or (T, 22, 3)."""
    vectors = np.concatenate([given["root_orient"], given["pose_body"]], axis=1).reshape(-1, 22, 3)
    local = np.tile(offsets, (len(vectors), 1, 1)) if offsets.ndim == 2 else offsets.copy()
    local[:, 0] = given["trans"]
    turns = rotation_matrices(vectors)
    return forward_kinematics(local, turns) @ UP


def test_a_person_is_posed_by_the_skeleton_that_the_file_tells(tmp_path: Path) -> None:
    """By offsets at each frame before those at rest, and by a usual grown-up's where there are none."""
    given = entries()
    rest = REST_POSE * 1.1
    sliding = np.tile(rest, (3, 1, 1)) + np.random.default_rng(1).uniform(-0.05, 0.05, (3, 22, 3))
    for told, skeleton in (
        ({}, REST_POSE),
        ({"rest_offsets": rest}, rest),
        ({"rest_offsets": rest, "offsets": sliding}, sliding),
    ):
        np.savez(tmp_path / "a.npz", **given, **told)
        take = export.load(tmp_path / "a.npz")
        assert take.fps == 50
        np.testing.assert_allclose(take.joints[0], joints_of(given, skeleton), atol=1e-6)
        body = rotation_matrices(given["pose_body"].reshape(3, 21, 3))
        np.testing.assert_allclose(take.rotations[0], body, atol=1e-12)


def test_poses_of_all_joints_are_root_body_and_hands(tmp_path: Path) -> None:
    """The first three columns turn the pelvis, the next 63 the body; what comes after them are hands."""
    given = entries()
    hands = np.random.default_rng(2).uniform(-1, 1, (3, 90))
    poses = np.concatenate([given["root_orient"], given["pose_body"], hands], axis=1)
    np.savez(tmp_path / "a.npz", poses=poses, trans=given["trans"], mocap_framerate=60, mocap_frame_rate=120)
    take = export.load(tmp_path / "a.npz")
    assert take.fps == 60
    np.testing.assert_allclose(take.joints[0], joints_of(given, REST_POSE), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"trans": np.zeros((4, 3))}, "expected as many rotations as places, got 3, 3 and 4"),
        ({"root_orient": np.zeros((4, 3))}, "expected as many rotations as places, got 4, 3 and 3"),
        ({"pose_body": np.zeros((4, 63))}, "expected as many rotations as places, got 3, 4 and 3"),
        ({"trans": np.zeros((3, 2))}, r"trans: expected shape \(T >= 1, 3\), got float64 \(3, 2\)"),
        ({"trans": np.zeros(3)}, r"trans: expected shape \(T >= 1, 3\), got float64 \(3,\)"),
        ({"trans": np.zeros((3, 3), bool)}, r"trans: expected shape \(T >= 1, 3\), got bool \(3, 3\)"),
        (
            {"trans": np.zeros((0, 3)), "root_orient": np.zeros((0, 3)), "pose_body": np.zeros((0, 63))},
            r"trans: expected shape \(T >= 1, 3\), got float64 \(0, 3\)",
        ),
        ({"rest_offsets": np.zeros((21, 3))}, r"offsets: expected numbers \(T, 22, 3\), got float64 \(21, 3\)"),
        ({"offsets": np.zeros((4, 22, 3))}, r"offsets: expected numbers \(T, 22, 3\), got float64 \(4, 22, 3\)"),
        ({"offsets": np.zeros((3, 22, 3), bool)}, r"offsets: expected numbers \(T, 22, 3\), got bool \(3, 22, 3\)"),
        ({"mocap_framerate": "fast"}, r"mocap_framerate: expected a number, got <U4 \(\)"),
        ({"mocap_framerate": np.array([30, 30])}, r"mocap_framerate: expected a number, got int64 \(2,\)"),
        ({"pose_body": np.full((3, 63), np.inf)}, "joints: expected finite values, got NaN or infinity"),
    ],
    ids=count(),
)
def test_what_is_wrong_with_a_file_is_told_of_it(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **entries())
    np.savez(tmp_path / "b.npz", **{**entries(), **change})
    with pytest.raises(ValueError, match=rf"b\.npz: {told}$"):
        export.load([tmp_path / "a.npz", tmp_path / "b.npz"])


@pytest.mark.parametrize(("frames", "fps"), [(4, 50.0), (3, 60.0)])
def test_persons_of_other_length_or_rate_are_told(frames: int, fps: float, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **entries())
    np.savez(tmp_path / "b.npz", **{**entries(frames), "mocap_framerate": fps})
    listed = rf"a\.npz: 3 frames, 50 fps, b\.npz: {frames} frames, {fps:g} fps"
    with pytest.raises(ValueError, match=f"^persons: expected the same length and rate, got {listed}$"):
        export.load([tmp_path / "a.npz", tmp_path / "b.npz"])


def test_what_is_amasss_is_told_by_its_entries(tmp_path: Path) -> None:
    for given, told in (
        ({"trans": np.zeros(1)}, True),
        ({"poses": np.zeros(1)}, False),
        ({"trans": np.zeros(1), "joints": np.zeros(1)}, False),
    ):
        np.savez(tmp_path / "a.npz", **given)
        assert amass.is_amass(tmp_path / "a.npz") is told


def test_a_grown_up_who_is_not_turned_stands_along_z(tmp_path: Path) -> None:
    """A quarter about X is what brings SMPL's template, which stands along Y, upright."""
    given = {**entries(), "pose_body": np.zeros((3, 63)), "root_orient": np.tile([np.pi / 2, 0, 0], (3, 1))}
    np.savez(tmp_path / "a.npz", **given)
    np.testing.assert_allclose(about_axis(0, np.array(np.pi / 2)), UP, atol=1e-12)
    joints = export.load(tmp_path / "a.npz").joints[0]
    places = given["trans"][:, [0, 2, 1]] * (1, 1, -1)
    np.testing.assert_allclose(joints, at_rest(REST_POSE) + places[:, None], atol=1e-6)
