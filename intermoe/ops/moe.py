r"""The four steps as one differentiable operation on one pool of tokens.

    hidden, router ──route──► tokens, logits ──select──► pairs ──experts──► expert_out ──combine──► out

The reference backend is the composition of the step references, differentiated by autograd. Every other backend
offers each step's forward and backward, which one operator each way chains, so that torch.compile sees two opaque
calls; a backend may offer the whole chain itself (``moe_forward``, ``moe_inference``, ``moe_backward``). The routing,
the normalised tokens and the experts' pre-activations are saved, not the experts' outputs. Where nothing is
differentiated an operator without a backward serves, ``moe_inference``: it keeps nothing and its call costs less.

With ``max_pairs`` Triton allocates for that many pairs instead of asking the host how many there are: no host read at
all, so the call can be captured by ``torch.cuda.graph``. A call that selects more yields NaN and raises at the next
point that meets the host: the next call, ``update_selection_bias`` or ``raise_on_overflow``, which waits for it (after
a graph's replay, call that one).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from intermoe import backends
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import check_experts, experts_reference
from intermoe.ops.route import EPS, check_route, route_reference
from intermoe.ops.select import check_logits, check_select, select_reference

STATIC_PAIRS = 4096
"""Triton allocates for all S * E pairs, which always suffices, where these are no more."""

Arguments = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor, Tensor]


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
    recompute: bool = False,
    max_pairs: int | None = None,
    half_sums: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Route, select, run the experts and combine, for one pool of S tokens.

    Args:
        hidden: (S, D). router_weight: (E, D). router_offset: (R, E) or ``None``; R divides S.
        scale: (R, D) and shift: (R, D) of the normalisation, or ``None``.
        selection_bias: (E,), no gradient; 1 leaves the choice to ``valid``.
        w_gate_up: (E, 2F, D). w_down: (E, D, F).
        valid: (S,) bool, ``True`` = valid; invalid tokens get zeros and are not counted. Or (S, E) bool, allowed pairs.
        normalise: ``False`` gives the experts ``hidden`` as it is.
        recompute: drop the experts' pre-activations, the largest saved tensor, and compute them again in the backward.
        max_pairs: most pairs that may be selected, >= 1; ``None`` for no limit. See above for Triton; other backends
            raise ``RuntimeError`` at once if there are more.
        half_sums: sum each step of a product in float16 (the steps in float32). Triton, float16, inference only.
        backend: name of a backend, or ``None`` for the one in force (see ``intermoe.backends``).

    Returns:
        ``out`` (S, D) in the dtype of ``hidden`` and ``counts`` (E,) int64, the number of tokens of each expert.
        Under autocast the experts run in its dtype; routing stays in float32.
    """
    if not normalise and scale is not None:
        raise ValueError("scale: must be None with normalise=False, which leaves nothing to scale, got a tensor")
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs: must be >= 1 or None, got {max_pairs}")
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    if autocast:
        dtype = torch.get_autocast_dtype(device_type)
        w_gate_up, w_down = w_gate_up.to(dtype), w_down.to(dtype)
    name = backends.resolve(hidden.device, w_gate_up.dtype, backend)
    arguments: Arguments = (hidden, router_weight, router_offset, scale, shift, selection_bias, w_gate_up, w_down)
    differentiable = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in arguments)
    if half_sums:
        _check_half_sums(name, w_gate_up.dtype, differentiable)
    options = (valid, normalise, recompute, max_pairs, half_sums, differentiable, name)
    if not autocast:
        return _moe(arguments, *options)
    with torch.autocast(device_type, enabled=False):
        return _moe(arguments, *options)


