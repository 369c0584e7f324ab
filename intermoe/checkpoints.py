"""Strict reading and safe loading of other implementations' checkpoints. Nothing in a file is ever executed.

A published checkpoint is often Lightning's. Besides the weights it holds the optimiser's state, the learning-rate
schedule with numpy scalars and the configuration as objects of OmegaConf. ``torch.load(weights_only=True)`` reads it
with inert stand-ins for exactly those classes; a file with anything else is refused by name.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from intermoe.files import uninterrupted
from intermoe.motion.statistics import Statistics
from intermoe.reading import first_line


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
        """The tensor ``key``. Raises ``ValueError`` if it is missing, not of ``shape`` or not finite."""
        if key not in self._state:
            raise ValueError(f"{self._name}: missing key {key!r}")
        value = self._state[key]
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{self._name}: {key!r}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
        check_finite(value, key, self._name)
        self._unread.pop(key, None)
        return value.detach()

    def peek(self, key: str, num_dims: int) -> tuple[int, ...]:
        """Shape of the tensor ``key``. Raises ``ValueError`` if it is missing or has not ``num_dims`` dimensions."""
        if key not in self._state:
            raise ValueError(f"{self._name}: missing key {key!r}")
        shape = tuple(self._state[key].shape)
        if len(shape) != num_dims:
            raise ValueError(f"{self._name}: {key!r}: expected {num_dims} dimensions, got shape {shape}")
        return shape

    def copy(self, parameter: Tensor, key: str) -> None:
        """Fill ``parameter`` with the tensor ``key``, which must have its shape and be of a dtype that it can take."""
        value = self.take(key, tuple(parameter.shape))
        check_dtype(value, parameter, key, self._name)
        with torch.no_grad():
            parameter.copy_(value)

    def finish(self) -> None:
        """Raises ``ValueError`` naming the keys that nothing asked for."""
        if self._unread:
            raise ValueError(f"{self._name}: unexpected keys {sorted(self._unread)}")


WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weight_dtype(dtype: Any, name: str) -> None:
    """Raise ``TypeError`` for a dtype that networks do not compute in."""
    if not (isinstance(dtype, torch.dtype) and dtype in WEIGHT_DTYPES):
        raise TypeError(f"{name}: expected one of {', '.join(map(str, WEIGHT_DTYPES))}, got {dtype!r}")


def keeps_float32(key: str) -> bool:
    """Whether a tensor of a model file is stored in float32 whatever the weights are: narrower ones lose its steps."""
    return key.startswith("statistics.") or key.endswith("selection_bias")


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. ``ValueError`` names a file that is none, ``OSError`` one that is absent."""
    path = Path(path)
    with path.open("rb"):  # what cannot be opened is told as such
        pass
    try:
        with uninterrupted():
            return load_file(path)
    except Exception as error:
        raise ValueError(f"{path}: expected a readable safetensors file: {error}") from error


def load_module(module: nn.Module, tensors: dict[str, Tensor], path: str | Path, *, prefix: str = "") -> None:
    """Move the tensors with ``prefix`` out of ``tensors`` and into ``module``; they are those of the file ``path``.

    Weights may be stored in any floating-point type, for other types see ``keeps_float32``.

    Raises:
        ValueError: a key that is missing or unexpected, of another shape or dtype, or with a number that is not finite;
            names file and key.
    """
    own = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
    expected = module.state_dict()
    for key, value in expected.items():
        name = f"{prefix}{key}"
        if key not in own:
            raise ValueError(f"{path}: missing key {name!r}")
        if own[key].shape != value.shape:
            raise ValueError(f"{path}: {name!r}: expected shape {tuple(value.shape)}, got {tuple(own[key].shape)}")
        check_dtype(own[key], value, name, path)
        check_finite(own[key], name, path)
    unexpected = sorted(own.keys() - expected.keys())
    if unexpected:
        raise ValueError(f"{path}: unexpected keys {[f'{prefix}{key}' for key in unexpected]}")
    module.load_state_dict(own)


def load_statistics(tensors: dict[str, Tensor], path: str | Path, *, columns: int) -> Statistics:
    """Move ``statistics.mean`` and ``statistics.std`` (columns,) out of ``tensors``, which are those of ``path``.

    Raises:
        ValueError: one is missing, of another length or narrower than float32, or out of range; names file and key.
    """
    values = []
    for key in ("statistics.mean", "statistics.std"):
        if key not in tensors:
            raise ValueError(f"{path}: missing key {key!r}")
        value = tensors.pop(key)
        if value.shape != (columns,):
            raise ValueError(f"{path}: {key!r}: expected shape ({columns},), got {tuple(value.shape)}")
        check_dtype(value, torch.empty(0), key, path)
        check_finite(value, key, path)
        values.append(value.float().numpy())
    try:
        return Statistics(*values)
    except ValueError as error:
        raise ValueError(f"{path}: statistics.{error}") from error


