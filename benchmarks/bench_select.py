"""Step 2, select: which expert takes which tokens, and the gates."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch

from intermoe.benchmarks.grid import Drawn, Ready, differentiate, step_cases
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Scope, test_case
from intermoe.ops.select import select_reference

__all__ = ["cases", "test_case"]


def forward(steps: ModuleType, drawn: Drawn) -> Ready:
    return lambda: tuple(steps.select(drawn.logits, drawn.inputs.selection_bias, None))


def forward_reference(drawn: Drawn) -> Ready:
    return lambda: tuple(select_reference(drawn.logits, drawn.inputs.selection_bias))


def backward(steps: ModuleType, drawn: Drawn) -> Ready:
    grad = torch.ones_like(drawn.selection.gates)
    return lambda: (steps.select_backward(grad, drawn.logits, drawn.selection.slots),)


def backward_reference(drawn: Drawn) -> Ready:
    logits = drawn.logits.detach().requires_grad_()
    gates = select_reference(logits, drawn.inputs.selection_bias).gates
    return differentiate((gates,), (logits,), (torch.ones_like(gates),))


def cases(scope: Scope) -> Iterator[Case]:
    parts = {
        "forward": (forward, forward_reference, lambda shape, _: work.select(shape)),
        "backward": (backward, backward_reference, lambda shape, _: work.select_backward(shape)),
    }
    # Logits are float32 whatever the tokens are stored in.
    return (case for case in step_cases(scope, "select", parts) if case.dtype == torch.float32)
