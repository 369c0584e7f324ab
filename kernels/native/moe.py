"""All four steps in one call each way: what a pool costs beyond its inputs, outputs and saved tensors is bounded.

The experts' outputs exist for some tokens at a time only, and gradients are written over those they replace.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..contract import EPS, Experts, Grads, Kind, Needs, Route, Saved, Select
from .experts import Backward, Forward, Problem, Range, own_products
from .registry import CODES, call, dense, on_cuda
from .route import route_backward, route_forward
from .select import select_backward, select_with_offsets

CHUNK_BYTES = 48 << 20
"""Size of the experts' outputs that exist at a time."""

BACKWARD_CHUNK_BYTES = 8 << 20
"""Size of the pairs' gradients that exist at a time, beside everything that is saved: the peak of a training step."""

FEW_ELEMENTS = 1 << 17
"""Most elements of tokens and activations, were all pairs selected, of a pool that is one call of the library."""

CUDA_CHUNK_BYTES = 256 << 20
"""The same on CUDA, where a further chunk costs launches and a read."""


def moe_forward(
    route: Route, select: Select, experts: Experts, kind: Kind | None = None
) -> tuple[Tensor, Tensor, Saved]:
    """Route, select, experts and combine; what each takes and what is saved is told in ``contract``."""
    return _forward(route, select, experts, save_h=not experts.recompute)


def moe_inference(route: Route, select: Select, experts: Experts, kind: Kind | None = None) -> tuple[Tensor, Tensor]:
    """``out`` and ``counts`` of ``moe_forward``, of which nothing is kept for a backward."""
    if _is_few(route, select, experts, kind):
        return _one_call(route, select, experts)
    return _forward(route, select, experts, save_h=False, keep=True)[:2]


def _forward(
    route: Route, select: Select, experts: Experts, save_h: bool, keep: bool = False
) -> tuple[Tensor, Tensor, Saved]:
    hidden, router_weight, router_offset, scale, shift, normalise = route
    tokens, logits, mean, rstd = route_forward(hidden, router_weight, router_offset, scale, shift, EPS, normalise)
    tokens = tokens.to(experts.w_down.dtype)
    pairs, numbers = select_with_offsets(logits, *select.given(logits), select.max_pairs)
    token_idx, gates, expert_offsets, slots, counts = pairs
    problem = Problem(tokens, token_idx, expert_offsets, experts.w_gate_up, experts.w_down, numbers)
    forward = Forward(problem, save_h, keep)
    out = torch.empty_like(problem.tokens)
    for rows, ranges, expert_out in _chunks(problem, CHUNK_BYTES):
        forward.run(ranges, expert_out)
        _combine_chunk(expert_out, gates, ranges, slots[rows], out[rows], problem.code)
    kept = tokens if tokens is not hidden else tokens.new_empty(0, tokens.shape[1])
    return out, counts, Saved(logits, kept, mean, rstd, token_idx, gates, expert_offsets, slots, forward.h)


def _is_few(route: Route, select: Select, experts: Experts, kind: Kind | None) -> bool:
    """Whether one call of the library serves: a small pool on a CPU, of arrays as the library reads them."""
    hidden = route.hidden
    (num_tokens, dim), (num_experts, _, width) = hidden.shape, experts.w_down.shape
    if num_tokens * num_experts * (dim + width) > FEW_ELEMENTS or on_cuda(hidden):
        return False
    if select.rule is not None or select.max_pairs is not None:
        return False
    if not own_products(hidden.dtype, num_tokens * num_experts, experts.w_down):
        return False
    readable = None if kind is None else kind.notes.get("readable")
    if readable is None:
        readable = _is_readable(route, select, experts)
        if kind is not None:
            kind.notes["readable"] = readable
    return readable


def _is_readable(route: Route, select: Select, experts: Experts) -> bool:
    """Whether the library reads these arrays as they are."""
    hidden, router_weight, router_offset, scale, shift, _ = route
    (num_tokens, dim), (num_experts, _, width) = hidden.shape, experts.w_down.shape
    rows = _rows(route)
    by_pair = select.selection_bias is None or (select.valid is not None and select.valid.dim() == 2)
    return all(
        tensor is None or (tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous() and tensor.is_cpu)
        for tensor, dtype, shape in (
            (hidden, hidden.dtype, (num_tokens, dim)),
            (router_weight, torch.float32, (num_experts, dim)),
            (router_offset, torch.float32, (rows, num_experts)),
            (scale, torch.float32, (rows, dim)),
            (shift, torch.float32, (rows, dim)),
            (select.selection_bias, torch.float32, (num_experts,)),
            (select.valid, torch.bool, (num_tokens, num_experts) if by_pair else (num_tokens,)),
            (experts.w_gate_up, hidden.dtype, (num_experts, 2 * width, dim)),
            (experts.w_down, hidden.dtype, (num_experts, dim, width)),
        )
    )


def _rows(route: Route) -> int:
    return 0 if route.router_offset is None and route.scale is None else route.rows


