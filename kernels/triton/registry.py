"""Registration of the kernels as PyTorch custom operations, which torch.compile sees as opaque and never unrolls."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "intermoe_triton"
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
"""Whether Triton was imported with TRITON_INTERPRET=1: the kernels then run on CPU, for tests."""


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define ``intermoe_triton::<schema>``, its implementation and its shapes; returns what calls it.

    Kernels start on the current device, so each call makes that of its first argument, a tensor, the current one.
    """

    @functools.wraps(implementation)
    def on_its_device(tensor: Tensor, *others: Any) -> Any:
        reason = unusable_reason(tensor.device, tensor.dtype)
        if reason is not None:
            raise RuntimeError(f"backend 'triton': {reason}")
        if tensor.device.type == "cpu" or tensor.get_device() == torch.cuda.current_device():
            return implementation(tensor, *others)
        with torch.cuda.device_of(tensor):
            return implementation(tensor, *others)

    name = schema[: schema.index("(")]
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema[len(name) :], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cpu", "cuda"), on_its_device)
    torch.library.register_fake(qualified, fake)
    operation = getattr(getattr(torch.ops, NAMESPACE), name)

    @functools.wraps(implementation)
    def call(*arguments: Any) -> Any:
        # only a compiler needs the operation; reaching a kernel through it takes the host as long as several launches
        return operation(*arguments) if torch.compiler.is_compiling() else on_its_device(*arguments)

    return call


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
