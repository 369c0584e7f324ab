"""Step 1, route: normalisation and routing logits."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch

from intermoe.benchmarks.grid import Ready, Sample, differentiate, step_cases
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Scope, test_case
from intermoe.kernels.contract import EPS
from intermoe.ops.route import route_reference

__all__ = ["cases", "test_case"]


def forward(steps: ModuleType, sample: Sample) -> Ready:
    return lambda: steps.route_forward(*sample.inputs[:5], EPS, True)[:2]


def forward_reference(sample: Sample) -> Ready:
    return lambda: route_reference(*sample.inputs[:5])


def backward(steps: ModuleType, sample: Sample) -> Ready:
    x = sample.inputs
    wide = x.hidden.float()
    rstd = (wide.var(-1, correction=0) + EPS).rsqrt()
    grads = (sample.grad_out, torch.ones_like(sample.logits))
    rows = x.router_offset.shape[0]
    arguments = (*grads, x.hidden, (wide.mean(-1), rstd), x.router_weight, x.scale, True, rows)
    return lambda: tuple(steps.route_backward(*arguments))


def backward_reference(sample: Sample) -> Ready:
    leaves = tuple(value.detach().requires_grad_() for value in sample.inputs[:5])
    return differentiate(route_reference(*leaves), leaves, (sample.grad_out, torch.ones_like(sample.logits)))


def cases(scope: Scope) -> Iterator[Case]:
    return step_cases(
        scope,
        "route",
        {
            "forward": (forward, forward_reference, work.route),
            "backward": (backward, backward_reference, work.route_backward),
        },
    )
