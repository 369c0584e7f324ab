"""Metrics of embeddings: whether motion follows its text, and whether many motions look like real ones together.

Embeddings are (N, E) arrays; everything is computed in float64. Index draws are arguments, so that results repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.integer]
TOP_K = 3


@dataclass(frozen=True)
class Retrieval:
    """Share of texts whose own motion is among the 1, 2, 3 nearest of the batch, and the mean distance to it."""

    r_precision: tuple[float, ...]
    mm_dist: float


def retrieval(text: Floats, motion: Floats, batch_size: int) -> Retrieval:
    """R-Precision@1-3 within batches of ``batch_size`` rows, the last incomplete batch left out, and MM-Dist.

    text[i] describes motion[i]. Both numbers depend on the batch size and on which rows share a batch. A motion as near
    as the text's own counts against it: a model whose motions are all the same finds none.

    Raises:
        ValueError: other shapes, fewer rows than a batch has, or numbers that are not finite.
    """
    _require_finite(text=text, motion=motion)
    batches = len(text) // batch_size
    if text.shape != motion.shape or text.ndim != 2 or batches < 1:
        raise ValueError(
            f"text: expected the shape of motion, (N >= {batch_size}, E), got {text.shape} and {motion.shape}"
        )
    hits, total = np.zeros(TOP_K), 0.0
    for rows in np.arange(batches * batch_size).reshape(batches, batch_size):
        distances = _distances(text[rows], motion[rows])
        own = np.diagonal(distances)
        nearer = (distances <= own[:, None]).sum(axis=1) - 1  # without itself
        hits += [(nearer < k).sum() for k in range(1, TOP_K + 1)]
        total += own.sum()
    count = batches * batch_size
    return Retrieval(tuple((hits / count).tolist()), float(total / count))


def frechet_distance(embeddings: Floats, reference: Floats, *, scale: float = 1.0) -> float:
    r"""FID of two sets of embeddings (N, E) and (M, E), multiplied by ``scale``; N, M >= 2.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}(C_1) + \mathrm{tr}(C_2) - 2\,\mathrm{tr}((C_1 C_2)^{1/2})

    With :math:`C = A^T A` the last trace is the sum of the singular values of :math:`A_1 A_2^T`, which is exact where
    a covariance is singular because there are fewer samples than dimensions.
    """
    mean, root = _moments(embeddings, scale)
    reference_mean, reference_root = _moments(reference, scale)
    cross = np.linalg.svd(root @ reference_root.T, compute_uv=False).sum()
    between = np.square(mean - reference_mean).sum()
    return float(between + np.square(root).sum() + np.square(reference_root).sum() - 2 * cross)


def diversity(
    embeddings: Floats, first: Indices, second: Indices, *, scale: float = 1.0, divide_by: float = 1.0
) -> float:
    """Mean distance of the pairs (first[i], second[i]) of rows (N, E), times scale / divide_by.

    Raises:
        ValueError: no pair, or numbers that are not finite.
    """
    _require_finite(embeddings=embeddings)
    return multimodality(embeddings[None], first, second, scale=scale, divide_by=divide_by)


def multimodality(
    embeddings: Floats, first: Indices, second: Indices, *, scale: float = 1.0, divide_by: float = 1.0
) -> float:
    """Mean distance of pairs of motions of one text, (texts, samples, E), times scale / divide_by.

    Raises:
        ValueError: no pair, or numbers that are not finite.
    """
    _require_finite(embeddings=embeddings)
    _require_pairs(first, second)
    difference = embeddings[:, first].astype(np.float64) - embeddings[:, second]
    return float(np.linalg.norm(difference, axis=-1).mean() * scale / divide_by)


def _distances(a: Floats, b: Floats) -> Floats:
    """Distances of the rows (N, E) of ``a`` from those of ``b``, (N, N), exactly equal to those of equal rows."""
    b = b.astype(np.float64)
    return np.stack([np.linalg.norm(row - b, axis=1) for row in a])


def _require_pairs(first: Indices, second: Indices) -> None:
    if len(first) == 0 or len(first) != len(second):
        raise ValueError(f"first, second: expected as many of each, at least one, got {len(first)} and {len(second)}")


def _require_finite(**embeddings: Floats) -> None:
    for name, values in embeddings.items():
        if not np.isfinite(values).all():
            rows = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
            raise ValueError(f"{name}: expected finite numbers, got others in {len(rows)} rows, first in row {rows[0]}")


def _moments(embeddings: Floats, scale: float) -> tuple[Floats, Floats]:
    """The mean (E,) and a matrix A, at most (E, E), whose A^T A is the covariance."""
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"embeddings: expected shape (N >= 2, E), got {embeddings.shape}")
    _require_finite(embeddings=embeddings)
    values = embeddings.astype(np.float64) * scale
    mean = values.mean(axis=0)
    root = (values - mean) / np.sqrt(len(values) - 1)
    if len(root) > root.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return mean, root
