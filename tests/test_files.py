"""Files that appear whole or not at all, whoever else writes at the same time."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from intermoe import checkpoints
from intermoe.files import (
    WRITING,
    claimed_stem,
    file_digest,
    finishing_folder,
    locked,
    read_sealed,
    replacing,
    replacing_folder,
    seal,
    uninterrupted,
    write_arrays,
    write_json,
    write_sealed,
    write_tensors,
)


def start(code: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 62 + "est.txt")  # 255 bytes, the most that file systems take
    path.write_text("before")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail_halfway()
    assert path.read_text() == "before"
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("after")
        temporary.chmod(0o600)
    assert path.read_text() == "after"
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "other").unlink()
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with replacing(path) as one:
        with replacing(path) as two:
            one.write_text("one")
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one"


def test_a_file_that_must_be_new_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_json(path, {"a": 1.5}, exclusive=True)
    with pytest.raises(FileExistsError, match=r"numbers\.json: exists already"):
        write_json(path, {"a": 2.5}, exclusive=True)
    assert json.loads(path.read_text()) == {"a": 1.5}
    late = tmp_path / "late.json"

    def meet_another() -> None:
        with replacing(late, exclusive=True) as own:
            own.write_text("mine")
            late.write_text("theirs")

    with pytest.raises(FileExistsError, match=r"late\.json: exists already"):
        meet_another()
    assert late.read_text() == "theirs"
    assert {each.name for each in tmp_path.iterdir()} == {"numbers.json", "late.json"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def write(content: str, *, fail: bool = False) -> None:
        with replacing_folder(folder) as temporary:
            (temporary / "file").write_text(content)
            if fail:
                raise RuntimeError("interrupted")

    write("before")
    with pytest.raises(RuntimeError, match="interrupted"):
        write("half", fail=True)
    assert (folder / "file").read_text() == "before"
    (tmp_path / f"{WRITING}model-0123abcd").mkdir()  # of a process that was killed
    write("after")
    assert (folder / "file").read_text() == "after"
    assert list(tmp_path.iterdir()) == [folder]


def test_two_that_replace_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with replacing_folder(folder) as first:
        (first / "by").write_text("first")
        with replacing_folder(folder) as second:
            assert first.is_dir(), "what another process still writes is not swept away"
            (second / "by").write_text("second")
        assert (folder / "by").read_text() == "second"
    assert (folder / "by").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


HOLD = """
import sys
from pathlib import Path
from intermoe.files import locked
with locked(Path(sys.argv[1]) / ".lock", "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    other = start(HOLD, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(FileExistsError, match="taken"), locked(lock, "taken"):
        pass
    other.kill()
    other.communicate()
    assert lock.exists(), "a killed process cannot remove its file"
    with locked(lock, "taken"), pytest.raises(FileExistsError, match="taken"), locked(lock, "taken"):
        pass
    assert list(tmp_path.iterdir()) == []


NAME = """
import sys, time
from pathlib import Path
from intermoe.files import claimed_stem
sys.stdin.readline()
with claimed_stem(Path(sys.argv[1]) / "bow", (".npz", ".gif")) as stem:
    time.sleep(0.2)
    stem.with_name(stem.name + sys.argv[2]).write_text(sys.argv[2])
"""


def test_names_of_several_processes_differ(tmp_path: Path) -> None:
    """They all look for a name at once, and each writes after a while: none sees the files of the others."""
    others = [start(NAME, tmp_path, suffix) for suffix in (".npz", ".gif", ".npz", ".gif")]
    for other in others:
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
    assert [other.wait(timeout=60) for other in others] == [0] * 4
    for other in others:
        other.communicate()
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["bow", "bow-2", "bow-3", "bow-4"]
    with claimed_stem(tmp_path / "bow", (".npz", ".gif")) as stem:
        assert stem.name == "bow-5"


def test_only_finite_numbers_are_written(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"numbers.json: expected finite numbers, got nan for 'rows.1.fid'"):
        write_json(tmp_path / "numbers.json", {"rows": [{"fid": 1.0}, {"fid": math.nan}]})
    with pytest.raises(FloatingPointError, match=r"model.safetensors: expected finite numbers, got others in 'w'"):
        write_tensors(tmp_path / "model.safetensors", {"n": torch.tensor([1]), "w": torch.tensor([0.0, math.inf])})
    assert list(tmp_path.iterdir()) == []
    write_tensors(tmp_path / "model.safetensors", {"w": torch.tensor([1.5])}, metadata={"format": "pt"})
    assert load_file(tmp_path / "model.safetensors")["w"].item() == 1.5


FULL = """
import resource, sys
from pathlib import Path
import torch
from intermoe.files import replacing_folder, write_tensors
from intermoe.train.checkpoint import write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
small, large = {"w": torch.zeros(4)}, {"w": torch.zeros(5000)}
folder = Path(sys.argv[1])
for model, optimizer in ((large, small), (small, large)):
    try:
        write_checkpoint(folder, 3, model=model, average=small, optimizer=optimizer, state={}, keep=1)
    except OSError as error:
        print(error)
try:
    write_tensors(folder / "model.safetensors", large)
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The limit of a file's size stands in for the disk's."""
    assert resource.RLIMIT_FSIZE is not None
    out, err = start(FULL, tmp_path).communicate(timeout=60)
    assert [line.split(":")[1] for line in out.splitlines()] == [" cannot be written"] * 3, (out, err)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_that_names_no_file_names_what_was_written(tmp_path: Path) -> None:
    """As a write to a full disk raises it; one that names a file, or says more, stays as it is."""
    for writing in (replacing, replacing_folder, finishing_folder):
        with pytest.raises(OSError, match=r"No space left on device: '.*/result'"), writing(tmp_path / "result"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left on device: 'other'"), writing(tmp_path / "result"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "other")
        with pytest.raises(OSError, match=r"^in words$"), writing(tmp_path / "result"):
            raise OSError("in words")


LOCKED = """
import sys, time
from pathlib import Path
from intermoe.files import claimed_stem, locked
with locked(Path(sys.argv[1]) / ".lock", ""), claimed_stem(Path(sys.argv[1]) / "bow", [".npz"]):
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_program_that_is_ended_leaves_no_locks(tmp_path: Path) -> None:
    process = start(LOCKED, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bow.lock", ".lock"]
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


STOPPED = """
import sys, time
from intermoe.files import replacing, replacing_folder
place = sys.argv[1]
with replacing_folder(place + "/folder") as folder, replacing(folder / "a.txt") as inner:
    with replacing(place + "/b.txt") as b:
        b.write_text("half")
        inner.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""


def test_a_program_that_is_ended_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    process = start(STOPPED, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_handler_of_ones_own_stays(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert signal.getsignal(signal.SIGTERM) is before
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with replacing(tmp_path / "b.txt") as temporary:
            signal.raise_signal(signal.SIGTERM)
            temporary.write_text("b")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert (tmp_path / "b.txt").read_text() == "b"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_a_reader_in_c_is_no_broken_file(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch takes what a handler raises while safetensors asks for a storage's length for an object without one."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    def read(_: Path) -> dict[str, torch.Tensor]:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None
        return {}

    monkeypatch.setattr(checkpoints, "load_file", read)
    (tmp_path / "model.safetensors").touch()
    before = signal.signal(number, stop)
    try:
        with pytest.raises(SystemExit, match=str(128 + number)):
            checkpoints.load_safetensors(tmp_path / "model.safetensors")
        assert signal.getsignal(number) is stop
        with ThreadPoolExecutor() as pool:  # only the main thread has handlers
            pool.submit(uninterrupted().__enter__).result()
    finally:
        signal.signal(number, before)


def test_stopped_between_two_names_a_folder_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    with replacing_folder(folder) as temporary:
        (temporary / "a.txt").write_text("old")
    rename, calls = os.rename, []

    def stopped(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:  # the first finds the old one there, the second moves that away
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as temporary:
        (temporary / "a.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (folder / "a.txt").read_text() == "old"


def test_a_folder_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "real")
    with replacing_folder(link) as temporary:
        (temporary / "file").write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


def test_what_a_killed_process_left_is_found_whatever_the_folders_name(tmp_path: Path) -> None:
    (tmp_path / f"{WRITING}a[1]*-0123abcd").mkdir()
    (tmp_path / f"{WRITING}a1x-0123abcd").mkdir()  # of another folder
    with replacing_folder(tmp_path / "a[1]*"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]*", f"{WRITING}a1x-0123abcd"}


def test_a_name_that_was_taken_before_its_lock_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def meet_another(path: Path, refusal: str) -> Iterator[None]:
        with locked(path, refusal):
            if path.name == ".bow.lock":
                (tmp_path / "bow.npz").touch()  # another process wrote it, and let its lock go, just before
            yield

    monkeypatch.setattr("intermoe.files.locked", meet_another)
    with claimed_stem(tmp_path / "bow", (".npz",)) as stem:
        assert stem.name == "bow-2"


def test_numbers_of_every_kind_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"got inf for 'rows.1'"):
        write_json(tmp_path / "numbers.json", {"rows": (1.0, math.inf)})
    with pytest.raises(FloatingPointError, match=r"got others in 'z'"):
        write_tensors(tmp_path / "model.safetensors", {"z": torch.tensor([complex(0, math.nan)])})


def test_sealed_files_are_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_sealed(path, {"b": [1, 2.5], "a": None})
    assert read_sealed(path) == {"b": [1, 2.5], "a": None}
    whole = path.read_text()
    for broken, told in (
        (whole.replace("2.5", "2.6"), "not as it was written"),
        (whole.replace('"a"', '"c"'), "not as it was written"),
        (whole[:-5], "expected valid JSON"),
        ("", "expected valid JSON"),
        ("[]", "expected a mapping, got list"),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=rf"result\.json: {told}"):
            read_sealed(path)
    path.write_text('{"a": 1}')  # one that never had a hash
    assert read_sealed(path) == {"a": 1}
    with pytest.raises(ValueError, match=r"result\.json: not as it was written"):
        read_sealed(path, required=True)


def test_arrays_of_any_name_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    write_arrays(path, {"file": np.arange(3), "path": "words", "a/b": 1.5})
    with np.load(path) as arrays:
        assert {name: arrays[name].tolist() for name in arrays} == {"file": [0, 1, 2], "path": "words", "a/b": 1.5}
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match=r"arrays\.npz: expected finite numbers, got others in 'x'"):
        write_arrays(path, {"x": np.array([0.0, np.nan])})
    with pytest.raises(ValueError, match=r"arrays\.npz: expected numbers or words for 'x', got object"):
        write_arrays(path, {"x": np.array([None])})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["?", "i1", "u8", "f2", "f4", "f8", "c8", "c16", "U3", "S3"])
def test_arrays_of_every_kind_are_kept_or_refused_for_a_number(kind: str, tmp_path: Path) -> None:
    path, values = tmp_path / "arrays.npz", np.array([0, 1, 100]).astype(kind)
    write_arrays(path, {"x": values})
    with np.load(path) as arrays:
        assert arrays["x"].dtype == values.dtype
        np.testing.assert_array_equal(arrays["x"], values)
    path.unlink()
    for wrong in (math.nan, math.inf, -math.inf) if values.dtype.kind in "fc" else ():
        values[1] = wrong if values.dtype.kind == "f" else complex(0.0, wrong)
        with pytest.raises(FloatingPointError, match="got others in 'x'"):
            write_arrays(path, {"x": values})
        assert not path.exists()


def test_a_hash_is_of_the_whole_and_of_nothing_else(tmp_path: Path) -> None:
    """Of every byte of a large file, and of a mapping whatever the order of its keys, at any depth."""
    path, content = tmp_path / "large", bytearray(2**24 + 3)
    found = []
    for place in (0, 2**24 - 1, 2**24, 2**24 + 2):
        content[place] ^= 1
        path.write_bytes(content)
        found.append(file_digest(path))
        assert found[-1] == hashlib.blake2b(content, digest_size=16).hexdigest()
    assert len(set(found)) == 4
    one, other = {"a": 1, "b": {"c": [1, 2], "d": None}}, {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert seal(one) == seal(other)
    changed = ({**one, "a": 1.5}, {**one, "b": {"c": [2, 1], "d": None}}, {"a": 1}, {**one, "e": 0})
    assert len({seal(each) for each in (one, *changed)}) == 5


def test_a_folder_that_must_be_new_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, content: str) -> None:
        with replacing_folder(tmp_path / name, exclusive=True) as temporary:
            (temporary / "a").write_text(content)

    def beaten(source: Path, target: Path) -> None:  # another process makes it at the last moment
        target.mkdir()
        (target / "a").write_text("first")
        rename(source, target)

    write("new", "first")
    with pytest.raises(FileExistsError, match="new: exists already"):
        write("new", "second")
    rename = os.rename
    monkeypatch.setattr(os, "rename", beaten)
    with pytest.raises(FileExistsError, match="late: exists already"):
        write("late", "second")
    assert {path.name: (path / "a").read_text() for path in tmp_path.iterdir()} == {"new": "first", "late": "first"}
