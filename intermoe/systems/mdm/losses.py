"""The one loss of MDM and ComMDM."""

from __future__ import annotations

from torch import Tensor


def motion_errors(estimate: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over valid frames and all features, of each sample and person: (B, P).

    ComMDM's published training counts person 1's alone, canonical entry included.

    Args:
        estimate, target: (B, P, T, X). mask: (B, T) bool, True = valid.
    """
    per_frame = (estimate - target).square().mean(dim=-1)
    if mask is None:
        return per_frame.mean(dim=-1)
    return (per_frame * mask[:, None]).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)[:, None]
