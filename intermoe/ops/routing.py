r"""Routing kinds: other rules for which expert takes which token, as a mask of allowed pairs for ``select``.

With R the routing logits, p = softmax(R) over the experts, and per pool U units (tokens, or whole rows):

    dynamic         e takes u  <=>  sigmoid(R[u, e]) + selection_bias[e] > 0             InterMoE, arXiv 2511.13488
    token_choice    e takes u  <=>  p[u, e] is among the top_k of p[u, :]                DiT-MoE, arXiv 2407.11633
    expert_choice   e takes u  <=>  p[u, e] is among the k best of p[:, e],
                                    k = max(1, floor(capacity * U / E))                  EC-DiT, arXiv 2410.02098

Ties go to the lower index. Whatever the kind, the gates are softmax(R) over all experts, not renormalised, and every
step after ``select`` is the same. Padding is in no pool and a token whose logits hold a NaN selects nothing.

Only expert choice looks beyond the unit itself: with ``pool="batch"`` what a sample gets then depends on the others in
its batch, guidance's second half included, at evaluation too. For the other kinds the pool is what their balance is
kept over: of ``load_balance_loss`` for token choice, of the bias update for dynamic routing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from intermoe.ops.checks import check_same_device, check_tensor


class Rule(NamedTuple):
    """A routing kind for a pool of ``batch`` rows; the other fields are arguments of ``choose_pairs``."""

    routing: str
    capacity: float
    top_k: int | None
    pool: str
    unit: str
    batch: int

    def __call__(self, logits: Tensor, valid: Tensor | None, selection_bias: Tensor | None) -> Tensor:
        """The choice (S, E) bool. valid: (S,) bool or ``None``. selection_bias: (E,), of dynamic routing."""
        num_tokens, num_experts = logits.shape
        rows = (self.batch, num_tokens // max(self.batch, 1))
        if selection_bias is None:
            selection_bias = logits.new_zeros(num_experts)
        chosen = choose_pairs(
            logits.view(*rows, num_experts), None if valid is None else valid.view(rows), selection_bias,
            routing=self.routing, capacity=self.capacity, top_k=self.top_k, pool=self.pool, unit=self.unit,
        )  # fmt: skip
        return chosen.view(num_tokens, num_experts)


def share(capacity: float, num_experts: int) -> tuple[int, int]:
    """An expert's share of the tokens, capacity / E, as numerator and denominator: no device needs float64 to count."""
    exact = Fraction(capacity).limit_denominator(10**6) / num_experts
    return exact.numerator, exact.denominator


def excess(counts: Tensor, tokens: Tensor, capacity: float, num_experts: int) -> Tensor:
    """-1, 0 or 1 where ``counts`` tokens are less than, just or more than an expert's share of ``tokens``; integers."""
    numerator, denominator = share(capacity, num_experts)
    return torch.sign(counts * denominator - tokens * numerator)


def choose_pairs(
    logits: Tensor,
    mask: Tensor | None,
    selection_bias: Tensor,
    *,
    routing: str = "dynamic",
    capacity: float = 1.0,
    top_k: int | None = None,
    pool: str = "batch",
    unit: str = "frame",
) -> Tensor:
    """Which expert takes which token, (B, T, E) bool, without gradient and without a host read.

    Args:
        logits: (B, T, E) routing logits.
        mask: (B, T) bool, True = valid, or ``None``.
        selection_bias: (E,).
        routing: ``"dynamic"``, ``"token_choice"`` or ``"expert_choice"``.
        capacity: units per expert times E / U.
        top_k: experts per token of ``"token_choice"``.
        pool: the units an expert chooses among: all of the ``"batch"``, or those of one ``"sample"``.
        unit: ``"frame"`` decides for every token; ``"sequence"`` for a row at once, from the mean of its valid logits.
    """
    size = check_tensor("logits", logits, ("B", "T", "E"))
    check_tensor("selection_bias", selection_bias, (size["E"],))
    if mask is not None:
        check_tensor("mask", mask, (size["B"], size["T"]))
    check_same_device(logits=logits, mask=mask, selection_bias=selection_bias)
    scores = logits.detach()
    valid = ~scores.isnan().any(dim=-1)
    if mask is not None:
        valid = valid & mask
    units = valid
    if unit == "sequence":
        frames = valid.sum(dim=1).clamp(min=1)[:, None, None]
        scores = torch.where(valid[..., None], scores, 0).sum(dim=1, keepdim=True) / frames
        units = valid.any(dim=1, keepdim=True)
    if routing == "dynamic":
        chosen = torch.sigmoid(scores) + selection_bias.to(scores.dtype) > 0
    elif routing == "token_choice":
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    else:
        pools = (1, units.numel()) if pool == "batch" else units.shape
        chosen = _best_units(scores.reshape(*pools, size["E"]), units.reshape(pools), capacity).view(scores.shape)
    return chosen & valid[..., None]


def _best_units(scores: Tensor, units: Tensor, capacity: float) -> Tensor:
    """The k best units of every expert in every pool: (N, U, E) scores and (N, U) bool -> (N, U, E) bool."""
    num_experts = scores.shape[-1]
    probabilities = torch.softmax(scores, dim=-1).masked_fill(~units[..., None], -1.0)
    order = probabilities.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[1], device=scores.device)[None, :, None].expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    numerator, denominator = share(capacity, num_experts)
    k = torch.div(units.sum(dim=1) * numerator, denominator, rounding_mode="floor").clamp(min=1)
    return rank < k[:, None, None]


def router_z_loss(logits: Tensor, mask: Tensor | None) -> Tensor:
    r"""Mean over the valid tokens of (log sum_e exp R_e)^2 (Zoph et al. 2022, eq. 5).

    It holds what the softmax gates do not see, a shift of all experts' logits; at 0 logits are the gates' logarithms.

    Args:
        logits: (B, T, E).
        mask: (B, T) bool or ``None``.
    """
    squares = torch.logsumexp(logits, dim=-1).square()
    if mask is None:
        return squares.mean()
    return squares.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def load_balance_loss(logits: Tensor, chosen: Tensor, mask: Tensor | None, *, pool: str = "batch") -> Tensor:
    r"""E * sum_e f_e P_e, at its least, 1, when both are even (Fedus et al. 2021, eq. 4; for top-k as in DiT-MoE).

    f_e is expert e's share of the chosen pairs, which has no gradient, and P_e the mean of softmax(logits)[e] over the
    valid tokens. With ``pool="sample"`` the mean over the samples of each sample's own.

    Args:
        logits: (B, T, E).
        chosen: (B, T, E) bool, from ``choose_pairs``.
        mask: (B, T) bool or ``None``.
    """
    num_experts = logits.shape[-1]
    valid = torch.ones_like(chosen[..., 0]) if mask is None else mask
    probabilities = torch.softmax(logits, dim=-1).masked_fill(~valid[..., None], 0.0)
    over = (0, 1) if pool == "batch" else (1,)
    taken = chosen.sum(dim=over) / chosen.sum(dim=(*over, -1)).clamp(min=1)[..., None]
    mean = probabilities.sum(dim=over) / valid.sum(dim=over).clamp(min=1)[..., None]
    losses = num_experts * (taken * mean).sum(dim=-1)
    return losses if pool == "batch" else losses.sum() / valid.any(dim=1).sum().clamp(min=1)
