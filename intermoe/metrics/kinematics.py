"""Kinematic metrics: measured in metres and frames, with no learned evaluator.

Joints are (..., T, 22, 3) in metres, Y up, with the floor at 0; two persons (2, T, 22, 3). Frame rates are in hertz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intermoe.metrics.frames import require_finite
from intermoe.metrics.turns import agreement
from intermoe.motion.interhuman import FPS
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS

Floats = npt.NDArray[np.floating]

# The ball of the foot is what a dancer stands and pivots on; the ankle moves over it.
_TOES = (JOINT_NAMES.index("left_foot"), JOINT_NAMES.index("right_foot"))
_WRISTS = (JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist"))
_PELVIS = JOINT_NAMES.index("pelvis")

CONTACT_HEIGHT = 0.05
SLIDING = 0.025
# Wrists of hands that hold each other are one to two and a half hand lengths apart.
WRIST_CONTACT = 0.25


def joint_error(joints: Floats, reference: Floats) -> float:
    """Mean distance between corresponding joints, in cm; any equal shapes (..., 3)."""
    if joints.shape != reference.shape:
        raise ValueError(f"joints: expected the shape of reference {reference.shape}, got {joints.shape}")
    if not (np.isfinite(joints).all() and np.isfinite(reference).all()):
        raise ValueError("joints, reference: expected finite numbers, got others")
    return float(np.linalg.norm(joints - reference, axis=-1).mean() * 100)


def bone_variation(joints: Floats) -> float:
    """Standard deviation of a bone's length over time relative to its mean, averaged over bones and persons, in %."""
    _check(joints)
    children = [joint for joint, parent in enumerate(PARENTS) if parent >= 0]
    bones = joints[..., children, :] - joints[..., [PARENTS[joint] for joint in children], :]
    lengths = np.linalg.norm(bones, axis=-1)
    return float((lengths.std(axis=-2) / np.maximum(lengths.mean(axis=-2), 1e-9)).mean() * 100)


@dataclass(frozen=True)
class FootContact:
    """Sums over feet and pairs of neighbouring frames; add those of several clips before reading the shares."""

    pairs: int = 0
    contacts: int = 0
    sliding: int = 0
    distance: float = 0.0

    def __add__(self, other: FootContact) -> FootContact:
        return FootContact(
            self.pairs + other.pairs,
            self.contacts + other.contacts,
            self.sliding + other.sliding,
            self.distance + other.distance,
        )


def foot_contact(joints: Floats) -> FootContact:
    """Contacts and sliding of the balls of the feet.

    A contact is a foot lower than ``CONTACT_HEIGHT`` metres in two frames in a row; it slides if it moves horizontally
    by more than ``SLIDING`` metres in between. ``distance`` is what the feet in contact move horizontally, in metres.
    """
    _check(joints)
    feet = joints[..., _TOES, :]
    low = feet[..., 1] < CONTACT_HEIGHT
    contact = low[..., 1:, :] & low[..., :-1, :]
    moved = np.linalg.norm(np.diff(feet[..., [0, 2]], axis=-3), axis=-1)
    return FootContact(
        contact.size, int(contact.sum()), int((contact & (moved > SLIDING)).sum()), float(moved[contact].sum())
    )


def jitter(joints: Floats, *, fps: float = FPS) -> float:
    """Mean magnitude of the third derivative of joint positions, in m/s^3. Needs at least 4 frames."""
    _check(joints)
    if joints.shape[-3] < 4:
        raise ValueError(f"joints: expected at least 4 frames, got {joints.shape[-3]}")
    third = np.diff(joints.astype(np.float64), n=3, axis=-3)
    return float(np.linalg.norm(third, axis=-1).mean() * fps**3)


def floor_penetration(joints: Floats) -> float:
    """Depth of the lowest joint below the floor, 0 where it is above, averaged over frames and persons, in cm."""
    _check(joints)
    return float(np.maximum(-joints[..., 1].min(axis=-1), 0.0).mean() * 100)


def pelvis_distances(joints: Floats) -> npt.NDArray[np.float64]:
    """Distance between the two persons' pelvises in each frame (T,), in cm, of joints (2, T, 22, 3)."""
    _check_pair(joints)
    return np.linalg.norm(joints[0, :, _PELVIS] - joints[1, :, _PELVIS], axis=-1).astype(np.float64) * 100


def wrist_contact(joints: Floats) -> float:
    """Share of frames, in %, in which any wrists of both persons are closer than ``WRIST_CONTACT`` metres."""
    _check_pair(joints)
    one, other = joints[0][:, _WRISTS], joints[1][:, _WRISTS]
    distances = np.linalg.norm(one[:, :, None] - other[:, None, :], axis=-1)
    return float((distances.min(axis=(1, 2)) < WRIST_CONTACT).mean() * 100)


