from dataclasses import asdict

import numpy as np
import pytest

from intermoe.data import InterHumanDataset
from intermoe.eval import evaluate_identity
from intermoe.eval.identity_report import CORRUPTIONS, LONG_LIMBS, _ranking, _row
from intermoe.metrics import corruptions
from intermoe.metrics.frames import body_frames, mirror_body, to_body
from intermoe.metrics.identity import (
    MERGE_DISTANCE,
    SWAP_THRESHOLD,
    IdentityMetrics,
    bone_inconsistency,
    measure_identity,
    min_frames,
    role_break,
    separation,
    style_overlap,
    style_spectra,
    swap_score,
)
from intermoe.motion.skeleton import PARENTS

# What each metric promises of which damage; on the skeleton that both dancers share, bones promise less.
PROMISED = {
    "swapped midway": {"style_overlap", "role_break", "swap_score"},
    "swapped, blend of 10": {"bone_inconsistency", "style_overlap", "role_break", "swap_score", "separation_cm"},
    "averaged": {"bone_inconsistency", "style_overlap", "role_break", "swap_score", "separation_cm"},
    "averaged in place": {"style_overlap"},
    "mirrored midway": {"style_overlap", "role_break", "swap_score"},
    "mirrored, blend of 10": {"bone_inconsistency", "role_break"},
}


@pytest.fixture(scope="module")
def pair():
    """Two rigid bodies (2, 60, 22, 3), a metre and a half apart, that bob, sway and turn at their own rates."""
    rng = np.random.default_rng(0)
    time = np.arange(60) / 30
    body = np.zeros((22, 3))
    body[1:] = rng.uniform(-0.4, 0.4, (21, 3))
    body[[1, 2, 16, 17]] = [[0.1, 0, 0], [-0.1, 0, 0], [0.2, 0.5, 0], [-0.2, 0.5, 0]]
    people = []
    for side, rate in ((-0.75, 1.0), (0.75, 1.7)):
        angle = 0.5 * np.sin(2 * np.pi * rate * time) + (side > 0) * np.pi
        turn = np.zeros((60, 3, 3))
        turn[:, 0, 0], turn[:, 0, 2], turn[:, 1, 1] = np.cos(angle), np.sin(angle), 1
        turn[:, 2, 0], turn[:, 2, 2] = -np.sin(angle), np.cos(angle)
        place = np.stack([0.1 * np.sin(3 * rate * time), 1 + 0.05 * np.sin(5 * rate * time), side + 0 * time], axis=-1)
        people.append(np.einsum("txy,jy->tjx", turn, body) + place[:, None])
    return np.stack(people)


@pytest.fixture(scope="module")
def report(salsa):
    return evaluate_identity(InterHumanDataset(salsa, "val", max_frames=600, training=False))


@pytest.mark.parametrize("copy", CORRUPTIONS)
def test_real_motion_ranks_above_its_broken_copy(report, copy):
    """Ten held-out clips; on all 95 the least of the promised shares is 96 %."""
    for metric in PROMISED[copy]:
        assert report.ranking[copy][metric] >= 90, metric


@pytest.mark.parametrize("copy", ["swapped midway", "swapped, blend of 10", "averaged"])
def test_bones_tell_when_skeletons_differ(report, copy):
    assert report.ranking[f"{copy}, longer limbs"]["bone_inconsistency"] == 100
    if copy == "swapped midway":
        assert report.ranking[copy]["bone_inconsistency"] == 0


def test_detection_on_real_motion(report):
    assert (report.rows["ground truth"].swaps, report.rows["ground truth"].merges) == (0, 0)
    assert report.rows["swapped midway"].swaps == report.rows["swapped, blend of 10"].swaps == 100
    assert report.rows["averaged"].merges == 100


