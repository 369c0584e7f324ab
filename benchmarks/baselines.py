"""What the kernels are compared with: plain PyTorch forms of the same experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

HAS_GROUPED_MM = hasattr(torch.nn.functional, "grouped_mm")


class Weights(NamedTuple):
    """Expert weights: ``w_gate_up`` (E, 2F, D), ``w_down`` (E, D, F)."""

    w_gate_up: Tensor
    w_down: Tensor


def authors_form(tokens: Tensor, mask: Tensor, probabilities: Tensor, weights: Weights) -> Tensor:
    """The published block's way: boolean masks per expert, halved projections, a dense (E * S, D) buffer, a sum.

    Args:
        tokens: (S, D) of one person. mask: (E, S) bool. probabilities: (E, S).
    """
    num_tokens, dim = tokens.shape
    num_experts, _, expert_dim = weights.w_down.shape
    half = expert_dim // 2
    buffer = tokens.new_zeros(num_experts * num_tokens, dim)
    # Unbound, as they are modules of their own there: a gradient of one expert is not as large as that of all.
    gate_up, down = weights.w_gate_up.unbind(), weights.w_down.unbind()
    for expert in range(num_experts):
        rows = mask[expert].nonzero().squeeze(1)
        if rows.numel() == 0:
            continue
        x = tokens[rows]
        w_gate, w_up = gate_up[expert].split(expert_dim)
        w_down = down[expert]
        parts = [silu(x @ w_gate[s].T) * (x @ w_up[s].T) @ w_down[:, s].T for s in (slice(0, half), slice(half, None))]
        gate = probabilities[expert][mask[expert]].to(x.dtype)
        buffer[rows + expert * num_tokens] = (parts[0] + parts[1]) * gate[:, None]
    return buffer.view(num_experts, num_tokens, dim).sum(dim=0)


def expert_loop(
    tokens: Tensor, token_idx: Tensor, expert_offsets: Tensor, slots: Tensor, gates: Tensor, weights: Weights
) -> Tensor:
    """One product per expert on rows sorted by expert, after a single host read of the counts."""
    groups = tokens[token_idx].split(expert_offsets.diff().tolist())
    outputs = []
    for group, w_gate_up, w_down in zip(groups, weights.w_gate_up, weights.w_down, strict=True):
        gate, up = (group @ w_gate_up.T).chunk(2, dim=-1)
        outputs.append((silu(gate) * up) @ w_down.T)
    weighted = torch.cat(outputs) * gates[:, None].to(tokens.dtype)
    return torch.zeros_like(tokens).index_add(0, token_idx, weighted)


def swiglu(hidden: Tensor) -> Tensor:
    """silu(gate) * up of hidden = gate | up."""
    gate, up = hidden.chunk(2, dim=-1)
    return silu(gate) * up


def grouped_mm(
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    weights: Weights,
    activation: Callable[[Tensor], Tensor] = swiglu,
) -> Tensor:
    """torch's own grouped product on rows sorted by expert; ``activation`` may be a compiled ``swiglu``."""
    ends = expert_offsets[1:].to(torch.int32)
    product = torch.nn.functional.grouped_mm
    hidden = product(tokens[token_idx], weights.w_gate_up.transpose(-2, -1), offs=ends)
    outputs = product(activation(hidden), weights.w_down.transpose(-2, -1), offs=ends)
    weighted = outputs * gates[:, None].to(tokens.dtype)
    return torch.zeros_like(tokens).index_add(0, token_idx, weighted)


def dense_ffn(tokens: Tensor, weights: Weights) -> Tensor:
    """One expert on all tokens: the FLOPs of a block with one expert per token, without any routing."""
    gate, up = (tokens @ weights.w_gate_up[0].T).chunk(2, dim=-1)
    return (silu(gate) * up) @ weights.w_down[0].T
