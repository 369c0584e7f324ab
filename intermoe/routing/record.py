"""Which experts took which tokens, recorded from any model with InterMoE blocks.

``record_routing`` watches every block of a model; ``intermoe.routing.trace`` does so for a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from intermoe.nn.moe import InterMoEBlock, call_of

Bools = npt.NDArray[np.bool_]


class RoutingRecord:
    """What ``record_routing`` saw: for every block the calls in order, each (B, T, E) bool; padding took nothing."""

    def __init__(self, names: Sequence[str]) -> None:
        self.calls: dict[str, list[Bools]] = {name: [] for name in names}

    def stacked(self, layers: str = "*") -> Bools:
        """All calls as (N, L, B, T, E), N calls of L blocks.

        Args:
            layers: a pattern of the blocks' names, such as ``"*.ff.moe"`` for the image tokens of a joint transformer.

        Raises:
            ValueError: nothing was recorded, or blocks differ in the number or shape of their calls.
        """
        names = self.names(layers)
        shapes = {name: [call.shape for call in self.calls[name]] for name in names}
        first = shapes[names[0]]
        if not first:
            raise ValueError("record: expected a block that is called while it is recorded, got none")
        for name, own in shapes.items():
            if own != first or len(set(own)) != 1:
                raise ValueError(
                    f"record: expected calls that are alike, to be stacked, got {own} of {name!r} and {first} of "
                    f"{names[0]!r}; choose blocks that are alike with layers='PATTERN'"
                )
        return np.stack([np.stack(self.calls[name]) for name in names], axis=1)

    def names(self, layers: str = "*") -> list[str]:
        """Names of the blocks that match. Raises ``ValueError`` if none does."""
        names = [name for name in self.calls if fnmatchcase(name, layers)]
        if not names:
            raise ValueError(f"layers: expected a pattern of {list(self.calls)}, got {layers!r}")
        return names


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Record which experts take which tokens in every forward of every ``InterMoEBlock`` in ``model``.

    Each call is routed once more to be seen; outputs, gradients, counters and biases stay what they are without it.
    Under activation recomputation a forward that is repeated in the backward is recorded again.

    Examples:
        >>> with record_routing(model) as record:
        ...     model(x)
        >>> record.calls["blocks.0.moe"][0]  # (B, T, E) bool

    Raises:
        ValueError: ``model`` holds no InterMoEBlock.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, InterMoEBlock)}
    if not blocks:
        raise ValueError(f"model: expected at least one InterMoEBlock in it, got {type(model).__name__} without any")
    record = RoutingRecord(tuple(blocks))
    handles = [
        block.register_forward_pre_hook(_recorder(record.calls[name]), with_kwargs=True)
        for name, block in blocks.items()
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _recorder(calls: list[Bools]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(module, InterMoEBlock):
            calls.append(module.chosen_pairs(*args, **call_of(kwargs)).cpu().numpy())

    return hook