def _one_call(route: Route, select: Select, experts: Experts) -> tuple[Tensor, Tensor]:
    hidden, *router, normalise = route
    (num_tokens, dim), (num_experts, _, width) = hidden.shape, experts.w_down.shape
    if (route.scale is None) != (route.shift is None):
        raise ValueError("scale: expected scale and shift together, got only one of them")
    out = torch.empty_like(hidden)
    counts = torch.empty(num_experts, dtype=torch.int64)
    arrays = (*router, select.selection_bias, select.valid, experts.w_gate_up, experts.w_down, out, counts)
    columns = 1 if select.valid is None or select.valid.dim() == 1 else num_experts
    sizes = (num_tokens, dim, num_experts, width, _rows(route), columns)
    call("moe_forward", hidden, *arrays, *sizes, int(normalise), EPS, CODES[hidden.dtype])
    return out, counts


def moe_backward(
    grad_out: Tensor, grad_logits: Tensor | None, route: Route, experts: Experts, saved: Saved, needs: Needs,
    kind: Kind | None = None, spend: bool = False,
) -> Grads:  # fmt: skip
    """Gradients of the inputs that ``needs`` names, from that of out (S, D) and, where it has one, of the logits."""
    hidden, normalise = route.hidden, route.normalise
    tokens = saved.tokens if len(saved.tokens) else hidden
    problem = Problem(tokens, saved.token_idx, saved.expert_offsets, experts.w_gate_up, experts.w_down)
    needed = (needs.tokens, needs.w_gate_up, needs.w_down)
    single = _tokens_per_chunk(problem, BACKWARD_CHUNK_BYTES) >= tokens.shape[0]
    h = None if experts.recompute else saved.h
    backward = Backward(problem, grad_out, saved.gates, h, single, needed)
    grad_tokens = torch.empty_like(problem.tokens)
    if needs.tokens:
        for chunk, ranges, grad_pairs in _chunks(problem, BACKWARD_CHUNK_BYTES):
            backward.run(ranges, grad_pairs)
            _combine_chunk(grad_pairs, None, ranges, saved.slots[chunk], grad_tokens[chunk], problem.code)
    else:
        backward.run(problem.ranges, None)
        grad_tokens.zero_()
    grads: Grads = [None] * 5
    if needs.tokens or needs.logits:
        through_gates = select_backward(backward.grad_gates, saved.logits, saved.slots)
        grad_logits = through_gates if grad_logits is None else through_gates + grad_logits
        given = (hidden, (saved.mean, saved.rstd), route.router_weight, route.scale, normalise, route.rows)
        grad_tokens = grad_tokens.to(hidden.dtype)
        grads = list(route_backward(grad_tokens, grad_logits, *given, needs.router_weight, in_place=True))
    found = (*grads, *backward.finish())
    return [grad if need else None for grad, need in zip(found, needs, strict=True)]


def _tokens_per_chunk(problem: Problem, cpu_bytes: int) -> int:
    num_tokens = problem.tokens.shape[0]
    bytes_per_token = problem.num_pairs * problem.dim * problem.tokens.element_size() / max(num_tokens, 1)
    chunk_bytes = CUDA_CHUNK_BYTES if on_cuda(problem.tokens) else cpu_bytes
    return max(int(chunk_bytes / max(bytes_per_token, 1)), 1)


def _chunks(problem: Problem, cpu_bytes: int) -> Iterator[tuple[slice, list[Range], Tensor]]:
    """Tokens of a chunk, each expert's pairs of these tokens, and a buffer with a row for each of these pairs."""
    num_tokens, step = problem.tokens.shape[0], _tokens_per_chunk(problem, cpu_bytes)
    if step >= num_tokens:
        yield slice(0, num_tokens), problem.ranges, problem.tokens.new_empty(problem.num_pairs, problem.dim)
        return
    bounds = torch.arange(0, num_tokens + step, step, device=problem.device).clamp_(max=num_tokens)
    # Pairs of an expert are in the order of their tokens, so each chunk of tokens takes a range of them.
    starts = torch.stack(
        [start + torch.searchsorted(problem.token_idx[start:stop], bounds) for start, stop in problem.ranges], dim=1
    )
    limits: list[list[int]] = starts.tolist()
    buffer = problem.tokens.new_empty(int((starts[1:] - starts[:-1]).sum(1).max()), problem.dim)
    for i in range(len(limits) - 1):
        first, last = i * step, min((i + 1) * step, num_tokens)
        yield slice(first, last), list(zip(limits[i], limits[i + 1], strict=True)), buffer


def _combine_chunk(
    expert_out: Tensor, gates: Tensor | None, ranges: list[Range], slots: Tensor, out: Tensor, code: int
) -> None:
    """Combine where the row of pair p of expert e in ``expert_out`` is p - shift[e]."""
    shift, row = [], 0
    for start, stop in ranges:
        shift.append(start - row)
        row += stop - start
    num_tokens, num_experts = slots.shape
    last = max((stop for _, stop in ranges), default=0)
    # Where the chunk is the whole pool no row moves.
    shifts = torch.tensor(shift, dtype=torch.int64, device=slots.device) if any(shift) else None
    slots = dense("slots", slots, out.device, torch.int64, num_tokens, num_experts)
    call("combine", expert_out, gates, slots, shifts, out, last, num_tokens, expert_out.shape[1], num_experts, code)
