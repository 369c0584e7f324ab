"""Step 4, combine: every token's weighted sum; its backward is the same sum of the pairs' gradients, without gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

from torch import Tensor

from intermoe.benchmarks.grid import Ready, Sample, step_cases
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Scope
from intermoe.ops.combine import combine_reference


def pairs(sample: Sample) -> Tensor:
    """Rows of the size of the experts' outputs."""
    return sample.grad_out[sample.selection.token_idx]


def forward(steps: ModuleType, sample: Sample) -> Ready:
    rows, s = pairs(sample), sample.selection
    return lambda: (steps.combine(rows, s.gates, s.slots),)


def forward_reference(sample: Sample) -> Ready:
    rows, s = pairs(sample), sample.selection
    return lambda: (combine_reference(rows, s.gates, s.slots),)


def backward(steps: ModuleType, sample: Sample) -> Ready:
    rows, s = pairs(sample), sample.selection
    return lambda: (steps.combine(rows, None, s.slots),)


def backward_reference(sample: Sample) -> Ready:
    rows, s = pairs(sample), sample.selection
    return lambda: (combine_reference(rows, None, s.slots),)


def cases(scope: Scope) -> Iterator[Case]:
    parts = {
        "forward": (forward, forward_reference, work.combine),
        "backward": (backward, backward_reference, work.combine),
    }
    return step_cases(scope, "combine", parts)


def test_combine(case: Case, measured: Callable[[Case], None]) -> None:
    measured(case)
