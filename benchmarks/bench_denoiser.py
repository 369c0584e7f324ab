"""One call of the denoiser at the published size, with guidance: 10 seconds of motion of two persons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from intermoe.benchmarks import models
from intermoe.benchmarks.forms import PERSONS, usable_backends
from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, test_case, tolerance
from intermoe.systems.intermoe.denoiser import Denoiser

__all__ = ["cases", "test_case"]

LEVEL_RUNS = (1, 3, 5)


def chaotic(dtype: torch.dtype) -> float:
    """Tolerance of a whole network, where a rounding may move a token across an expert's threshold."""
    return 10 * tolerance(dtype) if tolerance(dtype) <= 1e-5 else 0.1


def contest(scope: Scope, dtype: torch.dtype, persons: int = PERSONS, baseline: bool = True) -> Contest:
    """Every backend, and the authors' block."""
    denoiser, inputs = built(scope, dtype, persons)
    names, skipped = usable_backends(scope.device, dtype)
    names = names if scope.all_backends else names[:1]
    entries = {name: models.on(name, lambda: (denoiser(*inputs),)) for name in names}
    if baseline:
        published = models.with_published_blocks(denoiser)
        entries["authors' block"] = models.on("reference", lambda: (published(*inputs),))
    return beside_reference(denoiser, inputs, entries, dtype, skipped)


def levels(scope: Scope, dtype: torch.dtype) -> Contest:
    """A level for every person and each of K runs of frames: all the same, so that the answer is that of one level."""
    denoiser, inputs = built(scope, dtype, PERSONS)
    x, timesteps, *rest = inputs
    backend = usable_backends(scope.device, dtype)[0][0]
    told = {"one level": timesteps}
    for runs in (*LEVEL_RUNS, models.FRAMES):
        told[f"{runs} runs"] = timesteps[:, None, None].expand(-1, PERSONS, runs).contiguous()
    entries = {name: models.on(backend, partial(_call, denoiser, x, each, *rest)) for name, each in told.items()}
    return beside_reference(denoiser, inputs, entries, dtype, {})


def built(scope: Scope, dtype: torch.dtype, persons: int) -> tuple[Denoiser, tuple[Tensor, ...]]:
    """The network and its inputs."""
    config = models.TINY if scope.quick else models.PUBLISHED
    denoiser = models.build_denoiser(config, dtype, scope.device)
    return denoiser, models.denoiser_inputs(config, 2, persons, models.FRAMES, dtype, scope.device)


def beside_reference(
    denoiser: Denoiser,
    inputs: tuple[Tensor, ...],
    entries: dict[str, Callable[[int], Outputs]],
    dtype: torch.dtype,
    skipped: dict[str, str],
) -> Contest:
    """Entries that have to give what the reference gives for the inputs."""
    with torch.no_grad():
        work = models.counted(lambda: denoiser(*inputs), denoiser)
    expected = models.on("reference", partial(_call, denoiser, *inputs))
    tokens = inputs[0].shape[:3].numel()
    return Contest(entries, lambda: expected(0), chaotic(dtype), work, tokens, skipped=skipped)


def _call(denoiser: Denoiser, *inputs: Tensor) -> Outputs:
    return (denoiser(*inputs),)


def cases(scope: Scope) -> Iterator[Case]:
    shape: dict[str, float] = {"B": 2, "P": PERSONS, "T'": models.FRAMES}
    for dtype in scope.dtypes:
        yield Case("denoiser", "call with guidance", dtype, shape, partial(contest, scope, dtype))
        yield Case("denoiser", "call with levels", dtype, shape, partial(levels, scope, dtype))
