"""Data at scale: how fast a folder is prepared and windows are read, and in how much memory.

    python -m intermoe.benchmarks.scale --sequences 100000 --frames 20 --workers 2 --interrupt

A folder of random sequences in InterHuman's layout is written, prepared, and read in batches of windows as training
does; the folder is removed. With ``--interrupt`` it is prepared a second time, by a command that is killed half way and
gone on with: the same bytes are expected.

CPU seconds are of all processes together. What others do on the machine lengthens seconds, and CPU seconds less: of a
machine that is shared, take these. ``readers_at_work`` is the part of the time in which the processes that read ran, or
waited for nothing but a core; near 1, more of them or a faster disk is all that would help. Memory is told at a tenth
of the sequences, at half and at the end.
"""

from __future__ import annotations

import argparse
import filecmp
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intermoe.benchmarks.harness.case import WrongResult
from intermoe.data import DATA_SETS, MotionDataset, collate, prepare
from intermoe.data.interhuman import FILE_WIDTH, PERSONS
from intermoe.data.pieces import JOURNAL, PIECE
from intermoe.files import UNFINISHED
from intermoe.train.loading import batches as loaded
from intermoe.train.stream import StreamSampler
from intermoe.train.vae import Windows

BATCH = 64
CAPTIONS = "two people bow to each other\nthe first one turns to the left and waves\nthey greet\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=90, help="of each sequence; windows are 64 frames, or fewer")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=200, help="of 64 windows")
    parser.add_argument("--interrupt", action="store_true", help="prepare again, killed half way and gone on with")
    given = parser.parse_args()
    torch.set_num_threads(1)  # so that 0 processes are one core's work
    with tempfile.TemporaryDirectory() as place:
        source, cache = Path(place, "source"), Path(place, "cache")
        write_source(source, given.sequences, given.frames)
        with measured("prepare", given.sequences, given.sequences * given.frames * 2 * FILE_WIDTH * 4):
            prepare(DATA_SETS["interhuman"], source, cache, workers=given.workers, progress=Watch())
        if given.interrupt:
            interrupt(source, cache, given.sequences, given.workers)
        window = min(64, given.frames - 1)
        check(source, cache, window)
        for workers in dict.fromkeys((0, given.workers)):
            read_windows(cache, window, workers, given.batches)


class Watch:
    """Called with the progress of a preparation: prints memory and how busy the readers are on the way."""

    def __init__(self) -> None:
        self.told, self.began = 0.0, time.perf_counter()
        self.first: dict[int, tuple[float, float]] = {}
        self.last: dict[int, tuple[float, float]] = {}

    def __call__(self, done: int, of: int) -> None:
        now = time.perf_counter()
        children = [child.pid for child in active_children() if child.pid is not None]
        for pid in children:
            with suppress(OSError):  # it has ended, or the system does not say
                ran, waited = map(int, Path(f"/proc/{pid}/schedstat").read_text().split()[:2])
                self.last[pid] = (now, (ran + waited) / 1e9)
                self.first.setdefault(pid, self.last[pid])
        mark = max(part for part in (0.0, 0.1, 0.5, 1.0) if done >= part * of)
        if mark == self.told:
            return
        self.told = mark
        peaks = [peak for pid in children if (peak := peak_megabytes(pid)) is not None]
        told = {"what": "prepare", "read": done, "of": of, "seconds": round(now - self.began, 1)}
        told |= {"peak_megabytes": peak_megabytes("self"), "peak_megabytes_of_a_child": max(peaks, default=None)}
        shares = [
            (end[1] - start[1]) / (end[0] - start[0])
            for start, end in ((self.first[pid], self.last[pid]) for pid in self.first)
            if end[0] > start[0]
        ]
        if shares:
            told["readers_at_work"] = [round(share, 3) for share in shares]
        print(json.dumps(told), flush=True)


