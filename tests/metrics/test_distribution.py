"""Metrics of embeddings against the published ones and against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intermoe.metrics.distribution import diversity, frechet_distance, multimodality, retrieval


def test_metrics_equal_the_published_ones(golden: Any) -> None:
    archive = golden("metrics.npz")
    text, motion, truth = (archive[f"{name}_emb"] for name in ("text", "motion", "gt_motion"))
    found = retrieval(text, motion, int(archive["batch"]))
    assert found.r_precision == pytest.approx(archive["r_precision"], abs=1e-12)
    assert found.mm_dist == pytest.approx(float(archive["mm_dist"]), rel=1e-6)
    assert frechet_distance(motion, truth, scale=6) == pytest.approx(float(archive["fid"]), rel=1e-6)
    pairs = (archive["diversity_first"], archive["diversity_second"])
    assert diversity(motion, *pairs, scale=6, divide_by=2) == pytest.approx(float(archive["diversity"]), rel=1e-6)
    pairs = (archive["mm_first"], archive["mm_second"])
    expected = float(archive["multimodality"])
    assert multimodality(archive["mm_emb"], *pairs) == pytest.approx(expected, rel=1e-6)
    assert multimodality(archive["mm_emb"], *pairs, scale=6, divide_by=2) == pytest.approx(3 * expected, rel=1e-6)


def test_fid_of_sets_with_known_moments() -> None:
    # covariances diag(4, 9) and diag(1, 1), means 3 apart: 9 + 13 + 2 - 2 (2 + 3)
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * np.sqrt(3 / 4)
    assert frechet_distance(corners * (2.0, 3.0) + (3.0, 0.0), corners) == pytest.approx(14.0)


@pytest.mark.parametrize("count", [5, 40])  # fewer and more samples than dimensions
def test_fid_is_a_squared_distance(count: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(count, 12)), rng.normal(size=(count + 3, 12)) * 2 + 1
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, b, scale=6) == pytest.approx(36 * frechet_distance(a, b))
    rotation = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a + 2.0, a) == pytest.approx(4.0 * 12)


def test_retrieval_by_hand() -> None:
    text = np.array([[0.0], [1.0], [10.0], [99.0]])
    motion = np.array([[0.9], [0.1], [13.0], [99.0]])
    found = retrieval(text, motion, 3)  # the fourth is left out
    assert found.r_precision == pytest.approx((1 / 3, 1.0, 1.0))
    assert found.mm_dist == pytest.approx((0.9 + 0.9 + 3.0) / 3)


def test_bad_arrays_are_named() -> None:
    with pytest.raises(ValueError, match=r"text: expected the shape of motion, \(N >= 5, E\)"):
        retrieval(np.zeros((4, 2)), np.zeros((4, 2)), 5)
    for shapes in (((6, 2), (6, 3)), ((6, 2), (5, 2)), ((6,), (6,))):
        with pytest.raises(ValueError, match="text: expected the shape of motion"):
            retrieval(*map(np.zeros, shapes), 5)
    with pytest.raises(ValueError, match=r"embeddings: expected shape \(N >= 2, E\), got \(1, 2\)"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))
    none = np.zeros(0, dtype=int)
    with pytest.raises(ValueError, match="first, second: expected as many of each, at least one, got 0 and 0"):
        diversity(np.zeros((3, 2)), none, none)
    with pytest.raises(ValueError, match="first, second: expected as many of each"):
        multimodality(np.zeros((3, 2, 2)), np.arange(2), none)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_every_metric(wrong: float) -> None:
    good, bad = np.eye(4), np.eye(4)
    bad[2, 1] = wrong
    pairs = np.arange(3), np.arange(1, 4)
    for name, measure in {
        "text": lambda: retrieval(bad, good, 2),
        "motion": lambda: retrieval(good, bad, 2),
        "embeddings": lambda: frechet_distance(bad, good),
        "embeddings ": lambda: frechet_distance(good, bad),
        "embeddings  ": lambda: diversity(bad, *pairs),
    }.items():
        with pytest.raises(
            ValueError, match=f"{name.strip()}: expected finite numbers, got others in 1 rows, first in row 2"
        ):
            measure()
    with pytest.raises(ValueError, match="embeddings: expected finite numbers"):
        multimodality(np.stack([good, bad]), *pairs)


def test_narrow_embeddings_are_compared_in_wide_numbers() -> None:
    """2^24 - 1/2 and its square are numbers of float64 alone."""
    far = 2.0**24
    text, motion = np.float32([[far], [-far]]), np.float32([[0.5], [-0.5]])
    assert retrieval(text, motion, 2).mm_dist == far - 0.5
    assert diversity(np.concatenate([text[:1], motion[:1]]), np.array([0]), np.array([1])) == far - 0.5
    one, other = np.float32([[far], [far]]), np.float32([[0.5], [0.5]])
    assert frechet_distance(one, other) == (far - 0.5) ** 2
    assert frechet_distance(one + np.float32([[0], [2]]), other) == pytest.approx((far + 0.5) ** 2 + 2, rel=1e-15)


def test_rows_that_are_not_finite_are_counted_and_the_first_is_named() -> None:
    bad = np.zeros((6, 3))
    bad[[4, 2], [0, 1]] = np.nan, np.inf
    with pytest.raises(
        ValueError, match=r"^embeddings: expected finite numbers, got others in 2 rows, first in row 2$"
    ):
        frechet_distance(np.zeros((6, 3)), bad)
    with pytest.raises(
        ValueError, match=r"^embeddings: expected finite numbers, got others in 2 rows, first in row 1$"
    ):
        multimodality(bad.reshape(3, 2, 3), np.array([0]), np.array([1]))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_collapsed_model_earns_nothing(kind: type[np.floating[Any]]) -> None:
    """One motion for every text: as near to each as to the others, which is no hit, and no diversity at all."""
    rng = np.random.default_rng(0)
    text, one = rng.normal(size=(96, 16)).astype(kind), rng.normal(size=(1, 16)).astype(kind)
    collapsed, pairs = np.repeat(one, 96, axis=0), (np.arange(95), np.arange(1, 96))
    assert retrieval(text, collapsed, 32).r_precision == (0.0, 0.0, 0.0)
    # two motions, each for half of the texts: none of them is alone the nearest
    assert retrieval(text, np.tile(text[:2], (48, 1)), 32).r_precision[2] == 0.0
    assert diversity(collapsed, *pairs) == 0.0
    assert multimodality(np.repeat(one[None], 30, axis=1), np.arange(10), np.arange(10, 20)) == 0.0
    # far from the data in variance alone: the trace of their covariance remains
    data = rng.normal(size=(400, 16))
    expected = np.square(one - data.mean(axis=0)).sum() + np.cov(data.T).trace()
    assert frechet_distance(np.repeat(one, 400, axis=0), data) == pytest.approx(expected, rel=1e-6)


def test_a_random_model_earns_what_chance_gives() -> None:
    rng = np.random.default_rng(0)
    text, motion = rng.normal(size=(3200, 16)), rng.normal(size=(3200, 16))
    spread = 4 * np.sqrt(np.arange(1, 4) / 32 / 3200)
    assert np.abs(np.array(retrieval(text, motion, 32).r_precision) - np.arange(1, 4) / 32).max() < spread.max()
    assert retrieval(text, text, 32).r_precision == (1.0, 1.0, 1.0)
    assert frechet_distance(motion, text) < 0.1 < frechet_distance(1.5 * motion, text)
