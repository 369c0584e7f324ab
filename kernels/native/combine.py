"""Step 4, combine: every token sums its pairs in expert order."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import call, dense, storage_code


def combine(expert_out: Tensor, gates: Tensor | None, slots: Tensor) -> Tensor:
    """Sums (S, D) in the dtype of ``expert_out`` (P, D), accumulated in float32.

    Args:
        gates: (P,) float32, or ``None`` for ones.
        slots: (S, E) int64, -1 where not selected.
    """
    num_pairs, dim = expert_out.shape
    num_tokens, num_experts = slots.shape
    code = storage_code("expert_out", expert_out)
    device = expert_out.device
    expert_out = dense("expert_out", expert_out, device, expert_out.dtype, num_pairs, dim)
    if gates is not None:
        gates = dense("gates", gates, device, torch.float32, num_pairs)
    slots = dense("slots", slots, device, torch.int64, num_tokens, num_experts)
    out = expert_out.new_empty(num_tokens, dim)
    call("combine", expert_out, gates, slots, None, out, num_pairs, num_tokens, dim, num_experts, code)
    return out
