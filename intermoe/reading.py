"""Text, JSON and arrays as people's tools write them: read rightly, or refused by file, and by line in text."""

from __future__ import annotations

import codecs
import json
import math
import re
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# UTF-32 first: its little-endian mark begins with that of UTF-16
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_MARK = "\ufeff"
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
        ValueError: bytes that are not UTF-8, or a NUL, which no text has; names file and line. OSError: no such file.
    """
    data = Path(path).read_bytes()
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{path}: line 1: expected UTF-8 text, got {encoding}; save the file as UTF-8")
    try:
        text = data.decode("utf-8").removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise _not_text(path, data, error.start, f"byte {data[error.start]:#04x}") from None
    if (place := data.find(b"\0")) >= 0:
        raise _not_text(path, data, place, "a NUL byte")
    return text


def numbered_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of ``read_text`` that are not empty, stripped, each with its number, which counts from 1.

    A line ends with LF, CR LF or CR alone. Whatever else Unicode takes for the end of a line or a page (U+2028, form
    feed, ...) comes from pasting and is a space.
    """
    lines = enumerate(_LINE_BREAK.split(read_text(path)), start=1)
    return [
        (number, words) for number, line in lines if (words := " ".join(line.replace(_MARK, "").splitlines()).strip())
    ]


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises ``ValueError`` that names the file where it is malformed or repeats a key."""
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected valid JSON: {error}") from error


def read_npy(path: str | Path) -> npt.NDArray[Any]:
    """The array of a ``.npy`` file of numbers; nothing is ever unpickled.

    Raises:
        ValueError: another file, or one that holds something else or less than it says; named. OSError: no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            shape, transposed, dtype = _npy_header(file, path.stat().st_size)
            numbers = np.empty(math.prod(shape), dtype)
            read = file.readinto(numbers.view(np.uint8).data)  # numpy's own reading takes Ctrl+C for an error
            if read != numbers.nbytes:
                raise ValueError(f"numbers: expected {numbers.nbytes} bytes, got {read}")
            values: npt.NDArray[Any] = numbers.reshape(shape[::-1]).T if transposed else numbers.reshape(shape)
        except Exception as error:  # of broken bytes numpy's parser raises whatever it stumbles over
            raise ValueError(f"{path}: expected a readable array of numbers: {first_line(error)}") from error
    return values


def read_npz(path: str | Path, *names: str) -> list[npt.NDArray[Any]]:
    """The arrays ``names`` of an ``.npz`` file; nothing is ever unpickled.

    Raises:
        ValueError: another file, a broken one, or one without these arrays; names it. OSError: no such file.
    """
    with Path(path).open("rb") as file:
        try:
            with np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
                return [arrays[name] for name in names]
        except Exception as error:  # so do the parsers of archives
            raise ValueError(
                f"{path}: expected a readable archive of the arrays {names}: {first_line(error)}"
            ) from error


def read_archive(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an ``.npz`` file by name, words among them. Raises as ``read_npz``."""
    with Path(path).open("rb") as file:
        try:
            with np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:
            raise ValueError(f"{path}: expected an .npz of plain arrays: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What a library's error says first, or its name where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _npy_header(file: BufferedReader, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether axes lie the other way round, and dtype; the numbers follow in ``file``, of ``size`` bytes.

    Refuses what numpy would unpickle, or make room for without having read it.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected format 1.0 or 2.0, got {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, transposed, dtype = read_header(file)
    if dtype.kind not in "fiu":
        raise ValueError(f"expected numbers, got dtype {dtype}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"expected {shape} values of {dtype}, got {size - file.tell()} bytes")
    return shape, transposed, dtype


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def _not_text(path: str | Path, data: bytes, place: int, got: str) -> ValueError:
    line = len((data[:place] + b"-").splitlines())
    return ValueError(f"{path}: line {line}: expected UTF-8 text, got {got}")
