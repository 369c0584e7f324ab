"""The one loss of MDM and ComMDM."""

from __future__ import annotations

from torch import Tensor


def motion_errors(estimate: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over valid frames and all features, of each sample and person: (B, P).

    ComMDM's published training counts person 1's alone, canonical entry included.

    Args:
        estimate, target: (B, P, T, X).
        mask: (B, T) bool, True = valid; what padding holds changes nothing.
    """
    error = estimate - target
    if mask is None:
        return error.square().mean(dim=(-2, -1))
    per_frame = error.masked_fill(~mask[:, None, :, None], 0.0).square().mean(dim=-1)
    return per_frame.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)[:, None]
