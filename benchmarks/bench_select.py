"""Step 2, select: which expert takes which tokens, and the gates."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch

from intermoe.benchmarks.grid import Ready, Sample, differentiate, step_cases
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Scope, test_case
from intermoe.ops.select import select_reference

__all__ = ["cases", "test_case"]


def forward(steps: ModuleType, sample: Sample) -> Ready:
    return lambda: tuple(steps.select(sample.logits, sample.inputs.selection_bias, None))


def forward_reference(sample: Sample) -> Ready:
    return lambda: tuple(select_reference(sample.logits, sample.inputs.selection_bias))


def backward(steps: ModuleType, sample: Sample) -> Ready:
    grad = torch.ones_like(sample.selection.gates)
    return lambda: (steps.select_backward(grad, sample.logits, sample.selection.slots),)


def backward_reference(sample: Sample) -> Ready:
    logits = sample.logits.detach().requires_grad_()
    gates = select_reference(logits, sample.inputs.selection_bias).gates
    return differentiate((gates,), (logits,), (torch.ones_like(gates),))


def cases(scope: Scope) -> Iterator[Case]:
    parts = {
        "forward": (forward, forward_reference, lambda shape, _: work.select(shape)),
        "backward": (backward, backward_reference, lambda shape, _: work.select_backward(shape)),
    }
    # Logits are float32 whatever the tokens are stored in.
    return (case for case in step_cases(scope, "select", parts) if case.dtype == torch.float32)
