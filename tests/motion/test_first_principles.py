"""Representation, bones and feet against their definitions, written out here once more; no reference arrays needed."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from intermoe.motion.bones import SWEEPS, hold_bone_lengths, with_rigid_bones
from intermoe.motion.feet import REACH, with_planted_feet
from intermoe.motion.interhuman import joints, mirror_raw, process_pair, with_positions
from intermoe.motion.rig import REST_POSE, RIGID, at_rest, fit_rig, forward_kinematics
from intermoe.motion.skeleton import FOOT_JOINTS, LEFT_JOINTS, PARENTS, RIGHT_JOINTS

Floats = npt.NDArray[np.float64]
LEFT_LEG, RIGHT_LEG = (1, 4, 7, 10), (2, 5, 8, 11)
BALL_CONTACT = {LEFT_LEG: 259, RIGHT_LEG: 261}


def standing() -> Floats:
    """One person (22, 3), Y up, facing Z+ with the left side at X+: knees slightly bent, feet ahead."""
    pose = np.zeros((22, 3))
    pose[:, 1] = np.linspace(0.9, 1.7, 22)
    for side, leg in ((0.1, LEFT_LEG), (-0.1, RIGHT_LEG)):
        for joint, (height, ahead) in zip(leg, ((0.85, 0.0), (0.45, 0.06), (0.08, 0.0), (0.02, 0.12)), strict=True):
            pose[joint] = (side, height, ahead)
    for joints_of, side in ((LEFT_JOINTS, 1), (RIGHT_JOINTS, -1)):
        for number, joint in enumerate(joints_of[4:]):
            pose[joint] = (side * (0.1 + 0.15 * number), 1.4 - 0.05 * number, 0.02 * number)
    return pose


def raw(poses: Floats, seed: int = 0) -> Floats:
    """Source columns (T, 192) of Y-up poses (T, 22, 3): Z up, that is (x, -z, y), and numbers for the rotations."""
    z_up = np.stack([poses[..., 0], -poses[..., 2], poses[..., 1]], axis=-1)
    rotations = np.random.default_rng(seed).normal(size=(len(poses), 126))
    return np.concatenate([z_up.reshape(len(poses), -1), rotations], axis=1)


def motion_of(positions: Floats | Tensor) -> Tensor:
    """Motion (..., T, 262) of joints (..., T, 22, 3); velocities as they are, everything else 0."""
    positions = torch.as_tensor(positions, dtype=torch.float32)
    return with_positions(torch.zeros(*positions.shape[:-2], 262), positions)


def test_axes_floor_and_starting_frame() -> None:
    """Person 1 starts at (3, 2) and looks along X-; person 2 stands a metre ahead of them and two to the left."""
    one = standing()
    turned = np.stack([-one[:, 2], one[:, 1], one[:, 0]], axis=-1)  # facing X-: the left side is at Z+
    two = standing() + np.array((3.0 - 1.0, 5.0, 2.0 + 2.0))
    first, second = process_pair(
        raw(np.stack([turned + np.array((3.0, 0.7, 2.0))] * 3)),
        raw(np.stack([two, two, two + np.array((0.5, 0, 0))]), seed=1),
    )
    np.testing.assert_allclose(joints(first)[0], standing() - (0, 0.02, 0), atol=1e-6)  # the lowest joint is at 0.02
    np.testing.assert_allclose(joints(second)[0, 0], (2.0, 0.9 - 0.02, 1.0), atol=1e-6)
    # to X+ in the world is away from where person 1 looks
    np.testing.assert_allclose(second[1, 66:69], (0, 0, -0.5), atol=1e-6)
    np.testing.assert_allclose(second[0, 66:132], 0, atol=1e-6)
    for motion, seed in ((first, 0), (second, 1)):
        assert motion.shape == (2, 262)
        rotations = np.random.default_rng(seed).normal(size=(3, 126))
        np.testing.assert_allclose(motion[:, 132:258], rotations[:2], rtol=1e-6)


def test_each_person_stands_on_the_lowest_point_of_their_clip() -> None:
    jump = np.stack([standing() + np.array((0, height, 0)) for height in (1.0, 0.5, 0.2)])
    first, second = process_pair(raw(jump), raw(np.stack([standing() - (0, 3.0, 0)] * 3)))
    np.testing.assert_allclose(joints(first)[:, 10, 1], (0.8, 0.3), atol=1e-6)  # lowest in the frame that drops out
    np.testing.assert_allclose(joints(second)[:, 10, 1], 0, atol=1e-6)


@pytest.mark.parametrize("column", range(4))
def test_a_foot_stands_where_it_is_low_and_slow(column: int) -> None:
    """Lower than 12 cm (ankle) or 5 cm (ball), and moving less than sqrt(0.001) m to the next frame."""
    joint, limit = FOOT_JOINTS[column], 0.12 if column % 2 == 0 else 0.05
    pose = standing()
    pose[list(FOOT_JOINTS), 1] = 0.5
    pose[20, 1] = 0.0  # a hand is what touches the floor
    poses = np.stack([pose] * 7)
    poses[:, joint, 1] = [limit - 1e-3, limit + 1e-3, limit - 2e-3, limit - 2e-3, limit - 2e-3, limit - 2e-3, 0.03]
    poses[:, joint, 0] += [0, 0, 0, 0.0315, 0.0315 + 0.0318, 0.0633, 0.0633]
    poses[6, joint, 1] = limit - 0.05  # 4.8 cm down
    contacts = process_pair(raw(poses), raw(poses))[0][:, 258:]
    expected = np.zeros((6, 4))
    # low and slow; too high; still to be slow; 3.15 cm; 3.18 cm; at rest; and down
    expected[:, column] = [1, 0, 1, 0, 1, 0]
    np.testing.assert_array_equal(contacts, expected)


def test_the_mirror_image_of_rotations() -> None:
    """M R M with M = diag(-1, 1, 1), of the other side's joint, the first two columns row by row."""
    rng = np.random.default_rng(0)
    matrices = np.linalg.qr(rng.normal(size=(3, 21, 3, 3)))[0]
    positions = rng.normal(size=(3, 22, 3))
    columns = np.concatenate([positions.reshape(3, -1), matrices[..., :2].reshape(3, -1)], axis=1)
    mirrored = mirror_raw(columns)
    other = np.arange(22)
    other[[*LEFT_JOINTS, *RIGHT_JOINTS]] = [*RIGHT_JOINTS, *LEFT_JOINTS]
    flip = np.diag([-1.0, 1, 1])
    np.testing.assert_allclose(mirrored[:, :66].reshape(3, 22, 3), positions[:, other] @ flip, atol=1e-6)
    expected = (flip @ matrices @ flip)[:, other[1:] - 1, :, :2]
    np.testing.assert_allclose(mirrored[:, 66:].reshape(3, 21, 3, 2), expected, atol=1e-6)


