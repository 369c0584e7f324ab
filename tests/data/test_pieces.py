"""Preparation at scale: the same bytes by any number of processes and after any interruption, in little memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import DATA_SETS, InterHumanDataset, pieces, prepare, statistics
from intermoe.data import workers as workers_of
from intermoe.data.cache import CachedClips
from intermoe.data.interhuman import InterHumanReader
from intermoe.data.items import RawClip
from intermoe.data.statistics import compute_statistics
from intermoe.data.workers import in_order
from intermoe.files import write_sealed

INTERHUMAN = DATA_SETS["interhuman"]


@pytest.fixture
def folder(interhuman_folder: Callable[..., Path]) -> Path:
    """Nine sequences of different lengths, one broken, one of two splits, one beyond the longest item."""
    lengths = {str(number): 20 + number for number in range(8)} | {"long": 310}
    root = interhuman_folder({"train": lengths, "val": {"3": 23, "9": 25}})
    (root / "motions_processed" / "person2" / "5.npy").write_bytes(b"nothing")
    return root


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 2)
    monkeypatch.setattr(statistics, "PIECE", 3)
    monkeypatch.setattr(statistics, "_SAVED_EVERY", 1)


def content(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def test_several_processes_write_the_bytes_of_one(folder: Path, tmp_path: Path) -> None:
    alone, together = (prepare(INTERHUMAN, folder, tmp_path / name, workers=n) for name, n in (("a", 1), ("b", 3)))
    assert content(alone.folder) == content(together.folder)
    assert alone.reports == together.reports
    assert alone.reports["train"].problems.keys() == {"unreadable file"}


class Stop(Exception):
    """As Ctrl+C: what is there stays."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[str]]:
    """Lets the reader stop after so many sequences, or never, and returns the names of those that it has read."""
    plain = InterHumanReader.read

    def limit(count: int | None) -> list[str]:
        read: list[str] = []

        def limited(reader: InterHumanReader, split: str, name: str) -> list[RawClip]:
            if len(read) == count:
                raise Stop
            read.append(name)
            return plain(reader, split, name)

        monkeypatch.setattr(InterHumanReader, "read", limited)
        return read

    return limit


@pytest.mark.parametrize("read", range(0, 10, 3))
def test_an_interrupted_preparation_goes_on_where_it_stopped(
    read: int, folder: Path, tmp_path: Path, stopping: Callable[..., list[str]]
) -> None:
    wanted = content(prepare(INTERHUMAN, folder, tmp_path / "whole").folder)
    first = stopping(read)
    with pytest.raises(Stop):
        prepare(INTERHUMAN, folder, tmp_path / "cache")
    names = stopping(None)
    assert prepare(INTERHUMAN, folder, tmp_path / "cache").written
    assert content(tmp_path / "cache") == wanted
    whole = len(first) // pieces.PIECE * pieces.PIECE
    assert first[:whole] + names == [*map(str, range(8)), "long", "9"], "whole pieces are not read again"
    assert not (tmp_path / ".unfinished-cache").exists()


def test_interrupted_statistics_go_on_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = content(prepare(INTERHUMAN, folder, tmp_path / "whole").folder)
    sums, done, last = statistics._sums, [], 5

    def limited(dataset: object, piece: tuple[int, int, int]) -> statistics.Sums:
        if len(done) == last:
            raise Stop
        done.append(piece)
        return sums(dataset, piece)

    monkeypatch.setattr(statistics, "_sums", limited)
    with pytest.raises(Stop):
        prepare(INTERHUMAN, folder, tmp_path / "cache")
    last = 99
    monkeypatch.setattr(InterHumanReader, "read", lambda *_: pytest.fail("all is read"))
    prepare(INTERHUMAN, folder, tmp_path / "cache")
    assert content(tmp_path / "cache") == wanted
    assert len(done) == len(set(done)) == 4 * 3


