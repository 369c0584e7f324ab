"""Losses of the Causal-Skeletal VAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.motion.interhuman import INTERHUMAN
from intermoe.motion.representation import Representation
from intermoe.motion.skeleton import FOOT_JOINTS, Edges
from intermoe.systems.intermoe.vae import LatentDistribution
from intermoe.train.config import VAELossConfig

_PER_DECIMETRE = 10.0


def vae_losses(
    output: Tensor,
    target: Tensor,
    posterior: LatentDistribution,
    mean: Tensor,
    std: Tensor,
    weights: VAELossConfig,
    representation: Representation = INTERHUMAN,
) -> dict[str, Tensor]:
    """Terms of the VAE's loss, unweighted, and ``"loss"``, their weighted sum.

    - reconstruction: smooth L1 of all normalised columns.
    - position: mean distance of joints in decimetres. Normalised positions are in units of how far a couple wanders,
      about a metre, so their own error says little about centimetres.
    - velocity: L1 of normalised velocity columns, and of the normalised differences of successive positions (not of
      root-centred ones).
    - rotation: L1 of normalised rot6D columns.
    - bone: relative error of the bones' lengths, which errors of neighbouring joints do not leave alone.
    - skating: speed in m/s of feet beyond the target's while the target's foot contacts are set; 0 where feet are
      not grounded.
    - kl: divergence of the posterior from the standard normal, mean over elements.

    Args:
        output: (N, T, 262) normalised reconstruction, or (N, T, 55, 12), or (N, T, 263), as ``representation`` has it.
        target: same shape, normalised motion.
        mean: of the last dimension and std: likewise, the statistics that the motion was normalised with.

    Raises:
        ValueError: shapes differ or are not those of the representation with T >= 2.
    """
    frame = representation.frame_shape
    if output.shape != target.shape or target.shape[2:] != frame or target.shape[1] < 2:
        got = f"{tuple(output.shape)} and {tuple(target.shape)}"
        raise ValueError(f"output, target: expected both of (N, T >= 2, {', '.join(map(str, frame))}), got {got}")
    bones = representation.skeleton.bones
    found, expected = (representation.positions(motion * std + mean) for motion in (output, target))
    metres = found - expected
    velocity = F.l1_loss(output[..., representation.velocity], target[..., representation.velocity])
    if not representation.root_centred:
        velocity = velocity + (metres.diff(dim=1) / std[representation.velocity].view(-1, 3)).abs().mean()
    lengths, expected_lengths = _bone_lengths(found, bones), _bone_lengths(expected, bones)
    skating = velocity.new_zeros(())
    if representation.grounded:
        skating = _skating(found, expected, (target * std + mean)[..., representation.contacts], representation.fps)
    terms = {
        "reconstruction": F.smooth_l1_loss(output, target),
        "position": _PER_DECIMETRE * torch.linalg.vector_norm(metres, dim=-1).mean(),
        "velocity": velocity,
        "rotation": F.l1_loss(output[..., representation.rotation], target[..., representation.rotation]),
        "bone": ((lengths - expected_lengths).abs() / expected_lengths).mean(),
        "skating": skating,
        "kl": posterior.kl(),
    }
    loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return {"loss": loss, **terms}


def _bone_lengths(positions: Tensor, bones: Edges) -> Tensor:
    """Lengths of all bones: (N, T, J, 3) -> (N, T, bones)."""
    parents, children = zip(*bones, strict=True)
    return torch.linalg.vector_norm(positions[..., children, :] - positions[..., parents, :], dim=-1)


def _skating(found: Tensor, expected: Tensor, contacts: Tensor, fps: int) -> Tensor:
    speeds = [
        fps * torch.linalg.vector_norm(positions[:, :, FOOT_JOINTS][..., [0, 2]].diff(dim=1), dim=-1)
        for positions in (found, expected)
    ]
    return ((speeds[0] - speeds[1]).clamp(min=0) * contacts[:, :-1].clamp(0, 1)).mean()
