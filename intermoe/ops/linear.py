"""A product with a layer's weight: torch's, or on a CPU in inference what the backend that serves has for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intermoe import backends
from intermoe.kernels.contract import Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: x (..., K), weight (N, K), bias (N,) -> (..., N).

    The backend that serves may compute it, and keep parameters that do not change in an order of its own
    (``intermoe.kernels.contract.Backend.linear``).
    """
    if torch.compiler.is_compiling() or not _is_plain(x, weight, bias) or (own := _own(x)) is None:
        return nn.functional.linear(x, weight, bias)
    return own(x, weight, bias)


def _own(x: Tensor) -> Linear | None:
    served_by = backends.resolve(x.device, x.dtype)
    return None if served_by == backends.REFERENCE else backends.load(served_by).linear


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing is differentiated, cast, traced or watched."""
    if type(x) is not Tensor or type(weight) is not nn.Parameter or not x.is_cpu or x.dtype != weight.dtype:
        return False
    if not (bias is None or (type(bias) is nn.Parameter and bias.dtype == x.dtype and bias.is_contiguous())):
        return False
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return False
    if (
        torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
    ):
        return False
    if x.numel() == 0 or x.shape[-1] != weight.shape[-1] or not weight.is_cpu:
        return False
    return not torch._C._are_functorch_transforms_active()
