"""Where one block's and one denoiser's call spend their time: a trace to look at, and a table of kernels and gaps.

The trace opens in https://ui.perfetto.dev. On a GPU the table's rows are kernels, and a gap is time in which the device
waits; on a CPU they are torch's operators by their own time, and a gap is time outside any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.forms import PERSONS, Inputs, draw
from intermoe.benchmarks.grid import SMALL
from intermoe.benchmarks.harness.case import Scope
from intermoe.benchmarks.harness.report import si
from intermoe.benchmarks.harness.timing import machine, name_of, quiet, synchronise
from intermoe.benchmarks.harness.work import Shape
from intermoe.files import replacing
from intermoe.ops.moe import moe

WARM_UPS = 3
LINES = 25


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel or operator in one call; seconds."""

    name: str
    launches: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """One call: kernels by falling time, the time from the first's start to the last's end, and its idle part."""

    name: str
    kernels: tuple[Kernel, ...]
    span: float
    gaps: float

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    def markdown(self) -> str:
        busy = self.span - self.gaps
        lines = [
            f"## {self.name}",
            "",
            f"{si(self.span, 's')} from first to last, {self.launches} launches, {si(busy, 's')} busy, "
            f"{si(self.gaps, 's')} in gaps ({self.gaps / self.span if self.span else 0:.0%}).",
            "",
            "| kernel | launches | time | share of busy |",
            "|---|---|---|---|",
        ]
        for kernel in self.kernels[:LINES]:
            share = kernel.seconds / busy if busy else 0.0
            name = kernel.name.replace("|", "/")[:90]
            lines.append(f"| {name} | {kernel.launches} | {si(kernel.seconds, 's')} | {share:.0%} |")
        if rest := self.kernels[LINES:]:
            seconds = sum(kernel.seconds for kernel in rest)
            launches = sum(kernel.launches for kernel in rest)
            lines.append(f"| {len(rest)} others | {launches} | {si(seconds, 's')} | {seconds / busy:.0%} |")
        return "\n".join([*lines, ""])


DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace in which a GPU is busy."""


def summarise(name: str, events: list[dict[str, Any]], categories: tuple[str, ...]) -> Profile:
    """The table of a Chrome trace's complete events of some categories.

    Events of the main thread may contain others (an operator that calls operators): each counts with its own time.

    Raises:
        ValueError: there are none.
    """
    chosen = [e for e in events if e.get("ph") == "X" and e.get("cat") in categories]
    if not chosen:
        why = "; is this process allowed to use the GPU's counters (CUPTI)?" if "kernel" in categories else ""
        raise ValueError(f"{name}: the trace has no events of {' or '.join(categories)}{why}")
    lanes: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for event in chosen:
        lanes.setdefault((event["pid"], event["tid"]), []).append(event)
    own: dict[str, list[float]] = {}
    outermost: list[tuple[float, float]] = []
    for lane in lanes.values():
        times, spans = _own_times(lane)
        outermost += spans
        for event, time in times:
            own.setdefault(event["name"], []).append(time)
    kernels = [Kernel(key, len(times), sum(times) / 1e6) for key, times in own.items()]
    first, last = min(start for start, _ in outermost), max(stop for _, stop in outermost)
    busy, end = 0.0, first
    for start, stop in sorted(outermost):
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    ordered = tuple(sorted(kernels, key=lambda kernel: -kernel.seconds))
    return Profile(name, ordered, (last - first) / 1e6, (last - first - busy) / 1e6)


def _own_times(
    lane: list[dict[str, Any]],
) -> tuple[list[tuple[dict[str, Any], float]], list[tuple[float, float]]]:
    """Every event of a thread with its time outside the events it contains; start and end of the outermost."""
    found: list[list[Any]] = []
    outermost = []
    open_events: list[list[Any]] = []
    for event in sorted(lane, key=lambda e: (e["ts"], -e["dur"])):
        start, stop = event["ts"], event["ts"] + event["dur"]
        while open_events and start >= open_events[-1][0]["ts"] + open_events[-1][0]["dur"]:
            open_events.pop()
        if open_events:
            open_events[-1][1] -= event["dur"]
        else:
            outermost.append((start, stop))
        entry = [event, float(event["dur"])]
        open_events.append(entry)
        found.append(entry)
    return [(event, max(time, 0.0)) for event, time in found], outermost


def calls(scope: Scope) -> dict[str, Callable[[], object]]:
    """What is profiled, by the name of its files."""
    dtype = torch.bfloat16 if scope.device.type == "cuda" else torch.float32
    shape = SMALL if scope.quick else Shape(9600 if scope.device.type == "cuda" else 4800)
    inputs = draw(shape, dtype, scope.device)
    leaves = Inputs(*(value.detach().requires_grad_(i != 5) for i, value in enumerate(inputs)))
    config = models.TINY if scope.quick else models.PUBLISHED
    denoiser = models.build_denoiser(config, dtype, scope.device)
    arguments = models.denoiser_inputs(config, 2, PERSONS, models.FRAMES, dtype, scope.device)

    def denoise() -> object:
        with torch.no_grad():
            return denoiser(*arguments)

    kind = f"{name_of(dtype)}-{backends.resolve(scope.device, dtype)}"
    return {
        f"block-S{shape.tokens}-{kind}": lambda: moe(*leaves.steps()).out.sum().backward(),
        f"denoiser-call-{kind}": denoise,
    }


def write(scope: Scope, folder: str | Path) -> list[Path]:
    """Profile and write ``<folder>/<device>/profile-<call>.json`` and ``.md``. Returns the files."""
    folder = Path(folder, machine(scope.device).label)
    folder.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if scope.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    categories = DEVICE_WORK if scope.device.type == "cuda" else ("cpu_op",)
    written = []
    for name, call in calls(scope).items():
        for _ in range(WARM_UPS):
            call()
        synchronise(scope.device)
        trace = folder / f"profile-{name}.json"
        # one more call under the profiler that is not recorded: setting it up costs the first one time
        schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
        with (
            replacing(trace) as temporary,
            quiet(),
            torch.profiler.profile(
                activities=activities, schedule=schedule, on_trace_ready=_writer(temporary)
            ) as profile,
        ):
            for _ in range(2):
                call()
                synchronise(scope.device)
                profile.step()
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        table = trace.with_suffix(".md")
        with replacing(table) as temporary:
            temporary.write_text(summarise(name, events, categories).markdown(), encoding="utf-8")
        written += [trace, table]
    return written


def _writer(path: Path) -> Callable[[torch.profiler.profile], None]:
    return lambda profile: profile.export_chrome_trace(str(path))
