"""Step 3, experts: gather, two products per expert through torch, SwiGLU between them; and the gradients.

On a CPU the products are those that ``products`` names; where they are the library's own the forward is one call.

Work is done in segments of consecutive pairs of one expert, so the workspace is bounded whatever the pool's size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import library, products
from .registry import call, dense, on_cuda, storage_code

SEGMENT_ROWS = 2048
"""Most pairs in a segment: enough for the products to be efficient, few enough to stay in a CPU's last-level cache."""

MERGED_ROWS = 512
"""Most pairs of several experts in one segment: where there are so few, calls are what costs."""

CUDA_SEGMENT_ROWS = 16384
"""Both on CUDA, where launches cost more and the workspace (some 10 KB a row) is what bounds it."""

PART_ROWS = 336
"""Most pairs of an expert that the library multiplies with a packed weight at a time (``kPartRows`` there)."""

FEW_OPERATIONS = 1 << 22
"""Most operations of the products that take less time than torch's calls for them, on any machine."""

Range = tuple[int, int]
Needed = tuple[bool, bool, bool]
"""Whether the pairs' tokens, w_gate_up and w_down get a gradient."""


class Segment(NamedTuple):
    """Consecutive pairs ``first`` .. ``last``, whose outputs go to the rows from ``row`` on.

    ``parts`` says which expert has which of them, counted from ``first``.
    """

    first: int
    last: int
    row: int
    parts: list[tuple[int, slice]]


