"""Text as people's tools write it, and JSON: read rightly, or refused by file and line."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe.reading import numbered_lines, read_json, read_npy, read_text


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\r\n", [(1, "one"), (2, "two")]),  # Windows' editor
        (b"one\rtwo\r\r\nthree", [(1, "one"), (2, "two"), (4, "three")]),  # old Macs, and both mixed
        ("one\u2028more\ntwo\u0085x\n".encode(), [(1, "one more"), (2, "two x")]),  # pasted from a web page
        (b"one\n\x0c\ntwo\x0b2\n", [(1, "one"), (3, "two 2")]),  # a page break
        ("one\n\ufefftwo\n".encode(), [(1, "one"), (2, "two")]),  # two files that were joined
        ("\u00e9t\u00e9 \U0001f483\n".encode(), [(1, "\u00e9t\u00e9 \U0001f483")]),
        (b" \n\t\n", []),
        (b"", []),
    ],
)
def test_lines_are_those_that_were_meant(content: bytes, lines: list[tuple[int, str]], tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    assert numbered_lines(path) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\ntwo".encode("utf-16"), "line 1: expected UTF-8 text, got UTF-16"),
        ("one".encode("utf-32"), "line 1: expected UTF-8 text, got UTF-32"),
        ("one\ntwo\ncaf\u00e9".encode("latin-1"), "line 3: expected UTF-8 text, got byte 0xe9"),
        ("one\rcaf\u00e9".encode("latin-1"), "line 2: expected UTF-8 text, got byte 0xe9"),
        ("one\ntwo".encode("utf-16-le"), "line 1: expected UTF-8 text, got a NUL byte"),
        (b"one\n\0", "line 2: expected UTF-8 text, got a NUL byte"),
        ("one\n\ud800".encode("utf-8", "surrogatepass"), "line 2: expected UTF-8 text, got byte 0xed"),
    ],
)
def test_what_is_no_text_is_refused_by_file_and_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"list\.txt: {message}"):
        read_text(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "expected valid JSON: Expecting value"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "expected valid JSON: key 'b' is there twice"),
        ("[" * 100_000, "expected valid JSON: maximum recursion depth"),
        ("", "expected valid JSON"),
        ("9" * 5000, "expected valid JSON: Exceeds the limit"),
    ],
)
def test_malformed_json_is_refused_by_file(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"values\.json: {message}"):
        read_json(path)
    path.write_text('\ufeff{"a": [1, 2]}', encoding="utf-8")
    assert read_json(path) == {"a": [1, 2]}


def test_an_array_is_read_as_it_was_saved(tmp_path: Path) -> None:
    for values in (np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.array(2), np.arange(3, dtype=">f4")):
        for written in (values, np.asfortranarray(values)):
            np.save(tmp_path / "a.npy", written)
            found = read_npy(tmp_path / "a.npy")
            np.testing.assert_array_equal(found, written)
            assert (found.dtype, found.shape, found.flags.writeable) == (values.dtype, written.shape, True)


class Interrupted(io.BufferedReader):
    """Ctrl+C comes when the numbers are read, or before, while numpy asks whether this is a path."""

    def _class(self) -> type:
        signal.raise_signal(signal.SIGINT)
        return type(self)

    __class__ = property(_class)  # type: ignore[assignment]

    def readinto(self, buffer: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return super().readinto(buffer)


class Ending(io.BufferedReader):
    """Somebody cuts the file after its size was asked for."""

    def readinto(self, buffer: Any) -> int:
        return 5


def test_a_file_that_is_cut_while_it_is_read_is_no_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0))
    monkeypatch.setattr(Path, "open", lambda path, *_: Ending(io.FileIO(path)))
    with pytest.raises(ValueError, match=r"a\.npy: .* expected 48 bytes, got 5"):
        read_npy(tmp_path / "a.npy")


def test_an_interruption_is_no_broken_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0))
    monkeypatch.setattr(Path, "open", lambda path, *_: Interrupted(io.FileIO(path)))
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            read_npy(tmp_path / "a.npy")
    finally:
        signal.signal(signal.SIGINT, former)
