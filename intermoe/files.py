"""Whole files or none: what is written here appears under its name only when it is complete, and is finite.

Several processes may write at once: each has temporary names of its own, and what only one may have is locked. A
program that SIGTERM ends while it writes removes what is half written first, as it does at an error or Ctrl+C.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intermoe.reading import read_json

try:
    import fcntl
except ModuleNotFoundError:  # a system without these locks
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from types import FrameType

    from torch import Tensor

WRITING = ".writing-"
"""How the name of a folder begins that is not complete."""
UNFINISHED = ".unfinished-"
"""And of one that is gone on with."""


@contextmanager
def stopped_cleanly() -> Iterator[None]:
    """In the ``with`` block SIGTERM raises ``SystemExit``, unless the program has other plans for it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that come in the ``with`` block are answered at its end.

    For libraries in C that call Python: what a handler raises there they may take for an error of their own.
    """
    if threading.current_thread() is not threading.main_thread():  # which answers all signals
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers.setdefault(number, handler)
                signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came:
            handlers[number](number, frame)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """The system's errors that name no file, as that the disk is full, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: str | Path, *, exclusive: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` and with its suffix, renamed to ``path`` on success and removed on failure.

    The file gets the permissions of any new file, whatever the library that writes it sets.

    Args:
        exclusive: raise ``FileExistsError`` in place of replacing a file that is there by then.

    Examples:
        >>> with replacing("result.json") as temporary:
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:64]}.{secrets.token_hex(4)}{path.suffix}")
    temporary.touch()
    mode = temporary.stat().st_mode
    temporary.unlink()
    with stopped_cleanly():
        try:
            with named(path):
                yield temporary
            temporary.chmod(mode)
            if exclusive:
                _create(temporary, path)
            else:
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def unfinished(folder: Path, stem: str) -> Iterator[Path]:
    """What ``replacing`` began in ``folder`` for names whose stem matches ``stem``, and a killed process left."""
    return folder.glob(f".{stem}.{'[0-9a-f]' * 8}.*")


def _create(temporary: Path, path: Path) -> None:
    refuse_existing(path)
    try:
        os.link(temporary, path)
    except FileExistsError:
        refuse_existing(path)
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        os.replace(temporary, path)


def refuse_existing(path: Path) -> None:
    """Raise ``FileExistsError`` if ``path`` is there: results are not overwritten in silence."""
    if path.exists():
        raise FileExistsError(f"{path}: exists already; choose another name, or remove it")


