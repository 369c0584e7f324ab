"""Files and folders, each rule by itself: names, contents byte for byte, and file systems that can do less."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from intermoe import files
from intermoe.files import (
    UNFINISHED,
    claimed_stem,
    finishing_folder,
    locked,
    replacing,
    replacing_folder,
    seal,
    stopped_cleanly,
    unfinished,
    uninterrupted,
    write_arrays,
    write_json,
    write_sealed,
    write_tensors,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_json_are_written_byte_for_byte(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "d\u00e9j\u00e0\n")
    assert (tmp_path / "a.txt").read_bytes() == b"d\xc3\xa9j\xc3\xa0\n"
    content = {"b": [1, True, None], "a": (2.5, "\u00e9")}
    write_json(tmp_path / "a.json", content, indent=None)
    assert (tmp_path / "a.json").read_bytes() == b'{"b": [1, true, null], "a": [2.5, "\\u00e9"]}\n'
    write_json(tmp_path / "a.json", {"b": [1]})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "b": [\n    1\n  ]\n}\n'
    write_sealed(tmp_path / "sealed.json", {"b": 1}, indent=None)
    sealed = json.dumps({"b": 1, "hash": seal({"b": 1})})
    assert (tmp_path / "sealed.json").read_text(encoding="utf-8") == f"{sealed}\n"
    assert names(tmp_path) == ["a.json", "a.txt", "sealed.json"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (float("nan"), "got nan for ''"),
        ([1, 2.0, -float("inf")], "got -inf for '2'"),
        ({"a": {3: [{"b": float("inf")}]}, "c": float("nan")}, "got inf for 'a.3.0.b'"),
        ({"a": [[0.0, 1.0], (2.0, float("nan"))]}, "got nan for 'a.1.1'"),
    ],
)
def test_the_first_number_that_is_not_finite_is_named_by_its_place(content: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=f"a.json: expected finite numbers, {re.escape(told)}; nothing is"):
        write_json(tmp_path / "a.json", content)
    assert names(tmp_path) == []


def test_tensors_have_their_metadata_and_arrays_are_compressed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, metadata={"made": "here"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert (file.metadata(), file.get_tensor("x").tolist()) == ({"made": "here"}, [0, 1, 2])
    write_arrays(tmp_path / "a.npz", {"x": np.zeros(10_000), "words": np.array(["bow", "turn"])})
    assert (tmp_path / "a.npz").stat().st_size < 2000
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.namelist() == ["x.npy", "words.npy"]


def test_a_temporary_name_is_hidden_short_and_of_its_suffix(tmp_path: Path) -> None:
    """And found again by the name that it is for, among files of somebody else that look alike."""
    others = {".1-b.0123abc.npz", ".1-b.0123abcde.npz", ".1-b.0123abcg.npz", ".1-b.0123abcd", "1-b.0123abcd.npz"}
    for name in others:
        (tmp_path / name).touch()
    with replacing(tmp_path / f"{'n' * 70}.tar.gz") as one, replacing(tmp_path / "00001-bow.npz") as other:
        assert re.fullmatch(r"\.n{64}\.[0-9a-f]{8}\.gz", one.name)
        assert re.fullmatch(r"\.00001-bow\.[0-9a-f]{8}\.npz", other.name)
        for temporary in (one, other):
            temporary.touch()
        assert [*unfinished(tmp_path, "[0-9]*-*")] == [other]
    assert {*names(tmp_path)} - others == {"00001-bow.npz", f"{'n' * 70}.tar.gz"}
    assert [*unfinished(tmp_path, "*")] == []


def test_a_file_has_the_permissions_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch(mode=0o600)
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("a")
            temporary.chmod(0o666)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def no_links(*_: Any) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_a_new_file_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and never over another one, also not over one that comes at the last moment."""
    monkeypatch.setattr(os, "link", no_links)
    write_json(tmp_path / "a.json", 1, exclusive=True)
    assert (tmp_path / "a.json").read_text() == "1\n"
    with pytest.raises(FileExistsError, match=r"a\.json: exists already; choose another name, or remove it"):
        write_json(tmp_path / "a.json", 2, exclusive=True)

    def beaten(_: Path, target: Path) -> None:
        target.write_text("theirs")
        no_links()

    monkeypatch.setattr(os, "link", beaten)
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "b.json", 2, exclusive=True)
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["1\n", "theirs"]


def test_long_work_goes_on_where_it_failed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"

    def work(piece: str, *, fail: bool) -> list[str]:
        with finishing_folder(folder) as made:
            assert made == tmp_path / "deep" / f"{UNFINISHED}cache"
            before = names(made)
            (made / piece).touch()
            if fail:
                raise RuntimeError("the power is gone")
        return before

    with pytest.raises(RuntimeError, match="the power is gone"):
        work("a", fail=True)
    assert names(tmp_path / "deep") == [f"{UNFINISHED}cache"]
    assert work("b", fail=False) == ["a"]
    assert (names(tmp_path / "deep"), names(folder)) == (["cache"], ["a", "b"])
    assert work("c", fail=False) == []
    assert (names(tmp_path / "deep"), names(folder)) == (["cache"], ["c"])


