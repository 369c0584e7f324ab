r"""The four steps as one differentiable operation on one pool of tokens.

    hidden, router ──route──► tokens, logits ──select──► pairs ──experts──► expert_out ──combine──► out

The reference is the composition of the step references, differentiated by autograd. Every other backend chains its own
steps, forward and backward (``intermoe.kernels.contract``). The routing, the normalised tokens and the experts'
pre-activations are saved, not the experts' outputs. Where nothing is differentiated nothing is kept.

With ``max_pairs`` a backend may allocate for that many pairs instead of asking the host how many there are: no host
read at all, so the call can be captured by ``torch.cuda.graph``. A call that selects more yields NaN and raises at the
next point that meets the host: the next call, ``update_selection_bias`` or ``raise_on_overflow``, which waits for it
(after a graph's replay, call that one). Within ``room_for_all_pairs`` calls without a limit have one that suffices.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intermoe import backends
from intermoe.kernels.contract import Experts, Kind, Route, Saved, Select, check_pairs, described
from intermoe.ops import differentiation, exchange, operators, recomputation
from intermoe.ops.checks import check_same_device, is_transformed, unwrapped
from intermoe.ops.combine import combine_reference
from intermoe.ops.exchange import Peers
from intermoe.ops.experts import experts_reference
from intermoe.ops.route import check_route, logits_reference, route_reference
from intermoe.ops.select import check_logits, check_select, choose, select_reference

__all__ = ["Experts", "Peers", "Result", "Route", "Select", "moe", "moe_reference", "raise_on_overflow"]


class Result(NamedTuple):
    """What the operation returns."""

    out: Tensor
    """(S, D) in the dtype of ``hidden``, or of autocast"""
    counts: Tensor
    """(E,) int64, tokens of each expert"""
    logits: Tensor | None
    """(S, E), differentiable; ``None`` where nothing is differentiated"""
    slots: Tensor | None
    """(S, E) int64, -1 where not selected; ``None`` where nothing is differentiated"""
    again: bool
    """whether ``torch.utils.checkpoint`` computed a forward again, with the choice of its first time"""


_Made = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""``out``, ``counts``, ``logits`` and ``slots`` of ``Result``."""

_NOTHING = nullcontext()


class _Room(threading.local):
    """What the calls of this thread make room for."""

    for_all_pairs = False


_room = _Room()


@contextmanager
def room_for_all_pairs() -> Iterator[None]:
    """Within, calls of this thread without ``max_pairs`` make room for all S * E pairs, which always suffices.

    A backend that can then asks the host for nothing: it is for the length of a capture.
    """
    before, _room.for_all_pairs = _room.for_all_pairs, True
    try:
        yield
    finally:
        _room.for_all_pairs = before


def moe(
    route: Route, select: Select, experts: Experts, *, backend: str | None = None, peers: Peers | None = None
) -> Result:
    """Route, select, run the experts and combine, for one pool of S tokens.

    Args:
        route, select, experts: see ``Route``, ``Select`` and ``Experts``. With ``max_pairs`` see above; a backend that
            knows the number at once raises ``RuntimeError`` at once.
        backend: name of a backend, or ``None`` for the one in force (see ``intermoe.backends``).
        peers: ranks that hold the experts, of which ``experts`` are this one's (see ``intermoe.ops.exchange``).

    Returns:
        ``Result``. Under autocast the experts run in its dtype and ``out`` has it, as a Linear's; routing stays in
        float32.

    Raises:
        ValueError, TypeError: for arguments that do not fit, naming them. RuntimeError: for a backend that cannot
            serve, and for derivatives that there are none of.
    """
    device, compiling = route.hidden.device, torch.compiler.is_compiling()
    if not compiling and route.hidden.is_neg():  # what its memory holds is not its value
        route = route._replace(hidden=route.hidden.resolve_neg())
    if not compiling and _room.for_all_pairs and select.max_pairs is None and peers is None:
        select = select._replace(max_pairs=max(1, route.hidden.shape[0] * experts.w_down.shape[0]))
    dtype = route.hidden.dtype
    # whether it is in force anywhere is known in an eighth of the time
    autocast = (compiling or torch._C._is_any_autocast_enabled()) and is_autocast(device)
    if autocast:
        dtype = torch.get_autocast_dtype(device.type)
        experts = experts._replace(w_gate_up=experts.w_gate_up.to(dtype), w_down=experts.w_down.to(dtype))
    kind = _checked(route, select, experts, compiling)
    hooked = not compiling and recomputation.is_hooked()
    past = recomputation.recall() if hooked else None
    if past is None:
        name = backends.resolve(device, experts.w_down.dtype, backend)
    else:
        name, select, kind = past.backend, Select(None, past.chosen, max_pairs=select.max_pairs), None
    differentiable = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*route[:5], experts.w_gate_up, experts.w_down)
    )
    if experts.half_sums:
        _check_half_sums(name, experts.w_down.dtype, differentiable)
    with torch.autocast(device.type, enabled=False) if autocast else _NOTHING:
        if backends.detects_nan():
            check_logits(logits_reference(route), select.valid)
        watched = hooked and recomputation.is_watched()
        received: tuple[Tensor, ...] = () if past is None else past.received
        if peers is None:
            out, counts, logits, slots = _run(route, select, experts, name, differentiable or watched, kind)
        else:
            (out, counts, logits, slots), received = _run_over(route, select, experts, name, peers, received)
    if watched and past is None and slots is not None:
        recomputation.remember(name, slots, received)
    return Result(out if out.dtype is dtype else out.to(dtype), counts, logits, slots, past is not None)


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is in force on the device; meta tensors know none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within, nothing is cast."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device) else _NOTHING


