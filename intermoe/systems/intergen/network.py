"""InterGen's network, and the frame that it shares with TIMotion and in2IN: only their layers differ.

One layer, for every person, the partners as they were when they entered the layer (all persons update in parallel with
the same weights), c = embedding of timestep + Linear(text):

    h = h + self-attention(AdaLN(h, c))
    h = h + cross-attention(AdaLN(h, c), AdaLN(partners, c))
    h = h + feed-forward(AdaLN(h, c))
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from intermoe.nn.attention import CrossAttention, SelfAttention
from intermoe.nn.layers import AdaLN, TimestepEmbedding, sinusoid
from intermoe.ops.checks import check_tensor
from intermoe.systems.intergen.config import InterGenConfig


class AdaLNFeedForward(nn.Module):
    """AdaLN, then Linear, GELU, Linear: W_2 gelu(W_1 AdaLN(x, c) + b_1) + b_2, without a residual.

    Args:
        dim: width D of the tokens.
        hidden_dim: hidden width.
        cond_dim: width C of the condition.
        dropout: on the hidden values, in training.
    """

    def __init__(self, dim: int, hidden_dim: int, cond_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = AdaLN(dim, cond_dim)
        self.network: nn.Module = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim)
        )

    def forward(self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (B, T, D), condition (B, C), mask (B, T) True = valid -> (B, T, D).

        ``mask`` is for what ``replace_feed_forward`` puts in place of ``network``: experts leave padding out.
        """
        out: Tensor = self.network(self.norm(tokens, condition))
        return out


class InterGenLayer(nn.Module):
    """Self-attention, cross-attention to the partners as they entered the layer, feed-forward; each with a residual."""

    def __init__(self, config: InterGenConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.dim, config.num_heads, config.dropout)
        self.cross_attention = CrossAttention(config.dim, config.num_heads, config.dropout)
        self.feed_forward = AdaLNFeedForward(config.dim, config.feedforward_dim, config.dim, config.dropout)

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, P, T, D), condition (B, D), mask (B, T) True = valid -> (B, P, T, D)."""
        partners = hidden
        hidden = hidden + self.self_attention(hidden, condition, mask)
        hidden = hidden + self.cross_attention(hidden, partners, condition, mask)
        tokens_mask = None if mask is None else mask.repeat(1, hidden.shape[1])
        return hidden + self.feed_forward(hidden.flatten(1, 2), condition, tokens_mask).view_as(hidden)


class MotionNetwork(nn.Module):
    """Estimates clean motion of P persons from noisy motion, a timestep and a text condition, through given layers.

    Args:
        config: sizes.
        layers: each called as ``InterGenLayer.forward``.
    """

    def __init__(self, config: InterGenConfig, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.embed_motion = nn.Linear(config.input_dim, config.dim)
        self.embed_timestep = TimestepEmbedding(config.dim)
        self.embed_text = nn.Linear(config.text_dim, config.dim)
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(config.dim, config.input_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """One denoising estimate.

        Args:
            x: (B, P, T, input_dim) noisy motion, normalised.
            timesteps: (B,) integers in the training schedule.
            text: (B, text_dim) text condition; zeros for none.
            mask: (B, T) bool, True = valid; whatever padded frames hold, they do not reach valid ones.

        Returns:
            (B, P, T, input_dim) estimate of the clean motion. Values at padded frames are meaningless.

        Raises:
            ValueError, TypeError: an argument of another shape or dtype, named.
        """
        self.check_call(x, timesteps, text, mask)
        if mask is not None and self.config.mask_padding:  # an attention weight of 0 times infinity would be NaN
            x = x.masked_fill(~mask[:, None, :, None], 0.0)
        frames = torch.arange(x.shape[2], device=x.device)
        hidden = self.embed_motion(x) + sinusoid(frames, self.config.dim).to(x.dtype)
        condition = self.condition(timesteps, text)
        for layer in self.layers:
            hidden = layer(hidden, condition, mask)
        estimate: Tensor = self.out(hidden)
        return estimate

    def condition(self, timesteps: Tensor, text: Tensor) -> Tensor:
        """(B, D): the embedding of the timestep plus that of the text."""
        condition: Tensor = self.embed_timestep(timesteps) + self.embed_text(text)
        return condition

    def text_shape(self, persons: int) -> tuple[int, ...]:
        """Shape of one sample's text condition for so many persons. Raises ``ValueError`` for a number not served."""
        return (self.config.text_dim,)

    def check_call(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> None:
        """Raise ``ValueError`` or ``TypeError`` for arguments that do not fit; see ``forward``."""
        size = check_tensor("x", x, ("B", "P", "T", self.config.input_dim))
        if size["P"] < 1 or size["T"] < 1:
            raise ValueError(f"x: expected at least one person and one frame, got {tuple(x.shape)}")
        check_tensor("timesteps", timesteps, (size["B"],))
        check_tensor("text", text, (size["B"], *self.text_shape(size["P"])))
        if mask is not None:
            check_tensor("mask", mask, (size["B"], size["T"]))
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected dtype torch.bool (True = valid), got {mask.dtype}")


class InterGen(MotionNetwork):
    """InterGen's denoiser; any number of persons, who share all weights and can be exchanged.

    Args:
        config: see ``intermoe.systems.intergen.config.InterGenConfig``.
    """

    def __init__(self, config: InterGenConfig) -> None:
        super().__init__(config, (InterGenLayer(config) for _ in range(config.num_layers)))
