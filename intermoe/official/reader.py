"""Strict reading of state dicts and configurations of other implementations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StrictReader:
    """Hands out the tensors of a state dict one by one and knows which were never asked for."""

    def __init__(self, state: Mapping[str, Tensor], name: str = "state_dict") -> None:
        self._state = state
        self._name = name
        self._unread = dict.fromkeys(state)

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with ``prefix``, read or not."""
        return [key for key in self._state if key.startswith(prefix)]

    def take(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor ``key``. Raises ``ValueError`` if it is missing or not of ``shape``."""
        if key not in self._state:
            raise ValueError(f"{self._name}: missing key {key!r}")
        value = self._state[key]
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{self._name}: {key!r} must have shape {tuple(shape)}, got {tuple(value.shape)}")
        self._unread.pop(key, None)
        return value.detach()

    def peek(self, key: str, num_dims: int) -> tuple[int, ...]:
        """Shape of the tensor ``key``. Raises ``ValueError`` if it is missing or has not ``num_dims`` dimensions."""
        if key not in self._state:
            raise ValueError(f"{self._name}: missing key {key!r}")
        shape = tuple(self._state[key].shape)
        if len(shape) != num_dims:
            raise ValueError(f"{self._name}: {key!r} must have {num_dims} dimensions, got shape {shape}")
        return shape

    def copy(self, parameter: Tensor, key: str) -> None:
        """Fill ``parameter`` with the tensor ``key``, which must have its shape."""
        with torch.no_grad():
            parameter.copy_(self.take(key, tuple(parameter.shape)))

    def finish(self) -> None:
        """Raises ``ValueError`` naming the keys that nothing asked for."""
        if self._unread:
            raise ValueError(f"{self._name}: unexpected keys {sorted(self._unread)}")


def require_setting(config: Mapping[str, Any], key: str, supported: Any, default: Any) -> None:
    """Raises ``ValueError`` unless ``config[key]`` (``default`` if absent) is the one value that is implemented."""
    value = config.get(key, default)
    if value != supported:
        raise ValueError(f"config: {key} must be {supported!r}, got {value!r}")


def setting(config: Mapping[str, Any], key: str) -> Any:
    """``config[key]``. Raises ``ValueError`` if it is missing."""
    if key not in config:
        raise ValueError(f"config: missing key {key!r}")
    return config[key]
