"""Rotations by what defines them: what they do to vectors, and the cases in which a formula has nothing to go by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from intermoe.motion.rotations import (
    about_axis,
    best_rotation,
    from_quaternions,
    from_rot6d,
    of_one_sign,
    rotation_matrices,
    row_major_rot6d,
    shortest_arc,
    to_euler_zxy,
    to_quaternions,
    to_rotation_vectors,
    unit,
)

Floats = npt.NDArray[np.float64]
AXES = np.concatenate([np.eye(3), -np.eye(3)])


def directions(count: int) -> Floats:
    drawn = np.random.default_rng(0).normal(size=(count, 3))
    return np.concatenate([AXES, drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)])


def assert_rotations(matrices: Floats) -> None:
    np.testing.assert_allclose(
        matrices @ np.swapaxes(matrices, -1, -2), np.broadcast_to(np.eye(3), matrices.shape), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=1e-12)


def test_the_shortest_arc_between_any_two_directions() -> None:
    """Opposite directions, of which the cross product is 0, and equal ones are among them."""
    sources, targets = directions(4)[:, None], directions(4)
    turns = shortest_arc(sources, targets)
    assert_rotations(turns)
    np.testing.assert_allclose(
        (turns @ np.broadcast_to(sources, turns.shape[:-1])[..., None])[..., 0],
        np.broadcast_to(targets, turns.shape[:-1]),
        atol=1e-7,
    )
    # the smallest: its angle, of which the trace tells the cosine, is that of the two directions
    np.testing.assert_allclose((np.trace(turns, axis1=-2, axis2=-1) - 1) / 2, (sources * targets).sum(-1), atol=1e-7)


@pytest.mark.parametrize("first", AXES)
def test_columns_that_say_no_direction_still_make_a_rotation(first: Floats) -> None:
    """rot6D is r00 r01 r10 r11 r20 r21: two columns; the second is 0 or parallel to the first."""
    for second in (np.zeros(3), 2 * first, -first):
        matrix = from_rot6d(np.stack([3 * first, second], axis=-1).reshape(6))
        assert_rotations(matrix)
        np.testing.assert_allclose(matrix[:, 0], first, atol=1e-12)
    assert_rotations(from_rot6d(np.zeros(6)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turns_about_an_axis_are_right_handed(axis: int) -> None:
    quarter = about_axis(axis, np.array(np.pi / 2))
    after, last = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
    np.testing.assert_allclose(quarter @ after, last, atol=1e-12)
    np.testing.assert_allclose(quarter @ np.eye(3)[axis], np.eye(3)[axis], atol=1e-12)
    np.testing.assert_allclose(rotation_matrices(0.7 * np.eye(3)[axis]), about_axis(axis, np.array(0.7)), atol=1e-12)


def test_half_turns_have_quaternions() -> None:
    """Their scalar part is 0, so each is read from another row than most rotations are."""
    turns = rotation_matrices(np.pi * directions(8))
    np.testing.assert_allclose(from_quaternions(to_quaternions(turns)), turns, atol=1e-9)
    assert (np.abs(to_quaternions(turns)[..., 0]) < 1e-9).all()


def test_signs_follow_the_frame_before_all_along() -> None:
    """A turn of 40 degrees a frame: the second change of sign makes up for the first."""
    halves = np.deg2rad(20.0) * np.arange(40)
    smooth = np.stack([np.cos(halves), np.sin(halves), 0 * halves, 0 * halves], axis=-1)
    flipped = smooth * np.where(np.isin(np.arange(40) // 7, (1, 2, 5)), -1.0, 1.0)[:, None]
    np.testing.assert_allclose(of_one_sign(flipped, 0), smooth, atol=1e-12)
    np.testing.assert_allclose(of_one_sign(flipped[None], 1)[0], smooth, atol=1e-12)


def test_euler_angles_go_on_beyond_half_a_turn() -> None:
    angles = np.stack([np.linspace(0, 9, 60), 0.4 * np.sin(np.arange(60)), np.linspace(0, -8, 60)], axis=-1)
    turns = about_axis(2, angles[:, 0]) @ about_axis(0, angles[:, 1]) @ about_axis(1, angles[:, 2])
    np.testing.assert_allclose(to_euler_zxy(turns, 0), angles, atol=1e-9)


def test_the_best_rotation_never_mirrors() -> None:
    rng = np.random.default_rng(1)
    source = rng.normal(size=(5, 3))
    turn = rotation_matrices(np.array([0.5, -1.0, 2.0]))
    np.testing.assert_allclose(best_rotation(source, source @ turn.T), turn, atol=1e-9)
    assert_rotations(best_rotation(source, source * (1.0, 1.0, -1.0)))


def test_rotation_vectors_of_the_smallest_turns_are_exact() -> None:
    for length in (0.0, 1e-12, 1e-7, 1e-3, 3.0):
        vectors = length * directions(5)
        np.testing.assert_allclose(to_rotation_vectors(rotation_matrices(vectors)), vectors, rtol=1e-6, atol=1e-15)


def test_vectors_without_a_length_have_no_direction() -> None:
    vectors = np.array([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, -2e-8, 0.0]])
    np.testing.assert_allclose(unit(vectors), [[0.6, 0, 0.8], [0, 0, 0], [0, -1, 0]])


@pytest.mark.parametrize(("broken", "exchanged"), [(0, True), (4, True), (6, False)])
def test_the_order_of_a_file_is_that_of_most_of_its_numbers(broken: int, exchanged: bool) -> None:
    """Of ten rotations, one column after the other, some are no rotations at all."""
    turns = rotation_matrices(np.random.default_rng(2).normal(size=(10, 1, 3)))
    by_column = np.concatenate([turns[..., 0], turns[..., 1]], axis=-1)
    by_column[:broken] *= 3.0
    by_row = np.stack([by_column[..., :3], by_column[..., 3:]], axis=-1).reshape(10, 1, 6)
    np.testing.assert_array_equal(row_major_rot6d(by_column), by_row if exchanged else by_column)
    np.testing.assert_array_equal(row_major_rot6d(by_row), by_row)


def test_euler_angles_near_the_pole_turn_as_the_matrices_do() -> None:
    """Where the middle angle passes half a right angle after the other and comes to a quarter of a turn."""
    angles = np.stack([np.linspace(0.3, 0.5, 31), np.linspace(1.2, 1.9, 31), np.linspace(-0.2, 0.4, 31)], axis=-1)
    turns = about_axis(2, angles[:, 0]) @ about_axis(0, angles[:, 1]) @ about_axis(1, angles[:, 2])
    found = to_euler_zxy(turns[None].repeat(2, axis=0), 1)
    assert found.shape == (2, 31, 3)
    np.testing.assert_allclose(found[1], angles, atol=1e-9)
