"""Argument checks that the steps share. Errors name the argument, what was expected and what came."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> dict[str, int]:
    """Check ``tensor`` against ``shape``, whose strings are free dimensions; returns what those dimensions are.

    Raises ``TypeError`` for a value that is no tensor, ``ValueError`` for a shape that does not fit.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape {_spell(shape)}, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise TypeError(f"{name}: expected a tensor of shape {_spell(shape)}, got a nested one; pad it, with a mask")
    found: dict[str, int] = {}
    fits = tensor.dim() == len(shape)
    if fits:
        for want, got in zip(shape, tensor.shape, strict=True):
            size = found.setdefault(want, got) if isinstance(want, str) else want
            fits = fits and size == got
    if not fits:
        raise ValueError(f"{name}: expected shape {_spell(shape)}, got {tuple(tensor.shape)}")
    return found


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise ``ValueError`` unless all given tensors are on one device."""
    present = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(present.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in present.items())
        raise ValueError(f"{next(iter(present))}: expected all tensors on one device, got {listed}")


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, and not one that a compiler traces."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def unwrapped(tensor: Tensor) -> tuple[Tensor, bool]:
    """The tensor below the transforms of ``torch.func``, and whether ``vmap`` is one of them."""
    functorch, mapped = torch._C._functorch, False
    while functorch.is_functorch_wrapped_tensor(tensor):
        mapped = mapped or functorch.is_batchedtensor(tensor)
        tensor = functorch.get_unwrapped(tensor)
    return tensor, mapped


def _spell(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"
