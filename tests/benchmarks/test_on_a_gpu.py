"""What the harness asks of a GPU and of the system, with stand-ins for them, and how it counts what they answer."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks.harness import case, timing
from intermoe.benchmarks.harness.case import Case, Contest, DeviceLost, Scope
from intermoe.benchmarks.harness.timing import Budget, Ceilings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the device, in order; a call of an entry is its number."""
    asked: list[Any] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            asked.append(f"{self.name} waits for {other.name}")

    class Graph:
        number = -1

        def replay(self) -> None:
            asked.append(f"replay {self.number}")

    @contextmanager
    def on(stream: Stream) -> Any:
        asked.append(f"on {stream.name}")
        yield
        asked.append("off")

    @contextmanager
    def capture(graph: Graph) -> Any:
        asked.append("capture")
        yield
        graph.number = asked[-1]

    for name, fake in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": lambda: Stream("current"),
        "stream": on,
        "graph": capture,
        "synchronize": lambda device: asked.append(f"wait for {device}"),
        "reset_peak_memory_stats": lambda device: asked.append("reset"),
        "memory_allocated": lambda device: asked.append("before") or 100,
        "max_memory_allocated": lambda device: asked.append("most") or 175,
        "set_sync_debug_mode": asked.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return asked


def test_a_captured_call_has_a_graph_for_every_input_set(order: list[Any]) -> None:
    """Everything has run once on a stream of its own before; a replay gives what was captured."""

    def call(number: int) -> str:
        order.append(number)
        return f"out {number}"

    replay = timing.captured(call, 2)
    around = ["side waits for current", "on side", 0, 1, "off", "current waits for side"]
    assert order == [*around, "capture", 0, "capture", 1]
    order.clear()
    assert [replay(number) for number in (1, 0, 1)] == ["out 1", "out 0", "out 1"]
    assert order == ["replay 1", "replay 0", "replay 1"]


def test_memory_of_a_gpu_is_the_most_beyond_what_was_there(order: list[Any]) -> None:
    assert timing.peak_memory(order.append, CUDA) == 75
    assert order == ["wait for cuda", "reset", "before", 0, "wait for cuda", "most"]


def test_reads_of_the_host_are_counted_by_torchs_warnings(order: list[Any]) -> None:
    def call(number: int) -> None:
        order.append(number)
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert timing.host_reads(call, CPU) is None
    assert not order
    assert timing.host_reads(call, CUDA) == 3
    assert order == ["wait for cuda", "warn", 0, "default"]

    def failing(number: int) -> None:
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        timing.host_reads(failing, CUDA)
    assert order[-1] == "default", "also where the call fails"


@pytest.mark.parametrize(
    ("device", "small", "numel", "sizes"),
    [
        (CPU, True, 2**20, (256,)),
        (CPU, False, 2**26, (256, 512, 1536)),
        (CUDA, True, 2**20, (256,)),
        (CUDA, False, 2**28, (512, 2048, 8192)),
    ],
)
def test_ceilings_are_of_sizes_that_no_cache_holds(
    device: torch.device, small: bool, numel: int, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy reads and writes numbers of 4 bytes."""
    monkeypatch.setattr(timing, "_product_rate", lambda *given: given)
    monkeypatch.setattr(timing, "_copy_time", lambda count, of: 4.0 if (count, of) == (numel, device) else None)
    found = timing.ceilings(device, (torch.float32, torch.float16), small)
    assert found.copy == 2 * numel
    assert found.product == {str(t)[6:]: (sizes, t, device) for t in (torch.float32, torch.float16)}


def test_larger_products_are_tried_until_one_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in a hundredth of a second are; and each is that of a matrix with its transpose."""
    taken = iter([0.02, 0.021])
    asked: list[Any] = []

    def best(call: Any, device: torch.device) -> float:
        call(0)
        return next(taken)

    monkeypatch.setattr(timing, "_ways", lambda dtype, device: ["a way"])
    monkeypatch.setattr(timing.products, "run", lambda *given: asked.append(given))
    monkeypatch.setattr(timing, "_best", best)
    assert timing._product_rate((4, 8, 16), torch.bfloat16, CPU) == 2 * 8**3 / 0.021
    assert [(way, left.shape[0], out.shape) for way, left, _, out in asked] == [
        ("a way", 4, (4, 4)), ("a way", 8, (8, 8))
    ]  # fmt: skip
    assert all(torch.equal(right, left.T) and left.any() for _, left, right, _ in asked)
    assert {t.dtype for _, *tensors in asked for t in tensors} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("device", "usable", "dtype", "ways"),
    [
        (CUDA, True, torch.float32, ["torch"]),
        (CPU, False, torch.float32, ["torch"]),
        (CPU, True, torch.bfloat16, ["torch", "float32", "onednn", "own"]),
        (CPU, True, torch.float16, ["torch", "float32", "own"]),
    ],
)
def test_the_ceiling_is_the_best_of_every_library(
    device: torch.device, usable: bool, dtype: torch.dtype, ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing.backends, "available", lambda: {"native": SimpleNamespace(usable=usable)})
    assert timing._ways(dtype, device) == ways


