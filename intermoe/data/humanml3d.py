"""Reader of single-person motion in HumanML3D's layout (Guo et al. 2022)."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from intermoe.data.items import (
    DataSet,
    ItemError,
    RawClip,
    absent,
    check_values,
    read_captions,
    read_lines,
    read_motion,
)
from intermoe.motion.arrays import Array
from intermoe.motion.humanml3d import FPS, HUMANML3D, WIDTH

_LONGEST = 1e6
"""Seconds that no sequence lasts."""


class HumanML3DReader:
    """Folder with ``new_joint_vecs/<name>.npy`` (T, 263), ``texts/<name>.txt`` and ``<split>.txt``.

    A line of text is ``caption#tokens#start#end``. Where start and end are given, in seconds, the caption describes
    that part of the sequence, which becomes a clip of its own, named ``<name>@<start>-<end>``.
    """

    layout = "<split>.txt, new_joint_vecs/<name>.npy, texts/<name>.txt"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings: dict[str, Any] = {}

    def splits(self) -> list[str]:
        """Names of the lists beside the folders of motion and text."""
        return sorted(path.stem for path in self.root.glob("*.txt"))

    def names(self, split: str) -> tuple[list[str], int]:
        """Names of a split; HumanML3D has no ignore list."""
        return read_lines(self.root / f"{split}.txt", "HumanML3D"), 0

    def read(self, split: str, name: str) -> list[RawClip]:
        """The sequence and the parts that captions describe, each (T, 1, 263)."""
        path = self.root / "new_joint_vecs" / f"{name}.npy"
        if not path.is_file():
            raise ItemError("no motion file", f"{name}: no file {path.parent.name}/{path.name}")
        spans: dict[tuple[float, float], list[str]] = defaultdict(list)
        for line in read_captions(self.root / "texts", name):
            caption, span = _parse(line, name)
            if caption:
                spans[span].append(caption)
        if not spans:
            raise ItemError("no caption", f"{name}: no line of texts/{name}.txt has a caption before its first #")
        motion = read_motion(path, name, WIDTH)
        check_values(motion, f"{name}: {path.parent.name}/{path.name}")
        clips = []
        for (start, end), captions in spans.items():
            whole = start == end == 0
            part = motion if whole else motion[min(int(start * FPS), len(motion)) : int(end * FPS)]
            if len(part):
                title = name if whole else f"{name}@{start:g}-{end:g}"
                clips.append(RawClip(title, tuple(captions), part[:, None]))
        if not clips:
            raise ItemError("no frame", f"{name}: every caption's part lies outside of {len(motion)} frames")
        return clips

    def files(self) -> list[Path]:
        """Motion, captions and splits."""
        return [
            path for pattern in ("new_joint_vecs/*.npy", "texts/*.txt", "*.txt") for path in self.root.glob(pattern)
        ]

    def absent(self, split: str) -> list[str]:
        """Its list."""
        return absent(self.root, f"{split}.txt")


def _parse(line: str, name: str) -> tuple[str, tuple[float, float]]:
    parts = line.split("#")
    try:
        caption, _, start, end = parts
        # a missing time is written as nan
        span = tuple(0.0 if math.isnan(time) else time for time in (float(start), float(end)))
    except ValueError:
        span = (math.inf,)
    if not all(0 <= time < _LONGEST for time in span):
        what = f"{name}: texts/{name}.txt: expected caption#tokens#start#end, times in seconds, got {line[:60]!r}"
        raise ItemError("unreadable caption file", what)
    return caption.strip(), (span[0], span[1])


def _convert(source: Array, frames: slice | None = None, *_: object) -> Array:
    return np.array(source if frames is None else source[frames], dtype=np.float32)


DATA_SET = DataSet(
    HUMANML3D,
    source_shape=(1, WIDTH),
    lost_frames=0,
    reader=HumanML3DReader,
    convert=_convert,
    convert_part=_convert,
)
