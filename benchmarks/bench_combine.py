"""Step 4, combine: every token's weighted sum; its backward is the same sum of the pairs' gradients, without gates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

from intermoe.benchmarks.grid import Drawn, Ready, step_cases
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Scope, test_case
from intermoe.ops.combine import combine_reference

__all__ = ["cases", "test_case"]


def kernel(steps: ModuleType, drawn: Drawn, gated: bool) -> Ready:
    """On rows of the size of the experts' outputs."""
    s = drawn.selection
    rows, gates = drawn.grad_out[s.token_idx], s.gates if gated else None
    return lambda: (steps.combine(rows, gates, s.slots),)


def reference(drawn: Drawn, gated: bool) -> Ready:
    s = drawn.selection
    rows, gates = drawn.grad_out[s.token_idx], s.gates if gated else None
    return lambda: (combine_reference(rows, gates, s.slots),)


def cases(scope: Scope) -> Iterator[Case]:
    calls = {"forward": (True, work.combine), "backward": (False, work.combine_backward)}
    parts = {
        call: (partial(kernel, gated=gated), partial(reference, gated=gated), counted)
        for call, (gated, counted) in calls.items()
    }
    return step_cases(scope, "combine", parts)
