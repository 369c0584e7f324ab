"""Operations and memory traffic of the block's steps, and the time that no implementation can go below.

Counted, not measured: every input of a step read once, every output written once, products at two operations per
multiplication and addition. The bound of a call is the sum over its steps of the slower of the two ceilings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Size of a block's call: S tokens, of which the E experts of width F take P pairs; R rows of the condition."""

    tokens: int
    dim: int = 768
    experts: int = 8
    width: int = 1024
    capacity: float = 1.0
    rows: int = 4

    @property
    def pairs(self) -> int:
        """Selected pairs once the selection has settled at the capacity."""
        return round(self.capacity * self.tokens)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of matrix products and bytes moved."""

    flop: float
    bytes: float

    def seconds(self, flop_rate: float, byte_rate: float) -> float:
        """Time at the slower of the two ceilings."""
        return max(self.flop / flop_rate, self.bytes / byte_rate)


def total(works: Iterable[Work]) -> Work:
    works = list(works)
    return Work(sum(work.flop for work in works), sum(work.bytes for work in works))


def route(shape: Shape, element: int) -> list[Work]:
    """Forward: the router's skinny product, hidden read, tokens and logits written."""
    s, d, e = shape.tokens, shape.dim, shape.experts
    return [Work(2.0 * s * d * e, 2.0 * s * d * element + 4.0 * s * e)]


def route_backward(shape: Shape, element: int) -> list[Work]:
    """Gradients of hidden and of the router from those of tokens and logits."""
    s, d, e = shape.tokens, shape.dim, shape.experts
    return [Work(4.0 * s * d * e, 3.0 * s * d * element + 4.0 * s * e)]


def select(shape: Shape) -> list[Work]:
    """Forward: logits read; slots, token_idx and gates written."""
    return [Work(0.0, shape.tokens * shape.experts * 12.0 + shape.pairs * 12.0)]


def select_backward(shape: Shape) -> list[Work]:
    """Logits and slots read, their gradient written."""
    return [Work(0.0, shape.tokens * shape.experts * 16.0 + shape.pairs * 4.0)]


def experts(shape: Shape, element: int, training: bool) -> list[Work]:
    """Forward, as two grouped products with the activation between them; training keeps the pre-activations."""
    p, d, e, f = shape.pairs, shape.dim, shape.experts, shape.width
    up = Work(4.0 * p * d * f, (p * d + 2 * e * d * f + p * f * (3 if training else 1)) * element)
    return [up, Work(2.0 * p * d * f, (p * f + e * d * f + p * d) * element)]


def experts_backward(shape: Shape, element: int) -> list[Work]:
    """Gradients of the hidden activations, of the pairs, and of both weights."""
    p, d, e, f = shape.pairs, shape.dim, shape.experts, shape.width
    hidden = Work(2.0 * p * d * f, (p * d + e * d * f + p * f * 5) * element)
    pairs = Work(4.0 * p * d * f, (p * 2 * f + 2 * e * d * f + p * d) * element)
    up = Work(4.0 * p * d * f, (p * (2 * f + d) + 2 * e * d * f) * element)
    return [hidden, pairs, up, Work(2.0 * p * d * f, (p * (d + f) + e * d * f) * element)]


def combine(shape: Shape, element: int) -> list[Work]:
    """Experts' outputs, slots and gates read, one row per token written."""
    (summed,) = combine_backward(shape, element)
    return [Work(summed.flop, summed.bytes + 4.0 * shape.pairs)]


def combine_backward(shape: Shape, element: int) -> list[Work]:
    """The same sum of the pairs' gradients, without gates."""
    moved = (shape.pairs + shape.tokens) * shape.dim * element + 8.0 * shape.tokens * shape.experts
    return [Work(2.0 * shape.pairs * shape.dim, moved)]


def moe(shape: Shape, element: int, training: bool) -> list[Work]:
    """The whole operation; training is forward and backward."""
    forward = [
        *route(shape, element),
        *select(shape),
        *experts(shape, element, training),
        *combine(shape, element),
    ]
    if not training:
        return forward
    return [
        *forward,
        *experts_backward(shape, element),
        *combine_backward(shape, element),
        *select_backward(shape),
        *route_backward(shape, element),
    ]


def dense(shape: Shape, element: int, training: bool) -> list[Work]:
    """A dense network on every token: one expert's weights, no routing."""
    one = Shape(shape.tokens, shape.dim, 1, shape.width, 1.0)
    return [*experts(one, element, training), *(experts_backward(one, element) if training else [])]
