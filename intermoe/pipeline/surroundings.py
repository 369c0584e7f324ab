"""What a caller has told torch for code of their own, and a pipeline works without."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

from intermoe.ops.moe import without_autocast


@contextmanager
def own_ways(device: torch.device | None = None) -> Iterator[None]:
    """New tensors are float32 and on the CPU unless said otherwise, and nothing is cast by itself.

    Whatever ``torch.set_default_dtype``, ``torch.set_default_device``, ``torch.device(...)`` and ``torch.autocast``
    say outside. The default dtype is one for all threads, which is torch's way.

    Args:
        device: where else autocast is switched off.
    """
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # asked first: such a block slows every call of torch
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        for place in {torch.device("cpu"), device or torch.device("cpu")}:
            stack.enter_context(without_autocast(place))
        yield


_lock = threading.Lock()
_held: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Parts that train outside, each with how many ``evaluating`` blocks, of whatever threads, it waits for."""


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """All parts of ``modules`` are in evaluation mode: no dropout, nothing is counted.

    Afterwards each is as it was; where several threads have one part so, after the last of them.
    """
    with _lock:
        others = bool(_held)  # asked once: a look at each part takes longer than all the rest
        held = [p for module in modules for p in module.modules() if p.training or (others and p in _held)]
        for part in held:
            part.training = False
            _held[part] = _held.get(part, 0) + 1
    try:
        yield
    finally:
        with _lock:
            for part in held:
                _held[part] -= 1
                if _held[part] == 0:
                    del _held[part]
                    part.training = True