def test_the_mirror_image_faces_its_own_way() -> None:
    poses = np.stack([standing(), standing() + np.array((0.1, 0, 0.2))])
    partner = poses + np.array((1.5, 0, 2.0))  # ahead and to the left
    _, second = process_pair(mirror_raw(raw(poses)), mirror_raw(raw(partner)))
    np.testing.assert_allclose(joints(second)[0, 0, [0, 2]], (-1.5, 2.0), atol=1e-6)  # ahead and to the right


def test_other_positions_bring_their_velocities_and_nothing_else() -> None:
    motion = torch.randn(2, 5, 262)
    positions = torch.randn(2, 5, 22, 3)
    result = with_positions(motion, positions)
    assert torch.equal(result[..., :66], positions.flatten(2))
    torch.testing.assert_close(result[:, :-1, 66:132], (positions[:, 1:] - positions[:, :-1]).flatten(2))
    assert torch.equal(result[:, -1, 66:132], motion[:, -1, 66:132])
    assert torch.equal(result[..., 132:], motion[..., 132:])


def swept(positions: Floats) -> Floats:
    """Each sweep moves both ends of a bone by half of its error, the last pass the outer end by all of it."""
    moved = positions.copy()
    bones = [(child, parent) for child, parent in enumerate(PARENTS) if parent >= 0]
    wanted = {b: np.mean([np.linalg.norm(frame[b[0]] - frame[b[1]]) for frame in positions]) for b in bones}
    for share in (*[0.5] * SWEEPS, 1.0):
        for child, parent in bones:
            for frame in moved:
                bone = frame[child] - frame[parent]
                error = bone - bone / np.linalg.norm(bone) * wanted[child, parent]
                frame[child] -= share * error
                frame[parent] += (1 - share) * error
    return moved


