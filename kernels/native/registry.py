"""What every step needs: checked dense tensors, and calls into the shared library."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from . import library

CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""The C interface's codes of the types that the kernels store."""

_PLAIN = frozenset({int, float, type(None)})


def dense(name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """``tensor`` in dense memory.

    Raises ``TypeError`` for another dtype and ``ValueError`` for another shape or device.
    """
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, where the others are, got one on {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    return (tensor if tensor.is_contiguous() else tensor.contiguous()).resolve_neg()


def storage_code(name: str, tensor: Tensor) -> int:
    """The C interface's code of the tensor's dtype. Raises ``TypeError`` for one that the kernels do not store."""
    code = CODES.get(tensor.dtype)
    if code is None:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {tensor.dtype}")
    return code


def on_cuda(tensor: Tensor) -> bool:
    """Whether the CUDA kernels serve the tensor."""
    return tensor.is_cuda


def stream_of(tensor: Tensor) -> tuple[int, int]:
    """Number of the tensor's CUDA device and pointer to the stream that is current on it."""
    index = tensor.get_device()
    return index, torch.cuda.current_stream(index).cuda_stream


@functools.cache
def _function(name: str, cuda: bool) -> Any:
    if cuda:
        library.check_cuda(0)
    return getattr(library.load(), f"intermoe_{name}_{'cuda' if cuda else 'cpu'}")


def call(function: str, where: Tensor, *arguments: Any) -> None:
    """Call ``intermoe_<function>_cpu`` or ``_cuda``, whichever serves ``where``, the first argument.

    Tensors, which must be on one device, pass as pointers, numbers and ``None`` as they are; what the functions of a
    device need goes last.
    Raises ``RuntimeError`` that names the function when it fails, ``LibraryUnavailable`` where there is no such one.
    """
    cuda = on_cuda(where)
    values = [argument if type(argument) in _PLAIN else argument.data_ptr() for argument in arguments]
    last = stream_of(where) if cuda else (torch.get_num_threads(),)
    if _function(function, cuda)(where.data_ptr(), *values, *last) != 0:
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError(
                "native: expected a call that torch.jit.trace does not record, got one; use torch.export, or "
                "backends.use('reference')"
            )
        raise RuntimeError(f"native {function}: {library.load().intermoe_last_error().decode()}")
