"""The denoiser: weight-sharing transformers for the persons of a scene, an InterMoE block in place of every FFN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from intermoe.nn.attention import CrossAttention, SelfAttention
from intermoe.nn.layers import Linear, TimestepEmbedding, ZeroLinear, sinusoid
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops.checks import check_tensor
from intermoe.systems.intermoe.config import DenoiserConfig


class DenoiserLayer(nn.Module):
    """Self-attention, cross-attention to the partners as they entered the layer, InterMoE; each with a residual."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.dim, config.num_heads, config.dropout, config.zero_key)
        self.cross_attention = CrossAttention(config.dim, config.num_heads, config.dropout, config.zero_key)
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

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None, *, balance: bool = False) -> Any:
        """hidden (B, P, T, D), condition (B, D) or (B, P, K, D), mask (B, T) True = valid -> (B, P, T, D).

        With ``balance`` a pair of it and the block's balance loss.
        """
        batch, persons, frames, dim = hidden.shape
        partners = hidden
        hidden = hidden + self.self_attention(hidden, condition, mask)
        hidden = hidden + self.cross_attention(hidden, partners, condition, mask)
        pool_mask = None if mask is None else mask.repeat(1, persons)
        rows = condition if condition.dim() == 2 else condition.flatten(1, 2)
        tokens = hidden.reshape(batch, persons * frames, dim)
        if not balance:
            return hidden + self.moe(tokens, rows, pool_mask).view(hidden.shape)
        pooled, loss = self.moe(tokens, rows, pool_mask, balance=True)
        return hidden + pooled.view(hidden.shape), loss


class Shortcut(nn.Module):
    """What is added to a layer's result where few steps are taken: a narrow network beside it, zero at first.

    Of tokens h and condition c it is up(silu(down(LN(h)) + condition(silu(c)))) (adapters, Houlsby et al. 2019).
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.down = Linear(dim, width)
        self.condition = Linear(dim, width, bias=False)
        self.up = ZeroLinear(width, dim)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """hidden (B, P, T, D), condition (B, D) or (B, P, K, D), K dividing T -> (B, P, T, D)."""
        levels = self.condition(nn.functional.silu(condition))
        if condition.dim() == 2:
            levels = levels[:, None, None]
        else:
            levels = levels.repeat_interleave(hidden.shape[2] // condition.shape[2], dim=2)
        narrow = self.down(nn.functional.layer_norm(hidden, (self.dim,)))
        added: Tensor = self.up(nn.functional.silu(narrow + levels))
        return added


class Denoiser(nn.Module):
    """Estimates clean latents of P persons from noisy ones, a timestep and a text condition.

    All persons share the weights and update in parallel; P is free, 1 to N.

    Args:
        config: see ``intermoe.systems.intermoe.config.DenoiserConfig``.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_motion = Linear(config.input_dim, config.dim)
        self.embed_timestep = TimestepEmbedding(config.dim)
        self.embed_text = Linear(config.text_dim, config.dim)
        self.layers = nn.ModuleList(DenoiserLayer(config) for _ in range(config.num_layers))
        self.out = Linear(config.dim, config.input_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.first_person = nn.Parameter(torch.zeros(config.dim)) if config.first_person else None
        self.shortcuts = nn.ModuleList(
            Shortcut(config.dim, config.shortcut.width)
            for _ in range(config.num_layers if config.shortcut.steps else 0)
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        *,
        balance: bool = False,
        shortcut: bool = False,
    ) -> Any:
        """One denoising estimate.

        Args:
            x: (B, P, T', input_dim) noisy latents of P persons.
            timesteps: (B,) integers in the training schedule, or (B, P, K), one for each person and each of K equal
                runs of frames; K divides T'.
            text: (B, text_dim) text condition; zeros for none.
            mask: (B, T') bool, True = valid; padded frames are not attended to, routed or counted, whatever they hold.
            balance: return the balance loss too.
            shortcut: the estimate that few guided steps need (``config.shortcut``), for a denoiser that learned it.

        Returns:
            (B, P, T', input_dim) estimate of the clean latents. Values at padded frames are meaningless. With
            ``balance`` a pair of it and the sum of the layers' balance losses, a scalar to be added to the loss, times
            a small coefficient; zero but for training by token-choice routing.
        """
        self._check(x, timesteps, text, mask)
        if shortcut and not self.shortcuts:
            raise ValueError("shortcut: expected false for a denoiser that was not distilled, got true")
        if mask is not None:  # an attention weight of 0 times infinity would be NaN
            x = x.masked_fill(~mask[:, None, :, None], 0.0)
        levels, words = self.embed_timestep(timesteps), self.embed_text(text)
        condition = levels + (words if timesteps.dim() == 1 else words[:, None, None])
        frames = torch.arange(x.shape[2], device=x.device)
        hidden = self.embed_motion(x) + sinusoid(frames, self.config.dim).to(x.dtype)
        if self.first_person is not None:
            hidden = torch.cat([hidden[:, :1] + self.first_person, hidden[:, 1:]], dim=1)
        recompute = self.config.recompute and torch.is_grad_enabled()
        losses: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            if recompute:
                made = checkpoint(layer, hidden, condition, mask, balance=balance, use_reentrant=False)
            else:
                made = layer(hidden, condition, mask, balance=balance)
            hidden, *loss = made if balance else (made,)
            if shortcut:
                hidden = hidden + self.shortcuts[number](hidden, condition)
            losses += loss
        estimate: Tensor = self.out(hidden)
        return (estimate, torch.stack(losses).sum()) if balance else estimate

    def moe_blocks(self) -> list[InterMoEBlock]:
        """The MoE block of every layer, first to last."""
        return [module for module in self.modules() if isinstance(module, InterMoEBlock)]

    def update_selection_bias(self) -> None:
        """``InterMoEBlock.update_selection_bias`` of every layer; call it once after each optimiser step."""
        for block in self.moe_blocks():
            block.update_selection_bias()

    def _check(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> None:
        size = check_tensor("x", x, ("B", "P", "T'", self.config.input_dim))
        if timesteps.dim() != 3:
            check_tensor("timesteps", timesteps, (size["B"],))
        else:
            runs = check_tensor("timesteps", timesteps, (size["B"], size["P"], "K"))["K"]
            if runs < 1 or x.shape[2] % runs != 0:
                raise ValueError(f"timesteps: expected (B, P, K) with K dividing T'={x.shape[2]}, got K={runs}")
        check_tensor("text", text, (size["B"], self.config.text_dim))
        if size["P"] < 1 or size["T'"] < 1:
            raise ValueError(f"x: expected at least one person and one frame, got {tuple(x.shape)}")
        if mask is not None:
            check_tensor("mask", mask, (size["B"], size["T'"]))
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected dtype torch.bool (True = valid), got {mask.dtype}")
