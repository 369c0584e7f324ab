"""Source columns to motion part by part, and motion that is seen from elsewhere, by values written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intermoe.motion.interhuman import (
    INTERHUMAN,
    facing_forward,
    from_joints,
    has_direction,
    lowest,
    mirror_raw,
    process_pair,
    process_persons,
    turned,
)


def source(frames: int = 9, persons: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(frames, persons, 192)).astype(np.float32)


@pytest.mark.parametrize("mirrored", [False, True])
def test_persons_are_each_as_in_a_pair_with_the_first(mirrored: bool) -> None:
    raw = source()
    each = [mirror_raw(raw[:, person]) if mirrored else raw[:, person] for person in range(3)]
    found = process_persons(raw, mirrored=mirrored)
    assert found.shape == (3, 8, 262)
    assert found.dtype == np.float32
    for person in (1, 2):
        first, other = process_pair(each[0], each[person])
        np.testing.assert_array_equal(found[0], first)
        np.testing.assert_array_equal(found[person], other)
    # some frames are those of the whole, with velocities to the frame after the last
    for floor in (None, lowest(raw)):
        np.testing.assert_array_equal(process_persons(raw, slice(2, 6), mirrored=mirrored, floor=floor), found[:, 2:6])
    moved = process_persons(raw, mirrored=mirrored, floor=lowest(raw) - np.float32([0.5, 0.0, 1.0]))
    np.testing.assert_allclose((moved - found)[:, :, 1:66:3], np.tile([[[0.5]], [[0]], [[1.0]]], (1, 8, 22)), atol=1e-5)


def test_the_lowest_joint_of_each_person_is_found_in_all_frames() -> None:
    raw = np.ones((4, 2, 192), np.float32)
    raw[..., 66:] = -9.0  # rotations
    raw[..., [0, 1, 3, 4]] = -7.0  # places on the ground
    raw[2, 0, 65], raw[3, 1, 2] = -0.25, 0.5  # the last joint, the first
    assert lowest(raw).tolist() == [-0.25, 0.5]


def test_hips_above_each_other_say_no_direction() -> None:
    raw = np.zeros((5, 192))
    raw[1, 5] = 1.0  # the left hip higher
    raw[2, 3], raw[3, 7], raw[4, 3] = 1e-7, -1e-7, 1e-9  # to a side, ahead, and less than counts
    assert has_direction(raw).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(("left", "turn"), [((0.0, 0.2), 90.0), ((0.2, 0.0), 0.0), ((0.0, -0.2), -90.0)])
def test_a_pose_is_turned_to_face_forward(left: tuple[float, float], turn: float) -> None:
    """Whose left hip is at Z+ faces X-, and is turned by a quarter so that X- becomes Z+; the floor is below."""
    pose = torch.zeros(22, 3)
    pose[:] = torch.tensor([3.0, 0.9, -2.0])
    pose[1, [0, 2]] += torch.tensor(left)
    pose[2, [0, 2]] -= torch.tensor(left)
    found, origin = facing_forward(pose)
    assert origin.tolist() == [3.0, 0.0, -2.0]
    across = (pose[1] - pose[2]) @ found.T
    torch.testing.assert_close(across, torch.tensor([0.4, 0.0, 0.0]), atol=1e-6, rtol=0)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    torch.testing.assert_close(
        found, torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]).float(), atol=1e-6, rtol=0
    )


def test_motion_is_seen_from_elsewhere() -> None:
    """Places from the origin, velocities by their direction alone; the rest stays. Z+ is where X- was."""
    motion = torch.zeros(2, 3, 262)
    motion[1, 2, 3:6] = torch.tensor([1.0, 2.0, 3.0])
    motion[1, 2, 69:72] = torch.tensor([0.1, 0.2, 0.3])
    motion[..., 132:] = torch.randn(130)
    turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    found = turned(motion, turn, torch.tensor([0.5, 1.0, 1.0]))
    torch.testing.assert_close(found[1, 2, 3:6], torch.tensor([2.0, 1.0, -0.5]))
    torch.testing.assert_close(found[1, 2, 69:72], torch.tensor([0.3, 0.2, -0.1]))
    torch.testing.assert_close(found[0, 1, 63:66], torch.tensor([-1.0, -1.0, 0.5]))
    assert not found[0, :, 66:132].any()
    assert torch.equal(found[..., 132:], motion[..., 132:])
    assert INTERHUMAN.turned is turned


def test_one_frame_of_joints_rests() -> None:
    pose = torch.randn(1, 22, 3, generator=torch.Generator().manual_seed(0))
    pose[0, [7, 10, 8, 11], 1] = torch.tensor([0.11, 0.06, 0.13, 0.04])
    motion = from_joints(pose)
    assert motion.shape == (1, 262)
    assert motion.dtype == torch.float32
    assert not motion[:, 66:132].any()
    assert motion[0, 258:].tolist() == [1, 0, 0, 1]
