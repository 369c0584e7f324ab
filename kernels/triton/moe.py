"""All four steps on the GPU, forward and backward, as a chain of the kernels of each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import EPS, Experts, Grads, Needs, Route, Saved, Select
from . import registry
from .combine import combine
from .experts import experts_forward
from .experts_backward import experts_backward
from .registry import on_its_device
from .route import route_forward
from .route_backward import route_backward
from .select import select, select_backward


@on_its_device
def moe_forward(route: Route, given: Select, experts: Experts) -> tuple[Tensor, Tensor, Saved]:
    """Route, select, experts and combine; what each takes and what is saved is told in ``contract``."""
    return _forward(route, given, experts, save_h=not experts.recompute)


@on_its_device
def moe_inference(route: Route, given: Select, experts: Experts) -> tuple[Tensor, Tensor]:
    """``out`` and ``counts`` of ``moe_forward``, of which nothing is kept for a backward."""
    return _forward(route, given, experts, save_h=False)[:2]


def _forward(route: Route, given: Select, experts: Experts, save_h: bool) -> tuple[Tensor, Tensor, Saved]:
    hidden, router_weight, router_offset, scale, shift, normalise = route
    tokens, logits, mean, rstd = route_forward(hidden, router_weight, router_offset, scale, shift, EPS, normalise)
    max_pairs = registry.allocated_pairs(len(hidden), len(router_weight), given.max_pairs)
    token_idx, gates, offsets, slots, counts = select(logits, *given.given(logits), max_pairs)
    tokens = tokens.to(experts.w_down.dtype)
    weights = (experts.w_gate_up, experts.w_down)
    expert_out, h = experts_forward(tokens, token_idx, offsets, *weights, save_h, experts.half_sums)
    out = combine(expert_out, gates, slots)
    kept = tokens if tokens is not hidden else tokens.new_empty(0, tokens.shape[1])
    return out, counts, Saved(logits, kept, mean, rstd, token_idx, gates, offsets, slots, h)


def moe_backward(
    grad_out: Tensor, grad_logits: Tensor | None, route: Route, experts: Experts, saved: Saved, needs: Needs
) -> Grads:
    """Gradients of the inputs that ``needs`` names, from that of out (S, D) and, where it has one, of the logits."""
    hidden = route.hidden
    tokens = saved.tokens if len(saved.tokens) else hidden
    h = None if experts.recompute else saved.h
    index = (saved.token_idx, saved.expert_offsets, saved.gates, h, experts.w_gate_up, experts.w_down)
    needed = (needs.tokens, needs.w_gate_up, needs.w_down)
    grad_pairs, grad_gates, *weights = experts_backward(grad_out, tokens, *index, needed)
    if not (needs.tokens or needs.logits):
        return [None, None, None, None, None, *weights]
    grad_tokens = torch.zeros_like(hidden) if grad_pairs is None else combine(grad_pairs, None, saved.slots)
    through_gates = select_backward(grad_gates, saved.logits, saved.slots)
    grad_logits = through_gates if grad_logits is None else through_gates + grad_logits
    statistics = (saved.mean, saved.rstd, route.router_weight, route.scale)
    options = (route.normalise, route.rows, needs.router_weight)
    return [*route_backward(grad_tokens, grad_logits, hidden, *statistics, *options), *weights]
