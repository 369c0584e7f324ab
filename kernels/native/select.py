"""Step 2, select: pairs of token and expert, ordered by expert, then token."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import library
from .registry import call, dense, register

Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def select(logits: Tensor, selection_bias: Tensor, valid: Tensor | None = None) -> Pairs:
    """Choose the pairs and their gates.

    Args:
        logits: (S, E) float32; a NaN selects nothing. selection_bias: (E,) float32.
        valid: (S,) bool for tokens or (S, E) bool for pairs that may be selected, or ``None`` for all.

    Returns:
        token_idx (P,) int64, gates (P,) float32, expert_offsets (E + 1,) int64, slots (S, E) int64 with -1 where not
        selected, counts (E,) int64.
    """
    return torch.ops.intermoe_native.select(logits, selection_bias, valid)


def select_backward(grad_gates: Tensor, logits: Tensor, slots: Tensor) -> Tensor:
    """Gradient (S, E) float32 of the logits from that of the gates (P,) float32: the softmax's, dense over E."""
    return torch.ops.intermoe_native.select_backward(grad_gates, logits, slots)


def _select(logits: Tensor, selection_bias: Tensor, valid: Tensor | None) -> Pairs:
    return select_with_offsets(logits, selection_bias, valid)[0]


def select_with_offsets(logits: Tensor, selection_bias: Tensor, valid: Tensor | None) -> tuple[Pairs, list[int]]:
    """The selection, and its expert_offsets as numbers: reading them is all that waits for a device."""
    (num_tokens, num_experts), device = logits.shape, logits.device
    logits = dense("logits", logits, device, torch.float32, num_tokens, num_experts)
    bias = dense("selection_bias", selection_bias, device, torch.float32, num_experts)
    if valid is not None:
        valid = dense("valid", valid, device, torch.bool, num_tokens, *([num_experts] if valid.dim() == 2 else []))
    columns = num_experts if valid is not None and valid.dim() == 2 else 1
    slots = torch.empty(num_tokens, num_experts, dtype=torch.int64, device=device)
    counts, offsets = slots.new_empty(num_experts), slots.new_empty(num_experts + 1)
    scratch = slots.new_empty(library.load().intermoe_select_scratch(num_tokens), num_experts)
    call("select_count", logits, bias, valid, num_tokens, num_experts, columns, slots, counts, offsets, scratch)
    numbers: list[int] = offsets.tolist()
    token_idx, gates = slots.new_empty(numbers[-1]), logits.new_empty(numbers[-1])
    call("select_fill", logits, num_tokens, num_experts, scratch, slots, token_idx, gates)
    return (token_idx, gates, offsets, slots, counts), numbers


def _select_fake(logits: Tensor, selection_bias: Tensor, valid: Tensor | None) -> Pairs:
    num_tokens, num_experts = logits.shape
    num_pairs = torch.library.get_ctx().new_dynamic_size()
    index = functools.partial(torch.empty, dtype=torch.int64, device=logits.device)
    gates = torch.empty(num_pairs, dtype=torch.float32, device=logits.device)
    return index(num_pairs), gates, index(num_experts + 1), index(num_tokens, num_experts), index(num_experts)


def _select_backward(grad_gates: Tensor, logits: Tensor, slots: Tensor) -> Tensor:
    num_tokens, num_experts = logits.shape
    num_pairs = grad_gates.numel()
    device = logits.device
    grad_gates = dense("grad_gates", grad_gates, device, torch.float32, num_pairs)
    logits = dense("logits", logits, device, torch.float32, num_tokens, num_experts)
    slots = dense("slots", slots, device, torch.int64, num_tokens, num_experts)
    grad_logits = torch.empty_like(logits)
    call("select_backward", grad_gates, logits, slots, num_pairs, num_tokens, num_experts, grad_logits)
    return grad_logits


def _select_backward_fake(grad_gates: Tensor, logits: Tensor, slots: Tensor) -> Tensor:
    return torch.empty(logits.shape, dtype=torch.float32, device=logits.device)


register(
    "select(Tensor logits, Tensor selection_bias, Tensor? valid) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _select,
    _select_fake,
)
register(
    "select_backward(Tensor grad_gates, Tensor logits, Tensor slots) -> Tensor", _select_backward, _select_backward_fake
)
