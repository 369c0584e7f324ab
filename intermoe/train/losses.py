"""Losses of the Causal-Skeletal VAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.data.motion import FOOT_JOINTS, FPS, MOTION_WIDTH, NUM_JOINTS, PARENTS, joints
from intermoe.nn.vae import LatentDistribution
from intermoe.train.config import VAELossConfig

VELOCITY = slice(3 * NUM_JOINTS, 6 * NUM_JOINTS)
ROTATION = slice(6 * NUM_JOINTS, 6 * NUM_JOINTS + 6 * (NUM_JOINTS - 1))
_PER_DECIMETRE = 10.0


def vae_losses(
    output: Tensor,
    target: Tensor,
    posterior: LatentDistribution,
    mean: Tensor,
    std: Tensor,
    weights: VAELossConfig,
) -> dict[str, Tensor]:
    """Terms of the VAE's loss, unweighted, and ``"loss"``, their weighted sum.

    - reconstruction: smooth L1 of all normalised columns.
    - position: mean distance of joints in decimetres. Normalised positions are in units of how far a couple wanders,
      about a metre, so their own error says little about centimetres.
    - velocity: L1 of normalised velocity columns, and of the normalised differences of successive positions.
    - rotation: L1 of normalised rot6D columns.
    - bone: relative error of the bones' lengths, which errors of neighbouring joints do not leave alone.
    - skating: speed in m/s of feet beyond the target's while the target's foot contacts are set.
    - kl: divergence of the posterior from the standard normal, mean over elements.

    Args:
        output: (N, T, 262) normalised reconstruction. target: same shape, normalised motion.
        mean: (262,) and std: (262,), the statistics that the motion was normalised with.

    Raises:
        ValueError: shapes differ or are not (N, T, 262) with T >= 2.
    """
    if output.shape != target.shape or target.dim() != 3 or target.shape[1] < 2 or target.shape[2] != MOTION_WIDTH:
        got = f"{tuple(output.shape)} and {tuple(target.shape)}"
        raise ValueError(f"output, target: must both be (N, T >= 2, {MOTION_WIDTH}), got {got}")
    found, expected = (joints(motion * std + mean) for motion in (output, target))
    metres = found - expected
    motion_error = metres.diff(dim=1).flatten(-2) / std[VELOCITY]
    terms = {
        "reconstruction": F.smooth_l1_loss(output, target),
        "position": _PER_DECIMETRE * torch.linalg.vector_norm(metres, dim=-1).mean(),
        "velocity": F.l1_loss(output[..., VELOCITY], target[..., VELOCITY]) + motion_error.abs().mean(),
        "rotation": F.l1_loss(output[..., ROTATION], target[..., ROTATION]),
        "bone": ((_bone_lengths(found) - _bone_lengths(expected)).abs() / _bone_lengths(expected)).mean(),
        "skating": _skating(found, expected, (target * std + mean)[..., -len(FOOT_JOINTS) :]),
        "kl": posterior.kl(),
    }
    loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return {"loss": loss, **terms}


def _bone_lengths(positions: Tensor) -> Tensor:
    """Distance of every joint but the root to its parent: (N, T, J, 3) -> (N, T, J - 1)."""
    return torch.linalg.vector_norm(positions[..., 1:, :] - positions[..., PARENTS[1:], :], dim=-1)


def _skating(found: Tensor, expected: Tensor, contacts: Tensor) -> Tensor:
    speeds = [
        FPS * torch.linalg.vector_norm(positions[:, :, FOOT_JOINTS][..., [0, 2]].diff(dim=1), dim=-1)
        for positions in (found, expected)
    ]
    return ((speeds[0] - speeds[1]).clamp(min=0) * contacts[:, :-1].clamp(0, 1)).mean()
