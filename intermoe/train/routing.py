"""Counting and reporting which experts the tokens of a training step took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from intermoe.nn.moe import InterMoEBlock, call_of
from intermoe.ops.routing import router_z_loss, share


class RouterZ:
    """``router_z_loss`` of the InterMoE blocks of ``model``, summed over the blocks of a training forward.

    Each block's logits are computed once more for it, which costs little beside its experts.
    """

    def __init__(self, model: nn.Module) -> None:
        self.losses: list[Tensor] | None = None
        for module in model.modules():
            if isinstance(module, InterMoEBlock):
                module.register_forward_pre_hook(self._hook, with_kwargs=True)

    @contextmanager
    def collecting(self) -> Iterator[list[Tensor]]:
        """The losses of the blocks that are called within, in their order."""
        self.losses = []
        try:
            yield self.losses
        finally:
            self.losses = None

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.losses is not None and isinstance(module, InterMoEBlock):
            self.losses.append(_z_loss(module, *args, **call_of(kwargs)))


class Routing:
    """The InterMoE blocks of a model: what they counted in an optimiser step, and their bias updates."""

    def __init__(self, model: nn.Module) -> None:
        self.blocks = {n: m for n, m in model.named_modules() if isinstance(m, InterMoEBlock)}
        self.probe = False
        self.start()
        for name, block in self.blocks.items():
            block.register_forward_pre_hook(self._count_idle(name), with_kwargs=True)

    def start(self, *, probe: bool = False) -> None:
        """Begin an optimiser step; with ``probe`` tokens without an expert are counted too, which costs a routing."""
        self.probe = probe
        self.idle = {name: torch.zeros_like(block.token_count) for name, block in self.blocks.items()}
        self.idle_now = dict(self.idle)

    def count(self) -> None:
        """Add the last forward's tokens without an expert; call it after each micro-step."""
        for name, now in self.idle_now.items():
            self.idle[name] = self.idle[name].to(now.device) + now

    def update(self) -> None:
        """Move the selection biases; call it on every rank after the optimiser's step."""
        for block in self.blocks.values():
            block.update_selection_bias()

    def health(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Scalars of the last probed step: tokens per expert, experts per token and the share of tokens with none."""
        values: dict[str, float] = {}
        for name, block in self.blocks.items():
            totals = torch.cat([block.expert_counts, block.token_count[None], self.idle[name][None]])
            *counts, tokens, idle = reduce(totals).tolist()
            values |= {f"{name}/expert{e}": float(count) for e, count in enumerate(counts)}
            values[f"{name}/experts_per_token"] = sum(counts) / max(tokens, 1)
            values[f"{name}/tokens_without_expert"] = idle / max(tokens, 1)
        return values

    def balance(self) -> tuple[float, float]:
        """Smallest and largest load of any expert on this process, relative to its capacity; 1 is balance."""
        loads = []
        for block in self.blocks.values():
            numerator, denominator = share(block.capacity, block.num_experts)
            loads.append(block.expert_counts * denominator / (block.token_count.clamp(min=1) * numerator))
        smallest, largest = torch.cat(loads).aminmax()
        return smallest.item(), largest.item()

    def _count_idle(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.probe and module.training and isinstance(module, InterMoEBlock):
                # set, not added: a forward that is computed again in the backward counts once
                self.idle_now[name] = _idle_tokens(module, *args, **call_of(kwargs))

        return hook


def _z_loss(
    block: InterMoEBlock, hidden: Tensor, condition: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    if mask is not None:
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
    return router_z_loss(block.routing_logits(hidden, condition), mask)


def _idle_tokens(
    block: InterMoEBlock, hidden: Tensor, condition: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Number of valid tokens that no expert takes."""
    idle = ~block.chosen_pairs(hidden, condition, mask).any(dim=-1)
    return (idle if mask is None else idle & mask).sum()
