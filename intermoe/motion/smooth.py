"""Motion without the trembling that an autoencoder of latent frames leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.motion.interhuman import INTERHUMAN, joints, with_positions

WEIGHT = 0.3
"""Of the third differences: what moves to and fro at a fifth of the frame rate, 6 times a second at 30, is halved."""
_ORDER = 3


def with_smooth_joints(motion: Tensor) -> Tensor:
    """InterHuman motion (..., T, 262), un-normalised, whose positions and rotations y are smooth: they minimise

        sum_t |y_t - x_t|^2 + WEIGHT sum_t |third difference of y at t|^2

    over the clip (Whittaker 1923), so that what moves with constant acceleration stays as it is. Velocities are the
    differences of the positions (the last frame's stays); other columns stay. Clips of 3 frames or fewer stay.

    Raises:
        ValueError: not (..., T, 262).
    """
    positions = joints(motion)
    frames = positions.shape[-3]
    if frames <= _ORDER:
        return motion
    identity = torch.eye(frames, dtype=torch.float64, device=motion.device)
    differences = identity.diff(n=_ORDER, dim=0)
    smooth = torch.linalg.inv(identity + WEIGHT * differences.T @ differences)
    moved = torch.einsum("st,...tjx->...sjx", smooth, positions.double()).to(positions)
    turned = torch.einsum("st,...tc->...sc", smooth, motion[..., INTERHUMAN.rotation].double()).to(motion)
    made = with_positions(motion, moved).clone()
    made[..., INTERHUMAN.rotation] = turned
    return made
