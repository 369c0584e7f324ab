"""What every backend takes and offers: the operation's arguments, what it saves for its gradients, and the package.

The sizes are those of the steps: S tokens, D width, E experts, F expert width, P selected pairs, R rows of the
condition (token s has row s // (S / R); 1 <= R <= S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

EPS = 1e-6
"""Added to the variance of a token."""

Choose = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
"""A rule that looks at all logits (S, E), valid (S,) and selection_bias (E,): the choice (S, E) bool."""


@dataclass(frozen=True)
class Status:
    """Whether a backend is usable on this machine, where, and if not why and what to do about it.

    ``devices`` are the device types it serves (the reference serves any). For a usable backend ``reason`` says what it
    runs on.
    """

    name: str
    usable: bool
    devices: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""


class Route(NamedTuple):
    """What step 1 takes: the tokens of one pool, the router, and the rows of the condition."""

    hidden: Tensor
    """(S, D)"""
    router_weight: Tensor
    """(E, D)"""
    router_offset: Tensor | None = None
    """(R, E), added to the logits of each row's tokens"""
    scale: Tensor | None = None
    """(R, D) of AdaLN"""
    shift: Tensor | None = None
    """(R, D), given with ``scale``"""
    normalise: bool = True
    """``False`` gives the experts ``hidden`` as it is"""

    @property
    def rows(self) -> int:
        """R; 1 where nothing has rows."""
        rows = self.scale if self.router_offset is None else self.router_offset
        return 1 if rows is None else rows.shape[0]


