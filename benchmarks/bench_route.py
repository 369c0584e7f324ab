"""Step 1, route: normalisation and routing logits."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch

from intermoe.benchmarks.grid import Drawn, Ready, differentiate, step_cases
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Scope, test_case
from intermoe.kernels.contract import EPS
from intermoe.ops.route import route_reference

__all__ = ["cases", "test_case"]


def forward(steps: ModuleType, drawn: Drawn) -> Ready:
    return lambda: steps.route_forward(*drawn.inputs[:5], EPS, True)[:2]


def forward_reference(drawn: Drawn) -> Ready:
    return lambda: route_reference(*drawn.inputs[:5])


def backward(steps: ModuleType, drawn: Drawn) -> Ready:
    x = drawn.inputs
    wide = x.hidden.float()
    rstd = (wide.var(-1, correction=0) + EPS).rsqrt()
    grads = (drawn.grad_out, torch.ones_like(drawn.logits))
    rows = x.router_offset.shape[0]
    arguments = (*grads, x.hidden, (wide.mean(-1), rstd), x.router_weight, x.scale, True, rows)
    return lambda: tuple(steps.route_backward(*arguments))


def backward_reference(drawn: Drawn) -> Ready:
    leaves = tuple(value.detach().requires_grad_() for value in drawn.inputs[:5])
    return differentiate(route_reference(*leaves), leaves, (drawn.grad_out, torch.ones_like(drawn.logits)))


def cases(scope: Scope) -> Iterator[Case]:
    return step_cases(
        scope,
        "route",
        {
            "forward": (forward, forward_reference, work.route),
            "backward": (backward, backward_reference, work.route_backward),
        },
    )