def test_who_comes_while_long_work_is_done_works_apart(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with finishing_folder(folder) as first:
        (first / "first").touch()
        with pytest.raises(RuntimeError, match=r"\.writing-cache-[0-9a-f]{8}$"), finishing_folder(folder) as second:
            raise RuntimeError(second.name)
        assert names(tmp_path) == [f"{UNFINISHED}cache"]
        with finishing_folder(folder) as second:
            (second / "second").touch()
        assert names(folder) == ["second"]
    assert (names(tmp_path), names(folder)) == (["cache"], ["first"])


@pytest.mark.parametrize("make", [replacing_folder, finishing_folder])
def test_folders_where_there_are_no_locks_of_them(
    make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with make(tmp_path / "a") as folder:
        (folder / "x").touch()
    assert (names(tmp_path), names(tmp_path / "a")) == (["a"], ["x"])


def test_a_system_without_locks_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path / ".lock", "taken"):
        assert names(tmp_path) == [".lock"]
    assert names(tmp_path) == []


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who held it removed the file after this process had opened it: the next one would lock another."""
    lock, flock, calls = tmp_path / ".lock", files.fcntl.flock, []

    def removed(*given: Any) -> None:
        flock(*given)
        calls.append(given)
        if len(calls) == 1:
            lock.unlink()

    monkeypatch.setattr(files.fcntl, "flock", removed)
    with locked(lock, "taken"):
        assert lock.exists()
        with pytest.raises(FileExistsError, match=r"^taken$"), locked(lock, "taken"):
            pass
    assert len(calls) == 2
    assert not lock.exists()


def test_names_are_numbered_behind_their_last_dot(tmp_path: Path) -> None:
    """Any of the files makes a name taken; a lock counts as well, and ends with the block."""
    for taken in ("v1.5.npz", "v1.5-2.person1.bvh", "v1.5-4.npz", "v1.txt"):
        (tmp_path / taken).touch()
    suffixes = (".npz", ".person1.bvh")
    with ExitStack() as stack:
        stems = [stack.enter_context(claimed_stem(tmp_path / "v1.5", suffixes)) for _ in range(3)]
        assert [stem.name for stem in stems] == ["v1.5-3", "v1.5-5", "v1.5-6"]
        assert {name for name in names(tmp_path) if name.endswith(".lock")} == {
            f".v1.5-{number}.lock" for number in (3, 5, 6)
        }
        with claimed_stem(tmp_path / "v1", suffixes) as stem:
            assert stem == tmp_path / "v1"
    assert len(names(tmp_path)) == 4


def test_a_file_that_is_there_within_a_claim_is_the_callers_affair(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"^their own$"), claimed_stem(tmp_path / "bow", [".npz"]):
        raise FileExistsError("their own")
    assert names(tmp_path) == []


def test_what_an_error_of_another_kind_stops_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be moved away stays, and so does the error's own word."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name != "a":
            raise OSError(errno.EACCES, "not allowed")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="not allowed"), replacing_folder(tmp_path / "a") as folder:
        (folder / "new").touch()
    assert (names(tmp_path), names(tmp_path / "a")) == (["a"], ["old"])


def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError, match="Not a directory"), replacing_folder(tmp_path / "a"):
        pass
    assert (names(tmp_path), (tmp_path / "a").read_text()) == (["a"], "a file")


def test_handlers_are_the_main_threads(tmp_path: Path) -> None:
    """Others write as well, and change none."""
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as pool:
        pool.submit(write_text, tmp_path / "a.txt", "a").result()
    assert (tmp_path / "a.txt").read_text() == "a"
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with stopped_cleanly():
            with pytest.raises(SystemExit) as end:
                signal.raise_signal(signal.SIGTERM)
            assert end.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, former)
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_are_answered_afterwards_each_by_its_own_handler() -> None:
    """In the order in which they came, as often as they came."""
    answered: list[tuple[str, int]] = []
    kinds = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    former = {
        kind: signal.signal(kind, lambda number, _, kind=kind: answered.append((kind.name, number))) for kind in kinds
    }
    try:
        with uninterrupted():
            for kind in (*kinds, signal.SIGTERM):
                signal.raise_signal(kind)
            assert answered == []
        assert answered == [(kind.name, kind.value) for kind in (*kinds, signal.SIGTERM)]
        signal.raise_signal(signal.SIGHUP)
        assert len(answered) == 5
        assert threading.current_thread() is threading.main_thread()
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)


@pytest.mark.parametrize("usual", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_that_no_function_answers_keeps_its_answer(usual: signal.Handlers) -> None:
    """A program that has none for it is ended, or goes on, as ever."""
    former = signal.signal(signal.SIGTERM, usual)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGTERM) is usual
        assert signal.getsignal(signal.SIGTERM) is usual
    finally:
        signal.signal(signal.SIGTERM, former)
