"""MoEFeedForward: an InterMoEBlock where a host expects its feed-forward network, (B, T, D) -> (B, T, D).

A host calls its feed-forward network with tokens alone. Hooks on the transformer block around it pick the condition
and the padding mask from that block's arguments, so the host's code stays as it is; a block that is computed again
(activation checkpointing) hands them over again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intermoe.integrations.adapters import BlockAdapter, Condition, argument_names
from intermoe.integrations.training import counts_steps
from intermoe.nn.moe import InterMoEBlock

TRACED = 0
"""In place of a thread's number, of which none is 0, where torch.compile or torch.export traces."""


class MoEFeedForward(nn.Module):
    """An ``InterMoEBlock`` in place of a dense network; built by ``replace_feed_forward``.

    Attributes:
        moe: the block, or what an adapter library wrapped around it.
        dense: the host's network where it was kept (``init="residual"``), else ``None``.
    """

    def __init__(
        self,
        name: str,
        moe: InterMoEBlock,
        *,
        adapter: BlockAdapter,
        condition: Condition | None,
        batch_first: bool,
        dense: nn.Module | None,
        skeleton: nn.Module | None,
        spec: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.name, self.condition, self.mask, self.batch_first = name, condition, adapter.mask, batch_first
        self.adapter = adapter
        self.moe, self.dense, self.dim = moe, dense, moe.dim
        self.spec = dict(spec)
        # in a tuple torch does not take it for a part of the model
        self.skeleton = (skeleton,)
        self._handles: list[Any] = []
        self._names: tuple[str, ...] = ()
        self._arguments: dict[int, dict[str, Any]] = {}  # of the block's call in each thread
        self.balances: list[Tensor] | None = None  # where ``balance_losses`` collects

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D), (T, B, D) in hosts that put time first, or (T, D) -> same shape, no residual added."""
        time_first = hidden.dim() == 3 and not self.batch_first
        tokens = hidden.transpose(0, 1) if time_first else hidden.unsqueeze(0) if hidden.dim() == 2 else hidden
        if tokens.dim() != 3 or tokens.shape[-1] != self.dim:
            raise ValueError(f"{self.name}: expected tokens (B, T, {self.dim}), got {tuple(hidden.shape)}")
        self._check_synchronised()
        condition, mask = self._read_condition(tokens.shape[0]), self._read_mask(tokens)
        # asked for whether or not it is wanted: a recomputed forward must be the same as its first time
        out, balance = self.moe(tokens, condition, mask, balance=True)
        if self.balances is not None:
            self.balances.append(balance)
        out = out.transpose(0, 1) if time_first else out.squeeze(0) if hidden.dim() == 2 else out
        return out if self.dense is None else out + self.dense(hidden)

    def watch(self, block: nn.Module) -> None:
        """Follow the calls of ``block``, the transformer block around this network."""
        self._names = argument_names(block)
        self._handles = [
            block.register_forward_pre_hook(self._enter, with_kwargs=True),
            block.register_forward_hook(self._leave, always_call=True),
        ]
        if self.condition is not None and self.condition.source in dict(block.named_modules()):
            source = block.get_submodule(self.condition.source)
            self._handles.append(source.register_forward_hook(self._observe))

    def unwatch(self) -> None:
        """Undo ``watch``."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _wanted(self) -> set[str]:
        masks = [self.mask, self.condition.mean_over if self.condition is not None else None]
        wanted = {mask.argument for mask in masks if mask is not None}
        return wanted if self.condition is None else {*wanted, self.condition.source}

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(block, "_chunk_size", None) is not None:
            raise RuntimeError(
                f"{self.name}: the host cuts the tokens of its feed-forward networks into chunks, but all tokens of a "
                "batch are routed together; call disable_forward_chunking() on it"
            )
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        arguments = {name: given[name] for name in self._wanted() if name in given}
        # this network alone may be traced
        self._arguments[_thread()] = self._arguments[TRACED] = arguments

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        for thread in (_thread(), TRACED):
            self._arguments.pop(thread, None)

    def _observe(self, source: nn.Module, args: Any, output: Any) -> None:
        # hosts use the same embedding outside the block too
        arguments = self._arguments.get(_thread())
        if arguments is not None and self.condition is not None:
            arguments[self.condition.source] = output

    def _read_condition(self, batch: int) -> Tensor | None:
        if self.condition is None:
            return None
        source, width = self.condition.source, self.condition.width
        arguments = self._arguments.get(_thread())
        value = None if arguments is None else self.condition.read(arguments)
        if value is None:
            raise RuntimeError(
                f"{self.name}: is routed on {source!r}, but the host passed none to the block; "
                "pass it to the model, or call replace_feed_forward with condition=None to route on tokens alone"
            )
        if value.shape != (batch, width):
            raise ValueError(
                f"{self.name}: condition {source!r}: expected ({batch}, {width}), got {tuple(value.shape)}; "
                "describe it with a BlockAdapter, or route on tokens alone with condition=None"
            )
        return value

    def _read_mask(self, tokens: Tensor) -> Tensor | None:
        arguments = self._arguments.get(_thread())
        if self.mask is None or arguments is None:
            return None
        return self.mask.valid(arguments, (tokens.shape[0], tokens.shape[1]))

    def _check_synchronised(self) -> None:
        if torch.compiler.is_compiling() or not self.training or not (dist.is_available() and dist.is_initialized()):
            return
        if torch.is_grad_enabled() and dist.get_world_size() > 1 and any(_is_left_alone(b) for b in blocks_in(self)):
            raise RuntimeError(
                f"{self.name}: several processes train it, but nothing updates its selection bias from the counts of "
                "all of them; call attach_bias_update(optimizer, model), or freeze the bias with bias_rate=0"
            )


def _thread() -> int:
    """Which of the threads that call a host at once. What is traced has no threads."""
    return TRACED if torch.compiler.is_compiling() else threading.get_ident()


def blocks_in(network: nn.Module) -> list[InterMoEBlock]:
    """The block, also under wrappers: PEFT's ``modules_to_save`` keeps a frozen original beside the one that learns."""
    return [module for module in network.modules() if isinstance(module, InterMoEBlock)]


def _is_left_alone(block: InterMoEBlock) -> bool:
    """Whether the block learns, its bias should move, and nothing moves it."""
    moves = block.routing == "dynamic" and block.bias_rate != 0.0
    return moves and any(p.requires_grad for p in block.parameters()) and not counts_steps(block)