def peak_megabytes(pid: int | str) -> int | None:
    """Most memory that a process has had, ``None`` where the system does not say."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6)
    return None


def interrupt(source: Path, cache: Path, sequences: int, workers: int) -> None:
    """Prepare ``source`` again, killed half way and gone on with, and compare it with ``cache``, byte for byte."""
    again = cache.with_name("again")
    journal = cache.with_name(f"{UNFINISHED}{again.name}") / JOURNAL
    command = [sys.executable, "-m", "intermoe", "prepare", "interhuman", source, "--out", again]
    process = subprocess.Popen([*map(str, command), "--workers", str(workers)], stderr=subprocess.DEVNULL)
    pieces = 0
    while pieces < sequences / PIECE / 2:
        if process.poll() is not None:
            raise WrongResult(f"prepare: expected to be killed, ended with {process.returncode}")
        time.sleep(0.1)
        pieces = journal.read_bytes().count(b"\n") - 1 if journal.is_file() else 0  # without the head
    process.kill()
    process.wait()
    with measured(f"prepare, killed after {pieces * PIECE} and gone on with", sequences):
        prepare(DATA_SETS["interhuman"], source, again, workers=workers)
    for name in sorted(path.name for path in cache.iterdir()):
        if not filecmp.cmp(cache / name, again / name, shallow=False):
            raise WrongResult(f"{name}: killed and gone on with, it is not the bytes of one go")
    print(json.dumps({"what": "the same bytes", "files": sorted(path.name for path in again.iterdir())}), flush=True)


def write_source(root: Path, count: int, frames: int) -> None:
    """Random motion, another in every sequence."""
    motion = np.random.default_rng(0).normal(size=(2, frames, FILE_WIDTH)).astype(np.float32)
    for folder in ("annots", "split", *(f"motions_processed/{person}" for person in PERSONS)):
        (root / folder).mkdir(parents=True)
    first = io.BytesIO()
    np.save(first, motion[0])
    header = first.getvalue()[: -motion[0].nbytes]
    for number in range(count):
        for person, values in zip(PERSONS, motion, strict=True):
            values[0, 0] = number * 1e-2  # another motion, within what the reader takes
            (root / "motions_processed" / person / f"{number}.npy").write_bytes(header + values.tobytes())
        (root / "annots" / f"{number}.txt").write_text(CAPTIONS, encoding="utf-8")
    (root / "split" / "train.txt").write_text("\n".join(map(str, range(count))), encoding="utf-8")


def check(source: Path, cache: Path, window: int) -> None:
    """What is timed is right: windows of the cache are those of the folder."""
    cached = windows(cache, window)
    for index in (0, len(cached) - 1):
        motion = cached.draw(index, 0)["motion"]
        name = cached.dataset.names[index]
        clip = DATA_SETS["interhuman"].reader(source).read("train", name)[0].source
        stored = cached.dataset._clips[cached.dataset._indices[index]]
        if not np.array_equal(stored, clip) or not bool(motion.isfinite().all()):
            raise WrongResult(f"{name}: a window is not of its source")


def windows(cache: Path, window: int) -> Windows:
    """As an autoencoder's training takes them."""
    data_set = DATA_SETS["interhuman"]
    dataset = MotionDataset(data_set, cache, "train", min_frames=window, mirror=True, swap_persons=True)
    return Windows(dataset, window)


def read_windows(cache: Path, window: int, workers: int, batches: int) -> None:
    """Batches of a loader as training makes it; the processes have started before the first is timed."""
    drawn = windows(cache, window)
    lengths = [drawn.num_frames(number) for number in range(len(drawn))]
    sampler = StreamSampler(lengths, BATCH, range(batches + 2 * max(1, workers)), seed=0)
    loader = loaded(drawn, sampler, collate, workers)
    for _ in range(2 * workers):
        next(loader)
    with measured(f"windows of {window}, {workers} processes", BATCH * batches):
        for _ in range(batches):
            next(loader)
        for _ in loader:  # to the end, so that the processes' time is known
            pass
        del loader


@contextmanager
def measured(name: str, items: int, size: int | None = None) -> Iterator[None]:
    """Print what the block took, a line of JSON."""
    before, idle = (time.perf_counter(), cpu_seconds()), idle_seconds()
    yield
    seconds, cpu = (now - then for now, then in zip((time.perf_counter(), cpu_seconds()), before, strict=True))
    told: dict[str, Any] = {
        "what": name,
        "items": items,
        "seconds": round(seconds, 2),
        "items_per_second": round(items / seconds),
        "cpu_seconds": round(cpu, 2),
        "items_per_cpu_second": round(items / cpu),
        "cores_used": round(cpu / seconds, 2),
    }
    if idle is not None:
        # near 0: the CPUs were all at work, for this or for others
        told["machine_idle"] = round(((idle_seconds() or 0.0) - idle) / (seconds * (os.cpu_count() or 1)), 3)
    if size is not None:
        told["megabytes_per_second"] = round(size / seconds / 1e6, 1)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    told["peak_megabytes"], told["peak_megabytes_of_a_child"] = (round(peak * 1024 / 1e6) for peak in peaks)
    print(json.dumps(told), flush=True)


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def idle_seconds() -> float | None:
    """That all CPUs of the machine have had nothing to do, where the system says so (Linux)."""
    try:
        idle, waiting = (int(number) for number in Path("/proc/stat").read_text().split("\n")[0].split()[4:6])
    except (OSError, ValueError):
        return None
    return (idle + waiting) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
