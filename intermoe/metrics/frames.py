"""The body's own frame of reference: pelvis at the origin, facing Z+."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intermoe.motion.skeleton import LEFT_JOINTS, NUM_JOINTS, RIGHT_JOINTS

Floats = npt.NDArray[np.floating]

_HIPS = (1, 2)
_SHOULDERS = (16, 17)

# Order of the joints in a mirror.
LEFT_RIGHT_EXCHANGED = np.arange(NUM_JOINTS)
LEFT_RIGHT_EXCHANGED[[*LEFT_JOINTS, *RIGHT_JOINTS]] = [*RIGHT_JOINTS, *LEFT_JOINTS]


def require_finite(joints: Floats) -> None:
    """Raise ``ValueError`` for joints (..., T, J, 3) with a number that is not finite: no metric hides it in a mean."""
    wrong = ~np.isfinite(joints).all(axis=(-2, -1))
    if wrong.any():
        frame = int(np.flatnonzero(wrong.reshape(-1, wrong.shape[-1]).any(axis=0))[0])
        raise ValueError(f"joints: expected finite numbers, got others in {int(wrong.sum())} frames, first in {frame}")


def body_frames(joints: Floats) -> npt.NDArray[np.float64]:
    """Axes (..., 3, 3) of bodies (..., 22, 3), as rows left, up and forward.

    Left is the mean direction of hips and shoulders seen from above, up is Y.
    """
    across = np.zeros((*joints.shape[:-2], 2))
    for left, right in (_HIPS, _SHOULDERS):
        flat = (joints[..., left, :] - joints[..., right, :])[..., [0, 2]].astype(np.float64)
        across += flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-9)
    across /= np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-9)
    axes = np.zeros((*across.shape[:-1], 3, 3))
    axes[..., 0, [0, 2]] = across
    axes[..., 1, 1] = 1.0
    axes[..., 2, 0], axes[..., 2, 2] = -across[..., 1], across[..., 0]
    return axes


def to_body(points: Floats, joints: Floats) -> npt.NDArray[np.float64]:
    """Points (..., N, 3) relative to the pelvis of bodies (..., 22, 3), along their ``body_frames``."""
    return np.einsum("...ax,...jx->...ja", body_frames(joints), points - joints[..., :1, :])


def mirror_body(points: Floats) -> Floats:
    """The mirror image of joints (..., 22, 3) in a body's own frame: left is negated, left and right exchanged."""
    return points[..., LEFT_RIGHT_EXCHANGED, :] * (-1.0, 1.0, 1.0)
