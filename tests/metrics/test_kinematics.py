import dataclasses
import re
import sys

import numpy as np
import pytest

from intermoe.metrics import bodies, kinematics
from intermoe.metrics.clips import METRICS, Clip, measure
from intermoe.metrics.kinematics import (
    bone_variation,
    floor_penetration,
    foot_contact,
    jitter,
    joint_error,
    pelvis_distances,
    wasserstein,
    wrist_contact,
)

FPS = 30


def still(frames=40, seed=0):
    """A person who does not move: random bones, everything but the feet 0.2 m to 1.5 m above the floor."""
    pose = np.random.default_rng(seed).uniform(0.2, 1.5, size=(22, 3))
    pose[[10, 11], 1] = 0.01
    return np.tile(pose, (frames, 1, 1))


def pair(frames=40, apart=1.0):
    one = still(frames)
    return np.stack([one, np.add(one, (apart, 0.0, 0.0))])


def test_joint_error():
    one = pair()
    assert joint_error(one, one) == 0
    assert joint_error(np.add(one, (0.03, 0.0, 0.04)), one) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="joints: expected the shape of reference"):
        joint_error(one, one[:, 1:])


def test_bone_variation():
    rigid = still()
    angle = np.linspace(0, 5, 40)
    turn = np.array([[np.cos(angle), 0 * angle, np.sin(angle)], [0 * angle, 0 * angle + 1, 0 * angle]])
    turn = np.concatenate([turn, [[-np.sin(angle), 0 * angle, np.cos(angle)]]]).transpose(2, 0, 1)
    assert bone_variation(rigid @ turn) == pytest.approx(0, abs=1e-9)
    # All bones scaled by 1 + 0.1 sin over whole periods: deviation 0.1 / sqrt(2).
    scale = 1 + 0.1 * np.sin(2 * np.pi * np.arange(40) / 20)
    assert bone_variation(rigid * scale[:, None, None]) == pytest.approx(10 / np.sqrt(2))


def test_foot_sliding():
    # One foot stands, one slides at 3 cm a frame, and after frame 20 it is lifted: no contact any more.
    person = still()
    person[:, 11, 0] += 0.03 * np.arange(40)
    person[20:, 11, 1] = 0.2
    feet = foot_contact(person)
    assert (feet.pairs, feet.contacts, feet.sliding) == (78, 39 + 19, 19)
    assert feet.distance == pytest.approx(19 * 0.03)
    assert foot_contact(pair()).pairs == 156
    assert foot_contact(pair()) + feet == dataclasses.replace(feet, pairs=78 + 156, contacts=58 + 156)
    # Below the limit, and up and down without horizontal movement, is no sliding.
    person = still()
    person[:, 10, 2] += 0.02 * np.arange(40)
    person[::2, 11, 1] += 0.03
    assert foot_contact(person).sliding == 0


def test_jitter_of_a_cubic():
    time = np.arange(30) / FPS
    person = still(30) + (0.5 * time**3 - time**2 + 4 * time)[:, None, None] * (0.0, 1.0, 0.0)
    assert jitter(person) == pytest.approx(0.5 * 6, rel=1e-6)
    assert jitter(still()) == 0
    assert jitter(person, fps=60) == pytest.approx(3 * 8, rel=1e-6)
    with pytest.raises(ValueError, match="at least 4 frames"):
        jitter(still(3))


def test_jitter_of_narrow_joints_is_computed_in_wide_ones():
    """Differences of float32 numbers of such different sizes are no float32 numbers."""
    places = np.float32([0.1, 1000.0, 0.3, 5000.0])
    joints = np.zeros((4, 22, 3), dtype=np.float32)
    joints[..., 0] = places[:, None]
    x0, x1, x2, x3 = map(float, places)
    assert jitter(joints, fps=1) == pytest.approx(abs(x3 - 3 * x2 + 3 * x1 - x0), rel=1e-12)


def test_floor_penetration():
    person = still()
    assert floor_penetration(person) == 0
    person[:10, 10, 1] = -0.04
    person[:10, 11, 1] = -0.01  # only the lowest joint counts
    assert floor_penetration(person) == pytest.approx(4.0 * 10 / 40)


