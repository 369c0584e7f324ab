"""Which sizes and types a run covers, and what the four steps' files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor

from intermoe import backends
from intermoe.benchmarks.forms import Inputs, draw, usable_backends
from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, tolerance
from intermoe.benchmarks.harness.work import Shape, Work
from intermoe.ops.route import route_reference
from intermoe.ops.select import Selection, select_reference

SMALL = Shape(48, dim=64, experts=4, width=48)

TOO_MANY = 5000
"""Tokens above which a CPU run leaves half types out: without units for them the baselines take minutes a call."""


def shapes(scope: Scope) -> list[Shape]:
    """Pools of one prompt with guidance, of a small and of a full training batch, at the published model's widths."""
    if scope.quick:
        return [SMALL]
    if scope.full:
        return [Shape(tokens) for tokens in (150, 300, 4800, 9600, 19200)]
    cuda = scope.device.type == "cuda"
    return [Shape(tokens) for tokens in ((300, 4800, 9600) if cuda else (300, 4800))]


def affordable(scope: Scope, shape: Shape, dtype: torch.dtype, with_backward: bool) -> bool:
    """Whether the run's level has time for it: half types on a CPU without units for them take seconds a call."""
    if scope.device.type != "cpu" or dtype == torch.float32:
        return True
    return shape.tokens <= TOO_MANY and not (with_backward and scope.level == "default")


def dimensions(shape: Shape) -> dict[str, float]:
    """The shape as it stands in a report."""
    found: dict[str, float] = {"S": shape.tokens, "D": shape.dim, "E": shape.experts, "F": shape.width}
    return found if shape.capacity == 1 else {**found, "capacity": shape.capacity}


def sets_for(shape: Shape, device: torch.device) -> int:
    """Input sets to take in turns: on CUDA several, so that weights and tokens do not stay in the cache."""
    return 4 if device.type == "cuda" and shape.tokens <= 10_000 else 1


@dataclass(frozen=True)
class Drawn:
    """Inputs of every step, as the reference made them from one drawing."""

    inputs: Inputs
    tokens: Tensor
    logits: Tensor
    selection: Selection
    grad_out: Tensor

    @classmethod
    def draw(cls, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Drawn:
        inputs = draw(shape, dtype, device, seed)
        tokens, logits = route_reference(*inputs[:5])
        generator = torch.Generator(device).manual_seed(seed + 1)
        grad = torch.randn(shape.tokens, shape.dim, generator=generator, device=device).to(dtype)
        return cls(inputs, tokens, logits, select_reference(logits, inputs.selection_bias), grad)


Ready = Callable[[], Outputs]
"""A call whose preparation is done, to be timed again and again."""
Kernel = Callable[[ModuleType, Drawn], Ready]
"""A step of a backend's module on what was drawn."""
Reference = Callable[[Drawn], Ready]
Counted = Callable[[Shape, int], list[Work]]


def step_cases(scope: Scope, step: str, parts: dict[str, tuple[Kernel, Reference, Counted]]) -> Iterator[Case]:
    """Cases of one step: every shape and type, ``parts`` by name of the call; every backend beside the reference."""
    for shape in shapes(scope):
        for dtype in scope.dtypes:
            for call, (kernel, reference, counted) in parts.items():
                if affordable(scope, shape, dtype, call == "backward"):
                    work = counted(shape, dtype.itemsize)
                    prepare = partial(_contest, scope, shape, dtype, kernel, reference, work)
                    yield Case(step, call, dtype, dimensions(shape), prepare)


def _contest(
    scope: Scope, shape: Shape, dtype: torch.dtype, kernel: Kernel, reference: Reference, work: list[Work]
) -> Contest:
    sets = sets_for(shape, scope.device)
    all_drawn = [Drawn.draw(shape, dtype, scope.device, seed) for seed in range(sets)]
    names, skipped = usable_backends(scope.device, dtype)

    def entry(name: str) -> Callable[[int], Outputs]:
        """Ready before it is timed; what a backward needs is made by its forward, which may fail like any entry."""
        step = reference if name == backends.REFERENCE else partial(kernel, backends.load(name))
        ready = cache(lambda number: step(all_drawn[number]))
        return lambda number: ready(number)()

    return Contest(
        entries={name: entry(name) for name in names},
        expected=reference(all_drawn[0]),
        tolerance=tolerance(dtype),
        work=work,
        tokens=shape.tokens,
        skipped=skipped,
        sets=sets,
    )


def differentiate(out: Outputs, leaves: Outputs, grads: Outputs) -> Ready:
    """The backward of a graph that is built once."""
    return lambda: torch.autograd.grad(out, leaves, grads, retain_graph=True)
