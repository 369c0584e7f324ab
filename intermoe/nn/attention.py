"""Attention over one person's frames and over the partners' frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intermoe.nn.layers import AdaLN, Linear


class Attention(nn.Module):
    """Multi-head attention, by default with one extra all-zero key and value, which lets a query attend to nothing.

    Args:
        dim: width D.
        num_heads: divides ``dim``.
        dropout: on the attention weights, in training.
        zero_key: whether there is the extra key. A small network that learns fast may come to attend to it alone, in
            every query, and then has no gradient to find back.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, zero_key: bool = True) -> None:
        super().__init__()
        self.zero_key = int(zero_key)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.out = Linear(dim, dim)
        for projection in (self.query, self.key_value):
            # one (3D, D) matrix of fan_in D and fan_out 3D, as torch's MultiheadAttention draws it
            bound = (6.0 / (4 * dim)) ** 0.5
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, queries: Tensor, context: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """queries (B, T, D), context (B, K, D), key_mask (B, K) bool with True = valid -> (B, T, D). K may be 0."""
        q = self._heads(self.query(queries))
        key, value = self.key_value(context).chunk(2, dim=-1)
        # the zero key comes first, so that padding stays at the end; where there is nobody to attend to, it stays
        extra = max(self.zero_key, int(context.shape[1] == 0))
        k = nn.functional.pad(self._heads(key), (0, 0, extra, 0))
        v = nn.functional.pad(self._heads(value), (0, 0, extra, 0))
        mask = None if key_mask is None else nn.functional.pad(key_mask, (extra, 0), value=True)[:, None, None, :]
        attended = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        # "b t (h d) -> b h t d"; einops would say it so, for thrice the host's time, 48 times a call of the denoiser
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """AdaLN, then every person attends to their own frames."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, zero_key: bool = True) -> None:
        super().__init__()
        self.norm = AdaLN(dim, dim)
        self.attention = Attention(dim, num_heads, dropout, zero_key)

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, P, T, D), condition (B, D) or (B, P, K, D), mask (B, T) True = valid -> (B, P, T, D), no residual.

        K rows of the condition are for K equal runs of a person's frames.
        """
        persons = hidden.shape[1]
        normed = self.norm(hidden, condition).flatten(0, 1)
        key_mask = None if mask is None else mask.repeat_interleave(persons, dim=0)
        out: Tensor = self.attention(normed, normed, key_mask)
        return out.unflatten(0, (-1, persons))


class CrossAttention(nn.Module):
    """AdaLN on both sides, then every person attends to the frames of all other persons."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, zero_key: bool = True) -> None:
        super().__init__()
        self.norm = AdaLN(dim, dim)
        self.context_norm = AdaLN(dim, dim)
        self.attention = Attention(dim, num_heads, dropout, zero_key)

    def forward(self, hidden: Tensor, partners: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden and partners (B, P, T, D), condition (B, D) or (B, P, K, D), mask (B, T) -> (B, P, T, D), no residual.

        ``partners`` holds every person's frames; person p attends to those of all others. With P = 1 there is
        nobody to attend to, and only a zero key remains.
        """
        batch, persons, frames, dim = hidden.shape
        normed = self.norm(hidden, condition).flatten(0, 1)
        context = self.context_norm(partners, condition)
        others = torch.arange(persons, device=hidden.device)
        others = torch.cat([others.roll(-p)[1:] for p in range(persons)])
        context = context.index_select(1, others).view(batch * persons, (persons - 1) * frames, dim)
        key_mask = None if mask is None else mask.repeat(1, persons - 1).repeat_interleave(persons, dim=0)
        out: Tensor = self.attention(normed, context, key_mask)
        return out.unflatten(0, (-1, persons))
