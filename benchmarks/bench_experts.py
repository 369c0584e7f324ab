"""Step 3, experts: gather and each expert's SwiGLU network."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch

from intermoe.benchmarks.grid import Drawn, Ready, differentiate, step_cases
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Scope, test_case
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import experts_reference

__all__ = ["cases", "test_case"]


def forward(steps: ModuleType, drawn: Drawn) -> Ready:
    s, x = drawn.selection, drawn.inputs
    return lambda: steps.experts_forward(drawn.tokens, s.token_idx, s.expert_offsets, *x.weights, False)[:1]


def forward_reference(drawn: Drawn) -> Ready:
    s, x = drawn.selection, drawn.inputs
    return lambda: (experts_reference(drawn.tokens, s.token_idx, s.expert_offsets, *x.weights),)


def backward(steps: ModuleType, drawn: Drawn) -> Ready:
    s, x = drawn.selection, drawn.inputs
    pairs = (drawn.tokens, s.token_idx, s.expert_offsets)
    _, h = steps.experts_forward(*pairs, *x.weights, True)
    return lambda: tuple(steps.experts_backward(drawn.grad_out, *pairs, s.gates, h, *x.weights))


def backward_reference(drawn: Drawn) -> Ready:
    """A leaf row for each pair, because the step returns gradients of pairs, not of tokens."""
    s, x = drawn.selection, drawn.inputs
    leaves = tuple(v.detach().requires_grad_() for v in (drawn.tokens[s.token_idx], s.gates, *x.weights))
    rows, gates, *weights = leaves
    expert_out = experts_reference(rows, torch.arange(len(rows), device=rows.device), s.expert_offsets, *weights)
    return differentiate((combine_reference(expert_out, gates, s.slots),), leaves, (drawn.grad_out,))


def cases(scope: Scope) -> Iterator[Case]:
    return step_cases(
        scope,
        "experts",
        {
            "forward": (forward, forward_reference, lambda shape, size: work.experts(shape, size, False)),
            "backward": (backward, backward_reference, work.experts_backward),
        },
    )
