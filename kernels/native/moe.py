"""All four steps in one call each way: what a pool costs beyond its inputs, outputs and saved tensors is bounded.

The experts' outputs exist for some tokens at a time only, and gradients are written over those they replace.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .experts import Backward, Forward, Problem, Range, own_products
from .registry import CODES, call, dense, on_cuda
from .route import _route_backward, _route_forward
from .select import _select_backward, select_with_offsets

CHUNK_BYTES = 48 << 20
"""Size of the experts' outputs that exist at a time."""

BACKWARD_CHUNK_BYTES = 8 << 20
"""Size of the pairs' gradients that exist at a time, beside everything that is saved: the peak of a training step."""

FEW_ELEMENTS = 1 << 17
"""Most elements of tokens and activations, were all pairs selected, of a pool that is one call of the library."""

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
    for rows, ranges, expert_out in _chunks(problem, CHUNK_BYTES):
        forward.run(ranges, expert_out)
        _combine_chunk(expert_out, gates, ranges, slots[rows], out[rows], problem.code)
    saved = tokens if tokens is not hidden else tokens.new_empty(0, tokens.shape[1])
    return [out, counts, saved, logits, mean, rstd, token_idx, gates, expert_offsets, slots, forward.h]


def moe_inference(
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
) -> list[Tensor]:
    """``out`` and ``counts`` of ``moe_forward``, of which nothing is kept for a backward."""
    arguments = (hidden, router_weight, router_offset, scale, shift, selection_bias, w_gate_up, w_down, valid)
    (num_tokens, dim), (num_experts, _, width) = hidden.shape, w_down.shape
    few = num_tokens * num_experts * (dim + width) <= FEW_ELEMENTS
    if not few or on_cuda(hidden) or not own_products(hidden.dtype, num_tokens * num_experts, w_down):
        return moe_forward(*arguments, eps, normalise, save_h=False)[:2]
    rows = next((len(tensor) for tensor in (router_offset, scale) if tensor is not None), 0)
    columns = num_experts if valid is not None and valid.dim() == 2 else 1
    for tensor, dtype, shape in (
        (hidden, hidden.dtype, (num_tokens, dim)),
        (router_weight, torch.float32, (num_experts, dim)),
        (router_offset, torch.float32, (rows, num_experts)),
        (scale, torch.float32, (rows, dim)),
        (shift, torch.float32, (rows, dim)),
        (selection_bias, torch.float32, (num_experts,)),
        (w_gate_up, hidden.dtype, (num_experts, 2 * width, dim)),
        (w_down, hidden.dtype, (num_experts, dim, width)),
        (valid, torch.bool, (num_tokens,) if columns == 1 else (num_tokens, num_experts)),
    ):
        if tensor is not None and not (
            tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous() and tensor.is_cpu
        ):
            # The steps take more than this call does, or say what is wrong.
            return moe_forward(*arguments, eps, normalise, save_h=False)[:2]
    if (scale is None) != (shift is None):
        raise ValueError("scale: scale and shift must be given together, got only one of them")
    out, counts = torch.empty_like(hidden), selection_bias.new_empty(num_experts, dtype=torch.int64)
    inputs = (router_weight, router_offset, scale, shift, selection_bias, valid, w_gate_up, w_down)
    sizes = (num_tokens, dim, num_experts, width, rows, columns)
    call("moe_forward", hidden, *inputs, out, counts, *sizes, int(normalise), eps, CODES[hidden.dtype])
    return [out, counts]


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
    chunks = _chunks(problem, BACKWARD_CHUNK_BYTES)
    single = _tokens_per_chunk(problem, BACKWARD_CHUNK_BYTES) >= tokens.shape[0]
    backward = Backward(problem, grad_out, gates, h, single)
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
