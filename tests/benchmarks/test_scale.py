"""What the benchmark of large folders tells of the machine, by hand, and that it times what is right."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """100 items of 5 MB in all in about 4 s, which took 6 s of the processors; of 2 cores 1 s in 8 was idle."""
    clock, cpu, idle = iter([10.0, 14.003]), iter([1.0, 7.004]), iter([100.0, 101.0])
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
    clock = iter([0.0, *(2.001 * number for number in range(1, 7))])
    monkeypatch.setattr(scale.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(scale, "active_children", lambda: [SimpleNamespace(pid=7), SimpleNamespace(pid=None)])
    monkeypatch.setattr(scale, "peak_megabytes", lambda pid: {"self": 3, 7: 4}[pid])
    watch = scale.Watch()
    for number, done in enumerate((9, 10, 49, 50, 99, 100), start=1):
        system("/proc/7/schedstat", f"{number * 1_000_100_000} {number * 500_000_000} 5\n")
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


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens, in order; a timed block is told with its name and items when it begins and ends."""
    order: list[Any] = []

    @contextmanager
    def measured(*given: Any) -> Iterator[None]:
        order.append(("begins", *given))
        yield
        order.append("ends")

    monkeypatch.setattr(scale, "measured", measured)
    return order


@pytest.mark.parametrize(
    ("given", "sequences", "frames", "workers", "batches", "window"),
    [
        ("--sequences 11 --frames 20 --workers 3 --batches 7 --interrupt", 11, 20, 3, 7, 19),
        ("", 10_000, 90, 2, 200, 64),
        ("--workers 0", 10_000, 90, 0, 200, 64),
    ],
)
def test_the_command_does_what_it_was_asked_for(
    given: str,
    sequences: int,
    frames: int,
    workers: int,
    batches: int,
    window: int,
    timed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder is written, prepared, prepared again if asked, checked, and read by this process and by others."""
    known = {"source": "source", "cache": "cache"}

    def note(name: str) -> Callable[..., None]:
        def noted(*arguments: Any, **options: Any) -> None:
            told = [known[a.name] if isinstance(a, Path) else a for a in arguments]
            assert isinstance(options.pop("progress", scale.Watch()), scale.Watch)
            timed.append((name, *told, *options.items()))

        return noted

    for name in ("write_source", "prepare", "interrupt", "check", "read_windows"):
        monkeypatch.setattr(scale, name, note(name))
    monkeypatch.setattr(scale.torch, "set_num_threads", lambda count: timed.append(("threads", count)))
    monkeypatch.setattr(sys, "argv", ["scale", *given.split()])
    scale.main()
    both = [("interrupt", "source", "cache", sequences, workers)] if "--interrupt" in given else []
    assert timed == [
        ("threads", 1),
        ("write_source", "source", sequences, frames),
        ("begins", "prepare", sequences, sequences * frames * 2 * 4 * scale.FILE_WIDTH),
        ("prepare", DATA_SETS["interhuman"], "source", "cache", ("workers", workers)),
        "ends",
        *both,
        ("check", "source", "cache", window),
        *(("read_windows", "cache", window, count, batches) for count in ((0, workers) if workers else (0,))),
    ]


@pytest.mark.parametrize("difference", ["", "another byte", "ended"])
def test_what_was_killed_half_way_is_gone_on_with_to_the_same_bytes(
    difference: str,
    tmp_path: Path,
    timed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 8 pieces 4 are done when it is killed; the journal's first line is none of them."""
    source, cache, again = tmp_path / "source", tmp_path / "cache", tmp_path / "again"
    cache.mkdir()
    for name in ("b.npy", "a.npy"):
        (cache / name).write_bytes(b"1234")
    journal = tmp_path / f"{scale.UNFINISHED}again" / scale.JOURNAL
    journal.parent.mkdir()
    written = iter(["", "head\n", *("head\n" + "piece\n" * number for number in range(1, 9))])

    def sleep(_: float) -> None:
        if text := next(written):
            journal.write_text(text)

    class Process:
        returncode = 3

        def __init__(self, command: list[str], **_: Any) -> None:
            timed.append(command)

        def poll(self) -> int | None:
            return 3 if difference == "ended" and journal.exists() else None

        def kill(self) -> None:
            timed.append(f"killed after {journal.read_text().count('piece')}")

        def wait(self) -> None:
            timed.append("waited")

    def goes_on(data_set: Any, of: Path, into: Path, workers: int) -> None:
        timed.append((data_set, of, into, workers))
        shutil.copytree(cache, into)
        if difference:
            (into / "b.npy").write_bytes(b"1235")

    monkeypatch.setattr(scale.subprocess, "Popen", Process)
    monkeypatch.setattr(scale.time, "sleep", sleep)
    monkeypatch.setattr(scale, "prepare", goes_on)
    sequences = 8 * scale.PIECE
    if difference == "ended":
        with pytest.raises(WrongResult, match="prepare: expected to be killed, ended with 3"):
            scale.interrupt(source, cache, sequences, 5)
        return
    if difference:
        with pytest.raises(WrongResult, match=r"b\.npy: killed and gone on with"):
            scale.interrupt(source, cache, sequences, 5)
    else:
        scale.interrupt(source, cache, sequences, 5)
        assert told(capsys) == [{"what": "the same bytes", "files": ["a.npy", "b.npy"]}]
    command = [sys.executable, "-m", "intermoe", "prepare", "interhuman", str(source), "--out", str(again)]
    assert timed == [
        [*command, "--workers", "5"],
        "killed after 4",
        "waited",
        ("begins", f"prepare, killed after {4 * scale.PIECE} and gone on with", sequences),
        (DATA_SETS["interhuman"], source, again, 5),
        "ends",
    ]


@pytest.mark.parametrize(("workers", "ahead", "drawn"), [(0, 0, 5 + 2), (3, 6, 5 + 6)])
def test_batches_are_timed_once_the_processes_have_started(
    workers: int, ahead: int, drawn: int, timed: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of each process before; the rest is read so that the processes end and their time is known."""

    class Lengths(list):  # type: ignore[type-arg]
        num_frames = list.__getitem__

    windows = Lengths([30, 40, 50])

    def loaded(items: Any, sampler: Any, collate: Any, count: int) -> Iterator[int]:
        assert (items, collate, count) == (windows, scale.collate, workers)
        for number in sampler:
            timed.append(number)
            yield number

    def sampler(lengths: list[int], batch: int, steps: range, seed: int) -> range:
        assert (lengths, batch, seed) == ([30, 40, 50], 64, 0)
        return steps

    monkeypatch.setattr(scale, "windows", lambda *given: windows if given == (tmp_path, 16) else None)
    monkeypatch.setattr(scale, "loaded", loaded)
    monkeypatch.setattr(scale, "StreamSampler", sampler)
    scale.read_windows(tmp_path, 16, workers, 5)
    before, name, after = [*range(ahead)], f"windows of 16, {workers} processes", [*range(ahead, drawn)]
    assert timed == [*before, ("begins", name, 64 * 5), *after, "ends"]


def test_windows_are_as_training_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both ways to see more of a motion than there is."""
    asked: list[Any] = []
    monkeypatch.setattr(scale, "MotionDataset", lambda *given, **options: asked.append((given, options)) or "data")
    monkeypatch.setattr(scale, "Windows", lambda *given: given)
    assert scale.windows(tmp_path, 16) == ("data", 16)
    options = {"min_frames": 16, "mirror": True, "swap_persons": True}
    assert asked == [((DATA_SETS["interhuman"], tmp_path, "train"), options)]
