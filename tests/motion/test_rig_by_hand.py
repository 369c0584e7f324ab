"""Rigs of bodies whose rest pose and rotations are known, and what is chosen where they are not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from intermoe.motion.rig import CHILDREN, END_SITES, REST_POSE, RIGID, SLIDING, _own_frame, at_rest, fit_rig
from intermoe.motion.rig import forward_kinematics as joints_of
from intermoe.motion.rotations import about_axis, best_rotation, rotation_matrices, to_rotation_vectors, unit
from intermoe.motion.skeleton import LEFT_JOINTS, PARENTS, RIGHT_JOINTS

Floats = npt.NDArray[np.float64]
PERSONS, FRAMES = 2, 30
MIRROR = np.array([-1.0, 1.0, 1.0])


def test_the_body_at_rest_stands_in_a_t_pose_and_is_its_own_mirror_image() -> None:
    places = at_rest(REST_POSE)
    np.testing.assert_allclose(places[list(LEFT_JOINTS)], places[list(RIGHT_JOINTS)] * MIRROR, atol=1e-12)
    # sums along the legs, the spine and the arms: left toes, head, left wrist
    np.testing.assert_allclose(places[[10, 15, 20]], [(0.11, -0.94, 0.08), (0, 0.61, -0.01), (0.70, 0.46, -0.07)])
    # half-way: left ankle, spine3, left collar
    np.testing.assert_allclose(places[[7, 9, 13]], [(0.09, -0.88, -0.05), (0, 0.31, -0.02), (0.07, 0.43, -0.04)])
    np.testing.assert_allclose(places[[4, 6, 16]], [(0.10, -0.46, -0.01), (0, 0.25, -0.02), (0.19, 0.46, -0.05)])
    ends = {joint: places[joint] + end for joint, end in END_SITES.items()}
    assert sorted(ends) == [joint for joint, children in enumerate(CHILDREN) if not children]
    np.testing.assert_allclose(ends[10], ends[11] * MIRROR, atol=1e-12)
    np.testing.assert_allclose(ends[20], ends[21] * MIRROR, atol=1e-12)
    # toes end ahead, the head above and the hands further out
    np.testing.assert_allclose(
        [ends[10], ends[15], ends[20]], [(0.11, -0.94, 0.15), (0, 0.79, -0.01), (0.78, 0.46, -0.07)]
    )


def test_joints_are_a_chain_of_rigid_transforms() -> None:
    rng = np.random.default_rng(0)
    offsets, rotations = rng.normal(size=(2, 3, 22, 3)), rotation_matrices(rng.normal(size=(2, 3, 22, 3)))
    chain: list[Floats] = []
    for joint, parent in enumerate(PARENTS):
        local = np.tile(np.eye(4), (2, 3, 1, 1))
        local[..., :3, :3], local[..., :3, 3] = rotations[:, :, joint], offsets[:, :, joint]
        chain.append(local if parent < 0 else chain[parent] @ local)
    expected = np.stack([each[..., :3, 3] for each in chain], axis=2)
    np.testing.assert_allclose(joints_of(offsets, rotations), expected, atol=1e-12)


def bodies(bent: float = 0.0, *, other: bool = False) -> Floats:
    """Offsets at rest (P, 22, 3) of two of other lengths, and directions, whose pelvises lie ``bent`` radians off."""
    rng = np.random.default_rng(1)
    rest = REST_POSE * rng.uniform(0.8, 1.3, size=(PERSONS, 22, 3 if other else 1))
    turn = rotation_matrices(bent * unit(rng.normal(size=(PERSONS, 1, 3))))
    rest[:, 1:4] = (turn @ rest[:, 1:4, :, None])[..., 0]
    return rest


def turning(fast: float) -> Floats:
    """Rotations (P, T, 22, 3, 3) that turn by about ``fast`` radians a frame, each its own way."""
    steps = np.random.default_rng(2).normal(scale=fast / 1.6, size=(PERSONS, FRAMES, 22, 3))
    rotations = rotation_matrices(steps)
    for frame in range(1, FRAMES):
        rotations[:, frame] = rotations[:, frame - 1] @ rotations[:, frame]
    return rotations


def moving(rest: Floats, rotations: Floats) -> Floats:
    """Joints (P, T, 22, 3) of bodies whose pelvis goes about."""
    offsets = np.tile(rest[:, None], (1, FRAMES, 1, 1))
    offsets[:, :, 0] = np.random.default_rng(3).normal(size=(PERSONS, FRAMES, 3))
    return joints_of(offsets, rotations)


@pytest.mark.parametrize("bent", [0.0, 0.15])
def test_measured_rotations_give_the_body_back(bent: float) -> None:
    """However fast they turn, wherever the figure faces, and however its pelvis lies."""
    rest, rotations = bodies(bent, other=bent > 0), turning(0.7)
    joints = moving(rest, rotations)
    rig = fit_rig(joints, rotations[:, :, 1:])
    assert (rig.sliding, rig.fitted) == ((), False)
    np.testing.assert_allclose(rig.rest, rest, atol=1e-6)
    np.testing.assert_allclose(rig.rotations, rotations, atol=1e-6)
    np.testing.assert_allclose(rig.offsets[:, :, 1:], np.tile(rest[:, None, 1:], (1, FRAMES, 1, 1)), atol=1e-6)
    np.testing.assert_array_equal(rig.offsets[:, :, 0], joints[:, :, 0])
    assert not rig.rest[:, 0].any()


def test_of_joints_alone_pelvis_and_chest_are_found_and_others_turn_by_the_shortest_arc() -> None:
    """Without twists about the bones the rotations are the only ones that there are."""
    rest, rotations = bodies(), np.tile(np.eye(3), (PERSONS, FRAMES, 22, 1, 1))
    turned = turning(0.2)
    rotations[:, :, 0] = turned[:, :, 0]
    for joint, children in enumerate(CHILDREN):
        if joint and len(children) == 1:  # about an axis across the bone, and back and forth
            across = unit(np.cross(rest[:, children[0]], np.random.default_rng(joint).normal(size=(PERSONS, 3))))
            angle = 0.5 * np.sin(np.arange(FRAMES) / 7 + joint)
            rotations[:, :, joint] = rotation_matrices(across[:, None] * angle[:, None])
    rotations[:, :, 9] = rotation_matrices(0.3 * np.sin(np.arange(FRAMES) / 9)[:, None] * unit(np.ones(3)))
    rig = fit_rig(moving(rest, rotations))
    assert (rig.sliding, rig.fitted) == ((), True)
    np.testing.assert_allclose(rig.rest, rest, atol=1e-6)
    np.testing.assert_allclose(rig.rotations, rotations, atol=1e-6)


def test_a_rig_has_the_mean_lengths_of_each_person() -> None:
    """Of a forearm that is 1 cm longer in a fifth of the frames of the first person; it slides, and no other joint."""
    rest = bodies()
    joints = moving(rest, np.tile(np.eye(3), (PERSONS, FRAMES, 22, 1, 1)))
    way = unit(rest[0, 20])
    joints[0, ::5, 20] += 0.01 * way
    rig = fit_rig(joints)
    wanted = rest.copy()
    wanted[0, 20] += 0.002 * way
    np.testing.assert_allclose(rig.rest, wanted, atol=1e-9)
    assert rig.sliding == (20,)
    np.testing.assert_allclose(rig.offsets[0, ::5, 20], np.tile(rest[0, 20] + 0.01 * way, (6, 1)), atol=1e-9)
    np.testing.assert_allclose(joints_of(rig.offsets, rig.rotations), joints, atol=1e-9)


@pytest.mark.parametrize(("far", "sliding"), [(0.45e-3, ()), (0.55e-3, (18,)), (0.55e-3, (17, 18))])
def test_joints_slide_in_bodies_that_are_not_rigid(far: float, sliding: tuple[int, ...]) -> None:
    """Half a millimetre off where kinematics puts it; then a tenth of one is enough for others."""
    assert (RIGID, SLIDING) == (5e-4, 1e-4)
    rest = np.tile(REST_POSE, (1, 1, 1))
    joints = np.tile(at_rest(rest)[:, None], (1, 400, 1, 1))
    other = 1.2 * SLIDING if 17 in sliding else 0.8 * SLIDING
    for tip, base, amount in ((18, [18, 20], far), (17, [17, 19, 21], other)):
        joints[0, 7, base] += amount * unit(REST_POSE[tip])
    for own in (None, np.tile(np.eye(3), (1, 400, 21, 1, 1))):
        rig = fit_rig(joints, own)
        assert (rig.sliding, rig.fitted) == (sliding, own is None)
        for joint in range(1, 22):
            assert (rig.offsets[0, :, joint] == rig.rest[0, joint]).all() == (joint not in sliding)


def test_other_hips_and_shoulders_are_rigid_without_rotations_too() -> None:
    rest = bodies(other=True)
    rig = fit_rig(moving(rest, np.tile(np.eye(3), (PERSONS, FRAMES, 22, 1, 1))))
    assert rig.sliding == ()
    for around in (slice(1, 4), slice(12, 15)):  # as they are but for a turn of the whole
        turned = best_rotation(unit(REST_POSE)[around], unit(rest)[:, around])
        seen = np.einsum("pji,pkj->pki", turned, rest[:, around])
        np.testing.assert_allclose(rig.rest[:, around], seen, atol=1e-9)


def test_the_pelvis_fits_its_bones_alone_whatever_rotations_are_known() -> None:
    rest, rotations = bodies(), turning(0.05)
    joints = moving(rest, rotations) + np.random.default_rng(6).normal(scale=0.005, size=(PERSONS, FRAMES, 22, 3))
    rig = fit_rig(joints, rotations[:, :, 1:])
    bones = unit(joints[:, :, 1:4] - joints[:, :, :1])
    wanted = best_rotation(np.tile(unit(rig.rest[:, None, 1:4]), (1, FRAMES, 1, 1)), bones)
    np.testing.assert_allclose(rig.rotations[:, :, 0], wanted, atol=1e-9)


def test_bones_that_lie_badly_turn_the_chest_by_a_part() -> None:
    """Collars and neck turn about Y by 4 degrees and back; the model says that the chest rests.

    Bones at a distance r from the axis turn it with r^2, the model's axes x and z with 0.25 each.
    """
    rest, turn = np.tile(REST_POSE, (1, 1, 1)), np.radians(4) * np.array([1, 1, -1, -1])
    rest[0, 12:15] = (0, 0.2, 0), (0.08, 0.06, 0), (-0.08, 0.06, 0)  # collars are 0.8 of their length from the axis
    offsets = np.tile(rest[:, None], (1, 4, 1, 1))
    for joint in (12, 13, 14):
        offsets[0, :, joint] = about_axis(1, turn) @ rest[0, joint]
    still = np.tile(np.eye(3), (1, 4, 22, 1, 1))
    rig = fit_rig(joints_of(offsets, still), still[:, :, 1:])
    mean = 0.8 * np.cos(turn) / np.hypot(0.8 * np.cos(turn), 0.6)  # of a collar at rest, as it is seen
    expected = np.arctan2(1.6 * mean * np.sin(turn), 1.6 * mean * np.cos(turn) + 0.5)
    found = to_rotation_vectors(rig.rotations[0, :, 9])
    np.testing.assert_allclose(found, expected[:, None] * [0, 1, 0], atol=1e-9)


def test_bones_without_a_direction_lie_as_they_rest() -> None:
    """A hand in the elbow at one frame, and a forearm that points to and fro, of which the mean says nothing."""
    rest = np.tile(REST_POSE, (1, 1, 1))
    joints = np.tile(at_rest(rest)[:, None], (1, 12, 1, 1))
    joints[0, 5, 20] = joints[0, 5, 18]
    rig = fit_rig(joints)
    np.testing.assert_allclose(rig.rotations, np.tile(np.eye(3), (1, 12, 22, 1, 1)), atol=1e-9)
    fro = joints.copy()
    fro[0, :, 20] = fro[0, :, 18] + REST_POSE[20] * np.where(np.arange(12) % 2, 1.0, -1.0)[:, None]
    known = np.tile(np.eye(3), (1, 12, 21, 1, 1))
    np.testing.assert_allclose(fit_rig(fro, known).rest[0, 20], REST_POSE[20], atol=1e-9)


def test_where_own_rotations_start_from_is_what_fits_and_is_usual() -> None:
    """Of rotations with noise: the slope of sum |u - C R d|^2 / 2 + weight |C|^2 / 2 is 0, the weight as documented.

    That is the mean squared misfit of the person, of frames in groups of ten, over 0.06 radians squared.
    """
    rng = np.random.default_rng(5)
    rest, rotations = bodies(), turning(0.3)
    joints = moving(rest, rotations)
    pelvis = rotations[:, :, 0] @ rotation_matrices(np.array([[[0.1, -0.2, 0.1]], [[-0.2, 0.1, 0.2]]]))
    noise = np.array([0.1, 0.2])[:, None, None, None]  # radians of one person and of the other
    own = rotations[:, :, 1:] @ rotation_matrices(noise * rng.normal(size=(PERSONS, FRAMES, 21, 3)))
    ways = np.zeros_like(joints)
    ways[:, :, 1:] = unit(joints[:, :, 1:] - joints[:, :, list(PARENTS[1:])])
    pelvis, own, ways = (np.tile(each, (1, 10, *[1] * (each.ndim - 2))) for each in (pelvis, own, ways))
    frame = _own_frame(pelvis, own, ways)
    for person in range(PERSONS):
        terms = []
        for joint, after in ((1, 4), (2, 5), (3, 6)):
            u = np.einsum("tji,tj->ti", pelvis[person], ways[person, :, after])
            turned = frame[person] @ own[person, :, joint - 1]
            terms.append((u, turned @ np.einsum("tji,tj->ti", turned, u).mean(0)))
        misfit = np.mean([((u - e) ** 2).sum(-1) for u, e in terms])
        slope = sum(np.cross(e, u).sum(0) for u, e in terms)
        angle = to_rotation_vectors(frame[person])
        assert np.linalg.norm(angle) > 0.02
        np.testing.assert_allclose(10 * misfit / 0.06**2 * angle, slope, rtol=1e-3, atol=1e-3 * np.abs(slope).max())