def test_bones_become_rigid_by_sweeps_and_a_last_pass() -> None:
    rng = np.random.default_rng(0)
    truth = np.stack([standing() + np.array((0.02 * frame, 0, 0)) for frame in range(9)])
    disturbed = truth + rng.normal(scale=0.01, size=truth.shape)
    held = hold_bone_lengths(torch.from_numpy(disturbed)).numpy()
    np.testing.assert_allclose(held, swept(disturbed), atol=1e-9)
    lengths = np.linalg.norm(held[:, 1:] - held[:, list(PARENTS[1:])], axis=-1)
    before = np.linalg.norm(disturbed[:, 1:] - disturbed[:, list(PARENTS[1:])], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(before.mean(axis=0), lengths.shape), rtol=1e-9)
    error, old = (np.linalg.norm(clip - truth, axis=-1) for clip in (held, disturbed))
    assert error.mean() < old.mean()
    assert SWEEPS == 5
    assert error[:, [20, 21]].mean() < 1.5 * old[:, [20, 21]].mean()  # errors do not add up towards the hands


def test_rigid_bones_of_motion_keep_its_other_columns() -> None:
    rng = np.random.default_rng(1)
    motion = motion_of(standing() + rng.normal(scale=0.01, size=(2, 6, 22, 3)))
    motion[..., 132:] = torch.randn(2, 6, 130)
    result = with_rigid_bones(motion)
    torch.testing.assert_close(joints(result), hold_bone_lengths(joints(motion)))
    torch.testing.assert_close(result[:, :-1, 66:132], result[..., :66].diff(dim=1))
    assert torch.equal(result[..., 132:], motion[..., 132:])


def sliding(frames: int, step: float) -> Floats:
    """A person who slides by ``step`` metres a frame along X+ and half of it along Z+."""
    return standing() + step * np.arange(frames)[:, None, None] * np.array([1.0, 0.0, 0.5])


@pytest.mark.parametrize("leg", [LEFT_LEG, RIGHT_LEG])
def test_a_foot_is_held_from_the_frame_of_its_contact_to_the_next(leg: tuple[int, ...]) -> None:
    """The documented sum, solved as least squares: |o|^2 + REACH^2 |o_(t+1) - o_t + c_t (p_(t+1) - p_t)|^2."""
    positions = sliding(12, 0.004)
    positions[..., 1] += 0.003 * np.arange(12)[:, None]  # and rising, which is no sliding
    motion = motion_of(positions)
    contact = np.zeros(12)
    contact[[3, 4, 5, 9]] = 0.31
    contact[[1, 7]] = 0.29
    motion[:, BALL_CONTACT[leg]] = torch.from_numpy(contact)
    motion[:, [258, 260]] = 1.0  # ankles do not decide
    moved = joints(with_planted_feet(motion)).double().numpy() - positions
    steps = np.diff(np.eye(12), axis=0)
    unwanted = np.diff(positions[:, leg[3]], axis=0) * (contact[:-1, None] > 0.3) * (1, 0, 1)
    system = np.concatenate([np.eye(12), REACH * steps])
    offset = np.linalg.lstsq(system, np.concatenate([np.zeros((12, 3)), -REACH * unwanted]), rcond=None)[0]
    np.testing.assert_allclose(moved[:, leg[3]], offset, atol=1e-5)
    np.testing.assert_allclose(moved[:, leg[2]], offset, atol=1e-5)
    assert np.abs(offset).max() > 3e-3
    assert np.abs(moved[:, leg[1]]).max() > 1e-4  # the knee follows
    rest = [joint for joint in range(22) if joint not in leg[1:]]
    assert np.abs(moved[:, rest]).max() < 1e-6


def test_reach_is_the_length_over_which_a_foot_returns() -> None:
    """Far from a single held step s the offset falls off by a factor of about exp(-1 / REACH) a frame."""
    positions = sliding(161, 0.004)
    motion = motion_of(positions)
    motion[80, 259] = 1.0
    offset = (joints(with_planted_feet(motion)).double().numpy() - positions)[:, 10, 0]
    assert offset[80] == pytest.approx(-offset[81], rel=1e-3)
    assert offset[80] == pytest.approx(0.002, rel=0.1)
    assert offset[56] / offset[70] == pytest.approx(np.exp(-1.0), rel=0.05)
    assert REACH == 14.0