def test_bone_inconsistency_is_the_logarithm_of_the_length(pair):
    assert bone_inconsistency(pair) < 1e-10
    grown = pair.copy()
    pelvis = grown[0, 30:45, :1]
    grown[0, 30:45] = pelvis + 1.1 * (grown[0, 30:45] - pelvis)  # one of two persons for a quarter of the time
    assert bone_inconsistency(grown) == pytest.approx(100 * np.log(1.1) * np.sqrt(1 / 8), rel=1e-3)


def test_spectra_keep_the_power_of_a_sine(pair):
    """A sine of amplitude A m/s carries A^2 / 2 at its frequency, and (2 pi f)^2 times that in the acceleration."""
    frames, frequency, amplitude = 200, 3.75, 0.3  # a multiple of 30 / 32 Hz
    still = np.repeat(pair[:, :1], frames, axis=1)
    still[0, :, 0, 2] += amplitude / (2 * np.pi * frequency) * np.sin(2 * np.pi * frequency * np.arange(frames) / 30)
    spectra = style_spectra(still)
    width = spectra.frequencies[1]
    power = spectra.velocity[0, :, 0].sum(axis=-1) * width
    # differences of neighbouring frames weaken a frequency f by sinc(f / fps)
    np.testing.assert_allclose(power, amplitude**2 / 2 * np.sinc(frequency / 30) ** 2, rtol=1e-2)
    peak = spectra.velocity[0, 0, 0].argmax()
    assert spectra.frequencies[peak] == frequency
    ratio = spectra.acceleration[0, :, 0, peak] / spectra.velocity[0, :, 0, peak]
    np.testing.assert_allclose(ratio, (2 * np.pi * frequency * np.sinc(frequency / 30)) ** 2, rtol=1e-2)
    assert spectra.velocity[1].max() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("frames", "windows"), [(42, 2), (49, 2), (50, 3)])
def test_windows_of_32_differences_come_every_8_frames(pair, frames, windows):
    """Of second differences, of which there are two fewer than frames: as many windows as fit."""
    assert style_spectra(pair[:, :frames]).velocity.shape[:2] == (2, windows)


@pytest.mark.parametrize("metric", [bone_inconsistency, swap_score, role_break, separation])
def test_four_frames_are_needed_and_enough(pair, metric):
    metric(pair[:, :4])
    with pytest.raises(ValueError, match=r"joints: expected shape \(2, T >= 4, 22, 3\), got \(2, 3, 22, 3\)"):
        metric(pair[:, :3])


def test_no_frame_of_a_window_is_lost(pair):
    """A step between the first two frames is in the first window alone, at whose end the weight is small but not 0."""
    still = np.repeat(pair[:, :1], 60, axis=1)
    still[0, 1:, 0, 1] += 0.3
    spectra = style_spectra(still)
    width = 32  # of a window, in frames; sin^2 with zeros just outside of it
    weights = np.sin(np.pi * np.arange(1, width + 1) / (width + 1)) ** 2
    expected = (weights[0] * 0.3 * 30) ** 2 * 2 / (30 * (weights**2).sum())
    np.testing.assert_allclose(spectra.velocity[0, 0, 0], expected, rtol=1e-6)
    assert spectra.velocity[0, 1:, 0].max() == 0


def test_style_overlap_of_different_and_of_exchanged_persons(pair):
    assert style_overlap(pair) < -0.5
    assert style_overlap(corruptions.average(pair)) > 0
    assert style_overlap(pair[::-1]) == pytest.approx(style_overlap(pair))


def test_the_moment_of_a_break_is_found(pair):
    for score in (swap_score, role_break):
        assert score(pair).score < 0
        found = score(corruptions.swap_midway(pair))
        assert found.score > 0
        assert found.frame == 30
    mirrored = role_break(corruptions.mirror_midway(pair))
    assert mirrored.frame == 30
    assert mirrored.score > 2, "the view goes on as its mirror image; as the partner's it would be near 0"


