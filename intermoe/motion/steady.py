"""Rotations that go on from frame to frame, where what they are fitted to leaves them open for a moment.

A fit to bones jumps where its bones say nothing of a turn: about a bone that points away from where it lies at rest,
or where several bones fall onto one line. What is chosen there is free, but it must not flip. So each frame goes on
from the one before as the bones go, and what it is then off from the fit is made good by at most ``MOST_TURN`` a frame.
Where the fit itself moves no faster, which is wherever it is sound, the rotations are those of the fit, to the bit.
"""

from __future__ import annotations

import numpy as np

from intermoe.motion.rotations import Array, rotation_matrices, shortest_arc, to_quaternions, to_rotation_vectors

MOST_TURN = np.radians(10)
"""Radians a frame by which a rotation is turned back to the fit."""


def steady_twists(fitted: Array, bones: Array, known: Array | None, axis: Array) -> Array:
    """Rotations (P, T, 3, 3) of a joint with one bone, whose twist about the bone does not flip.

    A frame goes on by the shortest arc from the bone before to the bone now, and by the twist of the known rotations
    between the two.

    Args:
        fitted: (P, T, 3, 3) that turn the bone at rest to ``bones`` (P, T, 3), both seen from the parent.
        known: (P, T, 3, 3) the rotations that a model says, or ``None``.
        axis: (P, 3) the bone at rest.
    """
    gone_on = shortest_arc(bones[:, :-1], bones[:, 1:]) @ fitted[:, :-1]
    drift = _angle_about(bones[:, 1:], gone_on @ np.swapaxes(fitted[:, 1:], -1, -2))
    if known is not None:
        drift += _angle_about(axis[:, None], np.swapaxes(known[:, :-1], -1, -2) @ known[:, 1:])
    drift = _within_half_a_turn(drift)
    if np.abs(drift).max(initial=0.0) <= MOST_TURN:
        return fitted
    off = np.zeros(bones.shape[:2])
    for t in range(1, bones.shape[1]):
        twist = _within_half_a_turn(off[:, t - 1] + drift[:, t - 1])
        off[:, t] = twist - np.clip(twist, -MOST_TURN, MOST_TURN)
    return rotation_matrices(bones * off[..., None]) @ fitted


def steady_turns(fitted: Array, bones: Array, known: Array | None) -> Array:
    """Rotations (P, T, 3, 3) of a joint with several bones, which turn little faster than these or than it is known.

    Args:
        fitted: (P, T, 3, 3) the fit to ``bones`` (P, T, K, 3), both seen from the parent.
        known: (P, T, 3, 3) the rotations that a model says, or ``None``.
    """
    # A turn moves the bone that is most across it by at least half of its angle, as bones of a body lie.
    cosine = (bones[:, 1:] * bones[:, :-1]).sum(-1).clip(-1, 1)
    most = MOST_TURN + 2 * np.arccos(cosine).max(-1)
    if known is not None:
        most += np.linalg.norm(to_rotation_vectors(np.swapaxes(known[:, :-1], -1, -2) @ known[:, 1:]), axis=-1)
    turns = np.linalg.norm(to_rotation_vectors(np.swapaxes(fitted[:, :-1], -1, -2) @ fitted[:, 1:]), axis=-1)
    if (turns <= most).all():
        return fitted
    turned = fitted.copy()
    for t in range(1, fitted.shape[1]):
        step = to_rotation_vectors(np.swapaxes(turned[:, t - 1], -1, -2) @ fitted[:, t])
        angle = np.linalg.norm(step, axis=-1)
        late = angle > most[:, t - 1]
        if late.any():
            step[late] *= (most[late, t - 1] / angle[late])[:, None]
            turned[late, t] = turned[late, t - 1] @ rotation_matrices(step[late])
    return turned


def _angle_about(axis: Array, matrices: Array) -> Array:
    """Radians (...) by which rotations (..., 3, 3) turn about unit vectors (..., 3): their twist."""
    quaternions = to_quaternions(matrices)
    return 2 * np.arctan2((quaternions[..., 1:] * axis).sum(-1), quaternions[..., 0])


def _within_half_a_turn(radians: Array) -> Array:
    return radians - 2 * np.pi * np.round(radians / (2 * np.pi))
