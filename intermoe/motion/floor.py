"""Persons who are on the floor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.motion.interhuman import joints, with_positions

REACH = 10
"""Frames before and after within which a person touches the floor: a third of a second, longer than most jumps rise."""
STANDING = 0.03
"""Metres: the lowest joint of one who stands, the ball of a foot, is up to so high."""


def with_persons_on_floor(motion: Tensor) -> Tensor:
    """InterHuman motion (..., T, 262), un-normalised, raised or lowered so that each person touches the floor.

    What a person's lowest joint keeps above ``STANDING``, or goes below 0, within ``REACH`` frames to either side is
    taken off its height, smoothed over as many frames; all joints move alike. Motion that touches the floor so often
    stays as it is, jumps included. Stairs, of which there are none, become level. Velocities are the differences of the
    positions (the last frame's stays); other columns stay.

    Raises:
        ValueError: not (..., T, 262).
    """
    positions = joints(motion)
    lowest = positions[..., 1].amin(dim=-1)
    floor = -_over_window(-lowest, F.max_pool1d)
    wrong = (floor - STANDING).clamp(min=0) + floor.clamp(max=0)
    lift = _over_window(wrong, F.avg_pool1d)
    positions = torch.stack([positions[..., 0], positions[..., 1] - lift[..., None], positions[..., 2]], dim=-1)
    return with_positions(motion, positions)


def _over_window(values: Tensor, pool: Callable[..., Tensor]) -> Tensor:
    """``pool`` of values (..., T) over 2 * REACH + 1 frames, the first and last repeated beyond the ends."""
    rows = F.pad(values.reshape(-1, 1, values.shape[-1]), (REACH, REACH), mode="replicate")
    return pool(rows, 2 * REACH + 1, stride=1).view(values.shape)
