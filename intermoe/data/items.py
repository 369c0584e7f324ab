"""What the readers of all data sets have in common: items, reports of what is broken, and what a data set is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, TypedDict, TypeVar

import numpy as np
import torch

from intermoe.motion.arrays import LARGEST, Array
from intermoe.motion.representation import Representation
from intermoe.reading import numbered_lines, read_npy

T = TypeVar("T")


class MotionItem(TypedDict):
    """One item: ``motion`` is float32 (P, T, ...), not normalised; a frame is as its representation says."""

    name: str
    motion: torch.Tensor
    caption: str


@dataclass(frozen=True)
class RawClip:
    """One sequence as it is read: ``source`` is float32 (F, P, ...), what ``DataSet.convert`` takes."""

    name: str
    captions: tuple[str, ...]
    source: Array


@dataclass
class DatasetReport:
    """Items of a split that cannot be used: ``problems`` maps a kind of problem to the names (with details).

    ``known_missing`` are items that are missing in everybody's copy of the data; they are no problem.
    """

    total: int = 0
    ignored: int = 0
    known_missing: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of items left out because of a problem."""
        return sum(map(len, self.problems.values()))

    def add(self, error: ItemError) -> None:
        """Note an item that cannot be used."""
        self.problems.setdefault(error.problem, []).append(error.detail)

    def summary(self, *, names: int = 5) -> str:
        """One line a kind: the count and the first ``names`` names."""
        lines = [f"{self.count} of {self.total} items cannot be used"]
        for problem, items in sorted(self.problems.items()):
            more = f", and {len(items) - names} more" if len(items) > names else ""
            lines.append(f"  {problem}: {len(items)} ({', '.join(items[:names])}{more})")
        return "\n".join(lines)


class ItemError(ValueError):
    """Why an item cannot be used; ``problem`` groups such items in the report."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(f"{problem}: {detail}")
        self.problem = problem
        self.detail = detail


class Reader(Protocol):
    """Reads one folder in the layout in which a data set is published; ``layout`` says what that is in one line."""

    layout: str
    settings: dict[str, Any]
    """What was asked of it beside the folder, in plain values."""

    def splits(self) -> list[str]:
        """Names of the splits that the folder lists."""
        ...

    def names(self, split: str) -> tuple[list[str], int]:
        """Names of a split's sequences, and how many more the data's own ignore list takes out.

        Raises ``FileNotFoundError`` if there is no such split.
        """
        ...

    def read(self, split: str, name: str) -> list[RawClip]:
        """The clips of a sequence, one or more. Raises ``ItemError`` for a sequence that cannot be used."""
        ...

    def files(self) -> list[Path]:
        """Every file that the clips are made of."""
        ...

    def absent(self, split: str) -> list[str]:
        """Files, relative to the folder, without which there is no such split: those that are not there."""
        ...


@dataclass(frozen=True)
class DataSet:
    """A published data set: how it is read and converted.

    Args:
        representation: of its motion, once converted.
        source_shape: (P, ...) of one frame of a source.
        lost_frames: source frames that conversion consumes.
        reader: opens a folder; takes the ``options`` by name.
        convert: source (F, P, ...) to motion (F - lost_frames, P, ...).
        mirror: mirrors a source, or ``None`` where the data has no such augmentation of its own.
        known_missing: sequences that are missing in every copy of the data.
        options: names of what its reader takes beside the folder.
        convert_part: called with a source, a slice of frames of the converted motion, whether it is mirrored, and
            ``floor(source)`` or ``None``: ``convert(source)[frames]``, or that of ``mirror(source)``, for the price of
            these frames; ``None`` where that is no cheaper.
        floor: what ``convert_part`` has to find in all frames of a source, an array (P, ...), if there is such a thing.
            That of a whole clip is found once.
    """

    representation: Representation
    source_shape: tuple[int, ...]
    lost_frames: int
    reader: Callable[..., Reader]
    convert: Callable[[Array], Array]
    mirror: Callable[[Array], Array] | None = None
    known_missing: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    convert_part: Callable[[Array, slice, bool, Array | None], Array] | None = None
    floor: Callable[[Array], Array] | None = None

    @property
    def name(self) -> str:
        """That of its representation."""
        return self.representation.name

    @property
    def swappable(self) -> bool:
        """Whether persons can change places."""
        return self.representation.persons > 1


def read_sequence(reader: Reader, split: str, name: str) -> list[RawClip]:
    """The clips of a sequence of ``reader``.

    Raises:
        ItemError: a sequence that cannot be used, whatever the reason; also one whose name leads out of the folder.
    """
    return read_named(name, lambda: reader.read(split, name))


def read_named(name: str, read: Callable[[], T]) -> T:
    """What ``read`` gives for the item ``name``. Raises ``ItemError`` for whatever is wrong with name or files."""
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.anchor or flavour.drive or ".." in flavour.parts:
            raise ItemError("name that leads out of the folder", repr(name))
    try:
        return read()
    except OSError as error:
        raise ItemError("unreadable file", f"{name}: {error}") from error


def read_lines(path: Path, layout: str) -> list[str]:
    """Non-empty lines of a text file, stripped (``intermoe.reading.numbered_lines``).

    Raises:
        FileNotFoundError: no such file; says which layout was expected. ValueError: no text; names file and line.
    """
    try:
        return [line for _, line in numbered_lines(path)]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (expected {layout}'s layout)") from None


def absent(root: Path, *files: str) -> list[str]:
    """Those of ``files`` that ``root`` does not have."""
    return [file for file in files if not (root / file).exists()]


def read_captions(folder: Path, name: str) -> list[str]:
    """The lines of ``folder/<name>.txt``. Raises ``ItemError`` if there are none."""
    path = folder / f"{name}.txt"
    try:
        captions = [line for _, line in numbered_lines(path)]
    except FileNotFoundError:
        raise ItemError("no caption", f"{name}: no file {folder.name}/{name}.txt") from None
    except ValueError as error:
        raise ItemError("unreadable caption file", f"{name}: {error}") from error
    if not captions:
        raise ItemError("no caption", f"{name}: no text in {folder.name}/{name}.txt")
    return captions


def read_motion(path: Path, name: str, width: int) -> Array:
    """The file of sequence ``name``, (T, width) numbers, as float32. Raises ``ItemError`` where it holds another."""
    label = f"{name}: {path.parent.name}/{path.name}"
    try:
        values = read_npy(path)
    except ValueError as error:
        raise ItemError("unreadable file", f"{name}: {error}") from error
    if not np.issubdtype(values.dtype, np.floating):
        raise ItemError("unreadable file", f"{label}: expected floating-point numbers, got {values.dtype}")
    if values.ndim != 2 or values.shape[1] != width:
        raise ItemError("wrong shape", f"{label}: expected (T, {width}), got {values.shape}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def check_values(values: Array, label: str) -> None:
    """Raise ``ItemError`` that names the first frame of ``values`` (T, ...) whose numbers cannot be right."""
    if not len(values):
        raise ItemError("no frame", label)
    flat = np.abs(values.reshape(len(values), -1)).max(axis=1)
    if not np.isfinite(flat).all():
        raise ItemError("not finite", f"{label}: frame {int(np.argmin(np.isfinite(flat)))}")
    if (flat > LARGEST).any():
        frame = int(np.argmax(flat > LARGEST))
        raise ItemError("out of range", f"{label}: frame {frame} holds {flat[frame]:g}, expected at most {LARGEST:g}")
