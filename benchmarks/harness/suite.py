"""Every case of every step, and a whole run of them."""

from __future__ import annotations

import datetime
import gc
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from intermoe.benchmarks.harness.case import Case, DeviceLost, Scope, run
from intermoe.benchmarks.harness.report import SCHEMA, Report, Row, Skipped
from intermoe.benchmarks.harness.timing import Ceilings, ceilings, machine

STEPS = (
    "moe",
    "denoiser",
    "route",
    "select",
    "experts",
    "combine",
    "vae",
    "training",
    "generation",
    "export",
    "loader",
    "scaling",
)
"""One file ``bench_<step>.py`` each; what the goals are judged by comes first, in case the run is cut."""


def cases(scope: Scope, steps: Iterable[str] = STEPS, match: Iterable[str] = ()) -> list[Case]:
    """Cases in order whose names hold every text of ``match``. Raises ``ValueError`` for an unknown step or no case."""
    found: list[Case] = []
    for step in steps:
        if step not in STEPS:
            raise ValueError(f"--only: expected one of {', '.join(STEPS)}, got {step!r}")
        found += importlib.import_module(f"intermoe.benchmarks.bench_{step}").cases(scope)
    found = [case for case in found if all(text in case.name for text in match)]
    if not found:
        raise ValueError(
            f"--match: expected text of a case of this run, got {' and '.join(map(repr, match)) or 'none'}"
        )
    return found


def prepare(scope: Scope) -> None:
    """Process-wide settings: on a GPU float32 products in TF32, as the published model trains."""
    if scope.device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def measure(scope: Scope, todo: list[Case]) -> Iterator[Report]:
    """Run cases, as ``cases`` lists them: the report so far, at first without any, then after each.

    What fails is in the report, and the other cases are measured, unless the device is lost.
    """
    prepare(scope)
    limits = ceilings(scope.device, scope.dtypes, small=scope.quick)
    report = assemble(scope, (), (), limits, len(todo))  # clocks as found under the load of the ceilings
    yield report
    for case in todo:
        try:
            rows, without = run(case, scope, limits)
        except DeviceLost as error:
            found = (*report.skipped, Skipped(case.name, "all", f"the device is lost: {error}", failed=True))
            yield replace(report, skipped=found)
            return
        skipped = tuple(dict.fromkeys((*report.skipped, *without)))
        report = replace(report, rows=(*report.rows, *rows), skipped=skipped, to_do=report.to_do - 1)
        yield report
        release(scope.device)


def release(device: torch.device) -> None:
    """Give a case's tensors, graphs and their pools back before the next one."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def assemble(scope: Scope, rows: Iterable[Row], skipped: Iterable[Skipped], limits: Ceilings, to_do: int = 0) -> Report:
    """A report of what was measured just now on this machine."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    without = tuple(dict.fromkeys(skipped))
    return Report(SCHEMA, date, scope.level, machine(scope.device), limits, tuple(rows), without, to_do)
