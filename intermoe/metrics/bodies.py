"""Bodies in space: on the floor, out of each other, and in touch where an activity asks for it.

Joints are (P, T, 22, 3) in metres, Y up, with the floor at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from intermoe.metrics.clips import Metric, Numbers, Sample
from intermoe.metrics.frames import require_finite
from intermoe.motion.capsules import deepest
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS

Floats = npt.NDArray[np.floating]

FLOATING = 0.08
"""Metres: who has no joint below this is off the floor; the lowest joint of one who stands, a toe, is at 2 to 3 cm
(``lowest_joint_cm`` of the ground truth, `intermoe evaluate kinematics --data DATA`)."""
NEAR = 0.6
"""Metres between pelvises below which it counts how deep bodies are in each other."""
TOUCH = 0.2
"""Metres between wrists of hands that hold each other, at most; those of recorded handshakes are 17 and 19 cm apart
(``hands_distance_cm``, by the same command)."""
HANDS_MEET = ("handshake", "pull_up", "hold_hands_walk", "ring_around_the_rosie")
"""Activities in which a hand of each takes one of the other."""

_PELVIS = JOINT_NAMES.index("pelvis")
_WRISTS = (JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist"))


def lowest_joint(joints: Floats) -> npt.NDArray[np.float64]:
    """Height of each person's lowest joint in metres, (P, T)."""
    _check(joints)
    return joints[..., 1].min(axis=-1).astype(np.float64)


def floats(joints: Floats) -> bool:
    """Whether the lowest joint of any person is above ``FLOATING`` in more than half of the frames."""
    return bool(((lowest_joint(joints) > FLOATING).mean(axis=-1) > 0.5).any())


@dataclass(frozen=True)
class Penetration:
    """Sums over pairs of persons and frames; add those of several clips before reading the shares.

    Attributes:
        pairs: pairs of persons times frames.
        inside: of them those in which the two are in each other.
        near: of them those in which the pelvises are nearer than ``NEAR``.
        depth: metres by which the two are in each other, summed over the near ones.
    """

    pairs: int = 0
    inside: int = 0
    near: int = 0
    depth: float = 0.0

    def __add__(self, other: Penetration) -> Penetration:
        return Penetration(
            self.pairs + other.pairs,
            self.inside + other.inside,
            self.near + other.near,
            self.depth + other.depth,
        )

    @property
    def share(self) -> float | None:
        """Share of the pairs in which the two are in each other, in %, or ``None`` where there are none."""
        return 100 * self.inside / self.pairs if self.pairs else None

    @property
    def mean_depth_cm(self) -> float | None:
        """Mean depth over the near frames, or ``None`` where there are none."""
        return 100 * self.depth / self.near if self.near else None


def penetration(joints: Floats) -> Penetration:
    """How deep bodies are in each other: their deepest overlap as capsules (``intermoe.motion.capsules``)."""
    _check(joints)
    total = Penetration()
    for one, other in combinations(joints, 2):
        depth = deepest(torch.from_numpy(np.stack([one, other])).float()).numpy()
        near = np.linalg.norm(one[:, _PELVIS] - other[:, _PELVIS], axis=-1) < NEAR
        total += Penetration(len(depth), int((depth > 0).sum()), int(near.sum()), float(depth[near].sum()))
    return total


def closest_wrists(joints: Floats) -> float:
    """Smallest distance of a wrist of one person from one of another, over all frames, in metres."""
    _check(joints)
    if len(joints) < 2:
        raise ValueError(f"joints: expected two persons or more, got {len(joints)}")
    return min(
        float(np.linalg.norm(one[:, _WRISTS, None] - other[:, None, _WRISTS], axis=-1).min())
        for one, other in combinations(joints, 2)
    )


def _floating(sample: Sample) -> Numbers:
    return {
        "floating_share": 100 * float(np.mean([floats(clip.joints) for clip in sample.clips])),
        "lowest_joint_cm": 100 * sample.mean(lambda joints: float(lowest_joint(joints).mean())),
    }


def _penetration(sample: Sample) -> Numbers:
    total = sum((penetration(clip.joints) for clip in sample.clips), Penetration())
    return {
        "penetration_depth_cm": total.mean_depth_cm,
        "penetration_share": total.share,
        "near_share": 100 * total.near / total.pairs if total.pairs else None,
    }


def _hands(sample: Sample) -> Numbers:
    closest = [closest_wrists(clip.joints) for clip in sample.clips if clip.activity in HANDS_MEET]
    return {
        "hands_met": 100 * float(np.mean([distance <= TOUCH for distance in closest])) if closest else None,
        "hands_met_captions": len(closest),
        "hands_distance_cm": 100 * float(np.mean(closest)) if closest else None,
    }


FLOAT = Metric(
    {"floating_share": "clips in which a person floats (%)", "lowest_joint_cm": "height of the lowest joint (cm)"},
    _floating,
)
PENETRATION = Metric(
    {
        "penetration_depth_cm": "bodies in each other, depth where within 60 cm (cm)",
        "penetration_share": "frames with bodies in each other (%)",
        "near_share": "frames within 60 cm (%)",
    },
    _penetration,
)
HANDS = Metric(
    {"hands_met": "hands that shall meet within 20 cm (%)", "hands_distance_cm": "their smallest distance (cm)"},
    _hands,
)
"""Of clips of the activities ``HANDS_MEET``."""


def _check(joints: Floats) -> None:
    if joints.ndim != 4 or 0 in joints.shape or joints.shape[2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: expected shape (P, T, {NUM_JOINTS}, 3), got {joints.shape}")
    require_finite(joints)
