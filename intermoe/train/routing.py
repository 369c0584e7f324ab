"""Counting and reporting which experts the tokens of a training step took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from intermoe.nn.moe import InterMoEBlock
from intermoe.ops.route import route_reference
from intermoe.ops.select import select_reference


class Routing:
    """The InterMoE blocks of a model: their counts over the micro-steps of one optimiser step, and their bias updates.

    A block records the counts of its last forward alone; with several micro-steps the bias is due for their sum.
    """

    def __init__(self, model: nn.Module) -> None:
        self.blocks = {n: m for n, m in model.named_modules() if isinstance(m, InterMoEBlock)}
        self.probe = False
        self.start()
        for name, block in self.blocks.items():
            block.register_forward_pre_hook(self._count_idle(name), with_kwargs=True)

    def start(self, *, probe: bool = False) -> None:
        """Begin an optimiser step; with ``probe`` tokens without an expert are counted too, which costs a routing."""
        self.probe = probe
        # expert counts, tokens, tokens without an expert
        self.totals = {
            name: torch.zeros(block.num_experts + 2, dtype=torch.int64, device=block.expert_counts.device)
            for name, block in self.blocks.items()
        }

    def count(self) -> None:
        """Add the last forward's counts; call it after each micro-step."""
        for name, block in self.blocks.items():
            self.totals[name][:-1] += torch.cat([block.expert_counts, block.token_count[None]])

    def update(self) -> None:
        """Move the selection biases; call it on every rank after the optimiser's step."""
        for name, block in self.blocks.items():
            block.expert_counts.copy_(self.totals[name][:-2])
            block.token_count.copy_(self.totals[name][-2])
            block.update_selection_bias()

    def health(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Scalars of the last probed step: tokens per expert, experts per token and the share of tokens with none."""
        values: dict[str, float] = {}
        for name, total in self.totals.items():
            *counts, tokens, idle = reduce(total).tolist()
            values |= {f"{name}/expert{e}": float(count) for e, count in enumerate(counts)}
            values[f"{name}/experts_per_token"] = sum(counts) / max(tokens, 1)
            values[f"{name}/tokens_without_expert"] = idle / max(tokens, 1)
        return values

    def _count_idle(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        @torch.no_grad()
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.probe and module.training and isinstance(module, InterMoEBlock):
                self.totals[name][-1] += _idle_tokens(module, *args, **kwargs)

        return hook


def _idle_tokens(
    block: InterMoEBlock, hidden: Tensor, condition: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Number of valid tokens that no expert takes."""
    with torch.autocast(hidden.device.type, enabled=False):
        router_weight, router_offset = block._router(condition)
        flat = hidden.reshape(-1, block.dim)
        logits = route_reference(flat, router_weight, router_offset, None, None, normalise=False)[1]
    valid = torch.ones(flat.shape[0], dtype=torch.bool, device=flat.device) if mask is None else mask.reshape(-1)
    selection = select_reference(logits, block.selection_bias, valid)
    return (valid & (selection.slots < 0).all(dim=1)).sum()