def test_pelvis_distance_and_wasserstein():
    near, far = pelvis_distances(pair(apart=0.5)), pelvis_distances(pair(apart=0.8))
    np.testing.assert_allclose(near, 50)
    assert wasserstein(near, far) == pytest.approx(30)
    assert wasserstein(np.concatenate([near, far]), far) == pytest.approx(15)


def test_wrist_contact():
    persons = pair(apart=5.0)
    assert wrist_contact(persons) == 0
    persons[1, :10, 20] = persons[0, :10, 21] + (0.2, 0.0, 0.0)  # a left wrist near a right one
    assert wrist_contact(persons) == pytest.approx(25)


def test_all_together():
    truth = [Clip(pair(40), ("one of them spins once to the left", "they stand")), Clip(pair(80), ())]
    shifted = [Clip(np.add(clip.joints, (0.0, 0.02, 0.0)), clip.captions) for clip in truth]
    metrics = measure(shifted, truth, paired=True)
    assert metrics["clips"] == 2
    assert metrics["joint_error_cm"] == pytest.approx(2)
    assert (metrics["foot_contact_share"], metrics["foot_skating_share"], metrics["foot_skating_speed"]) == (100, 0, 0)
    assert metrics["pelvis_distance_cm"] == pytest.approx(100)
    assert metrics["pelvis_wasserstein_cm"] == pytest.approx(0)
    assert (metrics["turn_direction"], metrics["turn_direction_captions"], metrics["turn_count_captions"]) == (0, 1, 1)
    floating = measure([Clip(np.add(pair(), (0.0, 1.0, 0.0)))], truth, paired=False)
    assert floating["foot_contact_share"] == 0
    assert floating["joint_error_cm"] is None
    assert floating["foot_skating_share"] is None
    assert floating["turn_direction"] is None
    for clips, reference in (([], truth), (truth, [])):
        with pytest.raises(ValueError, match=f"a reference, got {len(clips)} and {len(reference)}"):
            measure(clips, reference, paired=False)


@pytest.mark.parametrize("metric", [bone_variation, foot_contact, jitter, floor_penetration, pelvis_distances])
def test_bad_shapes(metric):
    with pytest.raises(ValueError, match="joints: expected shape"):
        metric(np.zeros((2, 5, 21, 3)))


@pytest.mark.parametrize("metric", [pelvis_distances, wrist_contact])
def test_one_person_is_no_pair(metric):
    with pytest.raises(ValueError, match=r"joints: expected shape \(2, T, 22, 3\)"):
        metric(still())


def test_a_collapsed_and_a_random_model_are_not_taken_for_motion():
    """One still pose for every caption has nothing that turns or comes and goes; noise has no bones and no rest."""
    rng = np.random.default_rng(1)
    moving = pair(apart=0.6)
    moving[1] += 0.4 * np.sin(np.arange(40) / 5)[:, None, None] * (1.0, 0.0, 0.0)
    reference = [Clip(moving)]
    captions = [(f"the first dancer makes two turns to the {side}",) for side in ("left", "right")] * 30
    collapsed = measure([Clip(pair(apart=0.6), caption) for caption in captions], reference, paired=False)
    random = measure([Clip(rng.normal(size=(2, 40, 22, 3)), each) for each in captions], reference, paired=False)
    for found in (collapsed, random):
        assert found["pelvis_wasserstein_cm"] > 10
    assert (collapsed["jitter"], collapsed["turn_direction"], collapsed["turn_count"]) == (0, 0, 0)
    assert 25 < random["turn_direction"] < 75
    assert random["turn_count"] < 50
    assert random["jitter"] > 1e4
    assert random["bone_variation"] > 20


def test_joints_that_are_not_finite_are_refused_by_every_metric():
    bad = pair()
    bad[1, 7, 3, 0] = np.nan
    metrics = (bone_variation, foot_contact, jitter, floor_penetration, pelvis_distances, wrist_contact)
    for one, other in ((bad, pair()), (pair(), bad)):
        with pytest.raises(ValueError, match="joints, reference: expected finite numbers"):
            joint_error(one, other)
    for metric in metrics:
        with pytest.raises(ValueError, match="joints: expected finite numbers, got others in 1 frames, first in 7"):
            metric(bad)
    with pytest.raises(ValueError, match="finite"):
        measure([Clip(bad)], [Clip(pair())], paired=False)
    with pytest.raises(ValueError, match="finite"):
        measure([Clip(pair())], [Clip(bad)], paired=False)