@contextmanager
def replacing_folder(folder: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of ``folder`` on success and is removed on failure.

    Of several processes that replace one folder at once the last one stays, and all of them succeed. What a killed
    process has left half written is removed.

    Args:
        exclusive: raise ``FileExistsError`` in place of replacing a folder that is there by then.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{WRITING}{glob.escape(folder.name)}-????????"):
        with suppress(OSError), _held(left):  # nobody writes to it any more
            shutil.rmtree(left)
    temporary = _temporary(folder)
    temporary.mkdir()
    with stopped_cleanly():
        try:
            with ExitStack() as stack:
                with suppress(OSError):  # a file system without locks of folders
                    stack.enter_context(_held(temporary))
                with named(folder):
                    yield temporary
                if exclusive:
                    refuse_existing(folder)
                    _put_new(temporary, folder)
                else:
                    _put(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def finishing_folder(folder: Path) -> Iterator[Path]:
    """``replacing_folder`` for long work: what is there at a failure stays beside ``folder`` for the next call.

    A second process that asks meanwhile gets a folder of its own, which does not stay.
    """
    folder = Path(os.path.realpath(folder))
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
    unfinished.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(_held(unfinished))
        except BlockingIOError:
            yield stack.enter_context(replacing_folder(folder))
            return
        except OSError:  # a file system without locks of folders
            pass
        stack.enter_context(stopped_cleanly())
        with named(folder):
            yield unfinished
        _put(unfinished, folder)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f"{WRITING}{folder.name}-{secrets.token_hex(4)}")


def _put_new(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)  # not onto a folder that holds something
    except OSError:
        refuse_existing(folder)
        raise


def _put(temporary: Path, folder: Path) -> None:
    while True:
        try:
            os.rename(temporary, folder)
            return
        except OSError:
            if not folder.is_dir():
                raise
        doomed = _temporary(folder)
        try:
            os.rename(folder, doomed)
            os.rename(temporary, folder)
            return
        except OSError as error:  # another process is replacing it as well
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            if doomed.exists() and not folder.exists():  # stopped between the two
                os.rename(doomed, folder)
            shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def _held(path: Path) -> Iterator[os.stat_result]:
    """Hold the system's lock of ``path``, until the process ends at the latest. ``OSError`` if another one has it."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file ``path``, which is removed at the end; the lock itself ends with the process, however it ends.

    Children that were forked meanwhile hold it with their parent. A system without such locks locks nothing.

    Raises:
        FileExistsError: another process holds it; the message is ``refusal``.
    """
    with ExitStack() as stack:
        while True:
            try:
                held = stack.enter_context(_held(path))
            except BlockingIOError:
                raise FileExistsError(refusal) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(held, path.stat()):
                    break
            stack.close()  # who held it before has removed this file since it was opened
        stack.enter_context(stopped_cleanly())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def claimed_stem(base: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """``base``, or ``base`` with the first number from 2 that is free: no file of that name and one of ``suffixes``.

    It is this process's until the end of the block; another one that asks meanwhile gets the next number.
    """
    number = 1
    while True:
        stem = base if number == 1 else base.with_name(f"{base.name}-{number}")
        number += 1
        if _taken(stem, suffixes):
            continue
        try:
            with locked(stem.with_name(f".{stem.name}.lock"), str(stem)):
                if not _taken(stem, suffixes):
                    yield stem
                    return
        except FileExistsError as error:
            if str(error) != str(stem):
                raise


def _taken(stem: Path, suffixes: Collection[str]) -> bool:
    return any(stem.with_name(stem.name + suffix).exists() for suffix in suffixes)


def write_text(path: str | Path, content: str) -> None:
    """Write a UTF-8 file."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: str | Path, content: Any, *, exclusive: bool = False, indent: int | None = 2) -> None:
    """Write plain values as JSON, in one line with ``indent=None``.

    Raises ``FloatingPointError`` that names the first number that is not finite.
    """
    wrong = _not_finite(content)
    if wrong is not None:
        raise FloatingPointError(
            f"{path}: expected finite numbers, got {wrong[1]} for {wrong[0]!r}; nothing is written"
        )
    with replacing(path, exclusive=exclusive) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def write_sealed(path: str | Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write JSON as ``write_json`` with the ``hash`` of its content, for ``read_sealed``."""
    write_json(path, {**content, "hash": seal(content)}, indent=indent)


def read_sealed(path: str | Path, *, required: bool = False) -> dict[str, Any]:
    """What ``write_sealed`` wrote, without its hash; a file that never had one is taken as it is, unless ``required``.

    Raises:
        ValueError: malformed, or edited since; names the file. OSError: no such file.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(content).__name__}")
    found = content.pop("hash", None)
    if found != seal(content) and (required or found is not None):
        raise ValueError(f"{path}: not as it was written: its content does not fit its hash")
    return content


def file_digest(path: str | Path) -> str:
    """32 hexadecimal digits of a file's bytes."""
    content = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while part := file.read(2**24):
            content.update(part)
    return content.hexdigest()


def seal(content: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of a mapping of plain values, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        FloatingPointError: a tensor holds a number that is not finite; names it. ValueError: a distributed tensor, of
            which a process has a part; names it. OSError: the disk is full or the like.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for name, value in tensors.items():
        if hasattr(value, "full_tensor"):
            raise ValueError(
                f"{path}: expected whole tensors, got a part of the distributed {name!r}; gather the weights first, as "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict does with full_state_dict"
            )
    require_finite(path, tensors)
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written: {error}") from error


def write_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write a compressed ``.npz`` file of numbers and words, under whatever names; nothing in it is pickled.

    Raises:
        ValueError: something that is neither; names it. FloatingPointError: a number that is not finite; names it.
    """
    import numpy as np

    found = {name: np.asanyarray(value) for name, value in arrays.items()}
    for name, array in found.items():
        if array.dtype.kind not in "biufcUS":
            raise ValueError(f"{path}: expected numbers or words for {name!r}, got {array.dtype}; nothing is written")
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise FloatingPointError(f"{path}: expected finite numbers, got others in {name!r}; nothing is written")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in found.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def require_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``FloatingPointError`` that names the first of ``tensors`` that are to go to ``path`` and not finite."""
    for name, value in tensors.items():
        if (value.is_floating_point() or value.is_complex()) and not bool(value.isfinite().all()):
            raise FloatingPointError(f"{path}: expected finite numbers, got others in {name!r}; nothing is written")


def _not_finite(content: Any, name: str = "") -> tuple[str, float] | None:
    if isinstance(content, float):
        return None if math.isfinite(content) else (name, content)
    if isinstance(content, Mapping):
        parts = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, (list, tuple)):
        parts = [(str(number), value) for number, value in enumerate(content)]
    else:
        return None
    found = (_not_finite(value, f"{name}.{key}" if name else key) for key, value in parts)
    return next((each for each in found if each is not None), None)