def _moe(
    arguments: Arguments,
    valid: Tensor | None,
    normalise: bool,
    recompute: bool,
    max_pairs: int | None,
    half_sums: bool,
    differentiable: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    hidden, router_weight, router_offset, scale, shift = arguments[:5]
    if backends.detects_nan():
        check_logits(route_reference(*arguments[:3], None, None, normalise=False)[1], valid)
    if backend == "reference":
        if recompute and differentiable:
            out, counts = checkpoint(moe_reference, *arguments, valid=valid, normalise=normalise, use_reentrant=False)
        else:
            out, counts = moe_reference(*arguments, valid=valid, normalise=normalise)
        _check_pairs(counts, max_pairs)
        return out, counts
    check_route(hidden, router_weight, router_offset, scale, shift)
    if backend == "triton" and max_pairs is None and hidden.shape[0] * router_weight.shape[0] <= STATIC_PAIRS:
        max_pairs = hidden.shape[0] * router_weight.shape[0]
    if differentiable:
        out, counts, *_ = torch.ops.intermoe.moe_forward(
            *arguments, valid, normalise, not recompute, max_pairs, half_sums, backend
        )
    else:
        out, counts = torch.ops.intermoe.moe_inference(*arguments, valid, normalise, max_pairs, half_sums, backend)
    return out.to(hidden.dtype), counts


def raise_on_overflow(device: torch.device | None = None, *, wait: bool = True) -> None:
    """Raise ``RuntimeError`` with the numbers if a Triton call selected more than ``max_pairs`` pairs.

    Args:
        device: ``None`` for every device that such calls have run on.
        wait: wait for the device, so that all calls so far are judged; without, those whose verdict has arrived.
    """
    if (device is None or device.type == "cuda") and backends.available()["triton"].usable:
        backends.load("triton").raise_on_overflow(device, wait)


def _check_half_sums(backend: str, dtype: torch.dtype, differentiable: bool) -> None:
    if backend != "triton":
        raise ValueError(f"half_sums: only the backend 'triton' has them, got {backend!r}")
    if dtype != torch.float16:
        raise TypeError(f"half_sums: expected experts in torch.float16 (by dtype or autocast), got {dtype}")
    if differentiable:
        raise RuntimeError("half_sums: for inference only, but gradients are needed; call under torch.no_grad()")


def _check_pairs(counts: Tensor, max_pairs: int | None) -> None:
    if max_pairs is not None and (needed := int(counts.sum())) > max_pairs:
        raise RuntimeError(f"max_pairs: {needed} (token, expert) pairs were selected, more than max_pairs={max_pairs}")


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


def _forward(
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
    save_h: bool,
    max_pairs: int | None,
    half_sums: bool,
    backend: str,
) -> list[Tensor]:
    steps = backends.load(backend)
    arguments = (hidden, router_weight, router_offset, scale, shift)
    if hasattr(steps, "moe_forward"):
        made = steps.moe_forward(*arguments, selection_bias, w_gate_up, w_down, valid, EPS, normalise, save_h)
        _check_pairs(made[1], max_pairs)
        return made
    tokens, logits, mean, rstd = steps.route_forward(*arguments, EPS, normalise)
    check_select(logits, selection_bias, valid)
    token_idx, gates, expert_offsets, slots, counts = steps.select(logits, selection_bias, valid, max_pairs)
    tokens = tokens.to(w_gate_up.dtype)
    check_experts(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    expert_out, h = steps.experts_forward(tokens, token_idx, expert_offsets, w_gate_up, w_down, save_h, half_sums)
    out = steps.combine(expert_out, gates, slots)
    # An operator may not return its own input; the backward knows that no tokens means hidden.
    saved = tokens.new_empty(0, tokens.shape[1]) if tokens is hidden else tokens
    return [out, counts, saved, logits, mean, rstd, token_idx, gates, expert_offsets, slots, h]


def _inference(
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
    max_pairs: int | None,
    half_sums: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    steps = backends.load(backend)
    arguments = (hidden, router_weight, router_offset, scale, shift, selection_bias, w_gate_up, w_down, valid)
    if hasattr(steps, "moe_inference"):
        out, counts = steps.moe_inference(*arguments, EPS, normalise)
        _check_pairs(counts, max_pairs)
    else:
        out, counts, *_ = _forward(*arguments, normalise, False, max_pairs, half_sums, backend)
    return out, counts


def _inference_fake(
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
    max_pairs: int | None,
    half_sums: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    counts = torch.empty(router_weight.shape[0], dtype=torch.int64, device=hidden.device)
    return w_gate_up.new_empty(hidden.shape), counts


def _forward_fake(
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
    save_h: bool,
    max_pairs: int | None,
    half_sums: bool,
    backend: str,
) -> list[Tensor]:
    (num_tokens, dim), num_experts = hidden.shape, router_weight.shape[0]
    num_pairs: int | torch.SymInt | None = max_pairs if backend == "triton" else None
    if num_pairs is None:
        num_pairs = torch.library.get_ctx().new_dynamic_size()
    wide = functools.partial(torch.empty, dtype=torch.float32, device=hidden.device)
    index = functools.partial(torch.empty, dtype=torch.int64, device=hidden.device)
    kept = num_tokens if normalise or hidden.dtype != w_gate_up.dtype else 0
    statistics = num_tokens if normalise else 0
    return [
        w_gate_up.new_empty(num_tokens, dim), index(num_experts),
        w_gate_up.new_empty(kept, dim), wide(num_tokens, num_experts), wide(statistics), wide(statistics),
        index(num_pairs), wide(num_pairs), index(num_experts + 1), index(num_tokens, num_experts),
        w_gate_up.new_empty(num_pairs if save_h else 0, w_gate_up.shape[1]),
    ]  # fmt: skip


def _backward(
    grad_out: Tensor,
    hidden: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
    saved: list[Tensor],
    normalise: bool,
    rows: int,
    saved_h: bool,
    backend: str,
) -> list[Tensor]:
    steps = backends.load(backend)
    tokens, logits, mean, rstd, token_idx, gates, expert_offsets, slots, kept_h = saved
    if tokens.shape[0] == 0:
        tokens = hidden
    h = kept_h if saved_h else None
    if hasattr(steps, "moe_backward"):
        pairs = (tokens, logits, mean, rstd, token_idx, gates, expert_offsets, slots, h)
        grads = steps.moe_backward(grad_out, hidden, router_weight, scale, w_gate_up, w_down, *pairs, normalise, rows)
    else:
        grad_pairs, grad_gates, *grad_weights = steps.experts_backward(
            grad_out, tokens, token_idx, expert_offsets, gates, h, w_gate_up, w_down
        )
        grad_tokens = steps.combine(grad_pairs, None, slots).to(hidden.dtype)
        grad_logits = steps.select_backward(grad_gates, logits, slots)
        route = steps.route_backward(
            grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, normalise, rows
        )
        grads = [*route, *grad_weights]
    return [hidden.new_empty(0) if grad is None else grad for grad in grads]


def _backward_fake(
    grad_out: Tensor,
    hidden: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
    saved: list[Tensor],
    normalise: bool,
    rows: int,
    saved_h: bool,
    backend: str,
) -> list[Tensor]:
    num_experts, dim = router_weight.shape
    wide = functools.partial(torch.empty, dtype=torch.float32, device=hidden.device)
    modulation = (wide(rows, dim), wide(rows, dim)) if normalise and scale is not None else (wide(0), wide(0))
    return [
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
        wide(num_experts, dim), wide(rows, num_experts), *modulation,
        torch.empty_like(w_gate_up), torch.empty_like(w_down),
    ]  # fmt: skip


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    hidden, router_weight, router_offset, scale, _, _, w_gate_up, w_down, _, *options = inputs
    ctx.normalise, ctx.saved_h, _, _, ctx.backend = options
    ctx.rows = next((r.shape[0] for r in (router_offset, scale) if r is not None), 1)
    ctx.save_for_backward(hidden, router_weight, scale, w_gate_up, w_down, *output[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> Any:
    hidden, router_weight, scale, w_gate_up, w_down, *saved = ctx.saved_tensors
    if grads[0] is None:
        return (None,) * 14
    found = torch.ops.intermoe.moe_backward(
        grads[0], hidden, router_weight, scale, w_gate_up, w_down, saved,
        ctx.normalise, ctx.rows, ctx.saved_h, ctx.backend,
    )  # fmt: skip
    inputs = (*found[:5], None, *found[5:])
    needed = (grad if need else None for grad, need in zip(inputs, ctx.needs_input_grad, strict=False))
    return (*needed, *(None,) * 6)


_library = torch.library.Library("intermoe", "DEF")
_library.define(
    "moe_forward(Tensor hidden, Tensor router_weight, Tensor? router_offset, Tensor? scale, Tensor? shift, "
    "Tensor selection_bias, Tensor w_gate_up, Tensor w_down, Tensor? valid, bool normalise, bool save_h, "
    "SymInt? max_pairs, bool half_sums, str backend) -> Tensor[]"
)
_library.define(
    "moe_inference(Tensor hidden, Tensor router_weight, Tensor? router_offset, Tensor? scale, Tensor? shift, "
    "Tensor selection_bias, Tensor w_gate_up, Tensor w_down, Tensor? valid, bool normalise, SymInt? max_pairs, "
    "bool half_sums, str backend) -> (Tensor, Tensor)"
)
_library.define(
    "moe_backward(Tensor grad_out, Tensor hidden, Tensor router_weight, Tensor? scale, Tensor w_gate_up, "
    "Tensor w_down, Tensor[] saved, bool normalise, SymInt rows, bool saved_h, str backend) -> Tensor[]"
)
for _device in ("CPU", "CUDA"):
    # Where a graph breaks at the operator it runs as it is; its Python is not to be traced in turn.
    _library.impl("moe_forward", torch.compiler.disable(_forward), _device)
    _library.impl("moe_inference", torch.compiler.disable(_inference), _device)
    _library.impl("moe_backward", torch.compiler.disable(_backward), _device)
torch.library.register_fake("intermoe::moe_forward", _forward_fake, lib=_library)
torch.library.register_fake("intermoe::moe_inference", _inference_fake, lib=_library)
torch.library.register_fake("intermoe::moe_backward", _backward_fake, lib=_library)
torch.library.register_autograd("intermoe::moe_forward", _differentiate, setup_context=_setup_context, lib=_library)
