"""Identity metrics, frames of bodies and broken copies: limits, rates and rounding, by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from intermoe.metrics import corruptions
from intermoe.metrics.frames import body_frames, require_finite, to_body
from intermoe.metrics.identity import (
    JOINT_GROUPS,
    bone_inconsistency,
    measure_identity,
    min_frames,
    role_break,
    separation,
    style_overlap,
    style_spectra,
    swap_score,
)
from intermoe.motion.skeleton import JOINT_NAMES

Floats = npt.NDArray[np.float64]


@pytest.fixture
def pair() -> Floats:
    """Two persons (2, 50, 22, 3) with random bones, beside each other, who shake."""
    rng = np.random.default_rng(3)
    bodies = rng.uniform(-0.4, 0.4, (2, 1, 22, 3)) + np.array([[[[0, 1, 0]]], [[[1.5, 1, 0.5]]]])
    return bodies + rng.normal(scale=[[[[0.01]]], [[[0.03]]]], size=(2, 50, 22, 3))


def test_every_joint_is_of_one_group() -> None:
    def side(name: str) -> str:
        if name == "pelvis":
            return name
        if not name.startswith(("left", "right")):
            return "trunk"
        limb = "arm" if name.endswith(("collar", "shoulder", "elbow", "wrist")) else "leg"
        return f"{name.partition('_')[0]} {limb}"

    groups = {name: tuple(i for i, joint in enumerate(JOINT_NAMES) if side(joint) == name) for name in JOINT_GROUPS}
    assert groups == JOINT_GROUPS
    assert sum(map(len, groups.values())) == 22


def test_numbers_of_a_clip_are_those_of_their_functions(pair: Floats) -> None:
    for fps in (30, 25):
        found = measure_identity(pair, fps=fps)
        assert found.bone_inconsistency == bone_inconsistency(pair)
        assert found.style_overlap == style_overlap(pair, fps=fps)
        assert found.role_break == role_break(pair).score
        assert found.swap_score == swap_score(pair).score != found.role_break
        assert found.separation_cm == 100 * separation(pair).distance
    assert measure_identity(pair) == measure_identity(pair, fps=30) != measure_identity(pair, fps=25)
    assert style_overlap(pair) == style_overlap(pair, fps=30)
    assert style_spectra(pair).frequencies[-1] == 15


def test_windows_are_a_frame_apart_at_least(pair: Floats) -> None:
    """At a frame a second a window has one frame, and four are enough for two of second differences."""
    assert min_frames(1.0) == 1 + 1 + 2
    assert style_spectra(pair[:, :4], fps=1.0).velocity.shape == (2, 2, 6, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_step_has_the_same_power_along_every_axis(axis: int) -> None:
    still = np.zeros((2, 44, 22, 3))
    still[:, :, [1, 16], 0] = 0.1  # left is X+
    still[1, 20:, 0, axis] += 0.3
    still[0, 20:, 5, axis] += 0.4  # one of four joints of the right leg
    power = style_spectra(still).velocity
    groups = list(JOINT_GROUPS)
    pelvis, leg = power[1, :, groups.index("pelvis")], power[0, :, groups.index("right leg")]
    np.testing.assert_allclose(leg, pelvis * (0.4 / 0.3) ** 2 / 4)
    assert pelvis.min() > 0


def test_narrow_numbers_are_measured_like_wide_ones(pair: Floats) -> None:
    """Far from the origin the differences of float32 numbers are no float32 numbers."""
    narrow = np.add(pair, (300.0, 0.0, 700.0)).astype(np.float32)
    wide = narrow.astype(np.float64)
    assert measure_identity(narrow) == measure_identity(wide)
    np.testing.assert_array_equal(body_frames(narrow), body_frames(wide))
    assert body_frames(narrow).dtype == np.float64


def test_frames_that_are_not_finite_are_counted_of_all_persons() -> None:
    joints = np.zeros((2, 9, 22, 3))
    joints[1, 3, 4, 0] = joints[0, 5, 2, 2] = np.nan
    joints[1, 5, :, 1] = np.inf
    with pytest.raises(ValueError, match=r"^joints: expected finite numbers, got others in 3 frames, first in 3$"):
        require_finite(joints)


def test_bodies_without_a_direction_have_finite_frames() -> None:
    """Hips and shoulders above each other, or opposite to each other."""
    upright, opposite = np.zeros((2, 22, 3))
    upright[[1, 16], 1], opposite[[1, 17], 0] = 0.5, 0.2
    for body in (upright, opposite):
        np.testing.assert_array_equal(body_frames(body), [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
        assert np.isfinite(to_body(body, body)).all()


def test_copies_of_bodies_without_bones_are_finite(pair: Floats) -> None:
    folded = pair.copy()
    folded[0, :, 15] = folded[0, :, 12]
    for copy in (corruptions.average_in_place(folded), corruptions.scale_skeleton(folded, [1.1] * 22, person=0)):
        assert np.isfinite(copy).all()
        np.testing.assert_array_equal(copy[0, :, 15], copy[0, :, 12])
    for blend in (-1, 51):
        with pytest.raises(ValueError, match=rf"^blend: expected a value in \[0, 50\] frames, got {blend}$"):
            corruptions.mirror_midway(pair, blend=blend)
    assert corruptions.swap_midway(pair, blend=50).shape == pair.shape


def test_bones_without_length_stay_themselves() -> None:
    assert bone_inconsistency(np.zeros((2, 4, 22, 3))) == 0


def test_a_millimetre_says_where_persons_stand(pair: Floats) -> None:
    """Beside each other along X, their mirror is the plane of X and Y: Z changes its sign about theirs, X stays."""
    pair[1] += pair[0, 25, 0] - pair[1, 25, 0] + (1e-3, 0.0, 0.0)
    mirrored = corruptions.mirror_midway(pair)[:, 25:, 0]
    place = pair[0, 25, 0, 2]
    np.testing.assert_allclose(mirrored[..., 0], pair[:, 25:, 0, 0], atol=1e-9)
    np.testing.assert_allclose(mirrored[..., 2] - place, place - pair[:, 25:, 0, 2], atol=1e-9)
