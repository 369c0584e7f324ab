"""Selection biases that follow the optimiser, and biases that start where they will end."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from intermoe.nn.moe import BIAS_MARGIN, InterMoEBlock, call_of
from intermoe.ops.routing import share

_followed: weakref.WeakSet[InterMoEBlock] = weakref.WeakSet()
"""Blocks whose biases follow an optimiser; a copy of one does not."""


class BiasUpdate:
    """What ``attach_bias_update`` attached; ``remove()`` detaches it."""

    def __init__(self, optimizer: Optimizer, blocks: list[InterMoEBlock]) -> None:
        self._blocks = blocks
        self._handle = optimizer.register_step_post_hook(self._update)
        self._checked = False
        _followed.update(blocks)

    def remove(self) -> None:
        """Stop updating."""
        self._handle.remove()
        _followed.difference_update(self._blocks)

    def _update(self, *_: Any) -> None:
        learning = [block for block in self._blocks if any(p.requires_grad for p in block.parameters())]
        if not self._checked:
            _check_same_on_all_ranks(learning)
            self._checked = True
        for block in learning:
            if block.step_is_over:  # it was not called in this step
                for counter in block.counters:
                    counter.zero_()
            block.update_selection_bias()


def attach_bias_update(optimizer: Optimizer, model: nn.Module) -> BiasUpdate:
    """Update the selection biases of every ``InterMoEBlock`` in ``model`` after each step of ``optimizer``.

    Counts add up over the micro-steps of gradient accumulation and over data-parallel ranks; recomputed activations
    do not disturb them. Blocks whose parameters are all frozen keep their bias.

    Args:
        optimizer: torch's, or accelerate's wrapper of one, built after ``replace_feed_forward``.
        model: may be wrapped by DistributedDataParallel or torch.compile.

    Raises:
        ValueError: if the model holds no block, one is attached already, or the optimiser none of their parameters.
        TypeError: no optimiser, or no module.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an optimiser of torch, got {optimizer!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {model!r}")
    blocks = [m for m in model.modules() if isinstance(m, InterMoEBlock)]
    _check(optimizer, blocks)
    return BiasUpdate(optimizer, blocks)


def counts_steps(block: InterMoEBlock) -> bool:
    """Whether ``attach_bias_update`` serves this block."""
    return block in _followed


@contextmanager
def balance_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """The balance losses of the replaced networks' training forwards within: token-choice routing has no bias.

    Each is a scalar to be added to the loss, times a small coefficient (Fedus et al. 2021 have 0.01).

    Examples:
        >>> with balance_losses(model) as balances:
        ...     loss = criterion(model(batch)) + 0.01 * sum(balances)
    """
    losses: list[Tensor] = []
    networks: list[Any] = [module for module in model.modules() if hasattr(module, "balances")]
    for network in networks:
        network.balances = losses
    try:
        yield losses
    finally:
        for network in networks:
            network.balances = None


@contextmanager
def calibrated_selection(model: nn.Module) -> Iterator[None]:
    """Set the selection biases from data: within, each forward first moves every block's bias to its capacity.

    Each expert then takes capacity * S / E of that forward's S valid tokens, as far as biases inside (-1, 0) can, so
    training starts at the cost it will have. Without it the biases find their level in some hundred steps. Use a
    typical batch, at typical noise levels; one forward suffices.

    Examples:
        >>> with calibrated_selection(model), torch.no_grad():
        ...     model(batch)
    """
    blocks = [m for m in model.modules() if isinstance(m, InterMoEBlock) and m.routing == "dynamic"]
    handles = [block.register_forward_pre_hook(_calibrate, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _calibrate(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(block, InterMoEBlock):
        _set_bias(block, *args, **call_of(kwargs))


def _set_bias(
    block: InterMoEBlock, hidden: Tensor, condition: Tensor | None = None, mask: Tensor | None = None
) -> None:
    logits = block.routing_logits(hidden, condition)
    logits = logits.flatten(0, 1) if mask is None else logits[mask]
    if logits.shape[0] == 0:
        return
    ordered = torch.sigmoid(logits).sort(dim=0, descending=True).values
    numerator, denominator = share(block.capacity, block.num_experts)
    take = round(numerator * len(logits) / denominator)
    last = ordered[max(take, 1) - 1]
    first_left_out = ordered[take] if take < len(ordered) else torch.zeros_like(last)
    block.selection_bias.copy_((-(last + first_left_out) / 2).clamp(-1 + BIAS_MARGIN, -BIAS_MARGIN))


def _check(optimizer: Optimizer, blocks: list[InterMoEBlock]) -> None:
    if not blocks:
        raise ValueError("model: expected an InterMoEBlock, got none; call replace_feed_forward first")
    if any(counts_steps(block) for block in blocks):
        raise ValueError(
            "model: expected selection biases that no optimiser updates, got attached ones; attach them once"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    learning = [p for block in blocks for p in block.parameters() if p.requires_grad]
    if learning and not any(id(p) in held for p in learning):
        raise ValueError(
            "optimizer: expected the parameters of the model's InterMoEBlocks, got none; "
            "build it after replace_feed_forward"
        )


def _check_same_on_all_ranks(blocks: list[InterMoEBlock]) -> None:
    if not blocks or not (dist.is_available() and dist.is_initialized()):
        return
    least = torch.cat([block.selection_bias for block in blocks])
    most = least.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if not torch.equal(least, most):
        raise RuntimeError(
            "selection_bias: differs between the ranks, so they would route differently; "
            "load the same checkpoint on every rank, and do not update biases on one rank alone"
        )
