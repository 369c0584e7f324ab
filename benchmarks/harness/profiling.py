"""Where one block's and one denoiser's call spend their time: a trace to look at, and a table of kernels and gaps.

The trace opens in https://ui.perfetto.dev. The table is the profiler's own. On a GPU a gap is time in which the device
waits; on a CPU it is time outside any of torch's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.forms import PERSONS, draw
from intermoe.benchmarks.grid import SMALL
from intermoe.benchmarks.harness.case import Scope
from intermoe.benchmarks.harness.report import si
from intermoe.benchmarks.harness.timing import machine, name_of, quiet, synchronise
from intermoe.benchmarks.harness.work import Shape
from intermoe.files import replacing, write_text
from intermoe.ops.moe import moe

WARM_UPS = 3
LINES = 25

Span = tuple[float, float]
"""Start and end, microseconds."""


def gaps(spans: Iterable[Span]) -> tuple[float, float]:
    """Seconds from the first start to the last end, and how many of them no span covers.

    Raises:
        ValueError: there are none.
    """
    ordered = sorted(spans)
    if not ordered:
        raise ValueError(
            "trace: expected work of the device, got none; may this process use the GPU's counters (CUPTI)?"
        )
    idle, end = 0.0, ordered[0][0]
    for start, stop in ordered:
        idle += max(start - end, 0.0)
        end = max(end, stop)
    return (end - ordered[0][0]) / 1e6, idle / 1e6


def markdown(name: str, profile: torch.profiler.profile, device: torch.device) -> str:
    """Time from first to last and in gaps, and torch's table of kernels (on a CPU of operators) by their own time."""
    own = [e for e in profile.events() if e.device_type.name == device.type.upper()]
    work = [e for e in own if not e.name.startswith("ProfilerStep")]
    whole, idle = gaps((e.time_range.start, e.time_range.end) for e in work)
    table = profile.key_averages().table(
        sort_by=f"self_{'cpu' if device.type == 'cpu' else 'device'}_time_total", row_limit=LINES
    )
    told = (
        f"{si(whole, 's')} from first to last, {len(work)} launches, {si(whole - idle, 's')} busy, "
        f"{si(idle, 's')} in gaps ({idle / whole if whole else 0:.0%})."
    )
    return "\n".join([f"## {name}", "", told, "", "```text", table.strip(), "```", ""])


def calls(scope: Scope) -> dict[str, Callable[[], object]]:
    """What is profiled, by the name of its files."""
    dtype = torch.bfloat16 if scope.device.type == "cuda" else torch.float32
    shape = SMALL if scope.quick else Shape(9600 if scope.device.type == "cuda" else 4800)
    leaves = draw(shape, dtype, scope.device).leaves()
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
        write_text(trace.with_suffix(".md"), markdown(name, profile, scope.device))
        written += [trace, trace.with_suffix(".md")]
    return written


def _writer(path: Path) -> Callable[[torch.profiler.profile], None]:
    return lambda profile: profile.export_chrome_trace(str(path))
