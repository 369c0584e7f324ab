"""Clocks, memory, host synchronisations, and the machine they were read on.

On a CPU the entries of a contest take turns, so that what disturbs the machine disturbs all of them and their ratios
survive. On CUDA the device's own events time runs over several input sets, which no cache holds from one call to the
next.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from intermoe import backends
from intermoe.config import Config
from intermoe.kernels.native import products

Call = Callable[[int], Any]
"""An entry of a contest; its argument is the number of the input set."""

WINDOW = 1e-3
"""Seconds between two events on CUDA at least: what starting the first call costs is not to count."""

VERSIONS = ("intermoe", "torch", "triton", "numpy", "diffusers")


@dataclass(frozen=True)
class Budget:
    """How long to measure one case: rounds until ``seconds`` have passed, within the two limits."""

    seconds: float
    min_rounds: int = 3
    max_rounds: int = 100


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(call: Call, device: torch.device, sets: int = 1, repeats: int = 1) -> float:
    """Seconds of one call: by the wall on a CPU, by device events over ``repeats`` of all input sets on CUDA."""
    if device.type != "cuda":
        began = time.perf_counter()
        call(0)
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        for number in range(sets):
            call(number)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / (sets * repeats)


def thread_seconds(call: Callable[[], object]) -> float:
    """Of one call: this thread's own where torch has only one, which others do not lengthen; else by the wall."""
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = now()
    call()
    return now() - began


def take_turns(clocks: Mapping[str, Callable[[], float]], budget: Budget) -> dict[str, list[float]]:
    """What every clock told in every round; the first of a round changes from round to round."""
    names = list(clocks)
    times: dict[str, list[float]] = {name: [] for name in names}
    until = time.monotonic() + budget.seconds
    for count in range(budget.max_rounds):
        if count >= budget.min_rounds and time.monotonic() > until:
            break
        turn = count % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(clocks[name]())
    return times


def clock_of(call: Call, device: torch.device, sets: int = 1) -> Callable[[], float]:
    """Seconds of one call, each time it is asked. The call has run on input set 0 before.

    On CUDA it runs on the other sets too before it is timed, because a kernel may be compiled anew for the number of
    pairs of another set; then through all sets so often that ``WINDOW`` lies between two events.
    """
    if device.type != "cuda":
        return partial(clock, call, device)
    for number in range(1, sets):
        call(number)
    repeats = math.ceil(WINDOW / (clock(call, device, sets) * sets))
    return partial(clock, call, device, sets, min(max(repeats, 1), 100))


@dataclass(frozen=True)
class Summary:
    """Median with the range that holds the middle 80 % of the values."""

    median: float
    low: float
    high: float


def summarise(values: list[float]) -> Summary:
    """Raises ``ValueError`` for no values."""
    if not values:
        raise ValueError("values: expected at least one, got none")
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return Summary(statistics.median(values), deciles[0], deciles[-1])


def ratios(values: list[float], ours: list[float]) -> Summary:
    """How many times as long as ours the others took, round by round."""
    return summarise([value / mine for value, mine in zip(values, ours, strict=True)])


def captured(call: Call, sets: int) -> Call:
    """The call as one CUDA graph per input set; it must not read the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for number in range(sets):
            call(number)
    torch.cuda.current_stream().wait_stream(stream)
    graphs: list[tuple[torch.cuda.CUDAGraph, Any]] = []
    for number in range(sets):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call(number)
        graphs.append((graph, out))

    def replay(number: int) -> Any:
        graph, out = graphs[number]
        graph.replay()
        return out

    return replay


def peak_memory(call: Call, device: torch.device) -> int:
    """Bytes that a call allocates at most at a time, beyond what is there before it. It must have run before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(0)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    held = peak = 0
    for size in _allocations(call):
        held += size
        peak = max(peak, held)
    return peak


def largest_allocation(call: Call) -> int:
    """Bytes of the largest tensor that a call allocates on the CPU. It must have run before."""
    return max([0, *_allocations(call)])


