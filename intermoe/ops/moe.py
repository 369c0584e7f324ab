r"""The four steps as one differentiable operation on one pool of tokens.

    hidden, router ──route──► tokens, logits ──select──► pairs ──experts──► expert_out ──combine──► out

The reference backend is the composition of the step references, differentiated by autograd. Every other backend
offers each step's forward and backward, which one ``autograd.Function`` chains; it saves the routing, the normalised
tokens and the experts' pre-activations, not the experts' outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from intermoe import backends
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import check_experts, experts_reference
from intermoe.ops.route import EPS, check_route, route_reference
from intermoe.ops.select import check_select, select_reference


def moe(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    selection_bias: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    valid: Tensor | None = None,
    normalise: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Route, select, run the experts and combine, for one pool of S tokens.

    Args:
        hidden: (S, D). router_weight: (E, D). router_offset: (R, E) or ``None``; R divides S.
        scale: (R, D) and shift: (R, D) of the normalisation, or ``None``.
        selection_bias: (E,), no gradient.
        w_gate_up: (E, 2F, D). w_down: (E, D, F).
        valid: (S,) bool, ``True`` = valid; invalid tokens get zeros and are not counted.
        normalise: ``False`` gives the experts ``hidden`` as it is.
        backend: name of a backend, or ``None`` for the one in force (see ``intermoe.backends``).

    Returns:
        ``out`` (S, D) in the dtype of ``hidden`` and ``counts`` (E,) int64, the number of tokens of each expert.
        Under autocast the experts run in its dtype; routing stays in float32.
    """
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        w_gate_up, w_down = w_gate_up.to(dtype), w_down.to(dtype)
    name = backends.resolve(hidden.device, w_gate_up.dtype, backend)
    arguments = (hidden, router_weight, router_offset, scale, shift, selection_bias, w_gate_up, w_down)
    with torch.autocast(device_type, enabled=False):
        if name == "reference":
            return moe_reference(*arguments, valid=valid, normalise=normalise)
        check_route(hidden, router_weight, router_offset, scale, shift)
        out, counts = _MoE.apply(*arguments, valid, normalise, backends.load(name))
        return out, counts


def moe_reference(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    selection_bias: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    valid: Tensor | None = None,
    normalise: bool = True,
) -> tuple[Tensor, Tensor]:
    """The composition of the four step references; the definition of ``moe``."""
    tokens, logits = route_reference(hidden, router_weight, router_offset, scale, shift, normalise=normalise)
    selection = select_reference(logits, selection_bias, valid)
    expert_out = experts_reference(
        tokens.to(w_gate_up.dtype), selection.token_idx, selection.expert_offsets, w_gate_up, w_down
    )
    out = combine_reference(expert_out, selection.gates, selection.slots)
    return out.to(hidden.dtype), selection.counts


class _MoE(torch.autograd.Function):
    """Chains the forward and backward steps of one backend."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        router_weight: Tensor,
        router_offset: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        selection_bias: Tensor,
        w_gate_up: Tensor,
        w_down: Tensor,
        valid: Tensor | None,
        normalise: bool,
        steps: Any,
    ) -> tuple[Tensor, Tensor]:
        tokens, logits, mean, rstd = steps.route_forward(
            hidden, router_weight, router_offset, scale, shift, EPS, normalise
        )
        check_select(logits, selection_bias, valid)
        token_idx, gates, expert_offsets, slots, counts = steps.select(logits, selection_bias, valid)
        tokens = tokens.to(w_gate_up.dtype)
        check_experts(tokens, token_idx, expert_offsets, w_gate_up, w_down)
        expert_out, h = steps.experts_forward(tokens, token_idx, expert_offsets, w_gate_up, w_down)
        out = steps.combine(expert_out, gates, slots)
        ctx.steps, ctx.normalise = steps, normalise
        ctx.rows = next((r.shape[0] for r in (router_offset, scale) if r is not None), 1)
        ctx.save_for_backward(
            hidden, router_weight, scale, w_gate_up, w_down, tokens, logits, mean, rstd,
            token_idx, gates, expert_offsets, slots, h,
        )  # fmt: skip
        ctx.mark_non_differentiable(counts)
        return out.to(hidden.dtype), counts

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (hidden, router_weight, scale, w_gate_up, w_down, tokens, logits, mean, rstd,
         token_idx, gates, expert_offsets, slots, h) = ctx.saved_tensors  # fmt: skip
        steps = ctx.steps
        grad_out = grads[0].to(w_gate_up.dtype)
        grad_pairs, grad_gates, grad_w_gate_up, grad_w_down = steps.experts_backward(
            grad_out, tokens, token_idx, expert_offsets, gates, h, w_gate_up, w_down
        )
        grad_tokens = steps.combine(grad_pairs, None, slots).to(hidden.dtype)
        grad_logits = steps.select_backward(grad_gates, logits, slots)
        grad_hidden, grad_router_weight, grad_router_offset, grad_scale, grad_shift = steps.route_backward(
            grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, ctx.normalise, ctx.rows
        )
        needs = ctx.needs_input_grad
        found = (
            grad_hidden, grad_router_weight, grad_router_offset, grad_scale, grad_shift, None, grad_w_gate_up, grad_w_down
        )  # fmt: skip
        return (*(g if need else None for g, need in zip(found, needs, strict=False)), None, None, None)
