"""in2IN's networks: InterGen's, told what each person does beside what happens between them.

One layer of the interaction network, c_I and c_i the embedding of the timestep plus Linear(text) of the interaction and
of person i:

    h_i = h_i + self-attention(AdaLN(h_i, c_i))
    h_i = h_i + cross-attention(AdaLN(h_i, c_I), AdaLN(partners, c_I)), the partners as they entered the layer
    h_i = h_i + feed-forward(AdaLN(h_i, c_i))

The individual prior is the same network for one person: nobody to attend to, and so no cross-attention.
"""

from __future__ import annotations

from torch import Tensor, nn

from intermoe.nn.attention import CrossAttention, SelfAttention
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intergen.network import AdaLNFeedForward, MotionNetwork


class IndividualLayer(nn.Module):
    """Self-attention and feed-forward of one person, each with a residual."""

    def __init__(self, config: InterGenConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.dim, config.num_heads, config.dropout)
        self.feed_forward = AdaLNFeedForward(config.dim, config.feedforward_dim, config.dim, config.dropout)

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, 1, T, D), condition (B, D), mask (B, T) True = valid -> (B, 1, T, D)."""
        hidden = hidden + self.self_attention(hidden, condition, mask)
        return hidden + self.feed_forward(hidden[:, 0], condition, mask)[:, None]


class In2INLayer(nn.Module):
    """Self-attention, cross-attention to the partners as they entered the layer, feed-forward; each with a residual."""

    def __init__(self, config: InterGenConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.dim, config.num_heads, config.dropout)
        self.cross_attention = CrossAttention(config.dim, config.num_heads, config.dropout)
        self.feed_forward = AdaLNFeedForward(config.dim, config.feedforward_dim, config.dim, config.dropout)

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, P, T, D), condition (B, 1 + P, D), mask (B, T) True = valid -> (B, P, T, D).

        ``condition`` holds the interaction's vector, then one of every person.
        """
        interaction, individual = condition[:, 0], condition[:, 1:]
        partners = hidden
        hidden = hidden + self.self_attention(hidden, individual[:, :, None], mask)  # one row of each person's
        hidden = hidden + self.cross_attention(hidden, partners, interaction, mask)
        each_mask = None if mask is None else mask.repeat_interleave(hidden.shape[1], dim=0)
        fed = self.feed_forward(hidden.flatten(0, 1), individual.flatten(0, 1), each_mask)
        return hidden + fed.view_as(hidden)


class In2IN(MotionNetwork):
    """in2IN's denoiser; any number of persons, who share all weights.

    Its text condition is (B, 1 + P, text_dim): that of the interaction, then one of every person; zeros for none.

    Args:
        config: see ``intermoe.systems.intergen.config.InterGenConfig``.
    """

    def __init__(self, config: InterGenConfig) -> None:
        super().__init__(config, (In2INLayer(config) for _ in range(config.num_layers)))

    def condition(self, timesteps: Tensor, text: Tensor) -> Tensor:
        """(B, 1 + P, D): the embedding of the timestep plus that of each text."""
        condition: Tensor = self.embed_timestep(timesteps)[:, None] + self.embed_text(text)
        return condition

    def text_shape(self, persons: int) -> tuple[int, ...]:
        """(1 + persons, text_dim)."""
        return (1 + persons, self.config.text_dim)


class IndividualPrior(MotionNetwork):
    """in2IN's denoiser of one person's motion, called with x (B, 1, T, input_dim) and text (B, text_dim).

    Args:
        config: see ``intermoe.systems.intergen.config.InterGenConfig``.
    """

    def __init__(self, config: InterGenConfig) -> None:
        super().__init__(config, (IndividualLayer(config) for _ in range(config.num_layers)))

    def text_shape(self, persons: int) -> tuple[int, ...]:
        """(text_dim,) for one person."""
        if persons != 1:
            raise ValueError(f"x: expected one person, got {persons}")
        return super().text_shape(persons)
