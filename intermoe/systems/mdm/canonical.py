"""Where a person of ComMDM stands: 4 numbers in front of a motion that itself starts at the origin, facing Z+.

They are entries 0, 2, 6 and 8 of [rot6D | translation] / 10: a turn about Y and a place on the floor. The turn is the
one that makes the person face Z+, the first two rows of its matrix are its rot6D (c, 0, s, 0, 1, 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.motion.interhuman import MOTION_WIDTH
from intermoe.motion.skeleton import LEFT_HIP, RIGHT_HIP

CANONICAL_WIDTH = 4
_SCALE = 10.0


def canonical_entry(rotation: Tensor, translation: Tensor, width: int) -> Tensor:
    """Turns about Y (..., 3, 3) and places (..., 3) in metres as entries (..., width), zeros behind the 4 numbers."""
    numbers = torch.stack([rotation[..., 0, 0], rotation[..., 0, 2], translation[..., 0], translation[..., 2]], dim=-1)
    return torch.nn.functional.pad(numbers / _SCALE, (0, width - CANONICAL_WIDTH))


def from_canonical(entry: Tensor) -> tuple[Tensor, Tensor]:
    """Turn (..., 3, 3) and place (..., 3) in metres of entries (..., >= 4); no rotation if both its numbers are 0."""
    cosine, sine, x, z = (_SCALE * entry[..., :CANONICAL_WIDTH]).unbind(dim=-1)
    length = torch.hypot(cosine, sine).clamp(min=torch.finfo(entry.dtype).tiny)
    cosine, sine, zero, one = cosine / length, sine / length, torch.zeros_like(x), torch.ones_like(x)
    rows = [(cosine, zero, sine), (zero, one, zero), (-sine, zero, cosine)]
    rotation = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return rotation, torch.stack([x, zero, z], dim=-1)


def placement(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How person 2 is turned, (..., 3, 3), then shifted, (..., 3), to stand beside person 1, given both entries.

    As published, the shift is the difference of the places, not turned with person 1: right where person 1's own entry
    says that they stand at the origin, facing Z+.
    """
    (rotation1, translation1), (rotation2, translation2) = from_canonical(first), from_canonical(second)
    return rotation1 @ rotation2.transpose(-1, -2), translation2 - translation1


def to_own_frame(motion: Tensor) -> tuple[Tensor, Tensor]:
    """InterHuman motion (..., T, 262) moved to start at the origin, facing Z+, and its entry (..., 262).

    Positions and velocities turn; rotations are local and stay, as do contacts and heights.

    Raises:
        ValueError: not (..., T, 262).
    """
    if motion.dim() < 2 or motion.shape[-1] != MOTION_WIDTH:
        raise ValueError(f"motion: expected shape (..., T, {MOTION_WIDTH}), got {tuple(motion.shape)}")
    pose = motion[..., 0, :66].unflatten(-1, (22, 3))
    across = pose[..., RIGHT_HIP, :] - pose[..., LEFT_HIP, :]
    forward_x, forward_z = across[..., 2], -across[..., 0]
    place = pose[..., 0, :] * pose.new_tensor([1.0, 0.0, 1.0])
    entry = torch.stack([forward_z, -forward_x, torch.zeros_like(forward_x), torch.zeros_like(forward_x)], dim=-1)
    turn, _ = from_canonical(entry)
    moved = _turned(_shifted(motion, -place), turn)
    return moved, canonical_entry(turn, place, MOTION_WIDTH)


def to_common_frame(motion: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """InterHuman motion (..., T, 262), turned (..., 3, 3), then shifted (..., 3); ``placement`` gives both."""
    return _shifted(_turned(motion, turn), shift)


def _turned(motion: Tensor, turn: Tensor) -> Tensor:
    vectors = motion[..., :132].unflatten(-1, (44, 3)) @ turn.transpose(-1, -2)[..., None, :, :]
    return torch.cat([vectors.flatten(-2), motion[..., 132:]], dim=-1)


def _shifted(motion: Tensor, shift: Tensor) -> Tensor:
    positions = motion[..., :66].unflatten(-1, (22, 3)) + shift[..., None, None, :]
    return torch.cat([positions.flatten(-2), motion[..., 66:]], dim=-1)
