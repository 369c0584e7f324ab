"""All four steps on the GPU, forward and backward, as a chain of the kernels of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contract import EPS, Choose, Experts, Grads, Kind, Needs, Route, Saved, Select, described
from . import registry
from .combine import combine
from .experts import experts_forward
from .experts_backward import experts_backward
from .overflow import overflow_flag
from .plan import planned
from .registry import on_its_device
from .route import route_forward
from .route_backward import route_backward
from .select import allocate_and_fill, select_backward


@on_its_device
def moe_forward(
    route: Route, given: Select, experts: Experts, kind: Kind | None = None
) -> tuple[Tensor, Tensor, Saved]:
    """Route, select, experts and combine; what each takes and what is saved is told in ``contract``."""
    out, counts, *saved = _forward(route, given, experts, kind, save_h=not experts.recompute, keep=True)
    return out, counts, Saved(*saved)


@on_its_device
def moe_inference(route: Route, given: Select, experts: Experts, kind: Kind | None = None) -> tuple[Tensor, Tensor]:
    """``out`` and ``counts`` of ``moe_forward``, of which nothing is kept for a backward."""
    out, counts, *_ = _forward(route, given, experts, kind, save_h=False, keep=False)
    return out, counts


def _forward(
    route: Route, given: Select, experts: Experts, kind: Kind | None, save_h: bool, keep: bool
) -> tuple[Tensor, ...]:
    hidden, router_weight, *_, normalise = route
    max_pairs = registry.allocated_pairs(hidden.shape[0], router_weight.shape[0], given.max_pairs)
    flag = overflow_flag(hidden.device)
    flag.raise_if_set()
    tensors = (*route[:5], *given[:2], *experts[:2])
    # what the host reads in the middle of a call can be in no plan, but what is before and behind it can
    made = (_steps if max_pairs is None else _planned_steps)(
        *tensors, kind=kind, rule=given.rule, normalise=normalise, max_pairs=max_pairs,
        save_h=save_h, half_sums=experts.half_sums, keep=keep,
    )  # fmt: skip
    if hidden.device.type == "cpu":
        flag.raise_if_set()
    return made


def _steps(
    *tensors: Any, rule: Choose | None, normalise: bool, max_pairs: int | None,
    save_h: bool, half_sums: bool, keep: bool, kind: Kind | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """All four: ``out`` and ``counts``, and with ``keep`` the tensors of ``Saved``."""
    hidden, weight, offset, scale, shift, bias, valid, w_gate_up, w_down = tensors
    route = (hidden, weight, offset, scale, shift)
    if rule is None:
        made = _choose(*route, bias, valid, kind=kind, normalise=normalise, max_pairs=max_pairs, dtype=w_down.dtype)
    else:
        routed = route_forward(*route, EPS, normalise, w_down.dtype)
        made = (*routed, *allocate_and_fill(routed[1], None, rule(routed[1], valid, bias), max_pairs))
    tokens, logits, mean, rstd, token_idx, gates, offsets, slots, counts = made
    if max_pairs is None:
        rows = registry.room(int(offsets[-1]), slots.numel())  # the one host read of the exact mode
        token_idx, gates = token_idx[:rows], gates[:rows]
    pairs = (token_idx, gates, offsets, slots)
    sized = None if kind is None else (kind, token_idx.shape)
    out, h = _apply(tokens, *pairs, w_gate_up, w_down, kind=sized, save_h=save_h, half_sums=half_sums)
    if not keep:
        return out, counts
    kept = tokens if tokens is not hidden else tokens.new_empty(0, tokens.shape[1])
    return out, counts, logits, kept, mean, rstd, *pairs, h


_planned_steps = planned(_steps)


@planned
def _choose(*tensors: Any, normalise: bool, max_pairs: int | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Steps 1 and 2: tokens, logits and statistics, and the pairs; of the tensors of ``Route`` and ``Select``."""
    hidden, weight, offset, scale, shift, bias, valid = tensors
    routed = route_forward(hidden, weight, offset, scale, shift, EPS, normalise, dtype)
    return (*routed, *allocate_and_fill(routed[1], bias, valid, max_pairs))


@planned
def _apply(
    tokens: Tensor, token_idx: Tensor, gates: Tensor, offsets: Tensor, slots: Tensor, w_gate_up: Tensor, w_down: Tensor,
    *, save_h: bool, half_sums: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Steps 3 and 4: ``out`` and ``h``."""
    expert_out, h = experts_forward(tokens, token_idx, offsets, w_gate_up, w_down, save_h, half_sums)
    return combine(expert_out, gates, slots), h


@on_its_device
def moe_backward(
    grad_out: Tensor, grad_logits: Tensor | None, route: Route, experts: Experts, saved: Saved, needs: Needs,
    kind: Kind | None = None,
) -> Grads:  # fmt: skip
    """Gradients of the inputs that ``needs`` names, from that of out (S, D) and, where it has one, of the logits."""
    hidden, router_weight, _, scale, _, normalise = route
    w_gate_up, w_down, recompute, _ = experts
    tensors = (grad_out, grad_logits, hidden, router_weight, scale, w_gate_up, w_down)
    # a parameter may have been given other memory since the forward
    sized = None if kind is None else (kind, saved.token_idx.shape, described(tensors))
    options = {"rows": route.rows, "normalise": normalise, "recompute": recompute, "needs": needs}
    return list(_gradients(*tensors, *saved, kind=sized, **options))


@planned
def _gradients(*tensors: Any, rows: int, normalise: bool, recompute: bool, needs: Needs) -> tuple[Tensor | None, ...]:
    """In the order of ``Needs``, of what ``moe_backward`` is given; the last tensors are those of ``Saved``."""
    grad_out, grad_logits, hidden, router_weight, scale, w_gate_up, w_down, *kept = tensors
    saved = Saved(*kept)
    tokens = saved.tokens if saved.tokens.shape[0] else hidden
    h = None if recompute else saved.h
    index = (saved.token_idx, saved.expert_offsets, saved.gates, h, w_gate_up, w_down)
    needed = (needs.tokens, needs.w_gate_up, needs.w_down)
    grad_pairs, grad_gates, *weights = experts_backward(grad_out, tokens, *index, needed)
    if not (needs.tokens or needs.logits):
        return None, None, None, None, None, *weights
    grad_tokens = None if grad_pairs is None else combine(grad_pairs, None, saved.slots)
    grad_logits = select_backward(grad_gates, saved.logits, saved.slots, grad_logits)
    given = (hidden, (saved.mean, saved.rstd), router_weight, scale, normalise, rows)
    router = (needs.router_weight, needs.router_offset)
    found = (*route_backward(grad_tokens, grad_logits, *given, router), *weights)
    return tuple(grad if need else None for grad, need in zip(found, needs, strict=True))
