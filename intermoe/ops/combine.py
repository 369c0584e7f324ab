r"""Step 4, combine: every token sums the outputs of the experts that took it, in expert order, without atomics.

out[s] = sum over e with slots[s, e] >= 0 of gates[slots[s, e]] * expert_out[slots[s, e]]
"""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.ops.checks import check_same_device, check_tensor


def check_combine(expert_out: Tensor, gates: Tensor | None, slots: Tensor) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless the arguments of ``combine`` fit together."""
    size = check_tensor("expert_out", expert_out, ("P", "D"))
    if gates is not None:
        check_tensor("gates", gates, (size["P"],))
    check_tensor("slots", slots, ("S", "E"))
    if slots.dtype != torch.int64:
        raise TypeError(f"slots: expected dtype torch.int64, got {slots.dtype}")
    check_same_device(expert_out=expert_out, gates=gates, slots=slots)


def combine_reference(expert_out: Tensor, gates: Tensor | None, slots: Tensor) -> Tensor:
    """Per-token sums (S, D) in the dtype of ``expert_out``; accumulated in float32 (float64 for float64 input).

    Args:
        expert_out: (P, D).
        gates: (P,), or ``None`` for ones.
        slots: (S, E) int64, -1 where not selected.
    """
    check_combine(expert_out, gates, slots)
    wide = torch.promote_types(expert_out.dtype, torch.float32)
    out = torch.zeros(slots.shape[0], expert_out.shape[1], dtype=wide, device=expert_out.device)
    for expert_slots in slots.T:
        taken = expert_slots >= 0
        pairs = expert_slots[taken]
        rows = expert_out[pairs].to(wide)
        if gates is not None:
            rows = rows * gates[pairs, None].to(wide)
        out = out.index_put((taken.nonzero().squeeze(1),), rows, accumulate=True)
    return out.to(expert_out.dtype)
