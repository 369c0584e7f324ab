"""What a frame of motion holds: one ``Representation`` for each data set, found by the data set's name.

A new one is a ``Representation`` in a module of its own and a line in ``REPRESENTATIONS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from intermoe.motion.skeleton import FOOT_JOINTS, Groups, Skeleton
from intermoe.registry import Registry

ABSENT = -1
"""Column index of a joint feature that a representation does not store; it reads as zero."""


@dataclass(frozen=True)
class Representation:
    """The columns of a motion, whose they are, and how joints follow from them.

    Args:
        name: the data set's.
        fps: frames a second.
        persons: in one clip.
        min_frames, max_frames: the published bounds of an item.
        skeleton: the joints.
        frame_shape: of one person's frame, such as (262,).
        features: for every joint the columns of the flattened frame that belong to it, ``ABSENT`` where it has none.
        joints: un-normalised motion (..., T, frame) of one person to joints (..., T, J, 3) in metres, Y up, in the
            world.
        positions: motion (..., frame) to the joints (..., J, 3) that its columns hold, in metres; those of the world,
            whose differences in time are the velocity columns, unless ``root_centred``.
        from_joints: joints (T, J, 3) of one person to motion (T, frame), or ``None`` where it does not follow.
        turned: motion (..., frame), rotation (3, 3) about Y and origin (3,) to the motion as seen from there; ``None``
            where that is not known.
        velocity, rotation: where the last dimension holds them.
        contacts: likewise, of ``FOOT_JOINTS``, or ``None``.
    """

    name: str
    fps: int
    persons: int
    min_frames: int
    max_frames: int
    skeleton: Skeleton
    frame_shape: tuple[int, ...]
    features: Groups
    joints: Callable[[Tensor], Tensor]
    positions: Callable[[Tensor], Tensor]
    velocity: slice
    rotation: slice
    contacts: slice | None = None
    root_centred: bool = False
    from_joints: Callable[[Tensor], Tensor] | None = None
    turned: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    @property
    def frame_size(self) -> int:
        """Values per frame of one person."""
        return math.prod(self.frame_shape)

    @property
    def grounded(self) -> bool:
        """Whether feet and their contacts stand in the world, so that a foot can be seen to slide and be held."""
        return self.contacts is not None and not self.root_centred


FRAMES_TOGETHER = 4
"""Frames that the autoencoder codes as one; batches are padded to whole ones."""


def columns(start: int, count: int) -> tuple[int, ...]:
    """``count`` columns from ``start`` on."""
    return tuple(range(start, start + count))


def contact_column(joint: int, start: int) -> tuple[int, ...]:
    """The contact column of ``joint``, of four from ``start`` on in the order of ``FOOT_JOINTS``; none for others."""
    return (start + FOOT_JOINTS.index(joint),) if joint in FOOT_JOINTS else ()


REPRESENTATIONS: Registry[Representation] = Registry(
    "representation",
    {
        "interhuman": "intermoe.motion.interhuman:INTERHUMAN",
        "interx": "intermoe.motion.interx:INTERX",
        "humanml3d": "intermoe.motion.humanml3d:HUMANML3D",
        "solo": "intermoe.motion.interhuman:SOLO",
    },
)
