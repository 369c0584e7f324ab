"""Metrics of sets of clips by name: what the kinematic evaluation tells of a model.

A new one is a module with a ``Metric`` and a line in ``METRICS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intermoe.motion.interhuman import FPS
from intermoe.registry import Registry

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Clip:
    """Motion of two persons, joints (2, T, 22, 3), the captions it should follow, and what is done in it, if known."""

    joints: npt.NDArray[np.floating]
    captions: Sequence[str] = ()
    activity: str | None = None


@dataclass(frozen=True)
class Sample:
    """What a metric measures: ``clips``, and the ``reference`` that they are compared with.

    ``paired``: clips[i] reproduces reference[i]. ``fps``: frame rate of both.
    """

    clips: Sequence[Clip]
    reference: Sequence[Clip]
    paired: bool
    fps: float

    def mean(self, metric: Callable[[npt.NDArray[np.floating]], float], *, by_frames: bool = False) -> float:
        """Mean of ``metric`` of each clip's joints, every clip alike or every frame alike."""
        weights = [clip.joints.shape[1] for clip in self.clips] if by_frames else None
        return float(np.average([metric(clip.joints) for clip in self.clips], weights=weights))


@dataclass(frozen=True)
class Metric:
    """Numbers of a set of clips.

    Args:
        titles: those that a table shows, by name, with their units. Where ``<name>_captions`` is measured too, it says
            of how many captions the number is.
        measure: the numbers by name; ``None`` for one that does not apply.
    """

    titles: Mapping[str, str]
    measure: Callable[[Sample], Numbers]


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "error": "intermoe.metrics.kinematics:ERROR",
        "bones": "intermoe.metrics.kinematics:BONES",
        "feet": "intermoe.metrics.kinematics:FEET",
        "jitter": "intermoe.metrics.kinematics:JITTER",
        "floor": "intermoe.metrics.kinematics:FLOOR",
        "float": "intermoe.metrics.bodies:FLOAT",
        "penetration": "intermoe.metrics.bodies:PENETRATION",
        "hands": "intermoe.metrics.bodies:HANDS",
        "distance": "intermoe.metrics.kinematics:DISTANCE",
        "wrists": "intermoe.metrics.kinematics:WRISTS",
        "turns": "intermoe.metrics.turns:TURNS",
    },
)


def measure(clips: Sequence[Clip], reference: Sequence[Clip], *, paired: bool, fps: float = FPS) -> Numbers:
    """The number of clips, and every number of every one of ``METRICS``; shares in %.

    Args:
        clips: what to measure; averages weigh every clip alike, shares every frame alike.
        reference: the ground truth.
        paired: whether clips[i] reproduces reference[i], so that the joint error has a meaning.
        fps: frame rate of both.
    """
    if not clips or not reference:
        raise ValueError(f"clips: expected at least one and a reference, got {len(clips)} and {len(reference)}")
    sample, found = Sample(clips, reference, paired, fps), Numbers(clips=len(clips))
    for name in METRICS:
        found |= METRICS[name].measure(sample)
    return found
