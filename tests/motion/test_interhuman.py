import json

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.motion.interhuman import joints, mirror_raw, process_pair
from intermoe.motion.rotations import row_major_rot6d
from intermoe.motion.skeleton import FOOT_JOINTS, JOINT_NAMES, LEFT_JOINTS, PARENTS, RIGHT_JOINTS


def random_raw(seed=0, frames=12):
    return np.random.default_rng(seed).normal(size=(frames, 192)).astype(np.float32)


@pytest.mark.parametrize(
    ("prefix", "expected"), [("raw_person", "person"), ("mirrored_person", "mirrored_then_processed")]
)
def test_processing_golden(golden, prefix, expected):
    arrays = golden("interhuman_processing.npz")
    motions = process_pair(arrays[f"{prefix}1"], arrays[f"{prefix}2"])
    for person, motion in enumerate(motions, 1):
        assert motion.dtype == np.float32
        np.testing.assert_allclose(motion, arrays[f"{expected}{person}"], rtol=0, atol=1e-5)


def test_mirror_golden(golden):
    arrays = golden("interhuman_processing.npz")
    for person in "12":
        np.testing.assert_array_equal(mirror_raw(arrays[f"raw_person{person}"]), arrays[f"mirrored_person{person}"])


def test_mirror_is_its_own_inverse():
    raw = random_raw()
    np.testing.assert_array_equal(mirror_raw(mirror_raw(raw)), raw)


def test_canonical_frame_and_invariance_to_the_world_frame():
    raw1, raw2 = random_raw(1), random_raw(2)
    motion1, motion2 = process_pair(raw1, raw2)
    first = joints(motion1)[0]
    np.testing.assert_allclose(first[0, [0, 2]], 0, atol=1e-6)
    across = first[2] - first[1]
    assert abs(across[2]) < 1e-6
    assert across[0] < 0
    for motion in (motion1, motion2):
        dropped = motion[-1, 1:66:3] + motion[-1, 67:132:3]  # heights in the last frame, which is not kept
        assert min(joints(motion)[..., 1].min(), dropped.min()) == pytest.approx(0, abs=1e-5)  # the floor

    angle, shift = 2.1, np.array([3.0, -2.0, 0.7])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    moved = []
    for raw in (raw1, raw2):
        copy = raw.copy()
        copy[:, :66] = (raw[:, :66].reshape(-1, 22, 3) @ turn.T + shift).reshape(-1, 66)
        moved.append(copy)
    for before, after in zip((motion1, motion2), process_pair(*moved), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_velocity_contacts_and_rotations():
    raw = random_raw(3, frames=6)
    raw[2:, :66] = raw[1, :66]  # the pose is held from frame 1 on
    raw[:, 2:66:3] = np.maximum(raw[:, 2:66:3], 0.5)
    raw[1:, 3 * 7 + 2] = 0.0  # the left ankle stands on the floor
    motion, _ = process_pair(raw, raw)
    assert motion.shape == (5, 262)
    np.testing.assert_allclose(motion[0, 66:132], motion[1, :66] - motion[0, :66], atol=1e-5)
    np.testing.assert_array_equal(motion[1:, 66:132], 0)
    np.testing.assert_array_equal(motion[:, 132:258], raw[:-1, 66:])
    np.testing.assert_array_equal(motion[1:, 258:], np.tile([1, 0, 0, 0], (4, 1)))


def test_skeleton_tables():
    assert len(JOINT_NAMES) == len(PARENTS) == 22
    assert all(parent < i for i, parent in enumerate(PARENTS))
    for left, right in zip(LEFT_JOINTS, RIGHT_JOINTS, strict=True):
        assert JOINT_NAMES[left].replace("left", "right") == JOINT_NAMES[right]
    assert [JOINT_NAMES[i] for i in FOOT_JOINTS] == ["left_ankle", "left_foot", "right_ankle", "right_foot"]


@pytest.mark.parametrize("mirror", [False, True])
def test_rotations_match_positions_of_real_motion(salsa, mirror):
    """A bone seen from its parent bone: (R_j offset_child) . offset_j; the root's rotation is not in the data."""
    offsets = np.array(json.loads((salsa / "skeleton.json").read_text())["rest_offsets_m"])
    dataset = InterHumanDataset(salsa, "val", mirror=mirror)
    motion = dataset[next(i for i in range(100) if not mirror or is_mirrored(dataset, i))]["motion"].numpy()
    rotations = motion[..., 132:258].reshape(-1, 21, 3, 2)
    rotations = np.concatenate([rotations, np.cross(rotations[..., 0], rotations[..., 1])[..., None]], axis=-1)
    positions = joints(motion).reshape(-1, 22, 3)
    for child, joint in enumerate(PARENTS):
        if joint > 0:
            bone, before = positions[:, child] - positions[:, joint], positions[:, joint] - positions[:, PARENTS[joint]]
            expected = rotations[:, joint - 1] @ offsets[child] @ offsets[joint]
            np.testing.assert_allclose((bone * before).sum(-1), expected, atol=3e-3)


def is_mirrored(dataset, index):
    plain = InterHumanDataset(dataset.root, dataset.split)
    return not torch.equal(plain[index]["motion"], dataset[index]["motion"])


def test_rot6d_order_is_recognised():
    rotations = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 21, 3, 3)))[0]
    by_row = rotations[..., :2].reshape(5, 21, 6)
    by_column = np.concatenate([rotations[..., 0], rotations[..., 1]], axis=-1)
    np.testing.assert_array_equal(row_major_rot6d(by_row), by_row)
    np.testing.assert_array_equal(row_major_rot6d(by_column), by_row)
    noise = np.random.default_rng(1).normal(size=(5, 21, 6))
    np.testing.assert_array_equal(row_major_rot6d(noise), noise)


def test_joints_of_numpy_and_torch():
    motion = np.arange(2 * 262, dtype=np.float32).reshape(2, 262)
    assert joints(motion).shape == (2, 22, 3)
    np.testing.assert_array_equal(joints(torch.from_numpy(motion)).numpy(), joints(motion))
    with pytest.raises(ValueError, match="motion: expected last dimension 262"):
        joints(motion[:, :-1])


@pytest.mark.parametrize(
    ("raw1", "raw2", "message"),
    [
        (np.zeros((5, 262)), np.zeros((5, 192)), "raw1: expected shape"),
        (np.zeros((5, 192)), np.zeros((1, 192)), "raw2: expected shape"),
        (np.zeros((5, 192)), np.zeros((6, 192)), "raw2: expected as many frames as raw1"),
        (np.zeros((5, 192)), np.zeros((5, 192)), "expected a facing direction in frame 0"),
    ],
)
def test_bad_input(raw1, raw2, message):
    with pytest.raises(ValueError, match=message):
        process_pair(raw1, raw2)
