"""How time and memory grow: tokens, experts, capacity, imbalance, persons. Only in full runs.

At these pools only the default backend runs, beside the dense network; what it computes is compared with the reference
a part of the tokens at a time, because the reference's memory is larger than the pool's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from intermoe.benchmarks import bench_denoiser
from intermoe.benchmarks.bench_moe import contest
from intermoe.benchmarks.forms import LOADS, Inputs, draw, forward, ours, training, usable_backends
from intermoe.benchmarks.grid import SMALL, dimensions, sets_for
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, test_case, tolerance
from intermoe.benchmarks.harness.work import Shape
from intermoe.ops.moe import moe

__all__ = ["cases", "test_case"]

PIECE = 20_000
"""Tokens that the reference takes at a time."""


def pool(scope: Scope, shape: Shape, dtype: torch.dtype, with_backward: bool) -> Contest:
    """The default backend on one row of the condition, so that pieces of the pool are pools too."""
    sets = [draw(shape, dtype, scope.device, seed) for seed in range(sets_for(shape, scope.device))]
    names, skipped = usable_backends(scope.device, dtype)
    form = ours(names[0])

    def expected() -> Outputs:
        with torch.no_grad():
            pieces = sets[0].hidden.split(PIECE)
            parts = [Inputs(piece, *sets[0][1:]).steps() for piece in pieces]
            return (torch.cat([moe(*part, backend="reference").out for part in parts]),)

    if with_backward:
        grads = [torch.ones_like(x.hidden) for x in sets]
        whole = training(form, sets, grads)
        entries = {names[0]: lambda number: whole(number)[:1]}
    else:
        entries = {names[0]: forward(form, sets)}
    counted = work.moe(shape, dtype.itemsize, with_backward)
    return Contest(entries, expected, tolerance(dtype), counted, shape.tokens, skipped=skipped, sets=len(sets))


def cases(scope: Scope) -> Iterator[Case]:
    if scope.level == "default":
        return
    dtype = torch.bfloat16 if scope.device.type == "cuda" else torch.float32
    quick = scope.quick
    for tokens in (100, 1000) if quick else (100, 1000, 10_000, 100_000, 1_000_000):
        shape = Shape(tokens, 32, 4, 16, rows=1) if quick else Shape(tokens, 256, 8, 512, rows=1)
        for with_backward in (False, True):
            call = "tokens, forward + backward" if with_backward else "tokens, forward"
            yield Case("scaling", call, dtype, dimensions(shape), partial(pool, scope, shape, dtype, with_backward))
    size = SMALL if quick else Shape(4800)
    widths = {"dim": size.dim, "width": size.width}
    for experts in (2, 4) if quick else (2, 4, 8, 16, 32, 64):
        shape = Shape(size.tokens, experts=experts, **widths)
        yield Case("scaling", "experts", dtype, dimensions(shape), partial(contest, scope, shape, dtype, False))
    for capacity in (0.5, 2.0) if quick else (0.5, 1.0, 2.0, 4.0):
        shape = Shape(size.tokens, experts=size.experts, capacity=capacity, **widths)
        found = {**dimensions(shape), "capacity": capacity}
        yield Case("scaling", "capacity", dtype, found, partial(contest, scope, shape, dtype, False))
    for load in LOADS:
        yield Case(
            "scaling", f"load: {load}", dtype, dimensions(size), partial(contest, scope, size, dtype, False, load)
        )
    for persons in (2, 3) if quick else (2, 3, 4, 6, 8):
        shape = {"B": 2, "P": persons}
        yield Case(
            "scaling", "persons", dtype, shape, partial(bench_denoiser.contest, scope, dtype, persons, baseline=False)
        )
