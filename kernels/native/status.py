"""Whether the native backend is usable here, and what it serves."""

from __future__ import annotations

import functools

import torch

from ..contract import Status
from . import library
from .registry import CODES

NAME = "native"
AUTOMATIC = ("cpu", "cuda")
HALF_SUMS = False


@functools.cache
def status() -> Status:
    """What this machine makes of the shared library."""
    try:
        on_cpu = f"C++ kernels, {library.instruction_set()}"
    except library.LibraryUnavailable as error:
        return Status(NAME, False, (), error.reason, error.remedy)
    try:
        library.check_cuda(0 if torch.cuda.is_available() else None)
    except library.LibraryUnavailable as error:
        return Status(NAME, True, ("cpu",), f"{on_cpu}; {error.reason}", error.remedy)
    return Status(NAME, True, ("cpu", "cuda"), f"{on_cpu}; CUDA kernels")


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it does not serve ``dtype``."""
    return None if dtype in CODES else "serves float32, float16 and bfloat16 only"


def allocated_pairs(num_tokens: int, num_experts: int, max_pairs: int | None) -> int | None:
    """Always as many pairs as are selected."""
    return None


def raise_on_overflow(device: torch.device | None, wait: bool) -> None:
    """Nothing: a limit of pairs is kept at once."""
