"""TIMotion's network: InterGen's frame around layers in which both persons are one sequence.

For persons a and b every frame i gives two rows of double width, [a_i | b_i] and [b_i | a_i]. All rows attend to all
rows, c = embedding of timestep + Linear(text):

    rows = rows + self-attention(AdaLN(rows, c))
    with local patterns:
        a', b' = merge(rows)
        a'' = Linear [a' | convolutions(a)], a being the person as it entered the layer; b'' likewise
        rows = rows of a'', b''
    rows = rows + feed-forward(AdaLN(rows, c))
    a, b = merge(rows)
    merge: a_i = left half of [a_i | b_i] + right half of [b_i | a_i], b_i the other two

A merge adds two copies of a person, so the stream doubles in every layer; the next layer's AdaLN takes that out.

Rows are kept as (B, person, T): the published interleaving in time is another order of the same rows, which attention
without positions does not see.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.nn.attention import Attention
from intermoe.nn.layers import AdaLN
from intermoe.systems.intergen.network import AdaLNFeedForward, MotionNetwork
from intermoe.systems.timotion.config import TIMotionConfig


def rows_of(hidden: Tensor) -> Tensor:
    """(B, 2, T, D) -> (B, 2, T, 2 D): every person's frame beside the partner's."""
    return torch.cat([hidden, hidden.flip(1)], dim=-1)


def merge(rows: Tensor) -> Tensor:
    """(B, 2, T, 2 D) -> (B, 2, T, D): both copies of every person, added."""
    own, partner = rows.chunk(2, dim=-1)
    return own + partner.flip(1)


class ConvBlock(nn.Module):
    """(AdaLN, SiLU, convolution of 3 frames, AdaLN, SiLU, convolution of 1 frame) + input, along one person's time.

    Args:
        dim: width D of frames and condition.
        dilation: of the convolution of 3 frames.
        first_norm: whether the first AdaLN and SiLU are there; in the first layer they are not.
    """

    def __init__(self, dim: int, dilation: int, *, first_norm: bool) -> None:
        super().__init__()
        self.norm1 = AdaLN(dim, dim) if first_norm else None
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation)
        self.norm2 = AdaLN(dim, dim)
        self.conv2 = nn.Conv1d(dim, dim, 1)

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, P, T, D), condition (B, D), mask (B, T): frames to set to zero before the first convolution."""
        inner = hidden
        if self.norm1 is not None:
            inner = nn.functional.silu(self.norm1(inner, condition))
        if mask is not None:
            inner = inner.masked_fill(~mask[:, None, :, None], 0.0)
        inner = rearrange(self.conv1(rearrange(inner, "b p t d -> (b p) d t")), "(b p) d t -> b p t d", b=len(hidden))
        inner = nn.functional.silu(self.norm2(inner, condition))
        return hidden + nn.functional.linear(inner, self.conv2.weight[..., 0], self.conv2.bias)


class LocalPatterns(nn.Module):
    """Convolution blocks along every person's own time, whose dilations grow."""

    def __init__(self, config: TIMotionConfig, *, first_norm: bool) -> None:
        super().__init__()
        self.mask_all = config.mask_padding
        self.blocks = nn.ModuleList(
            ConvBlock(config.dim, config.dilation_rate**index, first_norm=first_norm)
            for index in range(config.conv_blocks)
        )

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, P, T, D), condition (B, D), mask (B, T) True = valid -> (B, P, T, D)."""
        if mask is not None:
            hidden = hidden.masked_fill(~mask[:, None, :, None], 0.0)
        for block in self.blocks:
            hidden = block(hidden, condition, mask if self.mask_all else None)
        return hidden


class TIMotionLayer(nn.Module):
    """Layer ``index`` of TIMotion; see the module for its equations."""

    def __init__(self, config: TIMotionConfig, index: int) -> None:
        super().__init__()
        width, dropout = 2 * config.dim, config.dropout * index / config.num_layers
        self.norm = AdaLN(width, config.dim)
        self.attention = Attention(width, config.num_heads, dropout)
        self.local_patterns = LocalPatterns(config, first_norm=index > 0) if config.local_patterns else None
        self.join = nn.Linear(width, config.dim) if config.local_patterns else None
        self.feed_forward = AdaLNFeedForward(width, config.feedforward_dim, config.dim, dropout)

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, 2, T, D), condition (B, D), mask (B, T) True = valid -> (B, 2, T, D)."""
        rows_mask = None if mask is None else mask.repeat(1, 2)
        rows = rows_of(hidden)
        normed = self.norm(rows, condition).flatten(1, 2)
        rows = rows + self.attention(normed, normed, rows_mask).view_as(rows)
        if self.local_patterns is not None and self.join is not None:
            local = self.local_patterns(hidden, condition, mask)
            rows = rows_of(self.join(torch.cat([merge(rows), local], dim=-1)))
        return merge(rows + self.feed_forward(rows.flatten(1, 2), condition, rows_mask).view_as(rows))


class TIMotion(MotionNetwork):
    """TIMotion's denoiser; exactly two persons, who share all weights and can be exchanged.

    Args:
        config: see ``intermoe.systems.timotion.config.TIMotionConfig``.
    """

    def __init__(self, config: TIMotionConfig) -> None:
        super().__init__(config, (TIMotionLayer(config, index) for index in range(config.num_layers)))

    def text_shape(self, persons: int) -> tuple[int, ...]:
        """(text_dim,) for two persons."""
        if persons != 2:
            raise ValueError(f"x: expected two persons, whose frames make one row, got {persons}")
        return super().text_shape(persons)