def _run(route: Route, select: Select, experts: Experts, name: str, differentiable: bool, kind: Kind | None) -> _Made:
    if name == backends.REFERENCE and not route.hidden.is_meta:
        return moe_reference(route, select, experts)[:4]
    if kind is None and torch.compiler.is_compiling():
        flat = operators.flatten(route, select, experts, name)
        if differentiable:
            out, counts, *made = torch.ops.intermoe.moe_forward(*flat)
            saved = Saved(*made)
            return out, counts, saved.logits, saved.slots
        out, counts = torch.ops.intermoe.moe_inference(*flat)
        return out, counts, None, None
    if differentiable:
        return differentiation.forward(route, select, experts, name, kind)
    if kind is None:
        out, counts = differentiation.inference(route, select, experts, name)
    else:
        out, counts = backends.load(name).moe_inference(route, select, experts, kind)
    return out, counts, None, None


@torch.compiler.disable
def _run_over(
    route: Route, select: Select, experts: Experts, name: str, peers: Peers, known: tuple[Tensor, ...]
) -> tuple[_Made, tuple[Tensor, ...]]:
    """The steps where the experts are spread over ranks; and what this rank received."""
    tokens, logits = route_reference(*route[:5], normalise=route.normalise)
    chosen = choose(logits.detach(), *select.given(logits))
    out, slots, received = exchange.over_ranks(
        tokens.to(experts.w_down.dtype), logits, chosen, experts, peers,
        max_pairs=select.max_pairs, backend=name, known=known,
    )  # fmt: skip
    return (out, chosen.sum(0), logits, slots), received


def moe_reference(route: Route, select: Select, experts: Experts) -> Result:
    """The composition of the four step references; the definition of ``moe``."""
    tokens, logits = route_reference(*route[:5], normalise=route.normalise)
    selection = select_reference(logits, *select.given(logits))
    if select.max_pairs is not None:
        check_pairs(len(selection.token_idx), select.max_pairs)
    pairs = (tokens.to(experts.w_down.dtype), selection.token_idx, selection.expert_offsets)
    expert_out = experts_reference(*pairs, experts.w_gate_up, experts.w_down, experts.recompute)
    out = combine_reference(expert_out, selection.gates, selection.slots)
    return Result(out, selection.counts, logits, selection.slots, False)


def raise_on_overflow(device: torch.device | None = None, *, wait: bool = True) -> None:
    """Raise ``RuntimeError`` with the numbers if a call without a host read selected more than ``max_pairs``.

    Args:
        device: ``None`` for every device that such calls have run on.
        wait: wait for the device, so that all calls so far are judged; without, those whose verdict has arrived.
    """
    exchange.raise_on_overflow(device, wait=wait)
    for package in backends.loaded():
        package.raise_on_overflow(device, wait)


_kinds: dict[tuple[Any, ...], Kind] = {}
_MOST_KNOWN = 1024


def _checked(route: Route, select: Select, experts: Experts, compiling: bool) -> Kind | None:
    """Check the arguments; plain ones once for each kind, which is returned: a check takes longer than a look."""
    tensors = (*route[:5], *select[:2], *experts[:2])
    if compiling or not operators.is_plain(tensors):
        _check(route, select, experts)
        return None
    key = (described(tensors), route.normalise, select.rule is None, select.max_pairs)
    kind = _kinds.get(key)
    if kind is None:
        _check(route, select, experts)
        if len(_kinds) == _MOST_KNOWN:
            _kinds.clear()
        kind = _kinds[key] = Kind()
    return kind


def _check(route: Route, select: Select, experts: Experts) -> None:
    hidden, router_weight, router_offset, scale, shift, normalise = route
    if is_transformed() and unwrapped(hidden)[1]:
        raise RuntimeError(
            "hidden: expected the tokens of one pool, got a tensor under vmap; call it on the whole batch"
        )
    if not normalise and scale is not None:
        raise ValueError("scale: expected None with normalise=False, which leaves nothing to scale, got a tensor")
    if select.max_pairs is not None and select.max_pairs < 1:
        raise ValueError(f"max_pairs: expected >= 1 or None, got {select.max_pairs}")
    check_route(hidden, router_weight, router_offset, scale, shift)
    if router_offset is not None and scale is not None and len(router_offset) != len(scale):
        raise ValueError(f"scale: expected as many rows as router_offset has, {len(router_offset)}, got {len(scale)}")
    if scale is not None and shift is not None and len(scale) != len(shift):
        raise ValueError(f"shift: expected as many rows as scale has, {len(scale)}, got {len(shift)}")
    if select.rule is None:
        check_select(len(hidden), len(router_weight), select.selection_bias, select.valid)
    check_same_device(
        hidden=hidden, selection_bias=select.selection_bias, valid=select.valid,
        w_gate_up=experts.w_gate_up, w_down=experts.w_down,
    )  # fmt: skip


def _check_half_sums(backend: str, dtype: torch.dtype, differentiable: bool) -> None:
    if backend == backends.REFERENCE or not backends.load(backend).HALF_SUMS:
        raise ValueError(f"half_sums: expected a backend that has them, got {backend!r}")
    if dtype != torch.float16:
        raise TypeError(f"half_sums: expected experts in torch.float16 (by dtype or autocast), got {dtype}")
    if differentiable:
        raise RuntimeError("half_sums: for inference only, but gradients are needed; call under torch.no_grad()")
