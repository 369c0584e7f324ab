r"""Step 2, select: every expert takes as many tokens as deserve it (Dynamic Temporal Selection).

    selected(e, s) <=> valid[s] and sigmoid(logits[s, e]) + selection_bias[e] > 0
    gate(e, s)     =   softmax(logits[s, :])[e]            over ALL experts, not renormalised over the selected ones

Any number of experts per token, none included; a sum of exactly 0 selects nothing, in every backend. Selected pairs are
ordered by expert, then by token. The selection itself has no gradient; the gates do, dense over the experts. In place
of the bias there may be a choice, chosen(e, s): so the other routing kinds (``routing.py``) come in, and a forward that
is computed again (``recomputation.py``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from intermoe.ops.checks import check_same_device, check_tensor


class Selection(NamedTuple):
    """P selected (expert, token) pairs of a pool of S tokens and E experts. Indices are int64."""

    token_idx: Tensor
    """(P,) token of each pair."""
    gates: Tensor
    """(P,) weight of each pair's output."""
    expert_offsets: Tensor
    """(E + 1,) pairs of expert e are expert_offsets[e] : expert_offsets[e + 1]."""
    slots: Tensor
    """(S, E) pair of token s and expert e, -1 where not selected."""
    counts: Tensor
    """(E,) number of tokens that each expert took."""


def check_select(num_tokens: int, num_experts: int, selection_bias: Tensor | None, valid: Tensor | None) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless the arguments of ``select`` fit logits (S, E)."""
    if selection_bias is not None:
        check_tensor("selection_bias", selection_bias, (num_experts,))
    elif valid is None:
        raise ValueError("valid: expected the choice (S, E) where there is no selection_bias, got None")
    if valid is not None:
        by_pair = selection_bias is None or (isinstance(valid, Tensor) and valid.dim() == 2)
        check_tensor("valid", valid, (num_tokens, num_experts) if by_pair else (num_tokens,))
        if valid.dtype != torch.bool:
            raise TypeError(f"valid: expected dtype torch.bool (True = valid), got {valid.dtype}")


def check_logits(logits: Tensor, valid: Tensor | None) -> None:
    """Raise ``ValueError`` that tells the first valid pair whose logit is NaN or infinite."""
    wrong = ~torch.isfinite(logits.detach())
    if valid is not None:
        wrong = wrong & (valid[:, None] if valid.dim() == 1 else valid)
    found = wrong.nonzero()
    if len(found):
        token, expert = found[0].tolist()
        value = logits[token, expert].item()
        raise ValueError(
            f"logits: expected finite numbers, got {len(found)} others, the first is {value} of token {token} and "
            f"expert {expert}: look for such values in hidden, router_weight and router_offset"
        )


def select_reference(logits: Tensor, selection_bias: Tensor | None, valid: Tensor | None = None) -> Selection:
    """Choose the pairs and their gates.

    Args:
        logits: (S, E) routing logits, float32 or float64. A NaN selects nothing.
        selection_bias: (E,), inside (-1, 0), or ``None`` where ``valid`` is the choice.
        valid: (S,) bool, ``False`` tokens are neither routed nor counted, or (S, E) bool, ``False`` pairs are not;
            ``None`` for all valid. Without a bias (S, E) bool, the selected pairs.
    """
    check_tensor("logits", logits, ("S", "E"))
    num_tokens, num_experts = logits.shape
    check_select(num_tokens, num_experts, selection_bias, valid)
    check_same_device(logits=logits, selection_bias=selection_bias, valid=valid)
    selected = choose(logits.detach(), selection_bias, valid)
    expert_idx, token_idx = selected.T.nonzero(as_tuple=True)
    counts = selected.sum(dim=0)
    expert_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    slots = torch.full((num_tokens, num_experts), -1, dtype=torch.int64, device=logits.device)
    slots[token_idx, expert_idx] = torch.arange(token_idx.numel(), device=logits.device)
    gates = torch.softmax(logits, dim=-1)[token_idx, expert_idx]
    return Selection(token_idx, gates, expert_offsets, slots, counts)


def choose(logits: Tensor, selection_bias: Tensor | None, valid: Tensor | None) -> Tensor:
    """The selected pairs, (S, E) bool; arguments as in ``select_reference``."""
    if valid is not None and valid.dim() == 1:
        valid = valid[:, None]
    if selection_bias is None and valid is not None:
        return valid
    bias = 0.0 if selection_bias is None else selection_bias.to(logits.dtype)
    selected = torch.sigmoid(logits) + bias > 0
    return selected if valid is None else selected & valid