def _allocations(call: Call) -> list[int]:
    """Bytes that a call takes from torch's allocator for the CPU and, below zero, gives back, in order."""
    activity = [torch.profiler.ProfilerActivity.CPU]
    with quiet(), torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        call(0)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return [size for _, size in changes]


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the process's standard error: some builds of torch announce every profile there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def host_reads(call: Call, device: torch.device) -> int | None:
    """How often a call makes the host wait for the device; ``None`` where there is no device to wait for."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # which itself warns that it is a prototype
        try:
            call(0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


@dataclass(frozen=True)
class Ceilings(Config):
    """What this machine reaches at best: bytes/s of a large copy, FLOP/s of a large product by dtype."""

    copy: float
    product: dict[str, float]


def ceilings(device: torch.device, dtypes: tuple[torch.dtype, ...], small: bool = False) -> Ceilings:
    """Measure both, as the best of several runs: nothing is faster than its best run."""
    cuda = device.type == "cuda"
    numel = 1 << (20 if small else 28 if cuda else 26)
    sizes = (256,) if small else (512, 2048, 8192) if cuda else (256, 512, 1536)
    product = {name_of(dtype): _product_rate(sizes, dtype, device) for dtype in dtypes}
    return Ceilings(8 * numel / _copy_time(numel, device), product)


def _copy_time(numel: int, device: torch.device) -> float:
    source = torch.ones(numel, device=device)
    target = torch.empty_like(source)
    return _best(lambda _: target.copy_(source), device)


def _product_rate(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the fastest product and size; larger ones are tried as long as one does not take too long."""
    rate = 0.0
    for size in sizes:
        a = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty_like(a)
        seconds = min(_best(partial(_multiply, name, a, out), device) for name in _ways(dtype, device))
        rate = max(rate, 2 * size**3 / seconds)
        if seconds > 0.02:
            break
    return rate


def _ways(dtype: torch.dtype, device: torch.device) -> list[str]:
    """Products to try: on a CPU the library that torch calls may be the slowest of them."""
    if device.type != "cpu" or not backends.available()["native"].usable:
        return ["torch"]
    return [name for name in products.CHOICES if name != "onednn" or dtype != torch.float16]


def _multiply(way: str, a: torch.Tensor, out: torch.Tensor, _: int) -> None:
    products.run(way, a, a.T, out)


def _best(call: Call, device: torch.device) -> float:
    """The best of five calls; on CUDA of as many as let its clocks rise."""
    call(0)
    until = time.monotonic() + (0.2 if device.type == "cuda" else 0.0)
    best = min(clock(call, device) for _ in range(5))
    while time.monotonic() < until:
        best = min(best, clock(call, device))
    return best


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Machine(Config):
    """Where numbers were taken: the device, its driver and clocks as found, threads and versions."""

    device: str
    kind: str
    system: str
    threads: int
    instructions: str
    amx: bool
    float32_products: str
    driver: str | None = None
    clocks: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The device as a folder's name."""
        words = "".join(c if c.isalnum() else " " for c in self.device).split()
        return "-".join(words).lower() or "unknown"


def machine(device: torch.device) -> Machine:
    """This machine, seen from ``device``."""
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    information = _processor()
    name, driver, clocks = information.get("model name") or platform.machine(), None, _cpu_clock(information)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        driver, clocks = _nvidia(device.index or 0)
    return Machine(
        device=name,
        kind=device.type,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        amx="amx_tile" in information.get("flags", "").split(),
        float32_products=torch.get_float32_matmul_precision(),
        driver=driver,
        clocks=clocks,
        versions=versions,
    )


def _processor() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"model name": platform.processor()}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_clock(information: dict[str, str]) -> str | None:
    return f"{float(information['cpu MHz']):.0f} MHz" if "cpu MHz" in information else None


def _nvidia(index: int) -> tuple[str | None, str | None]:
    """Driver, and clocks and power limit as they are; nothing is set."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, None
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    command = [tool, f"--id={index}", f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode != 0 or len(values) != 6:
        return None, None
    driver, sm, memory, highest, power, temperature = values
    return driver, f"SM {sm} (at most {highest}), memory {memory}, power limit {power}, {temperature} degrees"
