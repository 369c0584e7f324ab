"""Step 1, route: normalised tokens and float32 logits in one pass over the hidden state."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import library
from .registry import call, dense, on_cuda, register, storage_code

EPS = 1e-6


def route_forward(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float = EPS,
    normalise: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens for the experts and logits for the selection.

    Args:
        hidden: (S, D). router_weight: (E, D). router_offset: (R, E), scale, shift: (R, D) or ``None``; R divides S and
            token s has row s // (S / R).

    Returns:
        tokens (S, D) in the dtype of ``hidden`` (``hidden`` itself unless ``normalise``), logits (S, E), mean (S,) and
        rstd (S,), float32; the last two are empty unless ``normalise``.
    """
    tokens, logits, mean, rstd = torch.ops.intermoe_native.route_forward(
        hidden, router_weight, router_offset, scale, shift, eps, normalise
    )
    return (tokens if normalise else hidden), logits, mean, rstd


def route_backward(
    grad_tokens: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of hidden (in its dtype), router_weight (E, D), router_offset (R, E), scale and shift (R, D), float32.

    The last two are ``None`` where there was no scale.
    """
    modulated = normalise and scale is not None
    grad_hidden, grad_weight, grad_offset, grad_scale, grad_shift = torch.ops.intermoe_native.route_backward(
        grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, normalise, rows
    )
    return grad_hidden, grad_weight, grad_offset, grad_scale if modulated else None, grad_shift if modulated else None


def _wide(name: str, tensor: Tensor | None, device: torch.device, rows: int, width: int) -> Tensor | None:
    """A small input (a row per expert or sample) as dense float32."""
    if tensor is None:
        return None
    if tensor.dtype != torch.float32:
        tensor = tensor.float()
    return dense(name, tensor, device, torch.float32, rows, width)


def _rows(num_tokens: int, *tensors: Tensor | None) -> int:
    rows = next((tensor.shape[0] for tensor in tensors if tensor is not None), 0)
    if rows and num_tokens % rows:
        raise ValueError(f"router_offset: its number of rows must divide the number of tokens {num_tokens}, got {rows}")
    return rows


def _route_forward(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (num_tokens, dim), num_experts = hidden.shape, router_weight.shape[0]
    code = storage_code("hidden", hidden)
    rows = _rows(num_tokens, router_offset, scale)
    if (scale is None) != (shift is None):
        raise ValueError("scale: scale and shift must be given together, got only one of them")
    device = hidden.device
    hidden = dense("hidden", hidden, device, hidden.dtype, num_tokens, dim)
    weight = _wide("router_weight", router_weight, device, num_experts, dim)
    offset = _wide("router_offset", router_offset, device, rows, num_experts)
    scale, shift = _wide("scale", scale, device, rows, dim), _wide("shift", shift, device, rows, dim)
    kept = num_tokens if normalise else 0
    tokens, logits = hidden.new_empty(kept, dim), torch.empty(num_tokens, num_experts, device=device)
    mean, rstd = logits.new_empty(kept), logits.new_empty(kept)
    outputs = (tokens if normalise else None, logits, mean, rstd)
    sizes = (num_tokens, dim, num_experts, rows)
    call("route_forward", hidden, weight, offset, scale, shift, *outputs, *sizes, eps, code)
    return tokens, logits, mean, rstd


def _route_forward_fake(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens, dim = hidden.shape
    wide = functools.partial(torch.empty, dtype=torch.float32, device=hidden.device)
    kept = num_tokens if normalise else 0
    tokens = torch.empty(kept, dim, dtype=hidden.dtype, device=hidden.device)
    return tokens, wide(num_tokens, router_weight.shape[0]), wide(kept), wide(kept)


def _route_backward(
    grad_tokens: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (num_tokens, dim), num_experts = hidden.shape, router_weight.shape[0]
    code = storage_code("hidden", hidden)
    if rows < 1 or num_tokens % rows:
        raise ValueError(f"rows: must divide the number of tokens {num_tokens}, got {rows}")
    modulated = normalise and scale is not None
    device = hidden.device
    hidden = dense("hidden", hidden, device, hidden.dtype, num_tokens, dim)
    grad_tokens = dense("grad_tokens", grad_tokens, device, hidden.dtype, num_tokens, dim)
    grad_logits = dense("grad_logits", grad_logits, device, torch.float32, num_tokens, num_experts)
    weight = _wide("router_weight", router_weight, device, num_experts, dim)
    scale = _wide("scale", scale, device, rows, dim) if modulated else None
    statistics: tuple[Tensor | None, Tensor | None] = (None, None)
    if normalise:
        statistics = (
            dense("mean", mean, device, torch.float32, num_tokens),
            dense("rstd", rstd, device, torch.float32, num_tokens),
        )
    grad_hidden = grad_tokens if in_place else torch.empty_like(hidden)
    grad_weight = torch.empty(num_experts, dim, device=device)
    grad_offset = grad_weight.new_empty(rows, num_experts)
    kept = rows if modulated else 0
    grad_scale, grad_shift = grad_weight.new_empty(kept, dim), grad_weight.new_empty(kept, dim)
    grads = (grad_hidden, grad_weight, grad_offset)
    modulation = (grad_scale, grad_shift) if modulated else (None, None)
    sizes = (num_tokens, dim, num_experts, rows)
    scratch: tuple[Tensor, ...] = ()
    if on_cuda(hidden):
        scratch = (grad_weight.new_empty(library.load().intermoe_route_scratch_cuda(*sizes)),)
    inputs = (grad_tokens, grad_logits, hidden, *statistics, weight, scale)
    call("route_backward", *inputs, *grads, *modulation, *scratch, *sizes, code)
    return grad_hidden, grad_weight, grad_offset, grad_scale, grad_shift


def _route_backward_fake(
    grad_tokens: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_experts, dim = router_weight.shape
    wide = functools.partial(torch.empty, dtype=torch.float32, device=hidden.device)
    kept = rows if normalise and scale is not None else 0
    grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    return grad_hidden, wide(num_experts, dim), wide(rows, num_experts), wide(kept, dim), wide(kept, dim)


register(
    "route_forward(Tensor hidden, Tensor router_weight, Tensor? router_offset, Tensor? scale, Tensor? shift, "
    "float eps, bool normalise) -> (Tensor, Tensor, Tensor, Tensor)",
    _route_forward,
    _route_forward_fake,
)
register(
    "route_backward(Tensor grad_tokens, Tensor grad_logits, Tensor hidden, Tensor mean, Tensor rstd, "
    "Tensor router_weight, Tensor? scale, bool normalise, SymInt rows) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _route_backward,
    _route_backward_fake,
)
