"""Every metric of motion against a case that was computed by hand, at two frame rates and with clips of two lengths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from intermoe.metrics import distribution, identity, kinematics
from intermoe.metrics.clips import Clip, measure
from intermoe.metrics.frames import body_frames, mirror_body, to_body
from intermoe.metrics.kinematics import FootContact
from intermoe.metrics.turns import TurnAgreement, agreement, count_turns, turns
from intermoe.motion.skeleton import JOINT_NAMES, LEFT_JOINTS, PARENTS, RIGHT_JOINTS

Floats = npt.NDArray[np.float64]
LEFT_TOES, RIGHT_TOES = JOINT_NAMES.index("left_foot"), JOINT_NAMES.index("right_foot")
LEFT_WRIST, RIGHT_WRIST = JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist")


def body() -> Floats:
    """One person (22, 3) at the origin who faces Z+, left at X+; symmetric, every joint at a height of its own."""
    pose = np.zeros((22, 3))
    pose[:, 1] = 1.0 + 0.01 * np.arange(22)
    for number, (left, right) in enumerate(zip(LEFT_JOINTS, RIGHT_JOINTS, strict=True)):
        pose[left], pose[right] = (0.1 + 0.01 * number, 1.5, 0.02 * number), (-0.1 - 0.01 * number, 1.5, 0.02 * number)
    return pose


def still(frames: int, *, apart: float = 1.0) -> Floats:
    """Two persons (2, T, 22, 3) side by side who do not move."""
    return np.stack([np.tile(body(), (frames, 1, 1)), np.tile(body(), (frames, 1, 1)) + np.array([apart, 0, 0])])


def turned(pose: Floats, degrees: Floats | float) -> Floats:
    """Poses (..., 22, 3) turned to the left about Y by ``degrees`` (...)."""
    angle = np.radians(np.asarray(degrees, dtype=np.float64))[..., None]
    x, y, z = np.moveaxis(pose, -1, 0)
    return np.stack(
        [x * np.cos(angle) + z * np.sin(angle), y + 0 * angle, z * np.cos(angle) - x * np.sin(angle)], axis=-1
    )


def test_joint_error_is_the_mean_over_all_joints_and_frames() -> None:
    truth = still(4)
    moved = truth.copy()
    moved[0, 1, 3] += (0.03, 0.0, 0.04)
    moved[1, 2, 7] += (0.0, 0.12, 0.05)
    assert kinematics.joint_error(moved, truth) == pytest.approx((5 + 13) / (2 * 4 * 22))


def test_bone_variation_is_relative_to_each_bones_own_mean() -> None:
    person = np.tile(body(), (4, 1, 1))
    head = JOINT_NAMES.index("head")  # the end of one bone
    neck = PARENTS[head]
    person[:, head] = person[:, neck] + np.array([[0.1], [0.3], [0.1], [0.3]]) * (0, 0, 1)
    assert kinematics.bone_variation(person) == pytest.approx(100 * 0.1 / 0.2 / 21)  # one of 21 bones, 0.2 +- 0.1 m


def test_a_contact_takes_two_frames_and_a_slide_is_horizontal() -> None:
    person = np.tile(body(), (7, 1, 1))
    person[:, LEFT_TOES, 1] = [0.01, 0.0499, 0.2, 0.01, 0.05, 0.01, 0.01]  # low in 0 and 1, and in 5 and 6
    person[:, RIGHT_TOES, 1] = 0.0
    person[:, LEFT_TOES, 0] = [0, 0.018, 1, 2, 3, 3, 3.024]  # in contact: 0.018, with 0.018 along z; 0.024
    person[:, LEFT_TOES, 2] = [0, 0.018, 1, 2, 3, 3, 3]
    person[:, RIGHT_TOES] = (-0.1, 0.0, 0.0)
    feet = kinematics.foot_contact(person)
    assert (feet.pairs, feet.contacts, feet.sliding) == (12, 2 + 6, 1)
    assert feet.distance == pytest.approx(math.hypot(0.018, 0.018) + 0.024)
    assert kinematics.foot_contact(person[::-1]).contacts == 8
    ankles = person.copy()
    ankles[:, [7, 8], 1] = 0.0  # ankles do not count
    assert kinematics.foot_contact(ankles) == feet
    assert FootContact(1, 2, 3, 4.0) + FootContact(10, 20, 30, 40.0) == FootContact(11, 22, 33, 44.0)


@pytest.mark.parametrize("fps", [30, 15])
def test_jitter_at_two_rates(fps: int) -> None:
    person = np.tile(body(), (6, 1, 1))
    person[:, 4, 2] = [0, 0, 0, 0.01, 0, 0]  # third differences 0.01, -0.03, 0.03: of one joint of 22, in three moments
    assert kinematics.jitter(person, fps=fps) == pytest.approx((0.01 + 0.03 + 0.03) / 3 / 22 * fps**3)


def test_floor_penetration_is_of_the_lowest_joint() -> None:
    pair = still(4)
    pair[0, 0, 5, 1], pair[0, 0, 9, 1], pair[1, 3, 10, 1] = -0.02, -0.01, -0.06
    assert kinematics.floor_penetration(pair) == pytest.approx((2 + 6) / 8)


def test_distances_and_wrists_of_two_persons() -> None:
    pair = still(3, apart=5.0)
    pair[1, 1] += (0, 12, 0)
    assert kinematics.pelvis_distances(pair) == pytest.approx([500, 1300, 500])
    for frame, (one, other, gap) in enumerate(
        [(LEFT_WRIST, LEFT_WRIST, 0.249), (LEFT_WRIST, RIGHT_WRIST, 0.25), (RIGHT_WRIST, RIGHT_WRIST, 0.1)]
    ):
        pair[1, frame, other] = pair[0, frame, one] + (0, gap, 0)
    assert kinematics.wrist_contact(pair) == pytest.approx(200 / 3)
    own = still(2, apart=5.0)
    own[:, :, LEFT_WRIST] = own[:, :, RIGHT_WRIST]  # hands folded: of the same person
    assert kinematics.wrist_contact(own) == 0


@pytest.mark.parametrize("fps", [30, 15])
def test_a_set_of_clips_of_unequal_length(fps: int) -> None:
    """Shares weigh every frame alike, jitter and bones every clip, whatever the rate."""
    short, long = still(8, apart=1.0), still(24, apart=2.0)
    short[:, :, LEFT_TOES, 1] = 0.0  # 2 x 7 pairs of frames in contact, of 2 feet of 2 persons
    short[0, :, LEFT_TOES, 0] += 0.03 * np.arange(8)  # 7 of them slide by 3 cm
    short[..., 1] -= 0.02  # 2 cm below the floor
    long[0, 3, RIGHT_WRIST] = long[1, 3, LEFT_WRIST]
    truth = [Clip(still(8, apart=1.0)), Clip(still(24, apart=1.0))]
    found = measure([Clip(short), Clip(long)], truth, paired=True, fps=fps)
    assert found["clips"] == 2
    errors = [kinematics.joint_error(a, b.joints) for a, b in zip((short, long), truth, strict=True)]
    assert found["joint_error_cm"] == pytest.approx((8 * errors[0] + 24 * errors[1]) / 32)
    assert found["foot_contact_share"] == pytest.approx(100 * 14 / (4 * 7 + 4 * 23))
    assert found["foot_skating_share"] == pytest.approx(50)
    assert found["foot_skating_speed"] == pytest.approx(100 * 0.03 * 7 / 14 * fps)
    assert found["jitter"] == pytest.approx((kinematics.jitter(long, fps=fps) + 0) / 2, abs=1e-6)
    assert found["jitter"] > 1
    assert found["floor_penetration_cm"] == pytest.approx(2.0 * 8 / 32)
    assert found["pelvis_distance_cm"] == pytest.approx((8 * 100 + 24 * 200) / 32)
    assert found["pelvis_wasserstein_cm"] == pytest.approx(100 * 24 / 32)
    assert found["wrist_contact_share"] == pytest.approx(100 / 32)
    variations = [kinematics.bone_variation(clip) for clip in (short, long)]
    assert found["bone_variation"] == pytest.approx(sum(variations) / 2)
    assert (found["turn_direction"], found["turn_count"], found["turn_direction_captions"]) == (None, None, 0)


def test_captions_that_say_how_to_turn_are_counted_one_by_one() -> None:
    left = np.stack([turned(body(), np.linspace(0, 360, 40)), np.tile(body(), (40, 1, 1))])
    captions = (
        "the first dancer makes one full turn to the left",  # both right
        "the first dancer makes two full turns to the left",  # the direction alone
        "the first dancer turns to the right",  # neither; names no number
        "they walk",
    )
    found = measure([Clip(left, captions)], [Clip(left)], paired=False)
    assert (found["turn_direction"], found["turn_direction_captions"]) == (pytest.approx(100 * 2 / 3), 3)
    assert (found["turn_count"], found["turn_count_captions"]) == (pytest.approx(50), 2)


@pytest.mark.parametrize(("fps", "expected"), [(22, [360]), (18, [])])
def test_the_speed_of_a_turn_depends_on_the_rate(fps: int, expected: list[float]) -> None:
    """360 degrees in 120 frames: 66 degrees a second at 22 frames a second, 54 at 18, where 60 make a turn."""
    person = turned(body(), np.linspace(0, 360, 121))
    assert turns(person, fps=fps) == pytest.approx(expected, abs=40)
    pair = np.stack([person, person])
    verdict = agreement(pair, "the first dancer makes one full turn to the left", fps=fps)
    assert verdict == TurnAgreement(bool(expected), bool(expected))
    found = measure([Clip(pair, ("the first dancer spins once",))], [Clip(pair)], paired=False, fps=fps)
    assert found["turn_count"] == (100 if expected else 0)


@pytest.mark.parametrize(
    ("angles", "count"), [([179.0], 1), ([539.0], 1), ([541.0, -270.0], 3), ([-899.0], 2), ([901.0], 3)]
)
def test_full_turns_are_whole_rounds(angles: list[float], count: int) -> None:
    assert count_turns(angles) == count


@pytest.mark.parametrize(("degrees", "found"), [(280.0, 1), (250.0, 0)])
def test_three_quarters_make_a_full_turn(degrees: float, found: int) -> None:
    heading = np.concatenate([np.zeros(15), np.linspace(0, degrees, 31), np.full(15, degrees)])
    assert len(turns(turned(body(), heading))) == found
    verdict = agreement(np.stack([turned(body(), heading)] * 2), "the first dancer turns once")
    assert verdict.count is bool(found)


@pytest.mark.parametrize(("degrees", "found"), [(60.0, True), (30.0, False)])
def test_a_part_of_a_turn_has_a_direction(degrees: float, found: bool) -> None:
    heading = np.concatenate([np.zeros(15), np.linspace(0, degrees, 9), np.full(15, degrees)])
    pair = np.stack([np.tile(body(), (len(heading), 1, 1)), turned(body(), heading)])
    assert agreement(pair, "the second dancer turns to the left").direction is found
    assert agreement(pair, "the first dancer turns to the left").direction is False
    assert agreement(pair, "the second dancer turns to the right").direction is False


def test_the_sway_of_steps_is_no_turning() -> None:
    person = turned(body(), 12 * np.sin(0.7 * np.arange(80)))  # steps of 9 frames
    assert turns(person, min_degrees=10) == []


def test_most_of_the_angle_decides_the_direction() -> None:
    heading = np.concatenate([np.linspace(0, 120, 31), np.full(15, 120.0), np.linspace(120, 60, 16)])
    pair = np.stack([turned(body(), heading)] * 2)  # 120 degrees to the left, 60 to the right
    assert agreement(pair, "the first dancer turns to the left").direction is True
    assert agreement(pair, "the first dancer turns to the right").direction is False
    late = np.stack([turned(body(), heading[::-1])] * 2)  # 60 degrees to the left, then 120 to the right
    assert agreement(late, "the first dancer turns to the left").direction is False
    assert agreement(late, "the first dancer turns to the right").direction is True
    both = "the first dancer turns to the right, then the first dancer turns to the left"
    assert agreement(pair, both).direction is True
    alone = np.stack([turned(body(), heading[:40])] * 2)  # to the left and nothing else
    assert agreement(alone, both).direction is False


def test_every_claim_of_a_caption_must_hold() -> None:
    one = np.stack([turned(body(), np.linspace(0, 360, 40)), np.tile(body(), (40, 1, 1))])
    caption = "the first dancer spins once to the left; the second dancer spins once to the left"
    assert agreement(one, caption) == TurnAgreement(False, False)
    assert agreement(np.stack([one[0], one[0]]), caption) == TurnAgreement(True, True)


@pytest.mark.parametrize(("rounds", "several"), [(2, False), (3, True), (4, True)])
def test_several_are_three_or_more(rounds: int, several: bool) -> None:
    person = turned(body(), np.linspace(0, 360 * rounds, 40 * rounds))
    assert agreement(np.stack([person] * 2), "the first dancer makes several full turns").count is several


def test_the_frame_of_a_body() -> None:
    for degrees, left, forward in (
        (0, (1, 0, 0), (0, 0, 1)),
        (90, (0, 0, -1), (1, 0, 0)),
        (180, (-1, 0, 0), (0, 0, -1)),
    ):
        person = turned(body(), float(degrees)) + np.array([3, 0.5, -2])
        axes = body_frames(person)
        np.testing.assert_allclose(axes, [left, (0, 1, 0), forward], atol=1e-12)
        ahead = person[:1] + 2 * np.array(forward) + (0, 0.25, 0)
        np.testing.assert_allclose(to_body(ahead, person), [[0, 0.25, 2]], atol=1e-12)
    np.testing.assert_allclose(mirror_body(body()), body())  # symmetric: left becomes right
    lifted = body()
    lifted[LEFT_WRIST, 1] += 1
    assert mirror_body(lifted)[RIGHT_WRIST, 1] == lifted[LEFT_WRIST, 1]


def test_hips_and_shoulders_count_alike() -> None:
    person = body()
    person[[16, 17]] = [(0, 1.5, -0.4), (0, 1.5, 0.4)]  # shoulders turned to the left by 90 degrees, hips not
    np.testing.assert_allclose(body_frames(person)[2], [math.sqrt(0.5), 0, math.sqrt(0.5)], atol=1e-12)


def test_bone_inconsistency_is_about_the_median_over_time() -> None:
    pair = still(4)
    head = JOINT_NAMES.index("head")
    pair[0, :, head] = pair[0, :, PARENTS[head]] + np.array([[0.1], [0.1], [0.1], [0.4]]) * (0, 0, 1)
    expected = 100 * math.log(4) * math.sqrt(1 / (2 * 4 * 21))
    assert identity.bone_inconsistency(pair) == pytest.approx(expected, rel=1e-4)


def test_swap_score_bridges_every_pair_of_frames_from_both_sides() -> None:
    pair = still(6, apart=10.0)
    # person 1 walks at 0.4 m a frame, jumps by 1.2 m between 2 and 3, and goes on at 0.2 m a frame
    pair[0] += np.array([0, 0.4, 0.8, 2.0, 2.2, 2.4])[:, None, None] * (0.0, 0.0, 1.0)
    found = identity.swap_score(pair)
    assert found.frame == 3
    before, after = 0.8 + 0.2, 2.0 - 0.1
    crossed = math.hypot(10.0, before) + math.hypot(10.0, after)
    assert found.score == pytest.approx(math.log((after - before) / crossed), rel=1e-6)


def test_role_break_compares_with_the_partner_and_with_the_mirror() -> None:
    pair = still(6, apart=0.0)
    pair[1] += (2.0, 0, 3.0)  # ahead of person 1 and to the left, facing the same way
    pair[1, 3:] += (1.0, 0, 0)
    found = identity.role_break(pair)
    # own 1 for either; the mirror image of (3, 3) is (-3, 3), 5 from (2, 3); the partner's view (-3, -3) is farther
    assert found.frame == 3
    assert found.score == pytest.approx(math.log(2 / 10), rel=1e-6)
    pair = still(6, apart=0.0)
    pair[1] = turned(pair[1], 180.0) + np.array(
        [0.6, 0, 1.0]
    )  # face to face, not quite: both see the other at (0.6, 1)
    pair[1, 3:] += (-0.2, 0, 0.7)
    own = 2 * math.hypot(0.2, 0.7)
    assert identity.role_break(pair).score == pytest.approx(math.log(own / own), abs=1e-6)  # the views are equal


def test_separation_is_the_least_mean_distance() -> None:
    pair = still(5, apart=3.0)
    pair[1, 2] = pair[0, 2] + (0.0, 0.6, 0.8)
    pair[1, 3, 0] = pair[0, 3, 0]  # one joint touches: no merge
    assert identity.separation(pair) == (pytest.approx(1.0), 2)
    found = identity.measure_identity(np.concatenate([pair] * 10, axis=1))
    assert found.separation_cm == pytest.approx(100.0)
    # between what 85 real clips reach, at most -2.7 and at least 0.19 m, and what their broken copies do
    assert (identity.SWAP_THRESHOLD, identity.MERGE_DISTANCE) == (-2.0, 0.15)
    assert identity.BANDS == (0.5, 1.5, 3.0, 6.0, 15.0)  # sway, steps, gestures, and what is too quick, in hertz


@pytest.mark.parametrize(("fps", "frames"), [(30.0, 42), (60.0, 82), (15.0, 22)])
def test_windows_of_style_are_of_one_duration(fps: float, frames: int) -> None:
    """16/15 s of velocity in two windows 4/15 s apart, and two frames for the differences."""
    assert identity.min_frames(fps) == frames
    rng = np.random.default_rng(0)
    moving = np.cumsum(rng.normal(scale=0.01, size=(2, frames, 22, 3)), axis=1) + still(frames)
    spectra = identity.style_spectra(moving, fps=fps)
    assert spectra.velocity.shape[1] == 2
    assert spectra.frequencies[1] == pytest.approx(15 / 16)
    assert spectra.frequencies[-1] == pytest.approx(fps / 2)
    with pytest.raises(ValueError, match=f"at least {frames} frames"):
        identity.style_spectra(moving[:, 1:], fps=fps)


@pytest.mark.parametrize("fps", [30, 60])
def test_power_of_a_sine_at_two_rates(fps: int) -> None:
    """A sine of amplitude A m/s holds A^2 / 2; limbs are seen in the body's frame, the pelvis in the world."""
    frames, frequency, amplitude = 4 * fps, 3.75, 0.3
    sway = amplitude / (2 * np.pi * frequency) * np.sin(2 * np.pi * frequency * np.arange(frames) / fps)
    pair = still(frames)
    pair[0] += sway[:, None, None] * (0.0, 0.0, 1.0)  # the body as a whole: of the pelvis alone
    pair[1, :, 18] += sway[:, None] * (0.0, 1.0, 0.0)  # an elbow: one of four joints of the left arm
    spectra = identity.style_spectra(pair, fps=fps)
    power = spectra.velocity.sum(axis=-1).mean(axis=1) * spectra.frequencies[1]
    whole = amplitude**2 / 2 * np.sinc(frequency / fps) ** 2
    groups = list(identity.JOINT_GROUPS)
    expected = np.zeros((2, len(groups)))
    expected[0, groups.index("pelvis")], expected[1, groups.index("left arm")] = whole, whole / 4
    np.testing.assert_allclose(power, expected, rtol=1e-2, atol=1e-12)


