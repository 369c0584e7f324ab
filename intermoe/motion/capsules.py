"""Bodies as capsules around their bones, to tell by how much two of them are in the same place; differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.motion.skeleton import JOINT_NAMES

_J = JOINT_NAMES.index
CAPSULES = (
    (_J("pelvis"), _J("spine3"), 0.11),
    (_J("spine3"), _J("neck"), 0.11),
    (_J("neck"), _J("head"), 0.09),
    *(
        (_J(f"{side}_{a}"), _J(f"{side}_{b}"), radius)
        for side in ("left", "right")
        for a, b, radius in (
            ("hip", "knee", 0.07),
            ("knee", "ankle", 0.05),
            ("shoulder", "elbow", 0.045),
            ("elbow", "wrist", 0.035),
        )
    ),
)
"""First joint, second joint, radius in metres."""


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """By how many metres each capsule of one body is inside each of another: (..., C, C), 0 where they are apart.

    Args:
        first, second: joints (..., 22, 3).
    """
    apart, _, _ = between(first, second)
    return (together(first) - apart.square().sum(-1).clamp(min=1e-12).sqrt()).clamp(min=0)


def together(like: Tensor) -> Tensor:
    """Metres (C, C) between the axes of two bodies' capsules that touch, in the dtype of ``like``."""
    thick = like.new_tensor([radius for _, _, radius in CAPSULES])
    return thick[:, None] + thick


def between(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The way from each capsule's axis of one body to each of another where they are nearest (Ericson 2005, 5.1.9).

    Args:
        first, second: joints (..., 22, 3).

    Returns:
        From the second's to the first's (..., C, C, 3), and where on either axis it ends, (..., C, C) in [0, 1] from
        its first joint on; the places are held for gradients.
    """
    starts, ends, _ = zip(*CAPSULES, strict=True)
    a, b = first[..., starts, None, :], first[..., ends, None, :]
    c, d = second[..., None, starts, :], second[..., None, ends, :]
    u, v, w = b - a, d - c, a - c
    uu, vv, uv = (u * u).sum(-1).clamp(min=1e-8), (v * v).sum(-1).clamp(min=1e-8), (u * v).sum(-1)
    uw, vw = (u * w).sum(-1), (v * w).sum(-1)
    s = ((uv * vw - uw * vv) / (uu * vv - uv * uv).clamp(min=1e-8)).clamp(0, 1)
    t = (s * uv + vw) / vv
    s = torch.where(t < 0, -uw / uu, torch.where(t > 1, (uv - uw) / uu, s)).clamp(0, 1)
    s, t = s.detach(), t.clamp(0, 1).detach()
    return w + s[..., None] * u - t[..., None] * v, s, t


def deepest(joints: Tensor) -> Tensor:
    """The deepest overlap of any two of P bodies, (T,) metres, of joints (P, T, 22, 3)."""
    pairs = [overlaps(a, b).amax(dim=(-2, -1)) for i, a in enumerate(joints) for b in joints[i + 1 :]]
    return torch.stack(pairs).amax(dim=0) if pairs else joints.new_zeros(joints.shape[1])
