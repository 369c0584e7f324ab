"""Bones of constant length: what a decoder of joint positions cannot promise, and every skeleton has."""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.motion.interhuman import joints, with_positions
from intermoe.motion.skeleton import PARENTS, bone_vectors

SWEEPS = 5
_SHORTEST = 1e-6


def with_rigid_bones(motion: Tensor, lengths: Tensor | None = None) -> Tensor:
    """InterHuman motion (..., T, 262), un-normalised, whose bones keep their length; other columns follow or stay.

    Positions are those of ``hold_bone_lengths``, given ``lengths``; velocities are the differences of them (the
    last frame's stays).

    Raises:
        ValueError: not (..., T, 262).
    """
    return with_positions(motion, hold_bone_lengths(joints(motion), lengths))


def bone_lengths(positions: Tensor) -> Tensor:
    """Mean length (..., 21) over T of the bones that end at joints 1..21 of joints (..., T, 22, 3)."""
    return torch.linalg.vector_norm(bone_vectors(positions), dim=-1).mean(dim=-2)


def hold_bone_lengths(positions: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Joints (..., T, 22, 3) moved as little as need be for every bone to have its mean length over T.

    Or that of ``lengths`` (..., 21), as ``bone_lengths`` has them.

    Position-based dynamics (Müller et al. 2007): each sweep moves both ends of one bone after another by half of what
    it is too long or short, so that an error is shared by its neighbours instead of adding up towards hands and feet. A
    last pass from the root outwards takes what the sweeps have left.
    """
    parts = list(positions.unbind(dim=-2))
    held = (bone_lengths(positions) if lengths is None else lengths)[..., None, :, None].unbind(dim=-2)
    for sweep in range(SWEEPS + 1):
        last = sweep == SWEEPS
        for (child, parent), length in zip(_BONES, held, strict=True):
            bone = parts[child] - parts[parent]
            excess = bone * (1 - length / torch.linalg.vector_norm(bone, dim=-1, keepdim=True).clamp(min=_SHORTEST))
            parts[child] = parts[child] - (excess if last else excess / 2)
            if not last:
                parts[parent] = parts[parent] + excess / 2
    return torch.stack(parts, dim=-2)


_BONES = [(child, parent) for child, parent in enumerate(PARENTS) if parent >= 0]