def test_windows_keep_a_sine_to_its_frequency() -> None:
    """Between two frequencies of the transform as well: a Hann window leaves next to nothing farther off."""
    pair = still(120)
    pair[0] += 0.01 * np.sin(2 * np.pi * 15 / 16 * 4.5 * np.arange(120) / 30)[:, None, None] * (0.0, 0.0, 1.0)
    power = identity.style_spectra(pair).velocity[0, :, 0]
    assert (power[:, 3:7].sum(axis=-1) > 0.998 * power.sum(axis=-1)).all()


@pytest.mark.parametrize("fps", [30, 20])
def test_style_overlap_is_minus_the_mean_silhouette(fps: int) -> None:
    rng = np.random.default_rng(1)
    moving = np.cumsum(rng.normal(scale=[[[[0.01]]], [[[0.02]]]], size=(2, 70, 22, 3)), axis=1) + still(70)
    spectra = identity.style_spectra(moving, fps=fps)
    bands = [
        (spectra.frequencies >= low) & (spectra.frequencies <= high) for low, high in itertools.pairwise(identity.BANDS)
    ]
    points = np.array(
        [
            [
                [
                    10 * math.log10(density[person, window, group][band].mean() + 1e-4)
                    for density in (spectra.velocity, spectra.acceleration)
                    for band in bands
                    for group in range(6)
                ]
                for window in range(spectra.velocity.shape[1])
            ]
            for person in range(2)
        ]
    )
    scores = []
    for person in range(2):
        for index, point in enumerate(points[person]):
            gaps = [np.sqrt(((point - other) ** 2).mean(axis=-1)) for other in (points[person], points[1 - person])]
            a, b = np.delete(gaps[0], index).mean(), gaps[1].mean()
            scores.append((b - a) / max(a, b))
    assert identity.style_overlap(moving, fps=fps) == pytest.approx(-np.mean(scores), abs=1e-9)
    assert identity.measure_identity(moving, fps=fps).style_overlap == pytest.approx(-np.mean(scores), abs=1e-9)
    assert np.mean(scores) > 0.05


