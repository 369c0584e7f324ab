"""Where the kernels run, and what this machine makes of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..contract import Status

NAME = "triton"
AUTOMATIC = ("cuda",)
HALF_SUMS = True
linear = None  # there is none for a CPU
STATIC_PAIRS = 4096
"""All S * E pairs are allocated, which always suffices and asks the host for nothing, where these are no more."""

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
"""Whether Triton was imported with TRITON_INTERPRET=1: the kernels then run on CPU, for tests."""

Step = TypeVar("Step", bound=Callable[..., Any])


def on_its_device(function: Step) -> Step:
    """The function, with the device of its first argument as the current one: kernels start on that.

    The argument is a tensor, a tuple of which one is the first, or ``None`` before one. Raises ``RuntimeError`` where
    it cannot be served.
    """

    @functools.wraps(function)
    def call(first: Any, *others: Any, **options: Any) -> Any:
        tensor: Tensor = first if isinstance(first, Tensor) else (others if first is None else first)[0]
        device = tensor.device
        # the steps say themselves which dtypes each argument may have
        reason = unusable_reason(device, torch.float32)
        if reason is not None:
            raise RuntimeError(f"backend {NAME!r}: {reason}")
        if not tensor.is_cuda or device.index == torch.cuda.current_device():
            return function(first, *others, **options)
        with torch.cuda.device(device):
            return function(first, *others, **options)

    return call  # type: ignore[return-value]


@functools.cache
def status() -> Status:
    """Whether the kernels are usable on this machine."""
    if INTERPRETED:
        return Status(NAME, True, ("cpu",), "TRITON_INTERPRET is set: interpreted, for tests only", "unset it")
    if not torch.cuda.is_available():
        remedy = "use a machine with an NVIDIA GPU, its driver and a CUDA build of torch"
        return Status(NAME, False, (), "no CUDA device", remedy)
    if reason := unusable_reason(torch.device("cuda", torch.cuda.current_device()), torch.float32):
        return Status(NAME, False, (), reason, "use an NVIDIA GPU of the Ampere generation or newer")
    return Status(NAME, True, ("cuda",))


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels do not serve experts of this dtype on this device."""
    return unusable_reason(device, dtype)


@functools.cache
def unusable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels can't serve tensors of this device and dtype, with the remedy; ``None`` if they can."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {dtype} is not supported; use float32, float16 or bfloat16"
    if INTERPRETED:
        if dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly; use float32 or float16 with it"
        return None
    if device.type != "cuda":
        return f"needs a CUDA device, got {device}; set TRITON_INTERPRET=1 before starting Python to test on CPU"
    if not torch.cuda.is_available():
        return "no CUDA device; use a machine with an NVIDIA GPU, its driver and a CUDA build of torch"
    if torch.version.hip is not None:
        return "needs an NVIDIA device, this PyTorch is built for AMD"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"needs compute capability 8.0 or newer, got {major}.{minor}"
    return None


def allocated_pairs(num_tokens: int, num_experts: int, max_pairs: int | None) -> int | None:
    """P of a call that asks the host for nothing: ``max_pairs``, or all pairs of a small pool."""
    if max_pairs is not None:
        return max_pairs
    return num_tokens * num_experts if num_tokens * num_experts <= STATIC_PAIRS else None


def room(num_pairs: int, num_tokens: int, num_experts: int) -> int:
    """How many pairs the exact mode makes room for, given P: a few more, so that plans and memory are used again.

    No more than there are tokens, where these suffice: the gradients of the pairs then fit where the tokens were.
    """
    step = max(16, 1 << max(num_pairs.bit_length() - 6, 0))  # at most a 32nd more
    rounded = -(-num_pairs // step) * step
    return num_tokens if num_pairs <= num_tokens < rounded else min(rounded, num_tokens * num_experts)
