"""Strict reading and safe loading of other implementations' checkpoints. Nothing in a file is ever executed.

A published checkpoint is often Lightning's. Besides the weights it holds the optimiser's state, the learning-rate
schedule with numpy scalars and the configuration as objects of OmegaConf. ``torch.load(weights_only=True)`` reads it
with inert stand-ins for exactly those classes; a file with anything else is refused by name.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
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


class _Inert(dict[Any, Any]):
    """Takes the place of an object of the file: keeps what was stored in it and does nothing."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    modules = {
        "omegaconf.dictconfig": ("DictConfig",),
        "omegaconf.listconfig": ("ListConfig",),
        "omegaconf.base": ("ContainerMetadata", "Metadata"),
        "omegaconf.nodes": ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode"),
        "typing": ("Any",),
        "builtins": ("dict", "list", "str", "int", "float", "bool"),
        "collections": ("defaultdict",),
        "pytorch_lightning.utilities.parsing": ("AttributeDict",),
        "lightning_fabric.utilities.data": ("AttributeDict",),
        "yacs.config": ("CfgNode",),
        "numpy": ("dtype",),
        "numpy.core.multiarray": ("scalar",),
        "numpy._core.multiarray": ("scalar",),
    }
    return [
        type(name, (_Inert,), {"__module__": module, "__qualname__": name})
        for module, names in modules.items()
        for name in names
    ]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and configuration (empty if there is none) of a Lightning checkpoint or a bare state dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or one with an object of a class that is not expected; names it.
    """
    path = Path(path)
    loaded = load_tensors(path)
    state = loaded.get("state_dict", loaded)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict, or a checkpoint with one under 'state_dict'")
    config = plain(loaded.get("hyper_parameters", {})) if "state_dict" in loaded else {}
    return state, config if isinstance(config, dict) else {}


def load_tensors(path: Path) -> dict[str, Any]:
    """What ``torch.load(weights_only=True)`` reads with inert stand-ins; see the module. Memory-mapped if possible."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise ValueError(f"{path}: not a checkpoint of torch.save: {str(error).splitlines()[0]}") from error
        raise ValueError(
            f"{path}: holds an object of {named.group(1)}, which is not loaded because it could run code; if you trust "
            "the file, save its weights alone: torch.save({'state_dict': checkpoint['state_dict']}, new_file)"
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: not a checkpoint of torch.save: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(loaded).__name__}")
    return loaded


def plain(value: Any) -> Any:
    """The values that a stored configuration holds, without its objects."""
    if isinstance(value, _Inert):
        state = value.state if isinstance(value.state, dict) else {}
        value = state.get("_content", state.get("_val", dict(value)))
        if isinstance(value, _Inert):
            return plain(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
