"""InterMask's transformer: the likely codes at masked points of two persons' grids (Javed et al. 2025, section 3.2).

All tokens of both persons attend to each other in one sequence; then each person, with shared weights, attends within a
time step, within a body part and to the partner. The text drives the modulation of every step.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.nn.layers import sinusoid
from intermoe.nn.multihead import MultiheadAttention
from intermoe.ops.checks import check_tensor
from intermoe.systems.intermask.config import InterMaskConfig

PERSONS = 2
NORM_EPS = 1e-6


def grid_encoding(num_parts: int, length: int, dim: int) -> Tensor:
    """Sinusoids of a grid's row, then of its column, cut to ``dim`` channels: (num_parts, length, dim)."""
    half = 2 * math.ceil(dim / 4)
    rows = sinusoid(torch.arange(num_parts), half)[:, None].expand(-1, length, -1)
    columns = sinusoid(torch.arange(length), half)[None].expand(num_parts, -1, -1)
    return torch.cat([rows, columns], dim=-1)[..., :dim]


class Modulation(nn.Module):
    """``chunks`` vectors (B, 1, D) from a condition (B, D): SiLU, Linear, zero-initialised (Peebles and Xie 2023)."""

    def __init__(self, dim: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(dim, chunks * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """(B, D) -> ``chunks`` times (B, 1, D)."""
        return self.linear(nn.functional.silu(condition))[:, None].chunk(self.chunks, dim=-1)


def modulated(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(hidden) * (1 + scale) + shift; hidden (B, T, D), shift and scale (B, 1, D)."""
    return nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class FeedForward(nn.Module):
    """Linear, GELU, dropout, Linear."""

    def __init__(self, config: InterMaskConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.dim, config.feedforward_dim)
        self.out = nn.Linear(config.feedforward_dim, config.dim)
        self.dropout = config.dropout

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        inner = nn.functional.gelu(self.inner(hidden))
        out: Tensor = self.out(nn.functional.dropout(inner, self.dropout, self.training))
        return out


class InterMaskLayer(nn.Module):
    """Both persons together, then each of them apart."""

    def __init__(self, config: InterMaskConfig) -> None:
        super().__init__()
        self.num_parts = config.num_parts
        self.together = Modulation(config.dim, 6)
        self.attention = _attention(config)
        self.feed_forward = FeedForward(config)
        self.apart = Modulation(config.dim, 14)
        self.spatial_attention = _attention(config)
        self.temporal_attention = _attention(config)
        self.cross_attention = _attention(config)
        self.apart_feed_forward = FeedForward(config)

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, 2 N + 1, D): person 1, separator, person 2; condition (B, D); mask (B, N) -> (B, 2 N + 1, D)."""
        tokens = (hidden.shape[1] - 1) // PERSONS
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.together(condition)
        keys = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1), mask], dim=1)
        normed = modulated(hidden, shift, scale)
        hidden = hidden + gate * self.attention(normed, normed, keys)
        hidden = hidden + ff_gate * self.feed_forward(modulated(hidden, ff_shift, ff_scale))
        first, separator, second = hidden.split([tokens, 1, tokens], dim=1)
        each_mask = None if mask is None else mask.repeat(PERSONS, 1)
        persons = self._each(torch.cat([first, second]), condition.repeat(PERSONS, 1), each_mask)
        first, second = persons.chunk(PERSONS)
        return torch.cat([first, separator, second], dim=1)

    def _each(self, own: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """own (2 B, N, D): all first persons, then their partners; condition (2 B, D); mask (2 B, N)."""
        chunks = self.apart(condition)
        (s_shift, s_scale, s_gate), (t_shift, t_scale, t_gate) = chunks[:3], chunks[3:6]
        c_shift, c_scale, p_shift, p_scale, c_gate, ff_shift, ff_scale, ff_gate = chunks[6:]
        partner = own.roll(len(own) // PERSONS, dims=0)
        within_step = own + s_gate * self._spatial(modulated(own, s_shift, s_scale))
        within_part = own + t_gate * self._temporal(modulated(own, t_shift, t_scale), mask)
        hidden = within_step + within_part
        query, context = modulated(hidden, c_shift, c_scale), modulated(partner, p_shift, p_scale)
        hidden = hidden + c_gate * self.cross_attention(query, context, mask)
        return hidden + ff_gate * self.apart_feed_forward(modulated(hidden, ff_shift, ff_scale))

    def _spatial(self, normed: Tensor) -> Tensor:
        rows = rearrange(normed, "b (part t) d -> (b t) part d", part=self.num_parts)
        attended = self.spatial_attention(rows, rows)
        return rearrange(attended, "(b t) part d -> b (part t) d", b=len(normed))

    def _temporal(self, normed: Tensor, mask: Tensor | None) -> Tensor:
        rows = normed.unflatten(1, (self.num_parts, -1)).flatten(0, 1)
        keys = None if mask is None else mask.unflatten(1, (self.num_parts, -1)).flatten(0, 1)
        attended = self.temporal_attention(rows, rows, keys)
        return attended.unflatten(0, (-1, self.num_parts)).flatten(1, 2)


def _attention(config: InterMaskConfig) -> MultiheadAttention:
    return MultiheadAttention(config.dim, config.num_heads, config.dropout)


class InterMask(nn.Module):
    """Logits of the codes of two persons, from the codes that are known and a text condition.

    Args:
        config: see ``InterMaskConfig``. Codes are in [0, num_codes); ``mask_id`` stands for an unknown one.
    """

    def __init__(self, config: InterMaskConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_id, self.padding_id, self.separator_id = (config.num_codes + i for i in range(3))
        self.embed_codes = nn.Embedding(config.num_codes + 3, config.code_dim)
        self.embed = nn.Linear(config.code_dim, config.dim)
        self.embed_text = nn.Linear(config.text_dim, config.dim)
        self.layers = nn.ModuleList(InterMaskLayer(config) for _ in range(config.num_layers))
        self.head = nn.Linear(config.dim, config.dim)
        self.head_modulation = Modulation(config.dim, 2)
        self.out = nn.Linear(config.dim, config.num_codes)

    def forward(self, codes: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits at every point, masked or not.

        Args:
            codes: (B, 2, num_parts, L) int64, ``mask_id`` where unknown.
            text: (B, text_dim) text condition; zeros for none.
            mask: (B, L) bool, True = valid, the same time steps for both persons.

        Returns:
            (B, 2, num_parts, L, num_codes). Values at padding are meaningless.
        """
        size = check_tensor("codes", codes, ("B", PERSONS, self.config.num_parts, "L"))
        check_tensor("text", text, (size["B"], self.config.text_dim))
        tokens = None
        if mask is not None:
            check_tensor("mask", mask, (size["B"], size["L"]))
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected dtype torch.bool (True = valid), got {mask.dtype}")
            codes = codes.masked_fill(~mask[:, None, None], self.padding_id)
            tokens = mask.repeat(1, self.config.num_parts)
        condition = self.embed_text(text)
        hidden = self.embed(self.embed_codes(codes))
        places = grid_encoding(self.config.num_parts, size["L"], self.config.dim).to(hidden)
        separator = self.embed(self.embed_codes.weight[self.separator_id]).expand(size["B"], 1, -1)
        first, second = (hidden + places).flatten(2, 3).unbind(dim=1)
        hidden = torch.cat([first, separator, second], dim=1)
        for layer in self.layers:
            hidden = layer(hidden, condition, tokens)
        half = hidden.shape[1] // PERSONS
        hidden = torch.cat([hidden[:, :half], hidden[:, half + 1 :]], dim=1)
        hidden = modulated(nn.functional.gelu(self.head(hidden)), *self.head_modulation(condition))
        logits: Tensor = self.out(hidden)
        return logits.unflatten(1, (PERSONS, self.config.num_parts, size["L"]))
