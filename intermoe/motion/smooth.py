"""Motion without the trembling that an autoencoder of latent frames leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.motion.interhuman import INTERHUMAN, joints, with_positions

# What another weight does to jitter: `intermoe evaluate kinematics --data DATA --model MODEL`.
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
    pull = torch.full((frames,), 1 / WEIGHT, dtype=torch.float64, device=motion.device)
    made = with_positions(motion, least_jerk(positions.flatten(-2), pull).unflatten(-1, positions.shape[-2:])).clone()
    made[..., INTERHUMAN.rotation] = least_jerk(motion[..., INTERHUMAN.rotation], pull)
    return made


def least_jerk(values: Tensor, pull: Tensor) -> Tensor:
    """The y (..., T, C) that minimise sum_t |third difference of y at t|^2 + sum_t pull_t |y_t - x_t|^2.

    Args:
        values: x, (..., T, C).
        pull: (T,) float64, positive; where it is infinite y is x, to the bit.

    Returns:
        In the dtype of ``values``; these themselves where there are 3 frames or fewer, or none is free.
    """
    free = pull.isfinite()
    if len(pull) <= _ORDER or not free.any():
        return values
    differences = torch.eye(len(pull), dtype=torch.float64, device=values.device).diff(n=_ORDER, dim=0)
    moving, fixed = differences[:, free], differences[:, ~free]
    x, weight = values.double(), pull[free]
    wanted = weight[:, None] * x[..., free, :] - moving.T @ (fixed @ x[..., ~free, :])
    result = values.clone()
    result[..., free, :] = torch.linalg.solve(moving.T @ moving + weight.diag(), wanted).to(values)
    return result