def test_bones_without_length_do_not_vary():
    assert bone_variation(np.zeros((2, 4, 22, 3))) == 0


def test_a_foot_slides_beyond_the_limit_and_not_at_it(monkeypatch):
    monkeypatch.setattr(kinematics, "SLIDING", 0.25)
    person = still(4)
    person[:, 10, 0], person[:, 11, 2] = [0, 0.25, 0.5, 0.75], [0, 0.375, 0.625, 0.875]
    assert foot_contact(person).sliding == 1


def test_distances_are_of_wide_numbers():
    near = pair(4).astype(np.float32)
    assert pelvis_distances(near).dtype == np.float64


@pytest.mark.parametrize("metric", [bone_variation, foot_contact, jitter, floor_penetration])
def test_one_frame_or_one_pose_is_no_motion(metric):
    for shape in ((1, 22, 3), (2, 1, 22, 3), (22, 3), (2, 5, 22, 2)):
        with pytest.raises(
            ValueError, match=rf"^joints: expected shape \(..., T >= 2, 22, 3\), got {re.escape(str(shape))}"
        ):
            metric(np.zeros(shape))
    assert np.isfinite(bone_variation(still(2)))


@pytest.mark.parametrize("metric", [pelvis_distances, wrist_contact])
def test_three_persons_are_no_pair(metric):
    three = np.stack([still(), still(), still()])
    with pytest.raises(ValueError, match=r"joints: expected shape \(2, T, 22, 3\), got \(3, 40, 22, 3\)"):
        metric(three)


def test_titles_have_the_units_of_their_numbers():
    """In centimetres what is called so, per second what is a speed, and shares in percent; of each another title."""
    titles = {key: title for name in METRICS for key, title in METRICS[name].titles.items()}
    units = {
        "joint_error_cm": "cm", "bone_variation": "%", "foot_contact_share": "%", "foot_skating_share": "%",
        "foot_skating_speed": "cm/s", "jitter": "m/s³", "floor_penetration_cm": "cm", "floating_share": "%",
        "lowest_joint_cm": "cm", "penetration_depth_cm": "cm", "penetration_share": "%", "near_share": "%",
        "hands_met": "%", "hands_distance_cm": "cm", "pelvis_distance_cm": "cm", "pelvis_wasserstein_cm": "cm",
        "wrist_contact_share": "%", "turn_direction": "%", "turn_count": "%",
    }  # fmt: skip
    assert list(titles) == list(units)  # and in this order
    for key, unit in units.items():
        assert titles[key].endswith(f" ({unit})"), key
    assert len(set(titles.values())) == len(titles)
    assert "mean" in titles["pelvis_distance_cm"]
    assert "Wasserstein" in titles["pelvis_wasserstein_cm"]
    near, touch = f"within {100 * bodies.NEAR:.0f} cm", f"within {100 * bodies.TOUCH:.0f} cm"
    assert near in titles["near_share"]
    assert near in titles["penetration_depth_cm"]
    assert touch in titles["hands_met"]
    assert set(units) < set(measure([Clip(pair())], [Clip(pair())], paired=True))


def test_motion_is_of_thirty_frames_a_second_unless_told_otherwise():
    rng = np.random.default_rng(0)
    moving = [Clip(pair() + 0.01 * rng.normal(size=(2, 40, 22, 3)), ("the first dancer spins once",))]
    assert measure(moving, moving, paired=True) == measure(moving, moving, paired=True, fps=30)


def test_every_clip_reproduces_one_of_the_reference():
    clips = [Clip(pair()), Clip(pair())]
    for fewer in ((clips, clips[:1]), (clips[:1], clips)):
        with pytest.raises(ValueError, match="argument 2 is"):
            measure(*fewer, paired=True)
        assert measure(*fewer, paired=False)["joint_error_cm"] is None


def test_what_is_not_installed_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(
        ImportError, match=r'^the evaluation needs scipy; install it with: pip install "intermoe\[eval\]"$'
    ):
        wasserstein(np.zeros(2), np.ones(2))
