"""Rotations do not flip where bones leave them open, and are those of the fit everywhere else."""

from __future__ import annotations

import numpy as np
import pytest

from intermoe.motion.rig import fit_rig, forward_kinematics
from intermoe.motion.rotations import about_axis, best_rotation, rotation_matrices, shortest_arc, to_rotation_vectors
from intermoe.motion.steady import MOST_TURN, steady_turns, steady_twists

ALONG = np.array([1.0, 0.0, 0.0])
ROUNDING = 1e-6


def steps(rotations: np.ndarray) -> np.ndarray:
    """Radians (P, T - 1) by which rotations turn a frame."""
    return np.linalg.norm(to_rotation_vectors(np.swapaxes(rotations[:, :-1], -1, -2) @ rotations[:, 1:]), axis=-1)


def circle(near: float, frames: int = 120) -> np.ndarray:
    """Unit vectors (1, T, 3) once around, which come by the opposite of ``ALONG`` at ``near`` radians."""
    angles = np.linspace(0, 2 * np.pi, frames)
    flat = np.stack([np.cos(angles), 0 * angles, np.sin(angles)], axis=-1)
    return (about_axis(2, near * np.sin(angles / 2)) @ flat[..., None])[None, ..., 0]


@pytest.mark.parametrize("near", [0.03, -0.03, 0.05])
def test_a_bone_that_comes_by_its_opposite_does_not_flip(near: float) -> None:
    bones = circle(near)
    fitted = shortest_arc(ALONG, bones)
    assert np.degrees(steps(fitted).max()) > 40  # the shortest arc does flip
    steady = steady_twists(fitted, bones, None, ALONG[None])
    moved = np.arccos((bones[:, 1:] * bones[:, :-1]).sum(-1))
    assert (steps(steady) <= moved + MOST_TURN + ROUNDING).all()
    np.testing.assert_allclose((steady @ ALONG), bones, atol=1e-12)
    np.testing.assert_array_equal(steady[:, :50], fitted[:, :50])
    np.testing.assert_allclose(steady[:, 90:], fitted[:, 90:], atol=1e-12)  # and comes back to it


def test_sound_motion_is_the_fit_to_the_bit() -> None:
    bones = circle(0.0)[:, :45]
    fitted = shortest_arc(ALONG, bones)
    assert steady_twists(fitted, bones, None, ALONG[None]) is fitted
    three = np.stack([fitted @ np.eye(3)[k] for k in range(3)], axis=2)
    assert steady_turns(fitted, three, None) is fitted


def test_a_twist_that_is_known_is_followed_however_fast() -> None:
    twist = rotation_matrices(np.arange(20)[None, :, None] * np.radians(50) * ALONG)
    known = shortest_arc(ALONG, circle(0.3)[:, :20]) @ twist
    bones = known @ ALONG
    np.testing.assert_allclose(steady_twists(known, bones, known, ALONG[None]), known, atol=1e-12)


def test_known_rotations_that_contradict_the_bone_do_not_flip_it() -> None:
    """The model says that the bone rests; its place says that it swings through the opposite."""
    bones = circle(0.001)
    known = rotation_matrices(0.1 * np.sin(np.arange(120)[None, :, None] / 9) * ALONG)
    fitted = shortest_arc((known @ ALONG), bones) @ known
    steady = steady_twists(fitted, bones, known, ALONG[None])
    moved = np.arccos((bones[:, 1:] * bones[:, :-1]).sum(-1))
    assert (steps(steady) <= moved + steps(known) + MOST_TURN + ROUNDING).all()
    np.testing.assert_allclose((steady @ ALONG), bones, atol=1e-12)


def test_bones_that_fall_onto_one_line_do_not_flip_the_chest() -> None:
    """Three bones close to a line, a little to one side of it and then to the other: a fit turns over."""
    rest = np.array([[0.0, 1.0, 0.02], [0.0, 1.0, -0.02], [0.02, -1.0, 0.0]])
    side = np.linspace(1, -1, 41)[:, None, None]
    bones = rest * np.array([1.0, 0.0, 1.0]) * side + rest * np.array([0.0, 1.0, 0.0])
    bones = bones[None] / np.linalg.norm(bones[None], axis=-1, keepdims=True)
    fitted = best_rotation(np.broadcast_to(rest, bones.shape), bones)
    moved = np.arccos((bones[:, 1:] * bones[:, :-1]).sum(-1).clip(-1, 1)).max(-1)
    allowed = MOST_TURN + 2 * moved
    assert (steps(fitted) > allowed).any()
    steady = steady_turns(fitted, bones, None)
    assert (steps(steady) <= allowed + ROUNDING).all()
    np.testing.assert_allclose(steady[:, -1], fitted[:, -1], atol=1e-9)


def test_turns_are_slowed_to_ten_degrees_and_twice_what_the_bones_move() -> None:
    """Bones that rest while the fit turns by 90 degrees: nine frames of ten follow it. Bones that move, twice that."""
    frames = 30
    fitted = about_axis(0, np.where(np.arange(frames) < 5, 0.0, np.pi / 2))[None]
    still = np.tile(np.eye(3)[:2], (1, frames, 1, 1))
    np.testing.assert_allclose(
        np.degrees(steps(steady_turns(fitted, still, None)))[0, 4:15], [10] * 9 + [0, 0], atol=1e-6
    )
    for share, same in ((1.9, True), (2.1, False)):  # of what the bone that is most across moves, beside the 10 degrees
        moved = np.radians(12)
        bones = (about_axis(0, moved * np.arange(frames)) @ np.array([0.0, 1.0, 0.0]))[None, :, None]
        turns = about_axis(0, (np.radians(10) + share * moved) * np.arange(frames))[None]
        assert np.array_equal(steady_turns(turns, bones, None), turns) == same


