"""AMASS's arrays: posed by hand they give the joints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.motion.rig import REST_POSE


def rotation(vectors: np.ndarray) -> np.ndarray:
    """Rodrigues' formula, (..., 3) to (..., 3, 3)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors / np.maximum(angle[..., 0], 1e-12), -1, 0)
    cross = np.stack([np.stack(row, -1) for row in ([0 * x, -z, y], [z, 0 * x, -x], [-y, x, 0 * x])], -2)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def posed(archive: Any) -> np.ndarray:
    """Joints (T, 22, 3), Z up, of the stored skeleton."""
    frames = len(archive["trans"])
    vectors = np.concatenate([archive["root_orient"], archive["pose_body"]], axis=1).reshape(frames, 22, 3)
    offsets = archive["offsets"] if "offsets" in archive else np.tile(archive["rest_offsets"], (frames, 1, 1))
    local = rotation(vectors)
    turns, places = [local[:, 0]], [archive["trans"]]
    for joint, parent in enumerate(archive["parents"].tolist()):
        if joint:
            places.append(places[parent] + np.einsum("tij,tj->ti", turns[parent], offsets[:, joint]))
            turns.append(turns[parent] @ local[:, joint])
    return np.stack(places, axis=1)


def test_posed_bodies_are_the_joints(motion: Any, tmp_path: Path) -> None:
    paths = export.save(tmp_path / "pair.amass.npz", motion.joints, fps=30, prompt="bow", motion=motion.motion)
    assert [path.name for path in paths] == ["pair.person1.amass.npz", "pair.person2.amass.npz"]
    frames = motion.joints.shape[1]
    for path, joints in zip(paths, motion.joints, strict=True):
        with np.load(path, allow_pickle=False) as archive:
            x, z, y = np.moveaxis(posed(archive), -1, 0)
            found = np.stack([x, y, -z], axis=-1)
            assert np.linalg.norm(found - joints, axis=-1).max() < 1e-3
            assert archive["pose_body"].shape == (frames, 63)
            assert archive["root_orient"].shape == archive["trans"].shape == (frames, 3)
            assert not archive["betas"].any()
            said = {name: archive[name].item() for name in ("gender", "mocap_framerate", "surface_model_type")}
            assert said == {"gender": "neutral", "mocap_framerate": 30.0, "surface_model_type": "smplh"}
            assert archive["rotations_fitted"].item() == (motion.motion is None)
    take = export.load(tmp_path / "pair.amass.npz")
    assert np.linalg.norm(take.joints - motion.joints, axis=-1).max() < 1e-3
    assert (take.fps, take.prompt) == (30, "bow")


def test_standing_people_stand_along_z(two_people: np.ndarray, tmp_path: Path) -> None:
    path = export.save(tmp_path / "one.amass.npz", two_people[:1])[0]
    with np.load(path) as archive:
        joints = posed(archive)
    assert (joints[:, 15, 2] - joints[:, 0, 2] > 0.3).all()


def test_files_of_amass_are_read(tmp_path: Path) -> None:
    """SMPL+H's 52 joints under any name, without a skeleton: one of a usual grown-up."""
    poses = np.zeros((5, 156))
    poses[:, 0] = np.pi / 2  # Y up of the body becomes Z up
    trans = np.tile([1.0, 2.0, 0.9], (5, 1))
    np.savez(tmp_path / "0005_Walking_poses.npz", poses=poses, trans=trans, mocap_framerate=120.0, gender="male")
    take = export.load(tmp_path / "0005_Walking_poses.npz")
    assert take.fps == 120
    np.testing.assert_allclose(take.joints[0, 0, 0], (1, 0.9, -2), atol=1e-6)
    np.testing.assert_allclose(take.joints[0, 0, 4] - take.joints[0, 0, 1], REST_POSE[4], atol=1e-6)
    assert take.rotations is not None
    np.savez(tmp_path / "other.npz", poses=poses, trans=trans, mocap_frame_rate=100.0)  # as some of them spell it
    assert export.load(tmp_path / "other.npz").fps == 100
    slower = export.load(tmp_path / "0005_Walking_poses.npz", fps=60)  # rotations are not interpolated
    assert (slower.joints.shape[1], slower.fps, slower.rotations) == (3, 60, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mocap_framerate": None}, "expected an entry 'mocap_framerate', got none"),
        ({"root_orient": None}, "expected an entry 'root_orient'"),
        ({"pose_body": np.zeros((5, 60))}, r"pose_body: expected shape \(T >= 1, 63\), got float64 \(5, 60\)"),
        ({"trans": np.zeros((4, 3))}, "expected as many rotations as places, got 5, 5 and 4"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    whole = {
        "trans": np.zeros((5, 3)),
        "root_orient": np.zeros((5, 3)),
        "pose_body": np.zeros((5, 63)),
        "mocap_framerate": 30,
    }
    np.savez(tmp_path / "a.npz", **{name: value for name, value in {**whole, **change}.items() if value is not None})
    with pytest.raises(ValueError, match=rf"a\.npz: {told}"):
        export.load(tmp_path / "a.npz")


def test_rotations_survive_the_way_to_bvh(motion: Any, tmp_path: Path) -> None:
    """What AMASS says of a bone's twist is what the other formats get."""
    first = export.Take(motion.joints, motion=motion.motion).rig
    export.save(tmp_path / "a.amass.npz", motion.joints, motion=motion.motion)
    second = export.load(tmp_path / "a.amass.npz").rig
    if motion.case not in ("generated", "one frame"):  # whose bones do not keep their places, or do not show them
        turned = np.swapaxes(first.rotations, -1, -2) @ second.rotations
        assert np.degrees(np.arccos(np.clip((np.trace(turned, axis1=-2, axis2=-1) - 1) / 2, -1, 1))).max() < 1


def test_files_are_persons_in_their_order_and_the_first_says_what_is_done(
    two_people: np.ndarray, tmp_path: Path
) -> None:
    paths = [
        export.save(tmp_path / f"{prompt}.amass.npz", two_people[person : person + 1], prompt=prompt)[0]
        for person, prompt in enumerate(("bow", "wave"))
    ]
    for order in ((0, 1), (1, 0)):
        take = export.load([paths[person] for person in order])
        assert take.prompt == ("bow", "wave")[order[0]]
        np.testing.assert_allclose(take.joints, two_people[list(order)], atol=1e-3)
