"""Step 1, route: normalised tokens and float32 logits in one pass over the hidden state."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import EPS
from . import library
from .registry import call, dense, on_cuda, storage_code


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
        hidden: (S, D).
        router_weight: (E, D).
        router_offset: (R, E), scale, shift: (R, D) or ``None``; R divides S and token s has row s // (S / R).

    Returns:
        tokens (S, D) in the dtype of ``hidden`` (``hidden`` itself unless ``normalise``), logits (S, E), mean (S,) and
        rstd (S,), float32; the last two are empty unless ``normalise``.
    """
    (num_tokens, dim), num_experts = hidden.shape, router_weight.shape[0]
    code = storage_code("hidden", hidden)
    rows = _rows(num_tokens, router_offset, scale)
    if (scale is None) != (shift is None):
        raise ValueError("scale: expected scale and shift together, got only one of them")
    device = hidden.device
    dense_hidden = dense("hidden", hidden, device, hidden.dtype, num_tokens, dim)
    weight = _wide("router_weight", router_weight, device, num_experts, dim)
    offset = _wide("router_offset", router_offset, device, rows, num_experts)
    scale, shift = _wide("scale", scale, device, rows, dim), _wide("shift", shift, device, rows, dim)
    kept = num_tokens if normalise else 0
    tokens, logits = hidden.new_empty(kept, dim), torch.empty(num_tokens, num_experts, device=device)
    mean, rstd = logits.new_empty(kept), logits.new_empty(kept)
    outputs = (tokens if normalise else None, logits, mean, rstd)
    sizes = (num_tokens, dim, num_experts, rows)
    call("route_forward", dense_hidden, weight, offset, scale, shift, *outputs, *sizes, eps, code)
    return (tokens if normalise else hidden), logits, mean, rstd


def route_backward(
    grad_tokens: Tensor,
    grad_logits: Tensor,
    hidden: Tensor,
    statistics: tuple[Tensor, Tensor],
    router_weight: Tensor,
    scale: Tensor | None,
    normalise: bool,
    rows: int,
    weight_needed: bool = True,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients of hidden (in its dtype), router_weight (E, D), router_offset (R, E), scale and shift (R, D), float32.

    ``statistics``: mean and rstd, as the forward gave them. The last two gradients are ``None`` where there was no
    scale, the second unless ``weight_needed``. ``in_place`` writes the gradient of hidden over ``grad_tokens``.
    """
    (num_tokens, dim), num_experts = hidden.shape, router_weight.shape[0]
    code = storage_code("hidden", hidden)
    if num_tokens and (rows < 1 or num_tokens % rows):
        raise ValueError(f"rows: expected a divisor of the number of tokens {num_tokens}, got {rows}")
    modulated = normalise and scale is not None
    device = hidden.device
    hidden = dense("hidden", hidden, device, hidden.dtype, num_tokens, dim)
    grad_tokens = dense("grad_tokens", grad_tokens, device, hidden.dtype, num_tokens, dim)
    grad_hidden = grad_tokens if in_place else torch.empty_like(hidden)
    grad_logits = dense("grad_logits", grad_logits, device, torch.float32, num_tokens, num_experts)
    weight = _wide("router_weight", router_weight, device, num_experts, dim)
    scale = _wide("scale", scale, device, rows, dim) if modulated else None
    mean, rstd = (
        dense(name, each, device, torch.float32, num_tokens) if normalise else None
        for name, each in zip(("mean", "rstd"), statistics, strict=True)
    )
    new = grad_logits.new_empty
    grad_weight = new(num_experts, dim) if weight_needed else None
    grad_offset = new(rows, num_experts)
    grad_scale, grad_shift = (new(rows, dim), new(rows, dim)) if modulated else (None, None)
    if num_tokens == 0:
        sums = (None if grad is None else grad.zero_() for grad in (grad_weight, grad_offset, grad_scale, grad_shift))
        return grad_hidden, *sums  # type: ignore[return-value]
    sizes = (num_tokens, dim, num_experts, rows)
    scratch: tuple[Tensor, ...] = ()
    if on_cuda(hidden):
        scratch = (new(library.load().intermoe_route_scratch_cuda(*sizes)),)
    inputs = (grad_tokens, grad_logits, hidden, mean, rstd, weight, scale)
    grads = (grad_hidden, grad_weight, grad_offset, grad_scale, grad_shift)
    call("route_backward", *inputs, *grads, *scratch, *sizes, code)
    return grads


def _wide(name: str, tensor: Tensor | None, device: torch.device, rows: int, width: int) -> Tensor | None:
    """A small input (a row per expert or of the condition) as dense float32."""
    if tensor is None:
        return None
    if tensor.dtype != torch.float32:
        tensor = tensor.float()
    return dense(name, tensor, device, torch.float32, rows, width)


def _rows(num_tokens: int, *tensors: Tensor | None) -> int:
    rows = next((tensor.shape[0] for tensor in tensors if tensor is not None), 0)
    if rows and num_tokens % rows:
        raise ValueError(f"router_offset: expected a divisor of {num_tokens} tokens as its number of rows, got {rows}")
    return rows
