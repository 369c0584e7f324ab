"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Average of ``parameters``: after step n it moves by 1 - min(decay, (1 + n) / (10 + n)) towards them.

    It holds tensors beside the parameters it was given (not a copy of the model), so it also averages the shards of a
    sharded model.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float, updates: int = 0) -> None:
        self.parameters = list(parameters)
        self.shadow: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self.decay = decay
        self.updates = updates

    def update(self) -> None:
        """Move the average towards the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        get_ema_multi_avg_fn(decay)(self.shadow, [p.detach() for p in self.parameters], self.updates)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average inside the ``with`` block and their own values after it."""
        own = [p.detach().clone() for p in self.parameters]
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
