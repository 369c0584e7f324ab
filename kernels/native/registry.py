"""What every step needs: the torch.library namespace, checked dense tensors, and calls into the shared library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import library

NAMESPACE = "intermoe_native"

_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_definitions = torch.library.Library(NAMESPACE, "DEF")


def register(schema: str, kernel: Callable[..., object], fake: Callable[..., object]) -> None:
    """Define an operator with its implementation for every device and its fake (shapes only) implementation."""
    name = schema.partition("(")[0]
    _definitions.define(schema)
    _definitions.impl(name, kernel, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_definitions)


def dense(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    """``tensor`` in dense memory. Raises ``TypeError`` for another dtype and ``ValueError`` for another shape."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    return tensor.contiguous()


def storage_code(name: str, tensor: Tensor) -> int:
    """The C interface's code of the tensor's dtype. Raises ``TypeError`` for one that the kernels do not store."""
    code = _CODES.get(tensor.dtype)
    if code is None:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {tensor.dtype}")
    return code


def call(function: str, *arguments: Tensor | int | float | None) -> None:
    """Call ``intermoe_<function>_cpu``; tensors pass as pointers, and torch's number of threads goes last.

    Raises ``RuntimeError`` that names the function when it fails, ``LibraryUnavailable`` where there is no library.
    """
    native = library.load()
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    if getattr(native, f"intermoe_{function}_cpu")(*values, torch.get_num_threads()) != 0:
        raise RuntimeError(f"native {function}: {native.intermoe_last_error().decode()}")
