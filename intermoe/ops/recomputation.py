"""What a forward decided, for when it is computed again.

``torch.utils.checkpoint`` runs a forward a second time in the backward. Its selection hangs on a threshold, so a
difference in the last bit could give other pairs than those of the loss: the first run leaves its choice and its
backend with the checkpoint, and the second takes them over, whichever backend is in force by then. So it does with what
came from other ranks: no collective is repeated.

A checkpoint of torch (``use_reentrant=False``) is found through the hooks that it puts around saved tensors, of which
those of the first run hold its frame and those of the second a weak reference to it. ``use_reentrant=True`` computes
gradients of what its second run decides, on the backend in force then.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import _CheckpointFrame

_autograd: Any = torch._C._autograd
_Hook = Callable[..., Any]


class Decision(NamedTuple):
    """What a forward decided: its backend's name and the chosen pairs (S, E) bool; and what it received from others."""

    backend: str
    chosen: Tensor
    received: tuple[Tensor, ...]


_decisions: weakref.WeakKeyDictionary[_CheckpointFrame, list[Decision]] = weakref.WeakKeyDictionary()
_recalled: weakref.WeakKeyDictionary[_Hook, int] = weakref.WeakKeyDictionary()


def is_hooked() -> bool:
    """Whether hooks see what is saved here, a checkpoint's or others: without any the rest need not be asked."""
    return _autograd._top_saved_tensors_default_hooks(False) is not None


def is_watched() -> bool:
    """Whether the code runs within a checkpoint, for the first time or again."""
    return bool(_hooks())


def recall() -> Decision | None:
    """The decision of the forward that is computed again here, if one is; call it once a forward."""
    for hook in _hooks():
        frame, again = _frame_of(hook)
        if again and frame is not None:
            place = _recalled.get(hook, 0)
            _recalled[hook] = place + 1
            made = _decisions.get(frame, [])
            return made[place] if place < len(made) else None
    return None


def remember(backend: str, slots: Tensor, received: tuple[Tensor, ...]) -> None:
    """Leave a decision with every checkpoint that the code runs in for the first time. slots: (S, E), -1 = none."""
    frames = [frame for frame, again in map(_frame_of, _hooks()) if frame is not None and not again]
    if frames:
        decision = Decision(backend, slots >= 0, received)
        for frame in frames:
            _decisions.setdefault(frame, []).append(decision)


def _hooks() -> list[_Hook]:
    """The hooks of checkpoints around the code that pack saved tensors, innermost first."""
    held = []
    try:
        while (pair := _autograd._top_saved_tensors_default_hooks(False)) is not None:
            held.append(pair)
            _autograd._pop_saved_tensors_default_hooks()
    finally:
        for pair in reversed(held):
            _autograd._push_saved_tensors_default_hooks(*pair)
    return [pack for pack, _ in held if _frame_of(pack)[0] is not None]


def _frame_of(hook: _Hook) -> tuple[_CheckpointFrame | None, bool]:
    """The checkpoint that a hook belongs to, if it is one's, and whether that is computed again."""
    for cell in getattr(inspect.unwrap(hook), "__closure__", None) or ():
        content = cell.cell_contents
        if isinstance(content, _CheckpointFrame):
            return content, False
        if isinstance(content, weakref.ref) and isinstance(frame := content(), _CheckpointFrame):
            return frame, True
    return None, False