def check_dtype(value: Tensor, target: Tensor, key: str, source: str | Path) -> None:
    """Raise ``ValueError`` that names ``key`` unless ``value`` can be stored for ``target`` without a word."""
    if not target.is_floating_point():
        expected: tuple[torch.dtype, ...] = (target.dtype,)
    elif keeps_float32(key):
        expected = (torch.float32, torch.float64)
    else:
        expected = WEIGHT_DTYPES
    if value.dtype not in expected:
        listed = " or ".join(str(dtype).removeprefix("torch.") for dtype in expected)
        got = str(value.dtype).removeprefix("torch.")
        raise ValueError(f"{source}: {key!r}: expected {listed}, got {got}")


def check_finite(value: Tensor, key: str, source: str | Path) -> None:
    """Raise ``ValueError`` that names ``key`` if a number is not finite, or the tensor sparse or without data."""
    if value.is_meta:
        raise ValueError(f"{source}: {key!r}: expected numbers, got a tensor without data, on the meta device")
    if value.layout != torch.strided:
        raise ValueError(f"{source}: {key!r}: expected a dense tensor, got one of layout {value.layout}")
    if value.is_floating_point() and value.dtype.itemsize == 1:
        value = value.float()  # torch asks nothing of numbers of 8 bits
    if value.is_floating_point() and not torch.isfinite(value).all():
        place = [int(index) for index in (~torch.isfinite(value)).nonzero()[0]]
        raise ValueError(f"{source}: {key!r}: expected finite numbers, got another at {place}")


def require_setting(config: Mapping[str, Any], key: str, supported: Any, default: Any) -> None:
    """Raises ``ValueError`` unless ``config[key]`` (``default`` if absent) is the one value that is implemented."""
    value = config.get(key, default)
    if value != supported:
        raise ValueError(f"config: {key}: expected {supported!r}, got {value!r}")


def setting(config: Mapping[str, Any], key: str) -> Any:
    """``config[key]``. Raises ``ValueError`` if it is missing."""
    if key not in config:
        raise ValueError(f"config: missing key {key!r}")
    return config[key]


class _Inert:
    """Takes the place of an object of the file: keeps what was stored in it and does nothing."""

    state: Any = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Mapping:
    """Takes the place of a mapping: torch puts entries into none but its own kinds, of which this makes one."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    modules: dict[type, dict[str, tuple[str, ...]]] = {
        _Inert: {
            "omegaconf.dictconfig": ("DictConfig",),
            "omegaconf.listconfig": ("ListConfig",),
            "omegaconf.base": ("ContainerMetadata", "Metadata"),
            "omegaconf.nodes": ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode"),
            "typing": ("Any",),
            "builtins": ("dict", "list", "str", "int", "float", "bool"),
            "numpy": ("dtype",),
            "numpy.core.multiarray": ("scalar",),
            "numpy._core.multiarray": ("scalar",),
        },
        _Mapping: {
            "collections": ("defaultdict",),
            "pytorch_lightning.utilities.parsing": ("AttributeDict",),
            "lightning_fabric.utilities.data": ("AttributeDict",),
            "yacs.config": ("CfgNode",),
        },
    }
    return [
        type(name, (kind,), {"__module__": module, "__qualname__": name})
        for kind, places in modules.items()
        for module, names in places.items()
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
        raise ValueError(f"{path}: expected a state dict, or a checkpoint with one under 'state_dict', got neither")
    if foreign := [key for key in state if not isinstance(key, str)]:
        raise ValueError(f"{path}: expected names as keys, got {foreign[0]!r}")
    config = plain(loaded.get("hyper_parameters", {})) if "state_dict" in loaded else {}
    return state, config if isinstance(config, dict) else {}


def load_tensors(path: Path) -> dict[str, Any]:
    """What ``torch.load(weights_only=True)`` reads with inert stand-ins; see the module. Memory-mapped if possible."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a checkpoint's file, got a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:  # torch advises to unpickle it, which must not be passed on
            raise ValueError(
                f"{path}: expected a checkpoint of torch.save, whose weights can be read alone, got another file"
            ) from error
        raise ValueError(
            f"{path}: expected tensors alone, got an object of {named.group(1)}, which could run code; if you trust "
            "the file, save its weights alone: torch.save({'state_dict': checkpoint['state_dict']}, new_file)"
        ) from error
    except Exception as error:  # of broken bytes the unpickler raises whatever it stumbles over
        raise ValueError(f"{path}: expected a checkpoint of torch.save: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(loaded).__name__}")
    return loaded


def plain(value: Any) -> Any:
    """The values that a stored configuration holds, without its objects."""
    if isinstance(value, _Inert):
        state = value.state if isinstance(value.state, dict) else {}
        value = state.get("_content", state.get("_val", {}))
        if isinstance(value, _Inert):
            return plain(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