@pytest.mark.parametrize(("device", "calls"), [(CPU, 1 + 5), (CUDA, 1 + 5 + 2)])
def test_the_best_of_five_calls_and_of_as_many_as_let_clocks_rise(
    device: torch.device, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call takes 0.03 s by the wall; what a GPU does in its first fifth of a second counts no more than later."""
    now, ran = [0.0], []
    told = iter([5.0, 4.0, 3.5, 3.0, 3.5, 2.0, 2.5])

    def clock(call: Any, of: torch.device) -> float:
        assert of is device
        call(0)
        return next(told)

    def call(number: int) -> None:
        now[0] += 0.03
        ran.append(number)

    monkeypatch.setattr(timing, "clock", clock)
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    assert timing._best(call, device) == (3.0 if device is CPU else 2.0)
    assert ran == [0] * calls


def test_nothing_is_told_while_it_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(2, b"before ")
    with pytest.raises(ValueError, match="failed"), timing.quiet():  # noqa: PT012
        os.write(2, b"between")
        raise ValueError("failed")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


@pytest.mark.parametrize(("tool", "answer"), [(None, ""), ("/bin/nvidia-smi", "570, 1 MHz"), ("/bin/nvidia-smi", "")])
def test_a_driver_that_tells_nothing(tool: str | None, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.shutil, "which", lambda name: tool)
    monkeypatch.setattr(timing.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout=answer))
    assert timing._nvidia(0) == (None, None)


def test_a_driver_is_asked_quietly_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(timing.shutil, "which", lambda name: f"/bin/{name}")
    answer = SimpleNamespace(returncode=0, stdout=" 570 , a, b, c, d, e \n")
    monkeypatch.setattr(timing.subprocess, "run", lambda command, **how: asked.append(how) or answer)
    assert timing._nvidia(1) == ("570", "SM a (at most c), memory b, power limit d, e degrees")
    assert asked == [{"capture_output": True, "text": True, "timeout": 20, "check": False}]


def test_a_processor_is_the_first_that_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Linux; elsewhere its name is what Python knows."""
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(timing, "Path", lambda path: told if path == "/proc/cpuinfo" else Path(path))
    monkeypatch.setattr(timing.platform, "processor", lambda: "a name")
    assert timing._processor() == {"model name": "a name"}
    told.write_text("model name\t: A CPU @ 3: fast\ncpu MHz\t\t: 12.5\nflags\t:\n\nmodel name\t: Another\n")
    assert timing._processor() == {"model name": "A CPU @ 3: fast", "cpu MHz": "12.5", "flags": ""}
    assert timing._cpu_clock(timing._processor()) == "12 MHz"
    assert timing._cpu_clock({}) is None


def test_versions_are_of_what_is_installed_and_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"intermoe": "1", "torch": "2", "triton": "3", "numpy": "4", "diffusers": "5"}

    def version(name: str) -> str:
        if name not in installed:
            raise timing.metadata.PackageNotFoundError
        return installed[name]

    monkeypatch.setattr(timing.metadata, "version", version)
    monkeypatch.setattr(timing.platform, "python_version", lambda: "0")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert timing.machine(CPU).versions == {"python": "0", **installed, "cuda": "12.8"}
    del installed["diffusers"]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert timing.machine(CPU).versions == {"python": "0", **installed}


def test_only_a_gpu_is_waited_for(order: list[Any]) -> None:
    timing.synchronise(CPU)
    assert not order
    timing.synchronise(CUDA)
    assert order == ["wait for cuda"]


@pytest.mark.parametrize(
    ("device", "level", "backends", "budget"),
    [
        (CPU, "quick", True, Budget(0.05, 2, 3)),
        (CUDA, "quick", True, Budget(0.05, 2, 3)),
        (CPU, "default", False, Budget(2.0, 3, 100)),
        (CUDA, "default", True, Budget(0.5, 3, 100)),
        (CPU, "full", True, Budget(20.0, 5, 100)),
        (CUDA, "full", True, Budget(3.0, 5, 100)),
    ],
)
def test_how_long_and_on_what_a_level_runs(device: torch.device, level: str, backends: bool, budget: Budget) -> None:
    scope = Scope(device, level)
    assert (scope.all_backends, scope.budget) == (backends, budget)
    assert (scope.quick, scope.full) == (level == "quick", level == "full")


@pytest.mark.parametrize("reason", ["an illegal address", None])
def test_a_device_that_answers_no_more_ends_the_run(reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason of the case, or where it seemed to run, the device's own."""

    def wait(device: torch.device) -> None:
        raise RuntimeError("CUDA error: gone\nmore of it")

    def prepare() -> Contest:
        if reason:
            raise RuntimeError(reason)
        return Contest({}, None, 0.0)

    monkeypatch.setattr(case, "checked", lambda contest: ({}, {}))
    monkeypatch.setattr(case, "synchronise", wait)
    given = Case("moe", "forward", torch.float32, {"S": 6}, prepare)
    said = f"RuntimeError: {reason}" if reason else "CUDA error: gone"
    with pytest.raises(DeviceLost, match=rf"^moe forward float32 S=6: {said}$"):
        case.run(given, Scope(CPU), Ceilings(1.0, {"float32": 1.0}))
