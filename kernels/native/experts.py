"""Step 3, experts: gather, two products per expert through torch, SwiGLU between them; and the gradients.

Pairs are processed in groups of consecutive ones, so the workspace is bounded whatever the pool's size.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from .registry import call, dense, register, storage_code

GROUP_ROWS = 2048
"""Pairs per group: enough for the products to be efficient, few enough to stay in a CPU's last-level cache."""


class Segment(NamedTuple):
    """Consecutive pairs ``first`` .. ``last`` of one expert; whether they begin and end all pairs of that expert."""

    expert: int
    first: int
    last: int
    begins: bool
    ends: bool


def experts_forward(
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    save_h: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Outputs (P, D) of the pairs, not weighted by their gates, and the pre-activation h (P, 2F), kept for backward.

    Args:
        tokens: (S, D). token_idx: (P,) int64. expert_offsets: (E + 1,) int64.
        w_gate_up: (E, 2F, D), w_down: (E, D, F), both of the dtype of ``tokens``.
        save_h: ``False`` drops h, which is then ``None`` and recomputed by ``experts_backward``.
    """
    expert_out, h = torch.ops.intermoe_native.experts_forward(
        tokens, token_idx, expert_offsets, w_gate_up, w_down, save_h
    )
    return expert_out, h if save_h else None


def experts_backward(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of each pair's token (P, D), the gates (P,) float32, w_gate_up and w_down.

    Args:
        grad_out: (S, D), gradient of the combined output. gates: (P,) float32. h: (P, 2F), or ``None`` to recompute it.
        The others are those of ``experts_forward``.
    """
    return torch.ops.intermoe_native.experts_backward(
        grad_out, tokens, token_idx, expert_offsets, gates, h, w_gate_up, w_down
    )


def group_segments(offsets: list[int], rows: int) -> list[list[Segment]]:
    """Split the pairs into groups of at most ``rows``; an expert is cut only where it alone exceeds a group."""
    groups: list[list[Segment]] = []
    filled = rows
    for expert, (start, stop) in enumerate(itertools.pairwise(offsets)):
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            if filled + last - first > rows:
                groups.append([])
                filled = 0
            groups[-1].append(Segment(expert, first, last, first == start, last == stop))
            filled += last - first
    return groups


@functools.cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether torch multiplies ``dtype`` matrices on this CPU at speed; where not, float32 is several times faster."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if _multiplies(out.dtype):
        torch.mm(left, right, out=out)
    else:
        out.copy_(torch.mm(left.float(), right.float()))


class _WeightGradient:
    """Sum of an expert's products over its segments, in float32 where an expert of a half type has several."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
        self.total: Tensor | None = None

    def add(self, segment: Segment, left: Tensor, right: Tensor) -> None:
        target = self.grad[segment.expert]
        if segment.begins and segment.ends:
            _product(left, right, target)
        elif target.dtype == torch.float32:
            torch.addmm(target, left, right, beta=0 if segment.begins else 1, out=target)
        else:
            if self.total is None:
                self.total = torch.empty(target.shape, dtype=torch.float32)
            torch.addmm(self.total, left.float(), right.float(), beta=0 if segment.begins else 1, out=self.total)
            if segment.ends:
                target.copy_(self.total)

    def clear_unused(self, offsets: list[int]) -> None:
        for expert, (start, stop) in enumerate(itertools.pairwise(offsets)):
            if start == stop:
                self.grad[expert].zero_()


def _prepare(
    tokens: Tensor, token_idx: Tensor, expert_offsets: Tensor, w_gate_up: Tensor, w_down: Tensor
) -> tuple[int, Tensor, Tensor, list[int]]:
    """Check the arguments; the storage code, dense tokens and token_idx, and the offsets as numbers."""
    num_experts, dim, width = w_down.shape
    code = storage_code("tokens", tokens)
    tokens = dense("tokens", tokens, tokens.dtype, tokens.shape[0], dim)
    token_idx = dense("token_idx", token_idx, torch.int64, token_idx.numel())
    dense("expert_offsets", expert_offsets, torch.int64, num_experts + 1)
    for name, weight, shape in (
        ("w_gate_up", w_gate_up, (num_experts, 2 * width, dim)),
        ("w_down", w_down, w_down.shape),
    ):
        if weight.dtype != tokens.dtype:
            raise TypeError(f"{name}: expected the dtype of tokens {tokens.dtype}, got {weight.dtype}")
        if weight.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(weight.shape)}")
    offsets: list[int] = expert_offsets.tolist()
    if offsets[0] != 0 or offsets[-1] != token_idx.numel() or offsets != sorted(offsets):
        raise ValueError(f"expert_offsets: must rise from 0 to the {token_idx.numel()} pairs, got {offsets}")
    return code, tokens, token_idx, offsets


def _gather(source: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    count, dim = rows.numel(), source.shape[1]
    call("gather", source, rows, count, source.shape[0], dim * source.element_size(), out)
    return out[:count]


def _experts_forward(
    tokens: Tensor, token_idx: Tensor, expert_offsets: Tensor, w_gate_up: Tensor, w_down: Tensor, save_h: bool
) -> tuple[Tensor, Tensor]:
    code, tokens, token_idx, offsets = _prepare(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    num_pairs, (dim, width) = token_idx.numel(), w_down.shape[1:]
    rows = min(num_pairs, GROUP_ROWS)
    expert_out = tokens.new_empty(num_pairs, dim)
    h = tokens.new_empty(num_pairs if save_h else 0, 2 * width)
    inputs, activations = tokens.new_empty(rows, dim), tokens.new_empty(rows, width)
    workspace = h if save_h else tokens.new_empty(rows, 2 * width)
    for group in group_segments(offsets, GROUP_ROWS):
        start, stop = group[0].first, group[-1].last
        x = _gather(tokens, token_idx[start:stop], inputs)
        pre = workspace[start:stop] if save_h else workspace[: stop - start]
        for s in group:
            _product(x[s.first - start : s.last - start], w_gate_up[s.expert].T, pre[s.first - start : s.last - start])
        call("swiglu_forward", pre, activations, stop - start, width, code)
        for s in group:
            _product(activations[s.first - start : s.last - start], w_down[s.expert].T, expert_out[s.first : s.last])
    return expert_out, h


def _experts_forward_fake(
    tokens: Tensor, token_idx: Tensor, expert_offsets: Tensor, w_gate_up: Tensor, w_down: Tensor, save_h: bool
) -> tuple[Tensor, Tensor]:
    num_pairs = token_idx.shape[0]
    return tokens.new_empty(num_pairs, w_down.shape[1]), tokens.new_empty(
        num_pairs if save_h else 0, w_gate_up.shape[1]
    )


def _experts_backward(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    code, tokens, token_idx, offsets = _prepare(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    num_pairs, (dim, width) = token_idx.numel(), w_down.shape[1:]
    grad_out = dense("grad_out", grad_out, tokens.dtype, tokens.shape[0], dim)
    gates = dense("gates", gates, torch.float32, num_pairs)
    if h is not None:
        h = dense("h", h, tokens.dtype, num_pairs, 2 * width)
    rows = min(num_pairs, GROUP_ROWS)
    grad_pairs, grad_gates = tokens.new_empty(num_pairs, dim), torch.empty(num_pairs)
    grad_gate_up, grad_down = _WeightGradient(torch.empty_like(w_gate_up)), _WeightGradient(torch.empty_like(w_down))
    inputs, grads = tokens.new_empty(rows, dim), tokens.new_empty(rows, dim)
    inner, grad_h = tokens.new_empty(rows, width), tokens.new_empty(rows, 2 * width)
    for group in group_segments(offsets, GROUP_ROWS):
        start, stop = group[0].first, group[-1].last
        pairs = token_idx[start:stop]
        x, grad = _gather(tokens, pairs, inputs), _gather(grad_out, pairs, grads)
        local = [(s, slice(s.first - start, s.last - start)) for s in group]
        for s, part in local:
            _product(grad[part], w_down[s.expert], inner[part])
            if h is None:
                _product(x[part], w_gate_up[s.expert].T, grad_h[part])
        # SwiGLU's gradient reads h[i] before it writes grad_h[i], so a recomputed h may be overwritten by its gradient.
        pre = grad_h if h is None else h[start:stop]
        weights, grad_weights = gates[start:stop], grad_gates[start:stop]
        call("swiglu_backward", pre, weights, inner, grad_h, grad_weights, stop - start, width, code)
        for s, part in local:
            grad_down.add(s, grad[part].T, inner[part])
            grad_gate_up.add(s, grad_h[part].T, x[part])
            _product(grad_h[part], w_gate_up[s.expert], grad_pairs[s.first : s.last])
    grad_gate_up.clear_unused(offsets)
    grad_down.clear_unused(offsets)
    return grad_pairs, grad_gates, grad_gate_up.grad, grad_down.grad


def _experts_backward_fake(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_pairs = token_idx.shape[0]
    grad_gates = torch.empty(num_pairs, dtype=torch.float32, device=tokens.device)
    return (
        tokens.new_empty(num_pairs, tokens.shape[1]),
        grad_gates,
        torch.empty_like(w_gate_up),
        torch.empty_like(w_down),
    )


register(
    "experts_forward(Tensor tokens, Tensor token_idx, Tensor expert_offsets, Tensor w_gate_up, Tensor w_down, "
    "bool save_h) -> (Tensor, Tensor)",
    _experts_forward,
    _experts_forward_fake,
)
register(
    "experts_backward(Tensor grad_out, Tensor tokens, Tensor token_idx, Tensor expert_offsets, Tensor gates, "
    "Tensor? h, Tensor w_gate_up, Tensor w_down) -> (Tensor, Tensor, Tensor, Tensor)",
    _experts_backward,
    _experts_backward_fake,
)