def test_separation(pair):
    near = pair.copy()
    near[1, 40] = near[0, 40] + (0.03, 0, 0.04)
    assert separation(near) == (pytest.approx(0.05), 40)
    assert separation(pair).distance > MERGE_DISTANCE
    touching = np.tile(pair[:1, :1], (2, 60, 1, 1))
    touching[1] += (0, 0, 1.1)
    touching[1, :, 20] -= (0, 0, 1.1)  # a hand in the same place, 21 joints 1.1 m apart
    assert separation(touching).distance == pytest.approx(1.1 * 21 / 22)


def test_nobody_moving_is_consistent(pair):
    still = np.repeat(pair[:, :1], 60, axis=1)
    metrics = measure_identity(still)
    assert metrics.swap_score < SWAP_THRESHOLD
    assert all(np.isfinite(list(asdict(metrics).values())))


def test_place_heading_and_reflection_do_not_matter(pair):
    turn = np.array([[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]])
    moved = pair @ turn.T + (3, 0, -2)
    expected = asdict(measure_identity(pair))
    assert asdict(measure_identity(moved)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    exchanged = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20]
    mirrored = pair[:, :, exchanged] * (-1, 1, 1)
    symmetric = {"style_overlap", "role_break", "swap_score", "separation_cm"}  # these random bones are not
    reflected = asdict(measure_identity(mirrored))
    assert {k: reflected[k] for k in symmetric} == pytest.approx({k: expected[k] for k in symmetric}, rel=1e-6)


def test_body_frames(pair):
    local = to_body(pair, pair)
    np.testing.assert_allclose(local, np.broadcast_to(local[0, 0], local.shape), atol=1e-12)  # rigid bodies
    np.testing.assert_allclose(mirror_body(mirror_body(local)), local)
    axes = body_frames(pair)
    np.testing.assert_allclose(axes @ axes.swapaxes(-1, -2), np.broadcast_to(np.eye(3), axes.shape), atol=1e-12)
    np.testing.assert_allclose(np.cross(axes[..., 0, :], axes[..., 1, :]), axes[..., 2, :], atol=1e-12)
    twisted = np.zeros((22, 3))
    twisted[[1, 2]] = [[0.1, 0.9, 0], [-0.1, 0.9, 0]]  # hips that face Z, shoulders a quarter turn from it
    twisted[[16, 17]] = [[0, 1.4, -0.3], [0, 1.4, 0.3]]
    half = np.sqrt(0.5)
    expected = np.array([[half, 0, -half], [0, 1, 0], [half, 0, half]])
    np.testing.assert_allclose(body_frames(twisted), expected, atol=1e-12)
    wide = twisted.copy()
    wide[[1, 2], 0] *= 20  # hips count no more for it, of this body and of the other
    np.testing.assert_allclose(body_frames(np.stack([twisted, wide])), [expected, expected], atol=1e-12)
    far = twisted.copy()
    far[[16, 17]] = [[-0.3 * half, 1.4, -0.3 * half], [0.3 * half, 1.4, 0.3 * half]]  # three eighths of a turn
    np.testing.assert_allclose(body_frames(far) @ body_frames(far).T, np.eye(3), atol=1e-12)


BROKEN = {**CORRUPTIONS, "taller": lambda joints: corruptions.scale_skeleton(joints, [1.1] * 22, person=0)}