class Select(NamedTuple):
    """What step 2 takes: a bias, or a choice."""

    selection_bias: Tensor | None
    """(E,) float32, inside (-1, 0); ``None`` where ``valid`` is the choice itself"""
    valid: Tensor | None = None
    """(S,) bool, ``True`` = valid, or (S, E) bool, the pairs that may be selected; without a bias the chosen pairs"""
    rule: Choose | None = None
    """a rule that makes the choice from the logits of all tokens, in place of the bias"""
    max_pairs: int | None = None
    """most pairs that may be selected, or ``None`` for no limit"""

    def given(self, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``selection_bias`` and ``valid`` of the step, once the logits (S, E) are known."""
        if self.rule is None:
            return self.selection_bias, self.valid
        return None, self.rule(logits, self.valid, self.selection_bias)


class Experts(NamedTuple):
    """What step 3 takes: the weights of all experts."""

    w_gate_up: Tensor
    """(E, 2F, D), rows 0..F of each expert are W_gate, F..2F are W_up"""
    w_down: Tensor
    """(E, D, F)"""
    recompute: bool = False
    """drop the pre-activations, the largest saved tensor, and compute them again in the backward"""
    half_sums: bool = False
    """sum each step of a product in float16 (the steps in float32), for inference in float16 where a backend can"""


class Saved(NamedTuple):
    """What a forward keeps for its backward."""

    logits: Tensor
    """(S, E) float32"""
    tokens: Tensor
    """(S, D) normalised; 0 rows where they are ``hidden`` itself"""
    mean: Tensor
    rstd: Tensor
    """(S,) float32, 0 without normalisation"""
    token_idx: Tensor
    """(P,) int64"""
    gates: Tensor
    """(P,) float32"""
    expert_offsets: Tensor
    """(E + 1,) int64"""
    slots: Tensor
    """(S, E) int64, -1 where not selected"""
    h: Tensor
    """(P, 2F) before the activation; 0 rows where it is computed again"""

    def saved(self) -> Saved:
        """Itself: see ``Kept``."""
        return self


class Kept(Protocol):
    """What a forward of a known kind keeps: ``Saved``, or a named tuple of the backend's own with the logits first.

    The logits and the slots are tensors; what else it holds is read by the backend alone.
    """

    logits: Any
    slots: Any

    def saved(self) -> Saved:
        """The same as ``Saved``."""


class Needs(NamedTuple):
    """Which inputs a backward is asked a gradient for; the others cost nothing."""

    hidden: bool
    router_weight: bool
    router_offset: bool
    scale: bool
    shift: bool
    w_gate_up: bool
    w_down: bool

    @property
    def logits(self) -> bool:
        """Whether anything before the selection needs the gradient of the logits."""
        return self.hidden or self.router_weight or self.router_offset

    @property
    def tokens(self) -> bool:
        """Whether anything before the experts needs the gradient of their tokens."""
        return self.hidden or self.scale or self.shift


class Kind:
    """Stands for what ``described`` says of all arguments of a call and for its options, which takes longer to look at.

    ``notes`` is where a backend keeps what it found out about such calls.
    """

    __slots__ = ("notes",)

    def __init__(self) -> None:
        self.notes: dict[str, bool] = {}


def described(tensors: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """What tells the launches of a call apart: shapes, dtypes, devices, dense memory, boundaries of 16 bytes.

    A tensor without memory has the CPU's device number, but 0 in place of the boundary.
    """
    return tuple(
        [
            t
            if t is None
            else (t.shape, t.dtype, t.get_device(), t.is_contiguous(), (p := t.data_ptr()) and 1 + (p % 16 == 0))
            for t in tensors
        ]
    )


Grads = list[Tensor | None]
"""Gradients in the order of ``Needs``; ``None`` where none was asked for."""


Linear = Callable[[Tensor, Any, "Tensor | None"], Tensor]
"""x (..., K), weight (N, K), a parameter, and bias (N,) -> (..., N), of one dtype."""


class Backend(Protocol):
    """A package that serves the operation. Importing it may fail: the name of what is missing then is the reason."""

    AUTOMATIC: tuple[str, ...]
    """Device types on which it serves without being asked to."""
    HALF_SUMS: bool
    """Whether it has the option ``half_sums``."""
    linear: Linear | None
    """torch's product on a CPU without gradients, which may keep the weight in an order of its own, or ``None``."""

    def status(self) -> Status:
        """What this machine makes of it."""

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it does not serve experts of this dtype on this device, given that its status lists the device type."""

    def allocated_pairs(self, num_tokens: int, num_experts: int, max_pairs: int | None) -> int | None:
        """P where the call allocates for that many pairs and asks the host for nothing; ``None``: as selected."""

    def moe_forward(
        self, route: Route, select: Select, experts: Experts, kind: Kind | None = None
    ) -> tuple[Tensor, Tensor, Kept]:
        """``out`` (S, D) in the dtype of the weights, ``counts`` (E,) int64, and what is saved.

        ``kind``: the one of these arguments, where it is known; without, what is saved is ``Saved``.
        """

    def moe_inference(
        self, route: Route, select: Select, experts: Experts, kind: Kind | None = None
    ) -> tuple[Tensor, Tensor]:
        """``out`` and ``counts``, of which nothing is kept for a backward."""

    def moe_backward(
        self,
        grad_out: Tensor,
        grad_logits: Tensor | None,
        route: Route,
        experts: Experts,
        saved: Any,
        needs: Needs,
        kind: Kind | None = None,
        spend: bool = False,
    ) -> Grads:
        """Gradients from those of ``out`` (S, D) and of the logits (S, E).

        ``saved``: ``Saved``, or with the forward's ``kind`` what that kept. ``spend``: nobody reads what was saved
        after this, so that its memory, but for logits and slots, may be written over and be that of a gradient.
        """

    def raise_on_overflow(self, device: torch.device | None, wait: bool) -> None:
        """Raise ``RuntimeError`` if calls that asked the host for nothing selected more than ``max_pairs``."""


def check_pairs(needed: int, max_pairs: int | None) -> None:
    """Raise ``RuntimeError`` if more pairs were selected than may be."""
    if max_pairs is not None and needed > max_pairs:
        raise RuntimeError(
            f"max_pairs: expected at most {max_pairs} (token, expert) pairs, got {needed}; use a larger max_pairs"
        )
