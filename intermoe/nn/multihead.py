"""Attention with the weights of ``torch.nn.MultiheadAttention``, and the post-norm layer that is built on it.

torch's own modules take a path of their own outside training, which is slower on CPUs than its fused attention.
"""

from __future__ import annotations

from torch import Tensor, nn

from intermoe.nn.layers import Linear
from intermoe.ops.linear import linear


class MultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention``, its parameters and their initial draw, called with a mask of valid keys."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads, dropout, batch_first=True)

    def forward(  # type: ignore[override]
        self, queries: Tensor, context: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """queries (M, T, D), context (M, K, D), key_mask (M, K) bool, True = valid, at least one a row -> (M, T, D)."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if queries is context:
            q, k, v = linear(queries, weight, bias).chunk(3, dim=-1)
        else:
            q = nn.functional.linear(queries, weight[: self.embed_dim], bias[: self.embed_dim])
            both = nn.functional.linear(context, weight[self.embed_dim :], bias[self.embed_dim :])
            k, v = both.chunk(2, dim=-1)
        # "m t (h d) -> m h t d"; einops takes more of the host's time
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if key_mask is None else key_mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        out = linear(attended.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        return out


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network with GELU, each with its residual, then LayerNorm (Vaswani et al. 2017).

    Parameters are named as in ``torch.nn.TransformerEncoderLayer``.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        self.linear1 = Linear(dim, feedforward_dim)
        self.linear2 = Linear(feedforward_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """hidden (M, T, D), key_mask (M, T) bool, True = valid -> (M, T, D)."""
        hidden = self.norm1(hidden + self.dropout(self.self_attn(hidden, hidden, key_mask)))
        inner = self.dropout(nn.functional.gelu(self.linear1(hidden)))
        out: Tensor = self.norm2(hidden + self.dropout(self.linear2(inner)))
        return out
