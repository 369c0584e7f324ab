"""All four steps in one call each way: what a pool costs beyond its inputs, outputs and saved tensors is bounded.

The experts' outputs exist for some tokens at a time only, and gradients are written over those they replace.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .experts import Backward, Forward, Problem, Range
from .registry import call, dense, on_cuda
from .route import _route_backward, _route_forward
from .select import _select_backward, select_with_offsets

CHUNK_BYTES = 48 << 20
"""Size of the experts' outputs that exist at a time."""

CUDA_CHUNK_BYTES = 256 << 20
"""The same on CUDA, where a further chunk costs launches and a read."""


def moe_forward(
    hidden: Tensor,
    router_weight: Tensor,
    router_offset: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    selection_bias: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    valid: Tensor | None,
    eps: float,
    normalise: bool,
    save_h: bool,
) -> list[Tensor]:
    """Route, select, experts and combine; shapes and dtypes as in the steps.

    Returns:
        out (S, D) in the dtype of the weights, counts, tokens (empty where they are ``hidden`` itself), logits, mean,
        rstd, token_idx, gates, expert_offsets, slots, h (0 rows unless ``save_h``).
    """
    normal, logits, mean, rstd = _route_forward(hidden, router_weight, router_offset, scale, shift, eps, normalise)
    tokens = (normal if normalise else hidden).to(w_gate_up.dtype)
    pairs, numbers = select_with_offsets(logits, selection_bias, valid)
    token_idx, gates, expert_offsets, slots, counts = pairs
    problem = Problem(tokens, token_idx, expert_offsets, w_gate_up, w_down, numbers)
    forward = Forward(problem, save_h)
    out = torch.empty_like(problem.tokens)
    for rows, ranges, expert_out in _chunks(problem):
        forward.run(ranges, expert_out)
        _combine_chunk(expert_out, gates, ranges, slots[rows], out[rows], problem.code)
    saved = tokens if tokens is not hidden else tokens.new_empty(0, tokens.shape[1])
    return [out, counts, saved, logits, mean, rstd, token_idx, gates, expert_offsets, slots, forward.h]


def moe_backward(
    grad_out: Tensor,
    hidden: Tensor,
    router_weight: Tensor,
    scale: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
    tokens: Tensor,
    logits: Tensor,
    mean: Tensor,
    rstd: Tensor,
    token_idx: Tensor,
    gates: Tensor,
    expert_offsets: Tensor,
    slots: Tensor,
    h: Tensor | None,
    normalise: bool,
    rows: int,
) -> list[Tensor]:
    """Gradients of hidden, router_weight, router_offset, scale, shift, w_gate_up and w_down from that of out (S, D)."""
    problem = Problem(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    chunks = _chunks(problem)
    backward = Backward(problem, grad_out, gates, h, single=_tokens_per_chunk(problem) >= tokens.shape[0])
    grad_tokens = torch.empty_like(problem.tokens)
    for chunk, ranges, grad_pairs in chunks:
        backward.run(ranges, grad_pairs)
        _combine_chunk(grad_pairs, None, ranges, slots[chunk], grad_tokens[chunk], problem.code)
    grad_logits = _select_backward(backward.grad_gates, logits, slots)
    grad_tokens = grad_tokens.to(hidden.dtype)
    grads = _route_backward(
        grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, normalise, rows, in_place=True
    )
    return [*grads, backward.grad_gate_up.finish(), backward.grad_down.finish()]


def _tokens_per_chunk(problem: Problem) -> int:
    num_tokens = problem.tokens.shape[0]
    bytes_per_token = problem.num_pairs * problem.dim * problem.tokens.element_size() / max(num_tokens, 1)
    chunk_bytes = CUDA_CHUNK_BYTES if on_cuda(problem.tokens) else CHUNK_BYTES
    return max(int(chunk_bytes / max(bytes_per_token, 1)), 1)


def _chunks(problem: Problem) -> Iterator[tuple[slice, list[Range], Tensor]]:
    """Tokens of a chunk, each expert's pairs of these tokens, and a buffer with a row for each of these pairs."""
    num_tokens, step = problem.tokens.shape[0], _tokens_per_chunk(problem)
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
