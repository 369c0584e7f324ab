"""All four steps on the GPU, forward and backward, as a chain of the kernels of each."""

from __future__ import annotations

from typing import Any, NamedTuple

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
from .together import Spare, Together

OFFSETS = 4
"""The number of ``expert_offsets`` among what is kept together."""


class Kept(NamedTuple):
    """What a call of a known kind keeps: ``Saved``, of which what no one else reads lies together."""

    logits: Tensor
    slots: Tensor
    tokens: Tensor
    h: Tensor
    together: Together
    """mean, rstd, token_idx, gates and expert_offsets; token_idx and gates with room for ``num_pairs`` or more"""
    num_pairs: int

    def saved(self) -> Saved:
        """Each on its own."""
        mean, rstd, token_idx, gates, offsets = self.together.tensors()
        pairs = (token_idx[: self.num_pairs], gates[: self.num_pairs], offsets, self.slots)
        return Saved(self.logits, self.tokens, mean, rstd, *pairs, self.h)


@on_its_device
def moe_forward(
    route: Route, given: Select, experts: Experts, kind: Kind | None = None
) -> tuple[Tensor, Tensor, Saved | Kept]:
    """Route, select, experts and combine; what each takes and what is saved is told in ``contract``."""
    out, counts, *rest = _forward(route, given, experts, kind, not experts.recompute, keep=True)
    kept = Kept(*rest)
    return out, counts, kept.saved() if kind is None else kept


@on_its_device
def moe_inference(route: Route, given: Select, experts: Experts, kind: Kind | None = None) -> tuple[Tensor, Tensor]:
    """``out`` and ``counts`` of ``moe_forward``, of which nothing is kept for a backward."""
    out, counts = _forward(route, given, experts, kind, save_h=False, keep=False)
    return out, counts


def _forward(route: Route, given: Select, experts: Experts, kind: Kind | None, save_h: bool, keep: bool) -> list[Any]:
    hidden, weight, *_, normalise = route
    bias, valid, rule, max_pairs = given
    w_gate_up, w_down, _, half_sums = experts
    max_pairs = registry.allocated_pairs(hidden.shape[0], weight.shape[0], max_pairs)
    flag = overflow_flag(hidden.device)
    flag.raise_if_set()
    # what the host reads in the middle of a call can be in no plan, but what is before and behind it can
    made = (_steps if max_pairs is None else _planned_steps)(
        *route[:5], bias, valid, w_gate_up, w_down, kind=kind, rule=rule, normalise=normalise, max_pairs=max_pairs,
        save_h=save_h, half_sums=half_sums, keep=keep,
    )  # fmt: skip
    if hidden.is_cpu:
        flag.raise_if_set()
    return [*made, max_pairs] if keep and max_pairs is not None else [*made]


