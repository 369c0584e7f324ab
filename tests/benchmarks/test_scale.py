"""What the benchmark of large folders tells of the machine, by hand, and that it times what is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe.benchmarks import scale
from intermoe.benchmarks.harness.case import WrongResult
from intermoe.data import DATA_SETS, prepare

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """``system("/proc/stat", text)``: what the system says in a file; others are not there."""

    def place(path: str) -> Path:
        return tmp_path / path.strip("/").replace("/", "-")

    monkeypatch.setattr(scale, "Path", place)
    return lambda path, text: place(path).write_text(text) and None


def test_memory_is_told_in_megabytes(system: Callable[[str, str], None]) -> None:
    system("/proc/self/status", "Name:\tpython\nVmPeak:\t 9000000 kB\nVmHWM:\t  500000 kB\nVmRSS:\t 1 kB\n")
    assert scale.peak_megabytes("self") == 512  # 500,000 * 1024 bytes
    system("/proc/7/status", "Name:\tgone\n")
    assert scale.peak_megabytes(7) is None
    assert scale.peak_megabytes(8) is None


def test_a_machine_is_idle_where_it_waits_for_a_disk_too(system: Callable[[str, str], None]) -> None:
    assert scale.idle_seconds() is None
    system("/proc/stat", f"cpu  1 2 3 {40 * TICKS} {2 * TICKS} 6 7\ncpu0 9 9 9 9 9\n")
    assert scale.idle_seconds() == 42.0


def test_seconds_of_a_processor_are_of_this_process_and_of_those_that_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = {
        scale.resource.RUSAGE_SELF: SimpleNamespace(ru_utime=1.0, ru_stime=2.0),
        scale.resource.RUSAGE_CHILDREN: SimpleNamespace(ru_utime=10.0, ru_stime=20.0),
    }
    monkeypatch.setattr(scale.resource, "getrusage", used.__getitem__)
    assert scale.cpu_seconds() == 33.0


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_figure_of_what_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """100 items of 5 MB in all in 4 s, which took 6 s of the processors; of 2 cores 1 s in 8 was idle."""
    clock, cpu, idle = iter([10.0, 14.0]), iter([1.0, 7.0]), iter([100.0, 101.0])
    peaks = {scale.resource.RUSAGE_SELF: 500_000, scale.resource.RUSAGE_CHILDREN: 125_000}
    monkeypatch.setattr(scale.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(scale, "cpu_seconds", lambda: next(cpu))
    monkeypatch.setattr(scale, "idle_seconds", lambda: next(idle))
    monkeypatch.setattr(scale.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(scale.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=peaks[who]))
    with scale.measured("reading", 100, 5_000_000):
        pass
    assert told(capsys) == [
        {
            "what": "reading", "items": 100, "seconds": 4.0, "items_per_second": 25, "cpu_seconds": 6.0,
            "items_per_cpu_second": 17, "cores_used": 1.5, "machine_idle": 0.125, "megabytes_per_second": 1.2,
            "peak_megabytes": 512, "peak_megabytes_of_a_child": 128,
        }
    ]  # fmt: skip


def test_a_preparation_is_told_at_a_tenth_at_half_and_at_the_end(
    system: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that ran 1 s and waited 0.5 s for a core in each 2 s was at work for three quarters."""
    clock = iter([0.0, *(2.0 * number for number in range(1, 7))])
    monkeypatch.setattr(scale.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(scale, "active_children", lambda: [SimpleNamespace(pid=7), SimpleNamespace(pid=None)])
    monkeypatch.setattr(scale, "peak_megabytes", lambda pid: {"self": 3, 7: 4}[pid])
    watch = scale.Watch()
    for number, done in enumerate((9, 10, 49, 50, 99, 100), start=1):
        system("/proc/7/schedstat", f"{number * 1_000_000_000} {number * 500_000_000} 5\n")
        watch(done, 100)
    assert told(capsys) == [
        {
            "what": "prepare", "read": read, "of": 100, "seconds": seconds, "peak_megabytes": 3,
            "peak_megabytes_of_a_child": 4, "readers_at_work": [0.75],
        }
        for read, seconds in ((10, 4.0), (50, 8.0), (100, 12.0))
    ]  # fmt: skip


def test_what_is_timed_is_checked_first(tmp_path: Path) -> None:
    """Every sequence is another, with its captions; a cache that is not of the folder is not timed."""
    source, cache = tmp_path / "source", tmp_path / "cache"
    scale.write_source(source, 3, 20)
    prepare(DATA_SETS["interhuman"], source, cache, workers=1)
    scale.check(source, cache, 16)
    dataset = scale.windows(cache, 16).dataset
    assert list(dataset.names) == ["0", "1", "2"]
    assert dataset.captions(2) == tuple(scale.CAPTIONS.splitlines())
    drawn = scale.windows(cache, 16)
    assert drawn.draw(0, 0)["motion"].shape[-2] == 16
    motions = [np.load(source / "motions_processed" / "person1" / f"{number}.npy") for number in range(3)]
    assert [motion.shape for motion in motions] == [(20, scale.FILE_WIDTH)] * 3
    assert [float(motion[0, 0]) for motion in motions] == pytest.approx([0.0, 0.01, 0.02])
    path = source / "motions_processed" / "person2" / "2.npy"
    np.save(path, np.load(path) + 1)
    with pytest.raises(WrongResult, match="2: a window is not of its source"):
        scale.check(source, cache, 16)
