"""Step 2, select: pairs of token and expert, ordered by expert, then token."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import check_pairs
from . import library
from .registry import call, dense

Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def select(
    logits: Tensor, selection_bias: Tensor | None, valid: Tensor | None = None, max_pairs: int | None = None
) -> Pairs:
    """Choose the pairs and their gates.

    Args:
        logits: (S, E) float32; a NaN selects nothing.
        selection_bias: (E,) float32.
        valid: (S,) bool for tokens or (S, E) bool for pairs that may be selected, or ``None`` for all; without a bias
            (S, E) bool, the choice.
        max_pairs: most pairs; more raise ``RuntimeError``.

    Returns:
        token_idx (P,) int64, gates (P,) float32, expert_offsets (E + 1,) int64, slots (S, E) int64 with -1 where not
        selected, counts (E,) int64.
    """
    return select_with_offsets(logits, selection_bias, valid, max_pairs)[0]


def select_with_offsets(
    logits: Tensor, selection_bias: Tensor | None, valid: Tensor | None, max_pairs: int | None
) -> tuple[Pairs, list[int]]:
    """The selection, and its expert_offsets as numbers: reading them is all that waits for a device."""
    (num_tokens, num_experts), device = logits.shape, logits.device
    logits = dense("logits", logits, device, torch.float32, num_tokens, num_experts)
    bias = None
    if selection_bias is not None:
        bias = dense("selection_bias", selection_bias, device, torch.float32, num_experts)
    elif valid is None:
        raise ValueError("valid: expected the choice (S, E) bool where there is no selection_bias, got None")
    by_pair = valid is not None and (valid.dim() == 2 or bias is None)
    if valid is not None:
        valid = dense("valid", valid, device, torch.bool, num_tokens, *([num_experts] if by_pair else []))
    columns = num_experts if by_pair else 1
    slots = torch.empty(num_tokens, num_experts, dtype=torch.int64, device=device)
    counts, offsets = slots.new_empty(num_experts), slots.new_empty(num_experts + 1)
    scratch = slots.new_empty(library.load().intermoe_select_scratch(num_tokens), num_experts)
    call("select_count", logits, bias, valid, num_tokens, num_experts, columns, slots, counts, offsets, scratch)
    numbers: list[int] = offsets.tolist()
    check_pairs(numbers[-1], max_pairs)
    token_idx, gates = slots.new_empty(numbers[-1]), logits.new_empty(numbers[-1])
    call("select_fill", logits, num_tokens, num_experts, scratch, slots, token_idx, gates)
    return (token_idx, gates, offsets, slots, counts), numbers


def select_backward(grad_gates: Tensor, logits: Tensor, slots: Tensor) -> Tensor:
    """Gradient (S, E) float32 of the logits from that of the gates (P,) float32: the softmax's, dense over E."""
    num_tokens, num_experts = logits.shape
    num_pairs = grad_gates.numel()
    device = logits.device
    grad_gates = dense("grad_gates", grad_gates, device, torch.float32, num_pairs)
    logits = dense("logits", logits, device, torch.float32, num_tokens, num_experts)
    slots = dense("slots", slots, device, torch.int64, num_tokens, num_experts)
    grad_logits = torch.empty_like(logits)
    call("select_backward", grad_gates, logits, slots, num_pairs, num_tokens, num_experts, grad_logits)
    return grad_logits
