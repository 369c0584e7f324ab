"""Losses of the Causal-Skeletal VAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.data.motion import MOTION_WIDTH, NUM_JOINTS
from intermoe.nn.vae import LatentDistribution
from intermoe.train.config import VAELossConfig

POSITION = slice(0, 3 * NUM_JOINTS)
VELOCITY = slice(3 * NUM_JOINTS, 6 * NUM_JOINTS)
ROTATION = slice(6 * NUM_JOINTS, 6 * NUM_JOINTS + 6 * (NUM_JOINTS - 1))
_PER_DECIMETRE = 10.0


def vae_losses(
    output: Tensor, target: Tensor, posterior: LatentDistribution, std: Tensor, weights: VAELossConfig
) -> dict[str, Tensor]:
    """Terms of the VAE's loss, unweighted, and ``"loss"``, their weighted sum.

    - reconstruction: smooth L1 of all normalised columns.
    - position: mean distance of joints in decimetres. Normalised positions are in units of how far a couple wanders,
      about a metre, so their own error says little about centimetres.
    - velocity: L1 of normalised velocity columns, and of the normalised differences of successive positions.
    - rotation: L1 of normalised rot6D columns.
    - kl: divergence of the posterior from the standard normal, mean over elements.

    Args:
        output: (N, T, 262) normalised reconstruction. target: same shape, normalised motion.
        std: (262,) standard deviations that the motion was divided by.

    Raises:
        ValueError: shapes differ or are not (N, T, 262) with T >= 2.
    """
    if output.shape != target.shape or target.dim() != 3 or target.shape[1] < 2 or target.shape[2] != MOTION_WIDTH:
        got = f"{tuple(output.shape)} and {tuple(target.shape)}"
        raise ValueError(f"output, target: must both be (N, T >= 2, {MOTION_WIDTH}), got {got}")
    metres = ((output - target) * std)[..., POSITION].unflatten(-1, (NUM_JOINTS, 3))
    motion_error = metres.diff(dim=1).flatten(-2) / std[VELOCITY]
    terms = {
        "reconstruction": F.smooth_l1_loss(output, target),
        "position": _PER_DECIMETRE * torch.linalg.vector_norm(metres, dim=-1).mean(),
        "velocity": F.l1_loss(output[..., VELOCITY], target[..., VELOCITY]) + motion_error.abs().mean(),
        "rotation": F.l1_loss(output[..., ROTATION], target[..., ROTATION]),
        "kl": posterior.kl(),
    }
    loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return {"loss": loss, **terms}