@pytest.mark.parametrize("name", BROKEN)
def test_copies_are_of_the_type_and_shape_of_what_they_are_of(pair, name):
    exact, rounded = BROKEN[name](pair), BROKEN[name](pair.astype(np.float32))
    assert (exact.dtype, rounded.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(rounded, exact, atol=1e-5)
    assert BROKEN[name](pair[:, :10]).shape == (2, 10, 22, 3)
    for wrong in (pair[0], pair[:1], pair[:, :1], pair[:, :, :21], pair[..., :2], np.stack([pair, pair])):
        with pytest.raises(ValueError, match=r"joints: expected shape \(2, T >= 2, 22, 3\)"):
            BROKEN[name](wrong)


def test_the_middle_of_an_odd_number_is_rounded_down_and_all_may_be_blended(pair):
    odd = pair[:, :7]
    np.testing.assert_array_equal(corruptions.swap_midway(odd)[0], [*pair[0, :3], *pair[1, 3:7]])
    whole = corruptions.swap_midway(odd, blend=7)
    weights = (np.arange(7) - 3 + 0.5) / 7 + 0.5
    np.testing.assert_allclose(whole[0], odd[0] + weights[:, None, None] * (odd[1] - odd[0]))
    two = corruptions.swap_midway(pair[:, :2])
    np.testing.assert_array_equal(two[0], [pair[0, 0], pair[1, 1]])
    with pytest.raises(ValueError, match="factors: expected 22 positive numbers"):
        corruptions.scale_skeleton(pair, [1.0] * 21 + [0.0])


def test_persons_in_one_place_are_mirrored_across_x(pair):
    """Nothing says how the vertical plane through both lies: it is that of Y and Z."""
    pair = pair.copy()
    pair[1] += (pair[0, 30, 0] - pair[1, 30, 0]) * (1, 0, 1)
    mirrored = corruptions.mirror_midway(pair)
    exchanged = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20]
    place = pair[0, 30, 0, 0]
    expected = (pair[:, 30:] - (place, 0, 0)) * (-1, 1, 1) + (place, 0, 0)
    np.testing.assert_allclose(mirrored[:, 30:], expected[:, :, exchanged], atol=1e-12)
    apart = np.stack([pair[0], pair[1] + (0, 0, 1e-3)])
    turned = corruptions.mirror_midway(apart)  # a millimetre says it: along Z, mirrored across X too
    np.testing.assert_allclose(turned[0, 30:, 0, 0], 2 * place - pair[0, 30:, 0, 0], atol=1e-9)


def test_swap_and_its_blend(pair):
    swapped = corruptions.swap_midway(pair)
    np.testing.assert_array_equal(swapped[:, :30], pair[:, :30])
    np.testing.assert_array_equal(swapped[:, 30:], pair[::-1, 30:])
    blended = corruptions.swap_midway(pair, blend=10)
    np.testing.assert_array_equal(blended[:, :25], pair[:, :25])
    np.testing.assert_array_equal(blended[:, 35:], pair[::-1, 35:])
    np.testing.assert_allclose(blended[0, 30], 0.45 * pair[0, 30] + 0.55 * pair[1, 30])


def test_mirror_keeps_pelvises_at_the_cut_and_distances(pair):
    mirrored = corruptions.mirror_midway(pair)
    np.testing.assert_allclose(mirrored[:, 30, 0], pair[:, 30, 0], atol=1e-12)
    np.testing.assert_array_equal(mirrored[:, :30], pair[:, :30])
    apart = [np.linalg.norm(x[0, 30:, 20] - x[1, 30:, y], axis=-1) for x, y in ((pair, 20), (mirrored, 20))]
    right = np.linalg.norm(pair[0, 30:, 21] - pair[1, 30:, 21], axis=-1)
    np.testing.assert_allclose(apart[1], right)  # left hands of the mirror image are right hands
    np.testing.assert_allclose(to_body(mirrored, mirrored)[:, 45], mirror_body(to_body(pair, pair)[:, 45]), atol=1e-12)


def test_averages(pair):
    averaged = corruptions.average(pair)
    np.testing.assert_allclose(averaged[0], pair.mean(axis=0))
    assert separation(averaged).distance == 0
    pair = corruptions.scale_skeleton(pair, LONG_LIMBS)  # of bones of their own
    pair[0, :, 20] += 0.2
    in_place = corruptions.average_in_place(pair)
    np.testing.assert_allclose(in_place[..., 0, :], pair[..., 0, :])
    parents = list(PARENTS[1:])
    mean = to_body(pair, pair).mean(axis=0)
    bones = [pose[..., 1:, :] - pose[..., parents, :] for pose in (mean, to_body(in_place, pair))]
    wanted, found = (bone / np.linalg.norm(bone, axis=-1, keepdims=True) for bone in bones)
    # seen in the frames of the persons as they were: the pose of the mean
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=1e-9)
    own, kept = (np.linalg.norm(p[..., 1:, :] - p[..., parents, :], axis=-1) for p in (pair, in_place))
    np.testing.assert_allclose(kept, own, atol=1e-9)


