"""Text as people's tools write it, and JSON: read rightly, or refused by file and line."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe.reading import first_line, numbered_lines, read_archive, read_json, read_npy, read_npz, read_text


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
        (b"\xfe\xff\0o\0n", "line 1: expected UTF-8 text, got UTF-16; save the file as UTF-8"),
        (b"\0\0\xfe\xff\0\0\0o", "line 1: expected UTF-8 text, got UTF-32; save the file as UTF-8"),
        (b"one\r\ntwo\r\nth\0ree", "line 3: expected UTF-8 text, got a NUL byte"),
        (b"\0one", "line 1: expected UTF-8 text, got a NUL byte"),
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


def npy(
    shape: str, numbers: bytes, *, descr: str = "<f4", order: str = "False", version: tuple[int, int] = (1, 0)
) -> bytes:
    """The bytes of a ``.npy`` file, as its format says."""
    header = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    length = 2 if version == (1, 0) else 4
    header += " " * (-(len(header) + 9 + length) % 64) + "\n"
    return b"\x93NUMPY" + bytes(version) + len(header).to_bytes(length, "little") + header.encode() + numbers


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize(("order", "expected"), [("False", [[0, 1, 2], [3, 4, 5]]), ("True", [[0, 2, 4], [1, 3, 5]])])
def test_an_array_is_read_by_its_format(
    version: tuple[int, int], order: str, expected: list[list[int]], tmp_path: Path
) -> None:
    """Numbers lie row by row, or column by column; what follows them is not read."""
    numbers = np.arange(6, dtype="<f4").tobytes()
    path = tmp_path / "a.npy"
    path.write_bytes(npy("(2, 3)", numbers + b"more", order=order, version=version))
    assert read_npy(path).tolist() == expected


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (npy("(2, 3)", bytes(23)), r"expected \(2, 3\) values of float32, got 23 bytes"),
        (npy("(-2, 3)", bytes(24)), r"expected \(-2, 3\) values of float32, got 24 bytes"),
        (npy("(-2, -3)", bytes(24)), r"expected \(-2, -3\) values of float32, got 24 bytes"),
        (npy("()", bytes(3)), r"expected \(\) values of float32, got 3 bytes"),
        (npy("(2,)", bytes(16), descr="<c8"), "expected numbers, got dtype complex64"),
        (npy("(2,)", bytes(2), descr="|b1"), "expected numbers, got dtype bool"),
        (npy("(2,)", bytes(16), descr="|O"), "expected numbers, got dtype object"),
        (npy("(2,)", bytes(8), descr="<U1"), "expected numbers, got dtype <U1"),
        (npy("(2,)", bytes(8), version=(3, 0)), r"expected format 1\.0 or 2\.0, got \(3, 0\)"),
        (b"no array", "the magic string is not correct"),
        (b"", "EOF"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.npy: expected a readable array of numbers: .*{told}"):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError):
        read_npy(tmp_path / "absent.npy")


def test_arrays_of_an_archive_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3), y=np.array(["bow", "turn"]), z=np.array(2.5))
    y, x = read_npz(path, "y", "x")
    assert (x.tolist(), y.tolist()) == ([0, 1, 2], ["bow", "turn"])
    assert read_npz(path) == []
    found = read_archive(path)
    assert {name: value.tolist() for name, value in found.items()} == {"x": [0, 1, 2], "y": ["bow", "turn"], "z": 2.5}
    with pytest.raises(ValueError, match=r"a\.npz: expected a readable archive of the arrays \('x', 'w'\): "):
        read_npz(path, "x", "w")


@pytest.mark.parametrize("read", [lambda path: read_npz(path, "x"), read_archive])
def test_an_archive_of_objects_or_of_nothing_is_refused(read: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([None]))
    (tmp_path / "words.npz").write_bytes(b"words")
    for name, told in (("objects", "Object arrays cannot be loaded"), ("words", "File is not a zip file")):
        with pytest.raises(ValueError, match=rf"{name}\.npz: expected .*: {told}"):
            read(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.npz")


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("\ntwo")) == "ValueError"


def test_the_key_that_is_there_twice_is_the_first_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1, "c": 2, "b": 3, "b": 4, "c": 5}', encoding="utf-8")
    with pytest.raises(ValueError, match="key 'c' is there twice"):
        read_json(path)
    path.write_text('{"a": {"b": 1}, "b": {"a": 2}}', encoding="utf-8")
    assert read_json(path) == {"a": {"b": 1}, "b": {"a": 2}}
