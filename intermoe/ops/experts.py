r"""Step 3, experts: each expert's SwiGLU network on the tokens it took (Shazeer 2020).

expert_out[p] = W_down,e ( silu(W_gate,e t) * (W_up,e t) ),    t = tokens[token_idx[p]], e = expert of pair p
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from intermoe.ops.checks import check_same_device, check_tensor


def check_experts(tokens: Tensor, token_idx: Tensor, expert_offsets: Tensor, w_gate_up: Tensor, w_down: Tensor) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless the arguments of ``experts`` fit together."""
    size = check_tensor("tokens", tokens, ("S", "D"))
    check_tensor("token_idx", token_idx, ("P",))
    weight = check_tensor("w_down", w_down, ("E", size["D"], "F"))
    check_tensor("w_gate_up", w_gate_up, (weight["E"], 2 * weight["F"], size["D"]))
    check_tensor("expert_offsets", expert_offsets, (weight["E"] + 1,))
    for name, index in (("token_idx", token_idx), ("expert_offsets", expert_offsets)):
        if index.dtype != torch.int64:
            raise TypeError(f"{name}: expected dtype torch.int64, got {index.dtype}")
    for name, other in (("w_gate_up", w_gate_up), ("w_down", w_down)):
        if other.dtype != tokens.dtype:
            raise TypeError(f"{name}: expected the dtype of tokens {tokens.dtype}, got {other.dtype}")
    check_same_device(
        tokens=tokens, token_idx=token_idx, expert_offsets=expert_offsets, w_gate_up=w_gate_up, w_down=w_down
    )


def experts_reference(
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    recompute: bool = False,
) -> Tensor:
    """Outputs (P, D) of the selected pairs, not yet weighted by their gates.

    Args:
        tokens: (S, D).
        token_idx: (P,) int64.
        expert_offsets: (E + 1,) int64.
        w_gate_up: (E, 2F, D), rows 0..F of each expert are W_gate, F..2F are W_up.
        w_down: (E, D, F).
        recompute: keep no activations; the backward computes those of one expert at a time again.
    """
    check_experts(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    groups = tokens[token_idx].split(expert_offsets.diff().tolist())
    each = zip(groups, w_gate_up, w_down, strict=True)
    if recompute and torch.is_grad_enabled():
        return torch.cat([checkpoint(_expert, *one, use_reentrant=False, preserve_rng_state=False) for one in each])
    return torch.cat([_expert(*one) for one in each])


def _expert(x: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    gate, linear = (x @ w_gate_up.T).chunk(2, dim=-1)
    return (silu(gate) * linear) @ w_down.T