def test_retrieval_in_two_batches() -> None:
    """Texts on a line; in each batch of three the own motion is the nearest, the second and the third."""
    text = np.array([[0.0, 0], [10, 0], [20, 0], [0, 0], [10, 0], [20, 0], [5, 5]])
    motion = np.array([[0.0, 5], [2, 0], [4, 0], [0, 0], [10, 0], [20, 0], [5, 5]])
    found = distribution.retrieval(text, motion, 3)
    # the first batch: 5 behind 2 and 4; 8 behind 6; 16. The second: 0 everywhere. The seventh is left out.
    assert found.r_precision == pytest.approx((4 / 6, 5 / 6, 1))
    assert found.mm_dist == pytest.approx((5 + 8 + 16) / 6)
    assert distribution.retrieval(text[:6], motion[:6], 6).r_precision[0] == pytest.approx(3 / 6)


def test_diversity_and_multimodality_of_given_pairs() -> None:
    rows = np.array([[0.0, 0, 2], [3, 4, 2], [0, 1, 9]])
    first, second = np.array([0, 1]), np.array([1, 2])
    expected = (5 + math.hypot(3, 3, 7)) / 2
    assert distribution.diversity(rows, first, second) == pytest.approx(expected)
    assert distribution.diversity(rows, first, second, scale=6, divide_by=2) == pytest.approx(3 * expected)
    texts = np.stack([rows, 2 * rows])
    assert distribution.multimodality(texts, first, second) == pytest.approx(1.5 * expected)
    assert distribution.multimodality(texts, first, second, scale=6, divide_by=4) == pytest.approx(2.25 * expected)


def test_fid_of_sets_of_unequal_size() -> None:
    """In one dimension (m1 - m2)^2 + (s1 - s2)^2, with deviations of samples."""
    one, other = np.array([[0.0], [2.0]]), np.array([[1.0], [4.0], [7.0]])
    assert distribution.frechet_distance(one, other) == pytest.approx(3**2 + (math.sqrt(2) - 3) ** 2)
    assert distribution.frechet_distance(one, other, scale=2) == pytest.approx(4 * (9 + (math.sqrt(2) - 3) ** 2))
