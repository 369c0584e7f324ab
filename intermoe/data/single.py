"""Single persons in InterHuman's columns, of folders in the layout of ``intermoe.data.solo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from intermoe.data.interhuman import usable_columns
from intermoe.data.items import DataSet, RawClip, absent
from intermoe.data.solo import SoloReader
from intermoe.motion.arrays import Array
from intermoe.motion.interhuman import RAW_WIDTH, SOLO, lowest, mirror_raw, process_persons


class SinglePersonReader:
    """Reads every clip of a ``SoloReader`` as a sequence of one person."""

    layout = SoloReader.layout

    def __init__(self, root: Path) -> None:
        self.root, self.clips = root, SoloReader(root)
        self.settings: dict[str, Any] = {}

    def splits(self) -> list[str]:
        """Names of the files in ``split``."""
        return self.clips.splits()

    def names(self, split: str) -> tuple[list[str], int]:
        """Names of a split; the data ignore none."""
        return self.clips.names(split), 0

    def read(self, split: str, name: str) -> list[RawClip]:
        """One clip of source columns, (F, 1, 192)."""
        clip = self.clips.read(name)
        raw = np.concatenate([clip.positions, clip.rotations], axis=1)
        return [RawClip(name, clip.captions, usable_columns(raw, f"{name}: motions/{name}.npz")[:, None])]

    def files(self) -> list[Path]:
        """Motion, captions and splits."""
        return [path for folder in ("motions/*.npz", "annots/*.txt", "split/*.txt") for path in self.root.glob(folder)]

    def absent(self, split: str) -> list[str]:
        """Its list."""
        return absent(self.root, f"split/{split}.txt")


def _convert(source: Array, frames: slice | None = None, mirrored: bool = False, floor: Array | None = None) -> Array:
    """Everyone starts at the origin, facing Z+, as person 1 of a pair does."""
    return rearrange(process_persons(source, frames, mirrored=mirrored, floor=floor), "p t x -> t p x")


def _mirror(source: Array) -> Array:
    return mirror_raw(source[:, 0])[:, None]


DATA_SET = DataSet(
    SOLO,
    source_shape=(1, RAW_WIDTH),
    lost_frames=1,
    reader=SinglePersonReader,
    convert=_convert,
    mirror=_mirror,
    convert_part=_convert,
    floor=lowest,
)
