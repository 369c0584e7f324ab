"""Every case of every step, and a whole run of them."""

from __future__ import annotations

import datetime
import gc
import importlib
from collections.abc import Callable, Iterable

import torch

from intermoe.benchmarks.case import Case, Scope, run
from intermoe.benchmarks.measure import Ceilings, ceilings, machine
from intermoe.benchmarks.results import SCHEMA, Report, Row, Skipped

STEPS = (
    "route",
    "select",
    "experts",
    "combine",
    "moe",
    "denoiser",
    "vae",
    "training",
    "generation",
    "scaling",
)
"""One file ``bench_<step>.py`` each."""


def cases(scope: Scope, steps: Iterable[str] = STEPS, match: Iterable[str] = ()) -> list[Case]:
    """Cases in order whose names hold every text of ``match``. Raises ``ValueError`` for an unknown step or no case."""
    found: list[Case] = []
    for step in steps:
        if step not in STEPS:
            raise ValueError(f"--only: must be one of {', '.join(STEPS)}, got {step!r}")
        found += importlib.import_module(f"intermoe.benchmarks.bench_{step}").cases(scope)
    found = [case for case in found if all(text in case.name for text in match)]
    if not found:
        raise ValueError(f"--match: no case of this run holds {' and '.join(map(repr, match)) or 'it'}")
    return found


def prepare(scope: Scope) -> None:
    """Process-wide settings: on a GPU float32 products in TF32, as the published model trains."""
    if scope.device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def measure(
    scope: Scope,
    todo: list[Case],
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Run cases, as ``cases`` lists them.

    Args:
        progress: called as ``progress(done, total, what comes next)``.

    Raises:
        WrongResult: something computes what it should not; nothing of it is timed.
    """
    prepare(scope)
    limits = ceilings(scope.device, scope.dtypes, small=scope.quick)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for done, case in enumerate(todo):
        if progress is not None:
            progress(done, len(todo), case.name)
        more, without = run(case, scope, limits)
        rows += more
        skipped += without
        gc.collect()
    if progress is not None:
        progress(len(todo), len(todo), "done")
    return assemble(scope, rows, skipped, limits)


def assemble(scope: Scope, rows: Iterable[Row], skipped: Iterable[Skipped], limits: Ceilings) -> Report:
    """A report of what was measured just now on this machine."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Report(SCHEMA, date, scope.level, machine(scope.device), limits, tuple(rows), tuple(dict.fromkeys(skipped)))
