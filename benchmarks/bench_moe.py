"""The block's whole operation, forward and forward with backward, beside every baseline; and the overhead of a call.

The published model's widths: D=768, E=8, F=1024, the selection settled so that about as many pairs as tokens are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from intermoe import backends
from intermoe.benchmarks.forms import competitors, draw, forward, ours, training
from intermoe.benchmarks.grid import affordable, dimensions, sets_for, shapes
from intermoe.benchmarks.harness import work
from intermoe.benchmarks.harness.case import Case, Contest, Scope, test_case, tolerance
from intermoe.benchmarks.harness.work import Shape
from intermoe.ops import operators
from intermoe.ops.moe import moe

__all__ = ["cases", "test_case"]

DENSE = ("dense network", "dense network, graph")


def contest(scope: Scope, shape: Shape, dtype: torch.dtype, with_backward: bool, load: str = "even") -> Contest:
    """All forms of the operation on one shape."""
    sets = [draw(shape, dtype, scope.device, seed, load) for seed in range(sets_for(shape, scope.device))]
    usable, skipped = competitors(shape, sets[0], everything=scope.all_backends)
    reference = ours("reference")
    graphs = frozenset[str]()
    if "triton" in usable and scope.device.type == "cuda":
        usable |= {"triton, graph": usable["triton, static"], DENSE[1]: usable[DENSE[0]]}
        graphs = frozenset(["triton, graph", DENSE[1]])
    if with_backward:
        usable.pop("triton, half sums", None)
        g, size = torch.Generator(scope.device).manual_seed(1), (shape.tokens, shape.dim)
        grads = [torch.randn(size, generator=g, device=scope.device).to(dtype) for _ in sets]
        entries = {name: training(form, sets, grads) for name, form in usable.items()}
        expected = training(reference, sets, grads)
    else:
        usable.pop(f"{next(iter(usable))}, recompute", None)  # it is about what the backward needs
        entries = {name: forward(form, sets) for name, form in usable.items()}
        expected = forward(reference, sets)
    return Contest(
        entries=entries,
        expected=lambda: expected(0),
        tolerance=tolerance(dtype),
        work=work.moe(shape, dtype.itemsize, with_backward),
        tokens=shape.tokens,
        others={name: form.note for name, form in usable.items() if form.note},
        other_work=dict.fromkeys(DENSE, work.dense(shape, dtype.itemsize, with_backward)),
        skipped=skipped,
        graphs=graphs,
        sets=len(sets),
    )


def overhead(scope: Scope) -> Contest:
    """The registered operator and the kernels behind it, on inputs so small that only the call counts."""
    x = draw(Shape(2, dim=8, experts=2, width=8, rows=1), torch.float32, scope.device)
    name = backends.resolve(scope.device, torch.float32)
    registered, direct = torch.ops.intermoe.moe_inference, backends.load(name).moe_inference
    steps = x.steps()
    route, select, experts = steps
    flat = operators.flatten(route, select, experts, name)
    entries = {
        name: lambda _: moe(*steps, backend=name)[:1],
        f"{name}, operator": lambda _: registered(*flat)[:1],
        f"{name}, kernels alone": lambda _: direct(*steps)[:1],
    }
    return Contest(entries, lambda: moe(*steps, backend="reference")[:1], tolerance(torch.float32))


def cases(scope: Scope) -> Iterator[Case]:
    for shape in shapes(scope):
        for dtype in scope.dtypes:
            for with_backward in (False, True):
                if not affordable(scope, shape, dtype, with_backward):
                    continue
                call = "forward + backward" if with_backward else "forward"
                prepare = partial(contest, scope, shape, dtype, with_backward)
                yield Case("moe", call, dtype, dimensions(shape), prepare)
    if backends.resolve(scope.device, torch.float32) != "reference":
        yield Case("moe", "overhead", torch.float32, {"S": 2, "D": 8, "E": 2, "F": 8}, partial(overhead, scope))