def test_legs_keep_their_bones_and_knees_their_side() -> None:
    positions = sliding(20, 0.02)
    motion = motion_of(positions)
    motion[:, [259, 261]] = 1.0
    planted = joints(with_planted_feet(motion)).double().numpy()
    for leg in (LEFT_LEG, RIGHT_LEG):
        for parent, child in itertools.pairwise(leg):
            before, after = (np.linalg.norm(p[:, child] - p[:, parent], axis=-1) for p in (positions, planted))
            np.testing.assert_allclose(after, before, atol=1e-5)
        hip, knee, ankle = (planted[:, joint] for joint in leg[:3])
        bend = positions[:, leg[1]] - positions[:, leg[0]]  # where the knee was
        side = np.cross(ankle - hip, bend)
        side /= np.linalg.norm(side, axis=-1, keepdims=True)
        assert np.abs(((knee - hip) * side).sum(axis=-1)).max() < 2e-3  # in the plane of that and the new leg
        assert (np.cross(ankle - hip, knee - hip) * side).sum(axis=-1).min() > 0  # and on the same side of it


def test_a_straight_leg_bends_where_the_foot_points() -> None:
    pose = standing()
    pose[list(LEFT_LEG)] = [(0.1, 0.3, 0), (0.5, 0.3, 0), (0.9, 0.3, 0), (0.9, 0.4, 0)]  # stretched out, toes up
    motion = motion_of(np.stack([pose, pose + np.array([0.2, 0, 0])]))
    motion[:, 259] = 1.0
    planted = joints(with_planted_feet(motion)).double().numpy()
    shorter = 0.8 - 0.2 * REACH**2 / (1 + 2 * REACH**2)  # who slides by 20 cm is held back by half of it
    np.testing.assert_allclose(planted[1, 7] - planted[1, 1], (shorter, 0, 0), atol=1e-4)
    height = np.sqrt(0.4**2 - (shorter / 2) ** 2)
    np.testing.assert_allclose(planted[1, 4] - planted[1, 1], (shorter / 2, height, 0), atol=1e-3)


def test_a_foot_comes_no_nearer_than_its_bones_let_it() -> None:
    pose = standing()
    pose[list(LEFT_LEG)] = [(0.1, 0.3, 0), (0.7, 0.3, 0), (0.9, 0.3, 0), (0.9, 0.4, 0)]  # 0.6 and 0.2 m
    motion = motion_of(np.stack([pose, pose + np.array([1.4, 0, 0])]))  # held back by 0.7 m: 0.1 m from the hip
    motion[:, 259] = 1.0
    planted = joints(with_planted_feet(motion)).double().numpy()
    np.testing.assert_allclose(planted[1, 7] - planted[1, 1], (0.4, 0, 0), atol=1e-3)
    np.testing.assert_allclose(planted[1, 4] - planted[1, 1], (0.6, 0, 0), atol=2e-2)


def test_a_foot_goes_no_farther_than_its_leg() -> None:
    positions = sliding(15, 0.2)
    motion = motion_of(positions)
    motion[:, 259] = 1.0
    planted = joints(with_planted_feet(motion)).double().numpy()
    reach = np.linalg.norm(standing()[4] - standing()[1]) + np.linalg.norm(standing()[7] - standing()[4])
    distance = np.linalg.norm(planted[:, 7] - planted[:, 1], axis=-1)
    assert distance.max() <= reach + 1e-5
    assert distance.max() > 0.99 * reach


@pytest.mark.parametrize("joint", [1, 14, 20])
@pytest.mark.parametrize(("frames", "person"), [([120], 0), ([0, 1], 1), (list(range(200)), 1)])
def test_a_bone_that_leaves_its_place_for_a_moment_slides(joint: int, frames: list[int], person: int) -> None:
    """However short the moment: kinematics gives the joints back at every frame."""
    positions = np.tile(at_rest(REST_POSE), (2, 200, 1, 1))
    below = [joint]
    for child in range(joint + 1, 22):
        below += [child] if PARENTS[child] in below else []
    bone = positions[0, 0, joint] - positions[0, 0, PARENTS[joint]]
    longer = np.where(np.isin(np.arange(200), frames), np.where(np.arange(200) % 2, 0.01, 0.02), 0.0)
    positions[person][:, below] += (longer[:, None] * bone / np.linalg.norm(bone))[:, None]
    rig = fit_rig(positions)
    assert rig.sliding == (joint,)
    assert np.linalg.norm(forward_kinematics(rig.offsets, rig.rotations) - positions, axis=-1).max() < RIGID
