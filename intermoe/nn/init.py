"""Modules that are built to be filled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_RANDOM = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.nn.init.kaiming_uniform_,
    torch.nn.init.normal_,
    torch.nn.init.uniform_,
}


class SkipRandomInit(TorchFunctionMode):
    """Modules that are built inside the ``with`` block draw no random numbers, which takes longer than reading weights.

    Only for modules whose every weight is read afterwards: the skipped ones hold whatever their memory held.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
