"""A data set read and checked once: one memory-mapped array of all clips, an index, and the training statistics.

A cache is a folder of ``motion.f32`` (the source columns of all clips, frame after frame, little-endian float32),
``index.json`` (names, captions, places, lengths and hashes of the clips, the clips of each split, what was broken) and
``statistics.json``. It is written under another name, ``.unfinished-`` before its own, and renamed when it is complete;
an interrupted preparation goes on there. It belongs to the state of the source files and to the settings that it was
made with, and knows its own content: what was cut or edited since is refused by name where it is opened, and written
again where it is prepared.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intermoe.data.items import DataSet, DatasetReport, ItemError, Reader
from intermoe.data.pieces import JOURNAL, SequenceRows, read_all
from intermoe.data.pieces import digest as _digest
from intermoe.files import finishing_folder, seal, write_sealed
from intermoe.motion.arrays import Array
from intermoe.motion.statistics import Statistics
from intermoe.reading import read_json

VERSION = 2
SPLITS = ("train", "val", "test")
INDEX, MOTION, STATISTICS = "index.json", "motion.f32", "statistics.json"
_AGAIN = "run intermoe prepare again"
_LEFT_BYTES = 2**26
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PreparedCache:
    """``reports`` by split; ``written`` is False where a cache of the same source and settings was there already.

    ``absent`` has the usual splits that the source does not have, with the files that are missing for it.
    """

    folder: Path
    written: bool
    reports: dict[str, DatasetReport]
    absent: dict[str, list[str]]


def is_cache(folder: Path) -> bool:
    """Whether ``folder`` is a cache of any version, whole or not."""
    return (folder / INDEX).is_file() or (folder / MOTION).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache. Raises ``ValueError`` where it is absent, of another version or not as it was written."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{path}: no such file, but a {MOTION} beside it: {_AGAIN}")
    index = read_json(path)
    if not isinstance(index, dict) or "version" not in index:
        raise ValueError(f"{path}: expected the index of a cache, got another file: {_AGAIN}")
    if index["version"] != VERSION:
        raise ValueError(f"{folder}: expected a cache of version {VERSION}, got {index['version']}: {_AGAIN}")
    if index.pop("hash", None) != seal(index):
        raise ValueError(f"{path}: not as it was written: {_AGAIN}")
    return index


def read_statistics(folder: Path) -> Statistics | None:
    """Statistics of a cache's training split, ``None`` where it has none. Raises ``ValueError`` as ``read_index``."""
    expected = read_index(folder)["statistics"]
    if expected is None:
        return None
    path = folder / STATISTICS
    if not path.is_file():
        raise ValueError(f"{path}: no such file: {_AGAIN}")
    if _digest(path.read_bytes()) != expected:
        raise ValueError(f"{path}: not as it was written: {_AGAIN}")
    return Statistics.load(path)


def fingerprint(data_set: DataSet, reader: Reader, root: Path) -> str:
    """What a cache depends on: names, sizes and times of the source files, and the reader's settings."""
    content = hashlib.sha256(json.dumps([VERSION, data_set.name, reader.settings], sort_keys=True).encode())
    for path in sorted(reader.files()):
        # files beside the data, such as a skeleton, are named in full
        name = path.relative_to(root) if path.is_relative_to(root) else path
        try:
            status = path.stat()
        except OSError:  # a link to nothing, which matters only where a split names it
            state = "absent"
        else:
            # the time of the last change of anything: that of the content can be set back
            state = f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        content.update(f"{name}\0{state}\n".encode(errors="surrogateescape"))
    return content.hexdigest()


def write_cache(
    data_set: DataSet,
    reader: Reader,
    root: Path,
    out: Path,
    *,
    statistics: Callable[[Path], None],
    progress: Progress | None = None,
    workers: int = 1,
) -> PreparedCache:
    """Read every split of ``root`` into the cache ``out``, unless it is there already.

    The cache is the same bytes, however many processes read and however often it was interrupted.

    Args:
        statistics: called with the folder of the finished array and index; writes ``statistics.json`` there. Its other
            files are there again after an interruption, and are removed in the end.
        progress: called as ``progress(sequences_done, sequences)``.
        workers: processes that read.

    Raises:
        FileExistsError: ``out`` holds something beside a cache. FileNotFoundError: ``root`` has no split.
        ValueError: no clip can be used.
    """
    foreign = [] if out.is_dir() else [out] if out.exists() else []
    foreign += [path for path in sorted(out.glob("*")) if path.name not in (INDEX, MOTION, STATISTICS)]
    if foreign:
        raise FileExistsError(f"out: {out} exists and is not a cache: it holds {foreign[0].name}")
    splits = reader.splits()
    if not splits:
        raise FileNotFoundError(f"{root}: lists no split (expected {data_set.name}'s layout: {reader.layout})")
    absent = {split: reader.absent(split) for split in SPLITS if split not in splits}
    key = fingerprint(data_set, reader, root)
    if (kept := _whole(data_set, out, key)) is not None:
        return PreparedCache(out, False, {name: _report(split) for name, split in kept["splits"].items()}, absent)
    with finishing_folder(out) as folder:
        index = _read(data_set, reader, splits, folder, key, progress, workers)
        if not index["clips"]["names"]:
            shutil.rmtree(folder)
            first = next(iter(index["splits"].values()))
            raise ValueError(f"{root}: {_report(first).summary()}")
        index |= {"fingerprint": key, "settings": reader.settings, "statistics": None}
        write_sealed(folder / INDEX, index, indent=None)
        statistics(folder)
        if (folder / STATISTICS).exists():
            index["statistics"] = _digest((folder / STATISTICS).read_bytes())
            write_sealed(folder / INDEX, index, indent=None)
        for left in folder.iterdir():
            if left.name not in (INDEX, MOTION, STATISTICS):
                left.unlink()
    return PreparedCache(out, True, {name: _report(split) for name, split in index["splits"].items()}, absent)


