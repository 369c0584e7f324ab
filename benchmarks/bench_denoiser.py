"""One call of the denoiser at the published size, with guidance: 10 seconds of motion of two persons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from intermoe.benchmarks import models
from intermoe.benchmarks.forms import PERSONS, usable_backends
from intermoe.benchmarks.harness.case import Case, Contest, Scope, tolerance

LEVEL_RUNS = (1, 3, 5)


def chaotic(dtype: torch.dtype) -> float:
    """Tolerance of a whole network, where a rounding may move a token across an expert's threshold."""
    return 10 * tolerance(dtype) if tolerance(dtype) <= 1e-5 else 0.1


def contest(scope: Scope, dtype: torch.dtype, persons: int = PERSONS, baseline: bool = True) -> Contest:
    config = models.TINY if scope.quick else models.PUBLISHED
    denoiser = models.build_denoiser(config, dtype, scope.device)
    inputs = models.denoiser_inputs(config, 2, persons, models.FRAMES, dtype, scope.device)
    names, skipped = usable_backends(scope.device, dtype)
    names = names if scope.all_backends else names[:1]
    entries = {name: models.on(name, lambda: (denoiser(*inputs),)) for name in names}
    if baseline:
        published = models.with_published_blocks(denoiser)
        entries["authors' block"] = models.on("reference", lambda: (published(*inputs),))
    expected = models.on("reference", lambda: (denoiser(*inputs),))
    with torch.no_grad():
        work = models.counted(lambda: denoiser(*inputs), denoiser)
    return Contest(
        entries=entries,
        expected=lambda: expected(0),
        tolerance=chaotic(dtype),
        work=work,
        tokens=2 * persons * models.FRAMES,
        skipped=skipped,
    )


def levels(scope: Scope, dtype: torch.dtype, persons: int = PERSONS) -> Contest:
    """A level for every person and each of K runs of frames: all the same, so that the answer is that of one level."""
    config = models.TINY if scope.quick else models.PUBLISHED
    denoiser = models.build_denoiser(config, dtype, scope.device)
    x, timesteps, *rest = models.denoiser_inputs(config, 2, persons, models.FRAMES, dtype, scope.device)
    backend = usable_backends(scope.device, dtype)[0][0]
    told = {
        "one level": timesteps,
        **{
            f"{runs} runs": timesteps[:, None, None].expand(-1, persons, runs).contiguous()
            for runs in (*LEVEL_RUNS, models.FRAMES)
        },
    }
    entries = {name: models.on(backend, partial(_call, denoiser, x, each, *rest)) for name, each in told.items()}
    expected = models.on("reference", lambda: (denoiser(x, timesteps, *rest),))
    with torch.no_grad():
        work = models.counted(lambda: denoiser(x, timesteps, *rest), denoiser)
    return Contest(
        entries=entries,
        expected=lambda: expected(0),
        tolerance=chaotic(dtype),
        work=work,
        tokens=2 * persons * models.FRAMES,
        skipped={},
    )


def _call(denoiser: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor]:
    return (denoiser(*inputs),)


def cases(scope: Scope) -> Iterator[Case]:
    for dtype in scope.dtypes:
        shape: dict[str, float] = {"B": 2, "P": PERSONS, "T'": models.FRAMES}
        yield Case("denoiser", "call with guidance", dtype, shape, partial(contest, scope, dtype))
        yield Case("denoiser", "call with levels", dtype, shape, partial(levels, scope, dtype))


def test_denoiser(case: Case, measured: Callable[[Case], None]) -> None:
    measured(case)
