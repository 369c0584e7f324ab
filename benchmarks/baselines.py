"""What the kernels are compared with: plain PyTorch forms of the same experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from intermoe.ops.select import Selection

HAS_GROUPED_MM = hasattr(torch.nn.functional, "grouped_mm")


class Weights(NamedTuple):
    """Expert weights: ``w_gate_up`` (E, 2F, D), ``w_down`` (E, D, F)."""

    w_gate_up: Tensor
    w_down: Tensor


def authors_form(tokens: Tensor, logits: Tensor, bias: Tensor, weights: Weights) -> Tensor:
    """The published block's way: boolean masks per expert, halved projections, a dense (E * S, D) buffer, a sum.

    Args:
        tokens: (S, D) of one person. logits: (S, E). bias: (E,), of the selection.
    """
    mask, probabilities = (torch.sigmoid(logits) + bias > 0).T, torch.softmax(logits, dim=-1).T
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


def swiglu(hidden: Tensor) -> Tensor:
    """silu(gate) * up of hidden = gate | up."""
    gate, up = hidden.chunk(2, dim=-1)
    return silu(gate) * up


def expert_loop(tokens: Tensor, selection: Selection, weights: Weights) -> Tensor:
    """One product per expert on rows sorted by expert, after a single host read of the counts."""
    groups = tokens[selection.token_idx].split(selection.expert_offsets.diff().tolist())
    outputs = [swiglu(group @ up.T) @ down.T for group, up, down in zip(groups, *weights, strict=True)]
    return _weighted(torch.cat(outputs), selection, tokens)


def grouped_mm(
    tokens: Tensor, selection: Selection, weights: Weights, activation: Callable[[Tensor], Tensor] = swiglu
) -> Tensor:
    """torch's own grouped product on rows sorted by expert; ``activation`` may be a compiled ``swiglu``."""
    ends = selection.expert_offsets[1:].to(torch.int32)
    product = torch.nn.functional.grouped_mm
    hidden = product(tokens[selection.token_idx], weights.w_gate_up.transpose(-2, -1), offs=ends)
    outputs = product(activation(hidden), weights.w_down.transpose(-2, -1), offs=ends)
    return _weighted(outputs, selection, tokens)


def _weighted(outputs: Tensor, selection: Selection, tokens: Tensor) -> Tensor:
    """Each token's sum of the rows of its pairs, by their gates."""
    weighted = outputs * selection.gates[:, None].to(tokens.dtype)
    return torch.zeros_like(tokens).index_add(0, selection.token_idx, weighted)


def dense_ffn(tokens: Tensor, weights: Weights) -> Tensor:
    """One expert on all tokens: the FLOPs of a block with one expert per token, without any routing."""
    return swiglu(tokens @ weights.w_gate_up[0].T) @ weights.w_down[0].T