def _whole(data_set: DataSet, folder: Path, key: str) -> dict[str, Any] | None:
    """The index of the cache ``folder`` if it is of the sources ``key`` and everything is as it was written."""
    if not is_cache(folder):
        return None
    try:
        index = read_index(folder)
        if index["fingerprint"] != key:
            return None
        read_statistics(folder)
        for split in index["splits"]:
            CachedClips(data_set, folder, split)
    except (ValueError, OSError):
        return None
    return index


def _read(
    data_set: DataSet,
    reader: Reader,
    splits: list[str],
    folder: Path,
    key: str,
    progress: Progress | None,
    workers: int,
) -> dict[str, Any]:
    """Write the array of all clips, and return the index of clips and splits."""
    named = {split: reader.names(split) for split in splits}
    # a sequence may be in several splits
    place_of: dict[str, int] = {}
    sequences: list[tuple[str, str]] = []
    for split, (names, _) in named.items():
        for name in names:
            if place_of.setdefault(name, len(sequences)) == len(sequences):
                sequences.append((split, name))
    (folder / STATISTICS).unlink(missing_ok=True)
    read = read_all(
        reader,
        sequences,
        4 * int(np.prod(data_set.source_shape)),
        folder / MOTION,
        folder / JOURNAL,
        key,
        workers=workers,
        progress=(lambda done: progress(done, len(sequences))) if progress is not None else lambda _: None,
    )
    clips: dict[str, list[Any]] = {"names": [], "captions": [], "starts": [], "frames": [], "hashes": []}
    frames, found = 0, list[SequenceRows | list[int]]()
    for rows in read:
        first = len(clips["names"])
        for name, captions, length, content in rows.clips:
            for column, value in zip(clips.values(), (name, captions, frames, length, content), strict=True):
                column.append(value)
            frames += length
        found.append(rows if rows.problem else list(range(first, first + len(rows.clips))))
    parts = {}
    for split, (names, ignored) in named.items():
        report, places = DatasetReport(total=len(names), ignored=ignored), list[int]()
        for name in names:
            here = found[place_of[name]]
            if isinstance(here, list):
                places += here
            elif name in data_set.known_missing:
                report.known_missing.append(name)
            else:
                report.add(ItemError(*here.problem))
        parts[split] = {"clips": places, **asdict(report)}
    shape = list(data_set.source_shape)
    return {"version": VERSION, "kind": data_set.name, "frame": shape, "clips": clips, "splits": parts}


class CachedClips:
    """The clips of one split of a cache; their columns are mapped into memory.

    With ``check`` each is compared with its hash first.

    Raises:
        FileNotFoundError: no such split. ValueError: a cache of another data set or version, or a broken one.
    """

    def __init__(self, data_set: DataSet, folder: Path, split: str, check: bool = True) -> None:
        self._opened_with = (data_set, folder, split)
        index = read_index(folder)
        if index["kind"] != data_set.name:
            raise ValueError(f"{folder}: expected a cache of {data_set.name}, got one of {index['kind']}")
        if split not in index["splits"]:
            raise FileNotFoundError(f"{folder}: no split {split!r} in this cache, only {', '.join(index['splits'])}")
        part, clips = index["splits"][split], index["clips"]
        self.report = _report(part)
        self.names: list[str] = [clips["names"][i] for i in part["clips"]]
        self.captions = [tuple(clips["captions"][i]) for i in part["clips"]]
        self.frames: list[int] = [clips["frames"][i] for i in part["clips"]]
        self._starts: list[int] = [clips["starts"][i] for i in part["clips"]]
        shape = (sum(clips["frames"]), *data_set.source_shape)
        size = 4 * int(np.prod(shape))
        got = (folder / MOTION).stat().st_size if (folder / MOTION).is_file() else 0
        if got != size:
            raise ValueError(f"{folder / MOTION}: expected {size} bytes, got {got}: {_AGAIN}")
        with (folder / MOTION).open("rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._motion = np.frombuffer(self._pages, dtype="<f4").reshape(shape)
        read = 0
        for index_of_clip, place in enumerate(part["clips"] if check else []):
            content = self[index_of_clip].tobytes()
            if _digest(content) != clips["hashes"][place]:
                raise ValueError(f"{folder / MOTION}: {self.names[index_of_clip]} is not as it was written: {_AGAIN}")
            read += len(content)
            if read > _LEFT_BYTES:
                self.leave()
                read = 0

    def __reduce__(self) -> tuple[type[CachedClips], tuple[DataSet, Path, str, bool]]:
        # a worker that is spawned maps the file itself: a pickled memory map would be all of its contents
        return CachedClips, (*self._opened_with, False)

    def leave(self) -> None:
        """What was read leaves this process's memory; the system keeps it at hand as long as it has room."""
        if hasattr(self._pages, "madvise"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def __getitem__(self, index: int) -> Array:
        start = self._starts[index]
        return np.asarray(self._motion[start : start + self.frames[index]])


def _report(part: dict[str, Any]) -> DatasetReport:
    return DatasetReport(
        total=part["total"],
        ignored=part["ignored"],
        known_missing=list(part["known_missing"]),
        problems={kind: list(names) for kind, names in part["problems"].items()},
    )
