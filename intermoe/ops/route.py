r"""Step 1, route: normalise the tokens and compute how well each expert suits each token.

    logits[s, e] = hidden[s] . router_weight[e] + router_offset[row(s), e]                       (float32)
    tokens[s]    = (hidden[s] - mean_s) / sqrt(var_s + eps) * (1 + scale[row(s)]) + shift[row(s)]

The router reads the un-normalised hidden state. The fusion of motion and text logits, R = fuse(hidden W_motion^T,
condition W_text^T) of InterMoE (arXiv 2511.13488), is linear in each, so ``fuse`` folds its weights into
``router_weight`` and ``router_offset`` and the step knows one form only. AdaLN: Peebles and Xie 2023 (DiT).
"""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.kernels.contract import EPS, Route
from intermoe.ops.checks import check_same_device, check_tensor


def fuse(
    motion_weight: Tensor, text_logits: Tensor | None, alpha: Tensor | float | None
) -> tuple[Tensor, Tensor | None]:
    """Fold the fusion weights into the router: alpha * motion + (1 - alpha) * text, or their plain sum.

    Args:
        motion_weight: (E, D) router weight of the motion.
        text_logits: (R, E) condition . W_text^T, one row per sample; ``None`` routes on motion alone.
        alpha: weight of the motion logits; ``None`` for the plain sum.

    Returns:
        ``router_weight`` (E, D) and ``router_offset`` (R, E) or ``None``.
    """
    if text_logits is None:
        return motion_weight, None
    if alpha is None:
        return motion_weight, text_logits
    return alpha * motion_weight, (1 - alpha) * text_logits


def check_route(
    hidden: Tensor, router_weight: Tensor, router_offset: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless the arguments of ``route`` fit together."""
    size = check_tensor("hidden", hidden, ("S", "D"))
    num_experts = check_tensor("router_weight", router_weight, ("E", size["D"]))["E"]
    if (scale is None) != (shift is None):
        raise ValueError("scale: expected scale and shift together, got only one of them")
    rows: dict[str, int] = {}
    if router_offset is not None:
        rows["router_offset"] = check_tensor("router_offset", router_offset, ("R", num_experts))["R"]
    if scale is not None and shift is not None:
        rows["scale"] = check_tensor("scale", scale, ("R", size["D"]))["R"]
        rows["shift"] = check_tensor("shift", shift, ("R", size["D"]))["R"]
    for name, count in rows.items():
        if (count == 0 and size["S"] > 0) or (count > 0 and size["S"] % count != 0):
            raise ValueError(
                f"{name}: expected a number of rows that divides the number of tokens {size['S']}, got {count}"
            )
    check_same_device(hidden=hidden, router_weight=router_weight, router_offset=router_offset, scale=scale, shift=shift)


def per_token(rows: Tensor, num_tokens: int) -> Tensor:
    """Repeat (R, X) rows to (S, X): token s belongs to row s // (S // R)."""
    return rows.repeat_interleave(num_tokens // max(rows.shape[0], 1), dim=0)


def route_reference(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    normalise: bool = True,
    eps: float = EPS,
) -> tuple[Tensor, Tensor]:
    """Normalised tokens and routing logits of one pool. Arithmetic in float32 (float64 for float64 input).

    Args:
        hidden: (S, D) tokens of all samples, one pool.
        router_weight: (E, D).
        router_offset: (R, E) added to the logits of the tokens of each row, or ``None``. R divides S.
        scale: (R, D) AdaLN scale, or ``None``.
        shift: (R, D) AdaLN shift, given with ``scale``.
        normalise: ``False`` hands ``hidden`` through as ``tokens``.
        eps: added to the variance.

    Returns:
        ``tokens`` (S, D) in the dtype of ``hidden`` and ``logits`` (S, E) in float32 (float64 for float64 input).
    """
    check_route(hidden, router_weight, router_offset, scale, shift)
    num_tokens = hidden.shape[0]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(wide) @ router_weight.to(wide).T
    if router_offset is not None:
        logits = logits + per_token(router_offset.to(wide), num_tokens)
    if not normalise:
        return hidden, logits
    tokens = torch.nn.functional.layer_norm(hidden.to(wide), hidden.shape[-1:], eps=eps)
    if scale is not None and shift is not None:
        tokens = tokens * (1 + per_token(scale.to(wide), num_tokens)) + per_token(shift.to(wide), num_tokens)
    return tokens.to(hidden.dtype), logits


def logits_reference(route: Route) -> Tensor:
    """The routing logits (S, E) alone, in float32 (float64 for float64 input)."""
    return route_reference(route.hidden, route.router_weight, route.router_offset, None, None, normalise=False)[1]