def experts_forward(
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    save_h: bool = True,
) -> tuple[Tensor, Tensor]:
    """Outputs (P, D) of the pairs, not weighted by their gates, and the pre-activation h (P, 2F), kept for backward.

    Args:
        tokens: (S, D).
        token_idx: (P,) int64.
        expert_offsets: (E + 1,) int64.
        w_gate_up: (E, 2F, D), w_down: (E, D, F), both of the dtype of ``tokens``.
        save_h: ``False`` drops h, which then has 0 rows; ``experts_backward`` computes it again when given ``None``.
    """
    problem = Problem(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    forward = Forward(problem, save_h)
    expert_out = tokens.new_empty(problem.num_pairs, problem.dim)
    forward.run(problem.ranges, expert_out)
    return expert_out, forward.h


def experts_backward(
    grad_out: Tensor,
    tokens: Tensor,
    token_idx: Tensor,
    expert_offsets: Tensor,
    gates: Tensor,
    h: Tensor | None,
    w_gate_up: Tensor,
    w_down: Tensor,
    needed: Needed = (True, True, True),
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients of each pair's token (P, D), the gates (P,) float32, w_gate_up and w_down.

    Args:
        grad_out: (S, D), gradient of the combined output.
        gates: (P,) float32.
        h: (P, 2F), or ``None`` to recompute it.
        The others are those of ``experts_forward``.
        needed: whether the pairs' tokens, w_gate_up and w_down get a gradient; what does not is ``None``.
    """
    problem = Problem(tokens, token_idx, expert_offsets, w_gate_up, w_down)
    backward = Backward(problem, grad_out, gates, h, single=True, needed=needed)
    grad_pairs = tokens.new_empty(problem.num_pairs, problem.dim) if needed[0] else None
    backward.run(problem.ranges, grad_pairs)
    return grad_pairs, backward.grad_gates, *backward.finish()


def segments(ranges: list[Range], most: int, merged: int) -> Iterator[Segment]:
    """Cut every expert's range of pairs into segments of at most ``most``, numbering the output rows through.

    Neighbours of together at most ``merged`` pairs are one segment: what surrounds the products is then one call.
    """
    held = Segment(0, 0, 0, [])
    for expert, (start, stop) in enumerate(ranges):
        for first in range(start, stop, most):
            last = min(first + most, stop)
            if held.parts and (held.last != first or last - held.first > merged):
                yield held
                held = Segment(first, first, held.row + held.last - held.first, [])
            begin = held.first if held.parts else first
            part = (expert, slice(first - begin, last - begin))
            held = Segment(begin, last, held.row, [*held.parts, part])
    if held.parts:
        yield held


def own_products(dtype: torch.dtype, num_pairs: int, weight: Tensor, packed: bool = False) -> bool:
    """Whether the products of a forward on a CPU are the library's own, not torch's; ``weight``: w_down (E, D, F)."""
    num_experts, dim, width = weight.shape
    if 6 * num_pairs * dim * width <= FEW_OPERATIONS:
        return True
    if packed:
        return products.choice("packed", dtype, _rows_at_a_time(num_pairs, weight)) == "own"
    return products.choice("rows", dtype, num_pairs // num_experts) == "own"


def _rows_at_a_time(num_pairs: int, weight: Tensor) -> int:
    """Rows that are multiplied at a time with a packed weight (E, ., .), were all experts to take as many pairs."""
    rows = num_pairs // len(weight)
    return math.ceil(rows / math.ceil(rows / PART_ROWS)) if rows else 0


def product(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """out = [out +] left . right, on views; ``out`` may be float32 beside half types."""
    if not on_cuda(out):
        products.product(left, right, out, add=add)
    elif add or out.dtype != left.dtype:
        torch.addmm(out, left.to(out.dtype), right.to(out.dtype), beta=int(add), out=out)
    else:
        torch.mm(left, right, out=out)


class WeightGradient:
    """Gradient of one of the experts' weights, summed over segments.

    Sums of several segments in a half type are kept in float32 until ``finish``.
    """

    def __init__(self, weight: Tensor, single: bool) -> None:
        self.grad = torch.empty_like(weight)
        self.sums = self.grad
        if not single and weight.dtype != torch.float32:
            self.sums = torch.empty_like(weight, dtype=torch.float32)
        self.started = [False] * weight.shape[0]

    def add(self, expert: int, left: Tensor, right: Tensor) -> None:
        product(left, right, self.sums[expert], add=self.started[expert])
        self.started[expert] = True

    def finish(self) -> Tensor:
        for expert, started in enumerate(self.started):
            if not started:
                self.sums[expert].zero_()
        if self.sums is not self.grad:
            self.grad.copy_(self.sums)
        return self.grad


class Problem:
    """Checked arguments of the experts, with the workspace of one segment, for any number of ranges of pairs."""

    def __init__(
        self,
        tokens: Tensor,
        token_idx: Tensor,
        expert_offsets: Tensor,
        w_gate_up: Tensor,
        w_down: Tensor,
        numbers: list[int] | None = None,
    ) -> None:
        """``numbers``: expert_offsets where they have been read from the device before."""
        num_experts, dim, width = w_down.shape
        device = self.device = tokens.device
        self.code = storage_code("tokens", tokens)
        self.tokens = dense("tokens", tokens, device, tokens.dtype, tokens.shape[0], dim)
        self.token_idx = dense("token_idx", token_idx, device, torch.int64, token_idx.numel())
        dense("expert_offsets", expert_offsets, device, torch.int64, num_experts + 1)
        shapes = ((num_experts, 2 * width, dim), (num_experts, dim, width))
        for name, weight, shape in zip(("w_gate_up", "w_down"), (w_gate_up, w_down), shapes, strict=True):
            if weight.dtype != tokens.dtype:
                raise TypeError(f"{name}: expected the dtype of tokens {tokens.dtype}, got {weight.dtype}")
            if weight.shape != shape:
                raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(weight.shape)}")
            if weight.device != device:
                raise ValueError(f"{name}: expected a tensor on {device}, where tokens is, got one on {weight.device}")
        self.w_gate_up, self.w_down = w_gate_up, w_down
        self.num_pairs, self.dim, self.width = token_idx.numel(), dim, width
        offsets: list[int] = expert_offsets.tolist() if numbers is None else numbers
        if offsets[0] != 0 or offsets[-1] != self.num_pairs or offsets != sorted(offsets):
            raise ValueError(f"expert_offsets: expected a rise from 0 to the {self.num_pairs} pairs, got {offsets}")
        self.ranges: list[Range] = list(itertools.pairwise(offsets))
        self.segment_rows, self.merged_rows = SEGMENT_ROWS, min(MERGED_ROWS, SEGMENT_ROWS)
        if on_cuda(tokens):
            self.segment_rows = self.merged_rows = CUDA_SEGMENT_ROWS
        longest = min(max(stop - start for start, stop in self.ranges), self.segment_rows)
        self.longest = min(max(longest, self.merged_rows), self.num_pairs)

    def workspace(self, width: int) -> Tensor:
        return self.tokens.new_empty(self.longest, width)

    def segments(self, ranges: list[Range]) -> Iterator[Segment]:
        return segments(ranges, self.segment_rows, self.merged_rows)

    def gather(self, source: Tensor, segment: Segment, out: Tensor) -> Tensor:
        pairs = self.token_idx[segment.first : segment.last]
        row_bytes = self.dim * source.element_size()
        count = segment.last - segment.first
        call("gather", source, pairs, count, source.shape[0], row_bytes, out)
        return out[:count]


class Forward:
    """Outputs of the experts, and ``h`` (P, 2F) or, where it is not saved, (0, 2F)."""

    def __init__(self, problem: Problem, save_h: bool, keep: bool = False) -> None:
        """``keep``: weights may be kept packed, for calls that follow with the same."""
        self.problem, self.save_h = problem, save_h
        self.h = problem.tokens.new_empty(problem.num_pairs if save_h else 0, 2 * problem.width)
        cpu = not on_cuda(problem.tokens)
        packed: tuple[Tensor | None, ...] = (None, None)
        rows = _rows_at_a_time(problem.num_pairs, problem.w_down)
        if cpu and keep:
            packed = tuple(
                products.packed(weight, rows, paired=paired)
                for weight, paired in ((problem.w_gate_up, True), (problem.w_down, False))
            )
        self.packed = all(weight is not None for weight in packed)
        self.own_products = cpu and own_products(
            problem.tokens.dtype, problem.num_pairs, problem.w_down, packed=self.packed
        )
        if self.own_products:
            sizes = (problem.num_pairs, problem.dim, problem.width)
            self.scratch = torch.empty(library.load().intermoe_experts_scratch(*sizes))
            self.weights = packed if self.packed else (problem.w_gate_up.contiguous(), problem.w_down.contiguous())
            return
        self.inputs, self.activation = problem.workspace(problem.dim), problem.workspace(problem.width)
        self.unsaved = None if save_h else problem.workspace(2 * problem.width)
        self.product: Callable[[Tensor, Tensor, Tensor], None] = product
        self.up: Sequence[Tensor] = problem.w_gate_up.mT.unbind()
        self.down: Sequence[Tensor] = problem.w_down.mT.unbind()
        if cpu and keep:
            up, down = (products.in_onednn_order(weight, rows) for weight in (problem.w_gate_up, problem.w_down))
            if up is not None and down is not None:
                self.product, self.up, self.down = products.ordered_product, up, down

    def run(self, ranges: list[Range], expert_out: Tensor) -> None:
        """Fill the first rows of ``expert_out`` with the outputs of the pairs in ``ranges``, one range per expert."""
        p = self.problem
        if self.own_products:
            pairs = torch.tensor(ranges, dtype=torch.int64)
            h = self.h if self.save_h else None
            sizes = (p.num_pairs, len(p.tokens), p.dim, len(ranges), p.width)
            outputs = (h, expert_out, self.scratch)
            call(
                "experts_forward",
                p.tokens,
                p.token_idx,
                pairs,
                *self.weights,
                *outputs,
                *sizes,
                int(self.packed),
                p.code,
            )
            return
        for segment in p.segments(ranges):
            first, last, row, parts = segment
            x = p.gather(p.tokens, segment, self.inputs)
            h = self.h[first:last] if self.unsaved is None else self.unsaved[: last - first]
            for expert, part in parts:
                self.product(x[part], self.up[expert], h[part])
            activation = self.activation[: last - first]
            call("swiglu_forward", h, activation, last - first, p.width, p.code)
            out = expert_out[row : row + last - first]
            for expert, part in parts:
                self.product(activation[part], self.down[expert], out[part])


class Backward:
    """Gradients of gates and weights, and of the pairs' tokens range by range."""

    def __init__(
        self, problem: Problem, grad_out: Tensor, gates: Tensor, h: Tensor | None, single: bool, needed: Needed
    ) -> None:
        p = self.problem = problem
        self.grad_out = dense("grad_out", grad_out, p.device, p.tokens.dtype, p.tokens.shape[0], p.dim)
        self.gates = dense("gates", gates, p.device, torch.float32, p.num_pairs)
        self.h = None if h is None else dense("h", h, p.device, p.tokens.dtype, p.num_pairs, 2 * p.width)
        single = single and all(stop - start <= p.segment_rows for start, stop in p.ranges)
        self.grad_gates = torch.empty(p.num_pairs, device=p.device)
        _, gate_up, down = needed
        self.grad_gate_up = WeightGradient(p.w_gate_up, single) if gate_up else None
        self.grad_down = WeightGradient(p.w_down, single) if down else None
        self.inputs = p.workspace(p.dim) if h is None or gate_up else None
        self.grads = p.workspace(p.dim)
        self.inner, self.grad_h = p.workspace(p.width), p.workspace(2 * p.width)
        self.gate_up, self.down = p.w_gate_up.unbind(), p.w_down.unbind()

    def run(self, ranges: list[Range], grad_pairs: Tensor | None) -> None:
        """Fill the first rows of ``grad_pairs`` for the pairs in ``ranges``; add to the other gradients."""
        p = self.problem
        for segment in p.segments(ranges):
            first, last, row, parts = segment
            count = last - first
            x = grad = p.gather(self.grad_out, segment, self.grads)
            if self.inputs is not None:
                x = p.gather(p.tokens, segment, self.inputs)
            inner, grad_h = self.inner[:count], self.grad_h[:count]
            # The gradient takes the place of a recomputed h: SwiGLU's reads an element before it writes it.
            h = grad_h if self.h is None else self.h[first:last]
            for expert, part in parts:
                product(grad[part], self.down[expert], inner[part])
                if self.h is None:
                    product(x[part], self.gate_up[expert].T, h[part])
            sums = (self.gates[first:last], inner, grad_h, self.grad_gates[first:last])
            call("swiglu_backward", h, *sums, count, p.width, p.code)
            for expert, part in parts:
                if self.grad_down is not None:
                    self.grad_down.add(expert, grad[part].T, inner[part])
                if self.grad_gate_up is not None:
                    self.grad_gate_up.add(expert, grad_h[part].T, x[part])
                if grad_pairs is not None:
                    product(grad_h[part], self.gate_up[expert], grad_pairs[row : row + count][part])

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of w_gate_up and w_down."""
        grads = self.grad_gate_up, self.grad_down
        gate_up, down = (None if grad is None else grad.finish() for grad in grads)
        return gate_up, down