@pytest.mark.parametrize("hurt", ["edited", "cut", "other words", "no hash"])
def test_sums_that_are_not_as_they_were_written_are_taken_anew(
    hurt: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = InterHumanDataset(prepare(INTERHUMAN, folder, tmp_path / "cache").folder, "train")
    wanted = compute_statistics(dataset, passes=2)
    file, sums, done = tmp_path / "sums.json", statistics._sums, []

    def limited(dataset: object, piece: tuple[int, int, int]) -> statistics.Sums:
        done.append(piece)
        if len(done) == 4:
            raise Stop
        return sums(dataset, piece)

    monkeypatch.setattr(statistics, "_sums", limited)
    with pytest.raises(Stop):
        compute_statistics(dataset, passes=2, unfinished=file)
    text = file.read_text()
    edited = re.sub(r'"count": (\d+)', r'"count": 1\1', text)
    file.write_text(
        {
            "edited": edited,
            "cut": text[: len(text) // 2],
            "other words": '{"of": 6}',
            "no hash": re.sub(r',\s*"hash": "\w+"', "", edited),
        }[hurt]
    )
    found = compute_statistics(dataset, passes=2, unfinished=file)
    np.testing.assert_array_equal(found.mean, wanted.mean)
    np.testing.assert_array_equal(found.std, wanted.std)


@pytest.mark.parametrize("hurt", ["motion.f32", "journal.jsonl", "cut journal", "source", "shorter source"])
def test_what_changed_meanwhile_is_read_again(
    hurt: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_sums", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        prepare(INTERHUMAN, folder, tmp_path / "cache")
    monkeypatch.undo()
    monkeypatch.setattr(pieces, "PIECE", 2)
    monkeypatch.setattr(statistics, "PIECE", 3)
    unfinished = tmp_path / ".unfinished-cache"
    if hurt == "source":
        (folder / "annots" / "1.txt").write_text("two people bow\n", encoding="utf-8")
    elif hurt == "shorter source":
        (folder / "split" / "train.txt").write_text("0\n", encoding="utf-8")
    elif hurt == "cut journal":
        os.truncate(unfinished / "journal.jsonl", (unfinished / "journal.jsonl").stat().st_size - 3)
    else:
        text = bytearray((unfinished / hurt).read_bytes())
        text[len(text) // 2] ^= 1
        (unfinished / hurt).write_bytes(text)
    prepare(INTERHUMAN, folder, tmp_path / "cache")
    assert content(tmp_path / "cache") == content(prepare(INTERHUMAN, folder, tmp_path / "again").folder)


def test_a_killed_process_leaves_what_the_next_goes_on_with(folder: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from intermoe.data import DATA_SETS, prepare, pieces\n"
        "pieces.PIECE = 2\n"
        "def told(done, total):\n    if done == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(DATA_SETS['interhuman'], Path(sys.argv[1]), Path(sys.argv[2]), progress=told)"
    )
    killed = subprocess.run([sys.executable, "-c", code, folder, tmp_path / "cache"], timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    told: list[int] = []
    prepare(INTERHUMAN, folder, tmp_path / "cache", progress=lambda done, total: told.append(done))
    assert told == [2, 4, 6, 8, 10]
    assert content(tmp_path / "cache") == content(prepare(INTERHUMAN, folder, tmp_path / "whole").folder)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started anew find this module by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@pytest.mark.usefixtures("importable")
def test_a_worker_that_is_killed_is_told() -> None:
    results = in_order(_die, None, range(5), workers=2)
    # as many processes as cores need no threads as well, and Ctrl+C is the parent's business
    assert [next(results), next(results)] == [(0, 1, True), (1, 1, True)]
    with pytest.raises(ChildProcessError, match="a process that reads data was killed"):
        list(results)


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("ending", ["error", "left"])
def test_nobody_waits_for_work_that_is_not_wanted_any_more(ending: str) -> None:
    """After Ctrl+C and errors: a worker may be in the middle of a long piece."""
    results = in_order(_sleep, None, [0, 0, 600, 600], workers=2)
    assert next(results) == 0
    begun = time.monotonic()
    if ending == "error":
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt())
    else:
        results.close()
    assert time.monotonic() - begun < 60


def _sleep(_: None, seconds: int) -> int:
    time.sleep(seconds)
    return seconds


def _die(_: None, part: int) -> tuple[int, int, bool]:
    if part == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return part, torch.get_num_threads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


class AtOnce:
    """A pool that does its work when it is handed over."""

    def __init__(self, workers: int, context: Any, start: Any, given: tuple[Any, Any]) -> None:
        self.given = given

    def submit(self, _: Any, part: int) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(self.given[0](self.given[1], part))
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        assert cancel_futures


def test_little_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for each process and one more, however many there are."""
    monkeypatch.setattr(workers_of, "ProcessPoolExecutor", AtOnce)
    taken: list[int] = []
    results = in_order(lambda ten, part: ten * part, 10, (taken.append(n) or n for n in range(100)), workers=3)
    for number in range(97):
        assert next(results) == 10 * number
        assert len(taken) == number + 4
    assert list(results) == [970, 980, 990]


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine of many; where the system does not say which, all of them, or one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert workers_of.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert workers_of.available_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers_of.available_cores() == 1


def test_pages_of_a_cache_can_be_left(folder: Path, tmp_path: Path) -> None:
    clips = CachedClips(INTERHUMAN, prepare(INTERHUMAN, folder, tmp_path / "cache").folder, "train")
    before = [np.array(clips[index]) for index in range(3)]
    clips.leave()
    assert all(np.array_equal(clips[index], one) for index, one in enumerate(before))


@pytest.mark.parametrize("longest", [300, 20])  # whole clips, and windows of them
def test_frames_of_an_item_are_those_of_the_whole(folder: Path, longest: int) -> None:
    dataset = InterHumanDataset(folder, "train", max_frames=longest, mirror=True, swap_persons=True)
    for index in range(len(dataset)):
        for epoch in range(4):
            whole = dataset.draw(index, epoch)["motion"]
            part = dataset.draw(index, epoch, slice(5, 14))
            np.testing.assert_array_equal(part["motion"], whole[:, 5:14])
            assert part["caption"] == dataset.draw(index, epoch)["caption"]


def test_processes_change_no_bit_of_statistics(folder: Path) -> None:
    dataset = InterHumanDataset(folder, "train", mirror=True)
    one, two = (compute_statistics(dataset, passes=2, workers=workers) for workers in (1, 2))
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.std, two.std)


def test_sums_of_as_many_pieces_are_gone_on_with_and_no_others(tmp_path: Path) -> None:
    """A data set of another length, or other passes, has other pieces; so has a file that was edited."""
    path = tmp_path / "sums.json"
    kept = {"of": 5, "done": 2, "count": 30, "total": [1.0, 2.0], "squares": [3.0, 4.0]}
    assert statistics._taken_up(path, 5)[0] == 0
    write_sealed(path, kept)
    done, (count, total, squares) = statistics._taken_up(path, 5)
    assert (done, count, total.tolist(), squares.tolist()) == (2, 30, [1.0, 2.0], [3.0, 4.0])
    for number in (2, 4, 6):
        done, (count, total, squares) = statistics._taken_up(path, number)
        assert (done, count, total.tolist(), squares.tolist()) == (0, 0, [0.0], [0.0])
    path.write_text(path.read_text().replace("30", "31"))
    assert statistics._taken_up(path, 5)[0] == 0
    assert statistics._taken_up(None, 5)[0] == 0


def test_what_was_begun_with_other_settings_is_begun_anew_once(
    folder: Path, tmp_path: Path, stopping: Callable[..., list[str]]
) -> None:
    """The journal of other settings leaves no line, so that the next interruption is gone on with."""
    read = stopping(5)
    journal = tmp_path / ".unfinished-cache" / "journal.jsonl"
    for other in (True, False):
        read.clear()
        with pytest.raises(Stop):
            prepare(INTERHUMAN, folder, tmp_path / "cache")
        if other:
            head, *rows = journal.read_bytes().splitlines(keepends=True)
            changed = head.partition(b" ")[2].replace(b'"piece": 2', b'"piece": 3').rstrip()
            head = pieces.digest(changed).encode() + b" " + changed + b"\n"
            journal.write_bytes(b"".join([head, *rows]))
    assert len(journal.read_bytes().splitlines()) == 1 + 2
    read = stopping(None)
    prepare(INTERHUMAN, folder, tmp_path / "cache")
    assert read == ["4", *map(str, range(5, 8)), "long", "9"]


def test_two_interruptions_are_two_parts_of_one_preparation(
    folder: Path, tmp_path: Path, stopping: Callable[..., list[str]]
) -> None:
    """What a first one wrote beyond the last whole piece stands nowhere between the pieces of the second."""
    read = stopping(5)
    journal = tmp_path / ".unfinished-cache" / "journal.jsonl"
    for spoilt in (True, False):
        read.clear()
        with pytest.raises(Stop):
            prepare(INTERHUMAN, folder, tmp_path / "cache")
        if spoilt:
            os.truncate(journal, journal.stat().st_size - 3)  # a line that was not written to its end
    read = stopping(None)
    told: list[int] = []
    prepare(INTERHUMAN, folder, tmp_path / "cache", progress=lambda done, total: told.append(done))
    assert told == [2, 4, 6, 8, 10]
    assert read == ["6", "7", "long", "9"], "three pieces of two were there"
