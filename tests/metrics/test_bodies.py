"""Floating, bodies in each other and hands that meet, by cases computed by hand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from intermoe.metrics import bodies
from intermoe.metrics.clips import Clip, Sample, measure
from intermoe.motion.capsules import CAPSULES, deepest
from intermoe.motion.skeleton import JOINT_NAMES

Floats = npt.NDArray[np.float64]
LEFT_WRIST, RIGHT_WRIST = JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist")


def posts(*places: float, frames: int = 4) -> Floats:
    """Persons (P, T, 22, 3) at ``places`` along X who are upright lines: every joint 5 cm above the one before it."""
    line = np.stack([np.zeros(22), 0.05 * np.arange(22), np.zeros(22)], axis=-1)
    return np.stack([np.tile(line, (frames, 1, 1)) + np.array([x, 0, 0]) for x in places])


def test_who_is_off_the_floor_for_more_than_half_of_the_frames_floats() -> None:
    clip = posts(0, 1)
    clip[1, :2, :, 1] += 0.09
    assert not bodies.floats(clip)  # half
    clip[1, 2, :, 1] += 0.09
    assert bodies.floats(clip)
    np.testing.assert_allclose(bodies.lowest_joint(clip), [[0, 0, 0, 0], [0.09, 0.09, 0.09, 0]])
    clip[1, :, :, 1] -= 0.02  # 7 cm is no floating
    assert not bodies.floats(clip)
    found = measure([Clip(posts(0, 1)), Clip(posts(0, 1) + np.array([0, 0.1, 0]))], [Clip(clip)], paired=False)
    assert found["floating_share"] == 50
    assert found["lowest_joint_cm"] == pytest.approx(5)


def test_depth_is_that_of_the_thickest_capsules_in_each_other() -> None:
    thickest = max(radius for _, _, radius in CAPSULES)
    clip = posts(0, 0.15)
    clip[1, 2:, :, 0] += 0.4  # 55 cm: near, but apart
    clip[1, 3:, :, 0] += 0.1  # 65 cm: not near
    found = bodies.penetration(clip)
    assert (found.pairs, found.inside, found.near) == (4, 2, 3)
    assert found.depth == pytest.approx(2 * (2 * thickest - 0.15), abs=1e-6)
    row = measure([Clip(clip)], [Clip(clip)], paired=False)
    assert row["penetration_depth_cm"] == pytest.approx(100 * 2 * (2 * thickest - 0.15) / 3, abs=1e-4)
    assert (row["penetration_share"], row["near_share"]) == (50, 75)
    far = measure([Clip(posts(0, 1))], [Clip(clip)], paired=False)
    assert (far["penetration_depth_cm"], far["penetration_share"]) == (None, 0)
    assert bodies.penetration(posts(0, 0.15, 0.15 + 0.55)).near == 3 * 4 - 4  # pairs at 15, 55 and 70 cm
    assert bodies.penetration(posts(0, 0.15, 0.15 + 0.55)).pairs == 3 * 4
    reaching = posts(0, 1)  # pelvises too far apart to be near, and a wrist inside the other's body
    reaching[0, 0, LEFT_WRIST] = (1.0, reaching[1, 0, 0, 1] + 0.1, 0.0)
    found = bodies.penetration(reaching)
    assert (found.inside, found.near, found.depth) == (1, 0, 0.0)
    assert bodies.penetration(posts(0)) == bodies.Penetration()
    between = torch.as_tensor(posts(0, 5, 0.1))  # the first and the last are in each other
    torch.testing.assert_close(deepest(between), torch.full((4,), 2 * thickest - 0.1).double())
    assert deepest(between[:1]).tolist() == [0.0] * 4


def test_hands_count_where_the_activity_asks_for_them() -> None:
    clip = posts(0, 2)
    clip[0, 2, LEFT_WRIST] = (1.0, 1.0, 0.0)
    clip[1, 2, RIGHT_WRIST] = (1.0, 1.0, 0.19)
    assert bodies.closest_wrists(clip) == pytest.approx(0.19)
    apart = posts(0, 2)
    both = [Clip(clip, activity="handshake"), Clip(apart, activity="pull_up"), Clip(clip, activity="quarrel")]
    found = measure(both, both, paired=False)
    assert (found["hands_met"], found["hands_met_captions"]) == (50, 2)
    assert found["hands_distance_cm"] == pytest.approx((19 + 200) / 2)
    clip = posts(0, 2)
    clip[0, 2, LEFT_WRIST] = clip[1, 2, RIGHT_WRIST] + np.array([0.0, 0.0, 0.21])
    assert measure([Clip(clip, activity="handshake")], both, paired=False)["hands_met"] == 0  # 20 cm and no more
    none = measure(both[2:], both, paired=False)
    assert (none["hands_met"], none["hands_distance_cm"]) == (None, None)


def test_hands_are_of_two_persons() -> None:
    with pytest.raises(ValueError, match=r"^joints: expected two persons or more, got 1$"):
        bodies.closest_wrists(posts(0, 1)[:1])


@pytest.mark.parametrize("function", [bodies.floats, bodies.penetration, bodies.closest_wrists])
def test_wrong_arrays_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match=r"^joints: expected shape \(P, T, 22, 3\), got \(2, 4, 21, 3\)"):
        function(posts(0, 1)[:, :, :21])
    for shape in ((0, 4, 22, 3), (2, 0, 22, 3)):
        with pytest.raises(ValueError, match=rf"^joints: expected shape \(P, T, 22, 3\), got {re.escape(str(shape))}"):
            function(np.zeros(shape))
    spoilt = posts(0, 1)
    spoilt[1, 3, 5, 0] = np.nan
    with pytest.raises(ValueError, match="joints: expected finite numbers, got others in 1 frames, first in 3"):
        function(spoilt)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pelvises_are_near_in_space(axis: int) -> None:
    clip = posts(0, 0)
    for frame, metres in enumerate((0.5, 0.59, 0.61, 0.7)):
        clip[1, frame, :, axis] += metres
    assert bodies.penetration(clip).near == 2


def test_hands_of_any_two_of_three_meet() -> None:
    clip = posts(0, 2, 5)
    assert bodies.closest_wrists(clip) == pytest.approx(2)
    for one, other in ((0, 2), (1, 2), (0, 1)):
        meeting = clip.copy()
        meeting[one, 1, LEFT_WRIST] = meeting[other, 1, LEFT_WRIST] + np.array([0.0, 0.0, 0.1])
        assert bodies.closest_wrists(meeting) == pytest.approx(0.1)


def test_hands_meet_at_the_distance_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "TOUCH", 0.25)
    clip = posts(0, 2)
    clip[0, 2, LEFT_WRIST], clip[1, 2, RIGHT_WRIST] = (1.0, 1.0, 0.0), (1.0, 1.0, 0.25)
    assert measure([Clip(clip, activity="handshake")], [Clip(clip)], paired=False)["hands_met"] == 100


def test_at_a_limit_nobody_floats_and_nobody_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "FLOATING", 0.25)
    monkeypatch.setattr(bodies, "NEAR", 0.5)
    clip = posts(0, 0.5)
    clip[..., 1] += 0.25
    assert not bodies.floats(clip)
    assert bodies.floats(clip + 2**-20)
    assert bodies.penetration(clip).near == 0
    assert bodies.penetration(clip * (1 - 2**-20)).near == 4


def test_hands_meet_in_four_activities() -> None:
    names = ("handshake", "pull_up", "hold_hands_walk", "ring_around_the_rosie", "hug", "salsa", None)
    clips = [Clip(posts(0, 1 + number), activity=name) for number, name in enumerate(names)]
    found = measure(clips, clips, paired=True)
    assert found["hands_met_captions"] == 4
    assert found["hands_distance_cm"] == pytest.approx(100 * (1 + 2 + 3 + 4) / 4)


def test_heights_weigh_every_clip_alike_and_depths_every_frame() -> None:
    """A short clip 10 cm up, with bodies in each other; a long one on the floor, near in a third of its 12 frames."""
    short, long = posts(0, 0.15), posts(0, 0.5, frames=12)
    short[..., 1] += 0.1
    long[1, 4:, :, 0] += 3.0
    found = measure([Clip(short), Clip(long)], [Clip(long)], paired=False)
    assert found["lowest_joint_cm"] == pytest.approx(5)
    assert found["floating_share"] == 50
    thickest = max(radius for _, _, radius in CAPSULES)
    assert found["penetration_depth_cm"] == pytest.approx(100 * 4 * (2 * thickest - 0.15) / (4 + 4), abs=1e-4)
    assert found["penetration_share"] == pytest.approx(100 * 4 / 16)
    assert found["near_share"] == pytest.approx(100 * 8 / 16)


def test_sums_of_penetrations_and_what_has_none() -> None:
    total = bodies.Penetration(10, 4, 5, 0.5) + bodies.Penetration(30, 2, 3, 0.25)
    assert total == bodies.Penetration(40, 6, 8, 0.75)
    assert (total.share, total.mean_depth_cm) == (15.0, pytest.approx(9.375))
    assert (bodies.Penetration().share, bodies.Penetration().mean_depth_cm) == (None, None)
    alone = bodies.PENETRATION.measure(Sample([Clip(posts(0))], [], False, 30))
    assert alone == {"penetration_depth_cm": None, "penetration_share": None, "near_share": None}
    assert bodies.lowest_joint(posts(0).astype(np.float32)).dtype == np.float64


def test_hands_are_closest_in_one_frame() -> None:
    clip = posts(0, 2, frames=5)
    clip[1, 3, RIGHT_WRIST] = clip[0, 3, RIGHT_WRIST] + (0.0, 0.3, 0.4)
    assert bodies.closest_wrists(clip) == pytest.approx(0.5)
