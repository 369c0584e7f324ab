"""Argument checks that the steps share. Errors name the argument, what was expected and what came."""

from __future__ import annotations

from torch import Tensor


def check_tensor(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> dict[str, int]:
    """Check ``tensor`` against ``shape``, whose strings are free dimensions; returns what those dimensions are.

    Raises ``TypeError`` for a value that is no tensor, ``ValueError`` for a shape that does not fit.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape {_spell(shape)}, got {type(tensor).__name__}")
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
        raise ValueError(f"{next(iter(present))}: all tensors must be on one device, got {listed}")


def _spell(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"