def test_other_bones_keep_directions_and_the_other_person(pair):
    scaled = corruptions.scale_skeleton(pair, LONG_LIMBS)
    np.testing.assert_array_equal(scaled[0], pair[0])
    np.testing.assert_allclose(scaled[1, :, 20] - scaled[1, :, 18], 1.1 * (pair[1, :, 20] - pair[1, :, 18]))
    np.testing.assert_allclose(scaled[1, :, 9] - scaled[1, :, 6], pair[1, :, 9] - pair[1, :, 6])
    np.testing.assert_allclose(scaled[1, :, 0], pair[1, :, 0] * (1, 1.1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pair: measure_identity(pair[:1]), r"joints: expected shape \(2, T >= 4, 22, 3\), got \(1, 60, 22, 3\)"),
        (lambda pair: style_spectra(pair[:, : min_frames() - 1]), "joints: expected at least 42 frames, got 41"),
        (lambda pair: corruptions.swap_midway(pair, blend=61), r"blend: expected a value in \[0, 60\] frames, got 61"),
        (lambda pair: corruptions.scale_skeleton(pair, [1.0] * 21), "factors: expected 22 positive numbers"),
        (lambda pair: corruptions.average(pair[0]), "joints: expected shape"),
    ],
)
def test_bad_input(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(pair)


def test_random_items_are_refused(two_people, tmp_path):
    pairs = two_people(tmp_path / "pairs", {"val": {"1": 60}}, "two people sway")
    with pytest.raises(ValueError, match="dataset: expected training=False and no augmentation, got a random one"):
        evaluate_identity(InterHumanDataset(pairs, "val", training=True))


def test_a_collapsed_and_a_random_model_are_found(pair):
    """Both persons one and the same have merged, and nothing tells their styles apart; noise goes on as anybody."""
    real = measure_identity(pair)
    collapsed = measure_identity(np.stack([pair[0], pair[0]]))
    assert collapsed.separation_cm == 0 < real.separation_cm
    assert collapsed.style_overlap > real.style_overlap
    random = measure_identity(np.random.default_rng(0).normal(size=pair.shape))
    for name in ("bone_inconsistency", "style_overlap", "role_break", "swap_score"):
        assert getattr(random, name) > getattr(real, name), name


def test_joints_that_are_not_finite_are_refused_by_every_metric(pair):
    bad = pair.copy()
    bad[0, 5, 3, 1] = np.inf
    for metric in (bone_inconsistency, style_overlap, style_spectra, role_break, swap_score, separation):
        with pytest.raises(ValueError, match="joints: expected finite numbers, got others in 1 frames, first in 5"):
            metric(bad)


def test_rounding_makes_no_clip_worse_and_separation_is_worse_the_lower() -> None:
    clean = IdentityMetrics(1.0, 0.2, 0.3, 0.4, 50.0)
    rounded = IdentityMetrics(1.0 + 1e-6, 0.2 + 1e-6, 0.3 + 1e-6, 0.4 + 1e-6, 50.0 - 1e-6)
    worse = IdentityMetrics(1.1, 0.3, 0.4, 0.5, 49.0)
    better = IdentityMetrics(0.9, 0.1, 0.2, 0.3, 51.0)
    shares = _ranking([clean] * 4, [rounded, worse, worse, better])
    assert shares == dict.fromkeys(shares, 50.0)
    assert "separation_cm" in shares


def test_two_bodies_merge_nearer_than_a_distance_in_metres() -> None:
    apart, merged = (IdentityMetrics(1.0, 0.2, 0.3, 0.4, 100 * MERGE_DISTANCE * share) for share in (1.01, 0.99))
    assert _row([apart, merged, apart, apart]).merges == 25.0
