"""Reading of a whole data set, piece by piece, by several processes, with a journal to go on with.

A piece is a run of sequences. What is read of it goes to the end of one file, frame after frame, and then a line to the
journal beside it: in the order of the sequences, however many processes read. So the file is the same whoever read it,
memory does not grow with the data, and who comes after an interruption goes on with the first piece that is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from intermoe.data.items import ItemError, Reader, read_sequence
from intermoe.data.workers import in_order

JOURNAL = "journal.jsonl"
PIECE = 32
"""Sequences of a piece: some ten megabytes of InterHuman's."""


class ClipRow(NamedTuple):
    """A clip as it lies in the file: its name, captions, number of frames, and the hash of its bytes."""

    name: str
    captions: list[str]
    frames: int
    hash: str


class SequenceRows(NamedTuple):
    """The clips of a sequence; or none, and the kind of problem and what it is."""

    clips: list[ClipRow]
    problem: list[str]


def digest(content: bytes) -> str:
    """By which content is known again, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_all(
    reader: Reader,
    sequences: Sequence[tuple[str, str]],
    frame_bytes: int,
    path: Path,
    journal: Path,
    key: str,
    *,
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[SequenceRows]:
    """Write the clips of all ``sequences`` to ``path``, and yield what became of each, in their order.

    What ``path`` and ``journal`` hold already is taken as far as it is whole and of the same ``key``.

    Args:
        sequences: (split, name) of each.
        frame_bytes: of a frame of the file.
        key: of source and settings.
        workers: processes that read.
        progress: called with the number of sequences that are done.
    """
    pieces = [sequences[start : start + PIECE] for start in range(0, len(sequences), PIECE)]
    with path.open("r+b" if path.exists() else "w+b") as file, journal.open("a+b") as book:
        done, count = 0, 0
        for rows in _taken_up(file, book, key, frame_bytes, [len(piece) for piece in pieces]):
            done, count = done + 1, count + len(rows)
            progress(count)
            yield from rows
        left = pieces[done:]
        for content, rows in in_order(_read_piece, reader, left, workers=min(workers, len(left))):
            file.write(content)
            file.flush()  # the journal never tells of what the file has not
            book.write(_line(rows))
            book.flush()
            count += len(rows)
            progress(count)
            yield from rows


def _read_piece(reader: Reader, piece: Sequence[tuple[str, str]]) -> tuple[bytes, list[SequenceRows]]:
    contents, rows = [], []
    for split, name in piece:
        try:
            clips = read_sequence(reader, split, name)
        except ItemError as error:
            rows.append(SequenceRows([], [error.problem, error.detail]))
            continue
        found = []
        for clip in clips:
            content = np.ascontiguousarray(clip.source, dtype="<f4").tobytes()
            found.append(ClipRow(clip.name, list(clip.captions), len(clip.source), digest(content)))
            contents.append(content)
        rows.append(SequenceRows(found, []))
    return b"".join(contents), rows


def _taken_up(
    file: IO[bytes], book: IO[bytes], key: str, frame_bytes: int, sizes: Sequence[int]
) -> Iterator[list[SequenceRows]]:
    """The pieces that are there, as they were written; what comes after them is cut off."""
    book.seek(0)
    end = 0
    if book.readline() == _head(key):
        written = book.tell()
        for size in sizes:
            rows = _parsed(book.readline(), size)
            clips = [clip for row in rows for clip in row.clips]
            contents = (file.read(clip.frames * frame_bytes) for clip in clips)
            if not rows or any(digest(each) != clip.hash for each, clip in zip(contents, clips, strict=True)):
                break
            written, end = book.tell(), file.tell()
            yield rows
        book.truncate(written)
    else:
        book.truncate(0)
        book.write(_head(key))
        book.flush()
    file.seek(end)
    file.truncate()
    book.seek(0, os.SEEK_END)


def _head(key: str) -> bytes:
    return _line({"key": key, "piece": PIECE})


def _line(content: object) -> bytes:
    text = json.dumps(content).encode()
    return digest(text).encode() + b" " + text + b"\n"


def _parsed(line: bytes, size: int) -> list[SequenceRows]:
    """A line of the journal; empty where it is not as it was written."""
    known, _, text = line.removesuffix(b"\n").partition(b" ")
    if digest(text).encode() != known:
        return []
    rows = [SequenceRows([ClipRow(*clip) for clip in clips], problem) for clips, problem in json.loads(text)]
    return rows if len(rows) == size else []