@pytest.mark.parametrize(("beyond", "same"), [(-0.1, True), (0.1, False)])
def test_turns_as_fast_as_what_is_known_and_ten_degrees_more_stay(beyond: float, same: bool) -> None:
    """Two persons whose known rotations turn by 25 and by 3 degrees a frame, on bones that rest."""
    time = np.arange(12)
    degrees = np.array([25.0, 3.0])
    known = np.stack([about_axis(1, np.radians(rate) * time) for rate in degrees])
    still = np.tile(np.eye(3)[:2] * (1 + 1e-9), (2, len(time), 1, 1))  # of a length that rounding has made
    for person in range(2):
        rates = np.array([degrees[0], degrees[1]])
        rates[person] += 10 + beyond
        fitted = np.stack([about_axis(1, np.radians(rate) * time) for rate in rates])
        steady = steady_turns(fitted, still, known)
        assert np.array_equal(steady[person], fitted[person]) == same
        np.testing.assert_array_equal(steady[1 - person], fitted[1 - person])
        if not same:
            np.testing.assert_allclose(np.degrees(steps(steady))[person], degrees[person] + 10, atol=1e-6)


def test_joints_stay_where_they_are() -> None:
    """Whatever noise does to rotations: 60 frames of bones that point anywhere."""
    joints = np.random.default_rng(0).normal(size=(2, 60, 22, 3))
    rig = fit_rig(joints)
    np.testing.assert_allclose(forward_kinematics(rig.offsets, rig.rotations), joints, atol=1e-3)


def test_the_bone_that_moves_most_says_how_fast_a_joint_turns() -> None:
    """Of three bones two lie in the axis of a turn and rest; the third moves by 12 degrees a frame."""
    time, moved = np.arange(12), np.radians(12)
    swinging = about_axis(0, moved * time) @ np.array([0.0, 1.0, 0.0])
    bones = np.stack([np.tile(ALONG, (12, 1)), swinging, np.tile(-ALONG, (12, 1))], axis=1)[None]
    turns = about_axis(0, (np.radians(10) + 1.9 * moved) * time)[None]
    assert steady_turns(turns, bones, None) is turns


def test_one_frame_or_person_that_is_late_is_slowed_and_no_other() -> None:
    """The first person's fit jumps by 40 degrees between two frames; nobody's does elsewhere."""
    degrees = np.zeros((2, 20))
    degrees[0, 9:] = 40.0
    fitted = np.stack([about_axis(0, np.radians(row)) for row in degrees])
    still = np.tile(np.eye(3)[:2], (2, 20, 1, 1))
    steady = steady_turns(fitted, still, None)
    wanted = np.clip(np.arange(20) - 8, 0, 4) * 10.0
    np.testing.assert_allclose(np.degrees(to_rotation_vectors(steady))[0, :, 0], wanted, atol=1e-6)
    np.testing.assert_array_equal(steady[1], fitted[1])


@pytest.mark.parametrize("swaying", [False, True])
def test_a_twist_that_flips_is_made_good_by_ten_degrees_a_frame(swaying: bool) -> None:
    """A bone that rests, about which the fit turns by 170 degrees and a frame later by 170 more, which is 20 back.

    So 340 degrees are 20 the other way; what the model knows of twists is taken off what is made good.
    """
    time = np.arange(30)
    known_twist = 3.0 * time if swaying else 0.0 * time
    jump = np.where(time < 8, 0.0, np.where(time < 9, 170.0, 340.0))
    fitted = rotation_matrices(np.radians(known_twist + jump)[None, :, None] * ALONG)
    known = rotation_matrices(np.radians(known_twist)[None, :, None] * ALONG) if swaying else None
    bones = np.tile(ALONG, (1, 30, 1))
    steady = steady_twists(fitted, bones, known, ALONG[None])
    off = rotation_matrices(np.radians(known_twist)[None, :, None] * -ALONG) @ steady
    found = np.degrees(to_rotation_vectors(off))[0, :, 0]
    assert np.abs(np.diff(found)).max() <= 10 + 1e-6
    np.testing.assert_allclose(found[[7, 8, 9, 29]], [0, 10, 0, -20], atol=1e-6)


def test_a_known_twist_of_nearly_half_a_turn_is_no_flip() -> None:
    """The fit turns by 184 degrees a frame where 176 are known: 8 degrees off, not 352."""
    fitted, known = (rotation_matrices(np.radians(rate) * np.arange(8)[None, :, None] * ALONG) for rate in (184, 176))
    assert steady_twists(fitted, np.tile(ALONG, (1, 8, 1)), known, ALONG[None]) is fitted


@pytest.mark.parametrize("by_bones", [False, True])
def test_a_frame_in_which_more_is_known_to_turn_is_that_frame_alone(by_bones: bool) -> None:
    """The fit turns by 90 degrees at once; from the second frame after that to the third 24 degrees are said to."""
    fitted = about_axis(0, np.where(np.arange(20) < 5, 0.0, np.pi / 2))[None]
    bones, known = np.tile(np.eye(3)[:2], (1, 20, 1, 1)), None
    later = np.arange(20) >= 7
    if by_bones:  # a bone that moves by half as much
        bones[0, :, 1] = about_axis(0, np.where(later, np.radians(12), 0.0)) @ np.eye(3)[1]
    else:
        known = about_axis(2, np.where(later, np.radians(24), 0.0))[None]
    steady = steady_turns(fitted, bones, known)
    np.testing.assert_allclose(np.degrees(steps(steady))[0, 4:12], [10, 10, 34, 10, 10, 10, 6, 0], atol=1e-6)
