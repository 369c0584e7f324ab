"""Clips of single persons, and pairs composed of two of them: words and movements for a model of two persons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intermoe.data.interhuman import usable_columns
from intermoe.data.items import ItemError, read_captions, read_lines
from intermoe.motion.arrays import Array
from intermoe.motion.skeleton import NUM_JOINTS
from intermoe.reading import read_npz

METRES, ROTATIONS = 2e-4, 1 / 8192
"""What one unit of the stored integers is."""
APART = 1.2
"""Metres that the pelvises of a composed pair keep from each other, at least."""
_FARTHER = 0.25
_LONGER = 32
_SUBJECT = re.compile(r"(?:a person|someone|somebody|one person)\s+", re.I)


@dataclass(frozen=True)
class SoloClip:
    """``positions`` (T, 66) in metres, Z up, ``rotations`` (T, 126) rot6D of joints 1..21, both float32."""

    name: str
    captions: tuple[str, ...]
    positions: Array
    rotations: Array

    def __len__(self) -> int:
        return len(self.positions)


class SoloReader:
    """Folder with ``motions/<name>.npz``, ``annots/<name>.txt`` (a caption a line) and ``split/<split>.txt``.

    A file of motion holds two integer arrays: ``pos`` (T, 22, 3), positions of the joints in steps of 0.2 mm, Z up, and
    ``rot6d`` (T, 21, 6), 8192 times the first two columns of each local rotation, one after the other.
    """

    layout = "split/<split>.txt, motions/<name>.npz, annots/<name>.txt"

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def reads(root: Path) -> bool:
        """Whether ``root`` has this layout."""
        return (root / "motions").is_dir()

    def splits(self) -> list[str]:
        """Names of the files in ``split``."""
        return sorted(path.stem for path in (self.root / "split").glob("*.txt"))

    def names(self, split: str) -> list[str]:
        """Names of a split. Raises ``FileNotFoundError`` if there is no such split."""
        return read_lines(self.root / "split" / f"{split}.txt", "a solo folder")

    def read(self, name: str) -> SoloClip:
        """Raises ``ItemError`` for a clip that cannot be used."""
        label, path = f"{name}: motions/{name}.npz", self.root / "motions" / f"{name}.npz"
        try:
            positions, rotations = read_npz(path, "pos", "rot6d")
        except (OSError, ValueError) as error:
            raise ItemError("unreadable file", f"{label}: {error}") from error
        columns = []
        for values, joints, width, unit in (
            (positions, NUM_JOINTS, 3, METRES),
            (rotations, NUM_JOINTS - 1, 6, ROTATIONS),
        ):
            if values.shape != (*positions.shape[:1], joints, width) or not np.issubdtype(values.dtype, np.integer):
                expected = f"integers of shape (T, {joints}, {width})"
                raise ItemError("wrong shape", f"{label}: expected {expected}, got {values.dtype} {values.shape}")
            columns.append((values.reshape(len(values), joints * width) * unit).astype(np.float32))
        usable_columns(np.concatenate(columns, axis=1), label)
        return SoloClip(name, tuple(read_captions(self.root / "annots", name)), *columns)


def partners(lengths: list[int], rng: np.random.Generator) -> list[int]:
    """Of every clip the number of another: one that is as long or longer, at random among the next ``_LONGER``.

    The longest have one that is nearly as long. Needs two clips.
    """
    order = np.lexsort((rng.random(len(lengths)), np.array(lengths)))
    chosen = [0] * len(lengths)
    for place, index in enumerate(order):
        others = order[place + 1 : place + 1 + _LONGER] if place + 1 < len(order) else order[place - 1 : place]
        chosen[index] = int(rng.choice(others))
    return chosen


def compose(first: SoloClip, second: SoloClip, rng: np.random.Generator) -> tuple[Array, Array]:
    """Positions (T, 66) of both in one world, T frames of the shorter: the second turned and put down anywhere around.

    The second stands as near as its way leaves the pelvises ``APART``.
    """
    frames = min(len(first), len(second))
    own, other = (clip.positions[:frames].reshape(frames, NUM_JOINTS, 3) for clip in (first, second))
    turn, bearing = rng.uniform(0, 2 * np.pi, size=2)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    turned = other @ rotation.T
    ground = np.array([1.0, 1.0, 0.0])
    turned = turned + (own[0, 0] - turned[0, 0]) * ground
    direction, distance = np.array([np.cos(bearing), np.sin(bearing), 0.0]), APART
    while np.hypot(*(turned[:, 0] + distance * direction - own[:, 0])[:, :2].T).min() < APART:
        distance += _FARTHER
    placed = (turned + distance * direction).astype(np.float32)
    return own.reshape(frames, -1), placed.reshape(frames, -1)


def join_captions(first: str, second: str) -> str:
    """One sentence of both: "one person waves, while the other sweeps the floor.".

    Captions that do not begin with a person ("a person", "someone", "one person") stand side by side, unchanged.
    """
    own, other = (_SUBJECT.match(caption) for caption in (first, second))
    if own is None or other is None:
        return f"{first} {second}"
    doing = [caption[match.end() :].strip().rstrip(".") for caption, match in ((first, own), (second, other))]
    return f"one person {doing[0]}, while the other {doing[1]}."