def wasserstein(samples: Floats, reference: Floats) -> float:
    """Wasserstein distance (order 1) between two sets of numbers, in their unit. Needs scipy."""
    try:
        from scipy.stats import wasserstein_distance
    except ImportError as error:
        raise ImportError('the evaluation needs scipy; install it with: pip install "intermoe[eval]"') from error
    return float(wasserstein_distance(samples, reference))


@dataclass(frozen=True)
class Clip:
    """Motion of two persons, joints (2, T, 22, 3), and the captions it should follow."""

    joints: Floats
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class KinematicMetrics:
    """Metrics of a set of clips; shares in %. None: not applicable.

    ``joint_error_cm`` is against the ground truth. ``foot_contact_share`` is of all feet and frames and tells how much
    the skating numbers rest on; ``foot_skating_share`` and ``foot_skating_speed`` (cm/s) are of feet in contact.
    ``turn_direction`` and ``turn_count`` are shares of the captions that name one, whose numbers follow.
    """

    clips: int
    joint_error_cm: float | None
    bone_variation: float
    foot_contact_share: float
    foot_skating_share: float | None
    foot_skating_speed: float | None
    jitter: float
    floor_penetration_cm: float
    pelvis_distance_cm: float
    pelvis_wasserstein_cm: float
    wrist_contact_share: float
    turn_direction: float | None
    turn_direction_captions: int
    turn_count: float | None
    turn_count_captions: int


def measure(clips: Sequence[Clip], reference: Sequence[Clip], *, paired: bool, fps: float = FPS) -> KinematicMetrics:
    """All metrics of ``clips``, against ``reference`` where a metric compares distributions.

    Args:
        clips: what to measure; averages weigh every clip alike, shares every frame alike.
        reference: the ground truth.
        paired: whether clips[i] reproduces reference[i], so that the joint error has a meaning.
        fps: frame rate of both.
    """
    if not clips or not reference:
        raise ValueError(f"clips: expected at least one and a reference, got {len(clips)} and {len(reference)}")
    feet = sum((foot_contact(clip.joints) for clip in clips), FootContact())
    distances = np.concatenate([pelvis_distances(clip.joints) for clip in clips])
    frames = [clip.joints.shape[1] for clip in clips]
    verdicts = [agreement(clip.joints, caption, fps=fps) for clip in clips for caption in clip.captions]
    directions = [verdict.direction for verdict in verdicts if verdict.direction is not None]
    counts = [verdict.count for verdict in verdicts if verdict.count is not None]
    errors = [joint_error(a.joints, b.joints) for a, b in zip(clips, reference, strict=True)] if paired else None
    return KinematicMetrics(
        clips=len(clips),
        joint_error_cm=None if errors is None else float(np.average(errors, weights=frames)),
        bone_variation=float(np.mean([bone_variation(clip.joints) for clip in clips])),
        foot_contact_share=100 * feet.contacts / feet.pairs,
        foot_skating_share=100 * feet.sliding / feet.contacts if feet.contacts else None,
        foot_skating_speed=100 * fps * feet.distance / feet.contacts if feet.contacts else None,
        jitter=float(np.mean([jitter(clip.joints, fps=fps) for clip in clips])),
        floor_penetration_cm=float(np.average([floor_penetration(clip.joints) for clip in clips], weights=frames)),
        pelvis_distance_cm=float(distances.mean()),
        pelvis_wasserstein_cm=wasserstein(
            distances, np.concatenate([pelvis_distances(clip.joints) for clip in reference])
        ),
        wrist_contact_share=float(np.average([wrist_contact(clip.joints) for clip in clips], weights=frames)),
        turn_direction=100 * sum(directions) / len(directions) if directions else None,
        turn_direction_captions=len(directions),
        turn_count=100 * sum(counts) / len(counts) if counts else None,
        turn_count_captions=len(counts),
    )


def _check(joints: Floats) -> None:
    if joints.ndim < 3 or joints.shape[-2:] != (22, 3) or joints.shape[-3] < 2:
        raise ValueError(f"joints: expected shape (..., T >= 2, 22, 3), got {joints.shape}")
    require_finite(joints)


def _check_pair(joints: Floats) -> None:
    _check(joints)
    if joints.ndim != 4 or joints.shape[0] != 2:
        raise ValueError(f"joints: expected shape (2, T, 22, 3), got {joints.shape}")
