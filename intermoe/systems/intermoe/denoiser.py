"""The denoiser: weight-sharing transformers for the persons of a scene, an InterMoE block in place of every FFN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from intermoe.nn.attention import CrossAttention, SelfAttention
from intermoe.nn.layers import TimestepEmbedding, sinusoid
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops.checks import check_tensor
from intermoe.systems.intermoe.config import DenoiserConfig


class DenoiserLayer(nn.Module):
    """Self-attention, cross-attention to the partners as they entered the layer, InterMoE; each with a residual."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.dim, config.num_heads, config.dropout)
        self.cross_attention = CrossAttention(config.dim, config.num_heads, config.dropout)
        self.moe = InterMoEBlock(
            dim=config.dim,
            num_experts=config.num_experts,
            expert_dim=config.expert_dim,
            cond_dim=config.dim,
            capacity=config.capacity,
            fusion=config.fusion,
            alpha=config.alpha,
            num_shared_experts=config.num_shared_experts,
            bias_rate=config.bias_rate,
            bias_init=config.bias_init,
            routing=config.routing,
            top_k=config.top_k,
            pool=config.pool,
            unit=config.unit,
        )

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, P, T, D), condition (B, D), mask (B, T) True = valid -> (B, P, T, D)."""
        batch, persons, frames, dim = hidden.shape
        partners = hidden
        hidden = hidden + self.self_attention(hidden, condition, mask)
        hidden = hidden + self.cross_attention(hidden, partners, condition, mask)
        pool_mask = None if mask is None else mask.repeat(1, persons)
        pooled = self.moe(hidden.reshape(batch, persons * frames, dim), condition, pool_mask)
        return hidden + pooled.view(hidden.shape)


class Denoiser(nn.Module):
    """Estimates clean latents of P persons from noisy ones, a timestep and a text condition.

    All persons share the weights and update in parallel; P is free, 1 to N.

    Args:
        config: see ``intermoe.systems.intermoe.config.DenoiserConfig``.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_motion = nn.Linear(config.input_dim, config.dim)
        self.embed_timestep = TimestepEmbedding(config.dim)
        self.embed_text = nn.Linear(config.text_dim, config.dim)
        self.layers = nn.ModuleList(DenoiserLayer(config) for _ in range(config.num_layers))
        self.out = nn.Linear(config.dim, config.input_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.first_person = nn.Parameter(torch.zeros(config.dim)) if config.first_person else None

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """One denoising estimate.

        Args:
            x: (B, P, T', input_dim) noisy latents of P persons.
            timesteps: (B,) integers in the training schedule.
            text: (B, text_dim) text condition; zeros for none.
            mask: (B, T') bool, True = valid; padded frames are not attended to, routed or counted, whatever they hold.

        Returns:
            (B, P, T', input_dim) estimate of the clean latents. Values at padded frames are meaningless.
        """
        self._check(x, timesteps, text, mask)
        if mask is not None:  # an attention weight of 0 times infinity would be NaN
            x = x.masked_fill(~mask[:, None, :, None], 0.0)
        condition = self.embed_timestep(timesteps) + self.embed_text(text)
        frames = torch.arange(x.shape[2], device=x.device)
        hidden = self.embed_motion(x) + sinusoid(frames, self.config.dim).to(x.dtype)
        if self.first_person is not None:
            hidden = torch.cat([hidden[:, :1] + self.first_person, hidden[:, 1:]], dim=1)
        recompute = self.config.recompute and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                hidden = checkpoint(layer, hidden, condition, mask, use_reentrant=False)
            else:
                hidden = layer(hidden, condition, mask)
        estimate: Tensor = self.out(hidden)
        return estimate

    def moe_blocks(self) -> list[InterMoEBlock]:
        """The MoE block of every layer, first to last."""
        return [module for module in self.modules() if isinstance(module, InterMoEBlock)]

    def update_selection_bias(self) -> None:
        """``InterMoEBlock.update_selection_bias`` of every layer; call it once after each optimiser step."""
        for block in self.moe_blocks():
            block.update_selection_bias()

    def load_balance_loss(self) -> Tensor:
        """Sum of the layers' ``load_balance_loss`` of the last training forward, zero but for token-choice routing.

        Add it, times a small coefficient, to the training loss.
        """
        losses = [block.load_balance_loss for block in self.moe_blocks() if block.load_balance_loss is not None]
        return torch.stack(losses).sum() if losses else self.out.bias.new_zeros(())

    def _check(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> None:
        size = check_tensor("x", x, ("B", "P", "T'", self.config.input_dim))
        check_tensor("timesteps", timesteps, (size["B"],))
        check_tensor("text", text, (size["B"], self.config.text_dim))
        if size["P"] < 1 or size["T'"] < 1:
            raise ValueError(f"x: needs at least one person and one frame, got {tuple(x.shape)}")
        if mask is not None:
            check_tensor("mask", mask, (size["B"], size["T'"]))
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected dtype torch.bool (True = valid), got {mask.dtype}")
