"""Kinematic metrics: measured in metres and frames, with no learned evaluator.

Joints are (..., T, 22, 3) in metres, Y up, with the floor at 0; two persons (2, T, 22, 3). Frame rates are in hertz.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from intermoe.metrics.clips import Metric, Numbers, Sample
from intermoe.metrics.frames import require_finite
from intermoe.motion.interhuman import FPS
from intermoe.motion.skeleton import JOINT_NAMES, bone_vectors

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
    lengths = np.linalg.norm(bone_vectors(joints), axis=-1)
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


def _error(sample: Sample) -> Numbers:
    if not sample.paired:
        return {"joint_error_cm": None}
    pairs = list(zip(sample.clips, sample.reference, strict=True))
    errors = [joint_error(clip.joints, truth.joints) for clip, truth in pairs]
    frames = [clip.joints.shape[1] for clip, _ in pairs]
    return {"joint_error_cm": float(np.average(errors, weights=frames))}


def _feet(sample: Sample) -> Numbers:
    feet = sum((foot_contact(clip.joints) for clip in sample.clips), FootContact())
    return {
        "foot_contact_share": 100 * feet.contacts / feet.pairs,
        "foot_skating_share": 100 * feet.sliding / feet.contacts if feet.contacts else None,
        "foot_skating_speed": 100 * sample.fps * feet.distance / feet.contacts if feet.contacts else None,
    }


def _distance(sample: Sample) -> Numbers:
    own, truth = (
        np.concatenate([pelvis_distances(clip.joints) for clip in clips]) for clips in (sample.clips, sample.reference)
    )
    return {"pelvis_distance_cm": float(own.mean()), "pelvis_wasserstein_cm": wasserstein(own, truth)}


ERROR = Metric({"joint_error_cm": "joint error (cm)"}, _error)
"""Against the ground truth that a clip reproduces."""
BONES = Metric({"bone_variation": "bone variation (%)"}, lambda sample: {"bone_variation": sample.mean(bone_variation)})
FEET = Metric(
    {
        "foot_contact_share": "feet in contact (%)",
        "foot_skating_share": "of them sliding (%)",
        "foot_skating_speed": "their speed (cm/s)",
    },
    _feet,
)
"""The share in contact is of all feet and frames, and tells how much the other two rest on: they are of those feet."""
JITTER = Metric({"jitter": "jitter (m/s³)"}, lambda sample: {"jitter": sample.mean(partial(jitter, fps=sample.fps))})
FLOOR = Metric(
    {"floor_penetration_cm": "floor penetration (cm)"},
    lambda sample: {"floor_penetration_cm": sample.mean(floor_penetration, by_frames=True)},
)
DISTANCE = Metric(
    {
        "pelvis_distance_cm": "pelvis distance, mean (cm)",
        "pelvis_wasserstein_cm": "pelvis distance, Wasserstein (cm)",
    },
    _distance,
)
WRISTS = Metric(
    {"wrist_contact_share": "wrist contact (%)"},
    lambda sample: {"wrist_contact_share": sample.mean(wrist_contact, by_frames=True)},
)


def _check(joints: Floats) -> None:
    if joints.ndim < 3 or joints.shape[-2:] != (22, 3) or joints.shape[-3] < 2:
        raise ValueError(f"joints: expected shape (..., T >= 2, 22, 3), got {joints.shape}")
    require_finite(joints)


def _check_pair(joints: Floats) -> None:
    _check(joints)
    if joints.ndim != 4 or joints.shape[0] != 2:
        raise ValueError(f"joints: expected shape (2, T, 22, 3), got {joints.shape}")