def _steps(
    *tensors: Any, rule: Choose | None, normalise: bool, max_pairs: int | None,
    save_h: bool, half_sums: bool, keep: bool, kind: Kind | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """All four: ``out`` and ``counts``, and with ``keep`` the fields of ``Kept``, the number where it is not given."""
    hidden, weight, offset, scale, shift, bias, valid, w_gate_up, w_down = tensors
    route = (hidden, weight, offset, scale, shift)
    if rule is None:
        made = _choose(*route, bias, valid, kind=kind, normalise=normalise, max_pairs=max_pairs, dtype=w_down.dtype)
    else:
        tokens, logits, mean, rstd = route_forward(*route, EPS, normalise, w_down.dtype)
        made = (tokens, logits, *_selected(mean, rstd, logits, None, rule(logits, valid, bias), max_pairs))
    tokens, logits, slots, counts, together = made
    num_pairs = max_pairs
    if num_pairs is None:  # the one host read of the exact mode
        num_pairs = registry.room(together.last(OFFSETS), *slots.shape)
    options = {"num_pairs": num_pairs, "save_h": save_h, "half_sums": half_sums}
    sized = None if kind is None else (kind, together.layout)
    out, h = _apply(tokens, slots, together, w_gate_up, w_down, kind=sized, **options)
    if not keep:
        return out, counts
    kept = tokens if tokens is not hidden else tokens.new_empty(0, tokens.shape[1])
    numbers = (num_pairs,) if max_pairs is None else ()
    return out, counts, logits, slots, kept, h, together, *numbers


_planned_steps = planned(_steps)


@planned
def _choose(*tensors: Any, normalise: bool, max_pairs: int | None, dtype: torch.dtype) -> tuple[Any, ...]:
    """Steps 1 and 2: tokens, logits, slots and counts, and what is kept together; of ``Route`` and ``Select``."""
    hidden, weight, offset, scale, shift, bias, valid = tensors
    tokens, logits, mean, rstd = route_forward(hidden, weight, offset, scale, shift, EPS, normalise, dtype)
    return tokens, logits, *_selected(mean, rstd, logits, bias, valid, max_pairs)


def _selected(
    mean: Tensor, rstd: Tensor, logits: Tensor, bias: Tensor | None, valid: Tensor | None, max_pairs: int | None
) -> tuple[Tensor, Tensor, Together]:
    """Step 2: slots and counts, and what is kept together."""
    token_idx, gates, offsets, slots, counts = allocate_and_fill(logits, bias, valid, max_pairs)
    return slots, counts, Together(mean, rstd, token_idx, gates, offsets)


@planned
def _apply(
    tokens: Tensor, slots: Tensor, together: Together, w_gate_up: Tensor, w_down: Tensor,
    *, num_pairs: int, save_h: bool, half_sums: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Steps 3 and 4: ``out`` and ``h``."""
    _, _, token_idx, gates, offsets = together.tensors()
    token_idx, gates = token_idx[:num_pairs], gates[:num_pairs]
    expert_out, h = experts_forward(tokens, token_idx, offsets, w_gate_up, w_down, save_h, half_sums)
    return combine(expert_out, gates, slots), h


@on_its_device
def moe_backward(
    grad_out: Tensor, grad_logits: Tensor | None, route: Route, experts: Experts, saved: Saved | Kept, needs: Needs,
    kind: Kind | None = None, spend: bool = False,
) -> Grads:  # fmt: skip
    """Gradients of the inputs that ``needs`` names, from that of out (S, D) and, where it has one, of the logits."""
    hidden, router_weight, _, scale, _, normalise = route
    w_gate_up, w_down, recompute, _ = experts
    if isinstance(saved, Kept):
        logits, slots, tokens, h, together, num_pairs = saved
    else:
        logits, tokens, mean, rstd, token_idx, gates, offsets, slots, h = saved
        together, num_pairs = Together(mean, rstd, token_idx, gates, offsets), token_idx.shape[0]
    tensors = (grad_out, grad_logits, hidden, router_weight, scale, w_gate_up, w_down)
    # a parameter may have been given other memory since the forward
    sized = None if kind is None else (kind, together.layout, described(tensors))
    return list(
        _gradients(
            *tensors, logits, slots, tokens, h, together, kind=sized, num_pairs=num_pairs, rows=route.rows,
            normalise=normalise, recompute=recompute, needs=needs, spend=spend,
        )
    )  # fmt: skip


@planned
def _gradients(
    *tensors: Any, num_pairs: int, rows: int, normalise: bool, recompute: bool, needs: Needs, spend: bool
) -> tuple[Tensor | None, ...]:
    """In the order of ``Needs``, of what ``moe_backward`` is given and the fields of ``Kept``.

    With ``spend`` the normalised tokens and h are written over as soon as they are read no more.
    """
    grad_out, grad_logits, hidden, router_weight, scale, w_gate_up, w_down, logits, slots, kept, h, together = tensors
    mean, rstd, token_idx, gates, offsets = together.tensors()
    token_idx, gates = token_idx[:num_pairs], gates[:num_pairs]
    tokens = kept if kept.shape[0] else hidden
    index = (token_idx, offsets, gates, None if recompute else h, w_gate_up, w_down)
    needed = (needs.tokens, needs.w_gate_up, needs.w_down)
    spent, spent_h = (kept, h) if spend else (None, None)
    grad_pairs, grad_gates, *weights = experts_backward(grad_out, tokens, *index, needed, (Spare(spent), spent_h))
    if not (needs.tokens or needs.logits):
        return None, None, None, None, None, *weights
    spare, grad_tokens = Spare(spent_h), None
    if grad_pairs is not None:
        grad_tokens = combine(grad_pairs, None, slots, spare.new(grad_pairs, *hidden.shape))
    grad_logits = select_backward(grad_gates, logits, slots, grad_logits)
    given = (hidden, (mean, rstd), router_weight, scale, normalise, rows)
    router = (needs.router_weight, needs.router_offset)
    into = spent if spent is not None and (spent.shape, spent.dtype) == (hidden.shape, hidden.dtype) else None
    found = route_backward(grad_tokens, grad_logits, *given, router, (into, spare))
    return tuple(grad if need else None for grad, need in zip((*found, *weights), needs, strict=True))
