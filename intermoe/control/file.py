"""A control as a JSON file: what is known, from files of motion, and targets; every value is checked by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from intermoe.config import Config, _require
from intermoe.control.known import BLEND, MOST_BLEND, MOST_RESAMPLING, RESAMPLING, Control, Known
from intermoe.control.targets import Target
from intermoe.export import Take, load
from intermoe.motion.interhuman import facing_forward
from intermoe.motion.representation import Representation


@dataclass(frozen=True)
class KnownEntry(Config):
    """One entry of ``known``.

    Args:
        person: whose motion it is in what is generated, from 0.
        file: motion in a format that ``intermoe.export.load`` reads; a path from the folder of the JSON file.
        of: which of the file's persons, from 0.
        start: the file's first frame that is used, at the model's rate.
        frames: [start, stop) of what is generated, ``None`` for as many as the file has, from 0.
        resample: interpolate joints where the file has another rate than the model; otherwise that is an error.
        align: move all persons of the file so that the first starts at the origin and faces Z+, as the model has it.
    """

    person: int
    file: str
    of: int = 0
    start: int = 0
    frames: tuple[int, ...] | None = None
    resample: bool = False
    align: bool = False

    def __post_init__(self) -> None:
        for name in ("person", "of", "start"):
            _require(getattr(self, name) >= 0, name, ">= 0", getattr(self, name))
        _require(bool(self.file.strip()), "file", "a path", self.file)
        if self.frames is not None:
            ordered = len(self.frames) == 2 and 0 <= self.frames[0] < self.frames[1]
            _require(ordered, "frames", "[start, stop] with 0 <= start < stop", list(self.frames))

    def read(self, folder: Path, representation: Representation) -> Known:
        """What the file holds. Raises ``ValueError`` that names the value at fault, ``OSError`` for no such file."""
        path = folder / self.file
        take = _at_rate(path, representation, self.resample, "file")
        if self.of >= len(take.joints):
            raise ValueError(f"of: expected one of 0 to {len(take.joints) - 1}, the persons of {path}, got {self.of}")
        there = max(take.joints.shape[1] - self.start, 0)
        start, stop = self.frames or (0, there)
        if not 1 <= stop - start <= there:
            raise ValueError(f"frames: expected 1 to {there}, what {path} has from {self.start} on, got {stop - start}")
        used = slice(self.start, self.start + stop - start)
        try:
            return _known(take, self.person, self.of, used, start, self.align, representation)
        except ValueError as error:
            raise ValueError(f"file: {path}: {error}") from error


@dataclass(frozen=True)
class TargetEntry(Config):
    """One entry of ``targets``: ``intermoe.control.Target``, whose ``to`` is ``to_person`` and ``to_joint`` here."""

    person: int
    joint: str
    frames: tuple[int, ...]
    positions: tuple[tuple[float, ...], ...] | None = None
    to_person: int | None = None
    to_joint: str | None = None
    distance: float = 0.0
    apart: bool = False

    def __post_init__(self) -> None:
        both = (self.to_person is None) == (self.to_joint is None)
        _require(both, "to_joint", "given with to_person, and only with it", self.to_joint)

    def read(self) -> Target:
        """As the library has it. Raises ``ValueError`` that names the value at fault."""
        to = None if self.to_person is None or self.to_joint is None else (self.to_person, self.to_joint)
        if self.positions is not None and any(len(place) != 3 for place in self.positions):
            raise ValueError(f"positions: expected 3 numbers each, got {[list(place) for place in self.positions]}")
        return Target(self.person, self.joint, self.frames, self.positions, to, self.distance, self.apart)


@dataclass(frozen=True)
class ControlFile(Config):
    """The whole file; see ``intermoe.control.Control``."""

    known: tuple[KnownEntry, ...] = ()
    targets: tuple[TargetEntry, ...] = ()
    bodies_apart: bool = False
    blend: int = BLEND
    resampling: int = RESAMPLING
    estimate_gaps: bool = True

    def __post_init__(self) -> None:
        some = bool(self.known or self.targets or self.bodies_apart)
        _require(some, "known", "at least one entry, or targets, or bodies_apart", [])
        for name, low, high in (("blend", 0, MOST_BLEND), ("resampling", 1, MOST_RESAMPLING)):
            _require(low <= getattr(self, name) <= high, name, f"a value in [{low}, {high}]", getattr(self, name))


def read_control(path: str | Path, representation: Representation) -> Control:
    """The control that a JSON file describes, its motion in the model's representation.

    Raises:
        ValueError: a file that is malformed, an unknown key or a value out of place; names the file, the entry and the
            key. OSError: a file that is not there.
    """
    path = Path(path)
    entries = ControlFile.load(path)
    known = []
    for index, entry in enumerate(entries.known):
        try:
            known.append(entry.read(path.parent, representation))
        except ValueError as error:
            raise ValueError(f"{path}: known[{index}].{error}") from error
        except OSError as error:
            raise type(error)(f"{path}: known[{index}].file: {error}") from error
    targets = []
    for index, target in enumerate(entries.targets):
        try:
            targets.append(target.read())
        except ValueError as error:
            raise ValueError(f"{path}: targets[{index}].{error}") from error
    return Control(known, entries.blend, entries.resampling, targets, entries.bodies_apart, entries.estimate_gaps)


def reaction_to(path: str | Path, representation: Representation, *, resample: bool, max_frames: int) -> Control:
    """A control whose first person is that of a file of motion, so that the others react.

    Where it does not start at the origin and face Z+ it is moved there, as the model has it.

    Args:
        resample: as ``KnownEntry``.
        max_frames: what is longer is cut.

    Raises:
        ValueError: a broken file, or one of another rate; names it. OSError: no such file.
    """
    take = _at_rate(Path(path), representation, resample)
    used = slice(0, min(max_frames, take.joints.shape[1]))
    try:
        return Control([_known(take, 0, 0, used, 0, True, representation)])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _at_rate(path: Path, representation: Representation, resample: bool, name: str = "path") -> Take:
    take = load(path, name=name)
    if take.fps == representation.fps:
        return take
    if not resample:
        raise ValueError(
            f"resample: expected true for {path} of {take.fps:g} frames a second, the model has {representation.fps}, "
            "got false"
        )
    return load(path, representation.fps)


def _known(
    take: Take, person: int, of: int, frames: slice, to: int, align: bool, representation: Representation
) -> Known:
    """Frames of one person of a take: its motion where the take has it so, else its joints."""
    where = slice(to, to + frames.stop - frames.start)
    body = torch.from_numpy(take.body)
    motion = None
    if take.motion is not None and take.motion.shape[2:] == representation.frame_shape:
        motion = torch.from_numpy(take.motion)[of, frames]
    joints = body[of, frames]
    if align:
        turn, origin = facing_forward(body[0, frames.start])
        if not _stands(turn, origin):
            joints = (joints - origin) @ turn.T
            if motion is not None and representation.turned is not None:
                motion = representation.turned(motion, turn, origin)
            else:
                motion = None
    return Known(person, joints=joints if motion is None else None, motion=motion, frames=where)


def _stands(turn: Tensor, origin: Tensor) -> bool:
    """Whether a body is at the origin and faces Z+ already, up to rounding: then it is left bit for bit."""
    return bool(torch.allclose(turn, torch.eye(3), atol=1e-3)) and bool(origin.abs().max() < 1e-3)
