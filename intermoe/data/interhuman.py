"""Reader of two-person motion in InterHuman's folder layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from intermoe.data.dataset import MotionDataset
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
from intermoe.motion.interhuman import INTERHUMAN, RAW_WIDTH, has_direction, lowest, mirror_raw, process_persons
from intermoe.motion.rotations import row_major_rot6d

FILE_WIDTH = 492
_USED_COLUMNS = np.r_[0:66, 186:312]
PERSONS = ("person1", "person2")


class InterHumanReader:
    """Folder with ``motions_processed/person{1,2}/<name>.npy`` (T, 492), ``annots/<name>.txt`` (a caption a line),
    ``split/<split>.txt`` and, optionally, ``ignore_list.txt`` (names, a line each).

    Rotations stored column after column are brought to InterHuman's row-major rot6D (see ``row_major_rot6d``).
    """

    layout = "split/<split>.txt, motions_processed/person1 and person2/<name>.npy, annots/<name>.txt"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings: dict[str, Any] = {}

    def splits(self) -> list[str]:
        """Names of the files in ``split``."""
        return sorted(path.stem for path in (self.root / "split").glob("*.txt"))

    def names(self, split: str) -> tuple[list[str], int]:
        """Names of a split without those of the ignore list, and how many these are."""
        names = read_lines(self.root / "split" / f"{split}.txt", "InterHuman")
        ignore_list = self.root / "ignore_list.txt"
        ignored = set(read_lines(ignore_list, "InterHuman")) if ignore_list.exists() else set()
        wanted = [name for name in names if name not in ignored]
        return wanted, len(names) - len(wanted)

    def read(self, split: str, name: str) -> list[RawClip]:
        """One clip of both persons' source columns, (F, 2, 192)."""
        captions = tuple(read_captions(self.root / "annots", name))
        paths = [self.root / "motions_processed" / person / f"{name}.npy" for person in PERSONS]
        missing = [f"{path.parent.name}/{path.name}" for path in paths if not path.is_file()]
        if missing:
            problem = "no motion file" if len(missing) == 2 else "missing partner"
            raise ItemError(problem, f"{name}: no file {' or '.join(missing)}")
        raw1, raw2 = (_read_raw(path, name) for path in paths)
        if len(raw1) != len(raw2):
            raise ItemError("persons of different length", f"{name}: {len(raw1)} and {len(raw2)} frames")
        return [RawClip(name, captions, np.stack([raw1, raw2], axis=1))]

    def files(self) -> list[Path]:
        """Motion, captions, splits and ignore list."""
        folders = [*(f"motions_processed/{person}/*.npy" for person in PERSONS), "annots/*.txt", "split/*.txt"]
        return [path for folder in folders for path in self.root.glob(folder)] + list(self.root.glob("ignore_list.txt"))

    def absent(self, split: str) -> list[str]:
        """Its list."""
        return absent(self.root, f"split/{split}.txt")


def _read_raw(path: Path, name: str) -> Array:
    label = f"{name}: {path.parent.name}/{path.name}"
    return usable_columns(read_motion(path, name, FILE_WIDTH)[:, _USED_COLUMNS], label)


def usable_columns(raw: Array, label: str) -> Array:
    """Source columns (F, 192), their rotations column after column, with those brought to rows.

    Raises:
        ItemError: numbers that cannot be right, or a frame without a facing direction; names ``label``.
    """
    check_values(raw, label)
    # an item may begin with any frame, and with either person
    directed = has_direction(raw)
    if not directed.all():
        frame = int(np.argmin(directed))
        raise ItemError("no facing direction", f"{label}: the hips of frame {frame} lie above each other")
    raw[:, 66:] = row_major_rot6d(raw[:, 66:].reshape(len(raw), -1, 6)).reshape(len(raw), -1)
    return raw


def _convert(source: Array, frames: slice | None = None, mirrored: bool = False, floor: Array | None = None) -> Array:
    return rearrange(process_persons(source, frames, mirrored=mirrored, floor=floor), "p t x -> t p x")


def _mirror(source: Array) -> Array:
    return mirror_raw(source.reshape(-1, RAW_WIDTH)).reshape(source.shape)


DATA_SET = DataSet(
    INTERHUMAN,
    source_shape=(2, RAW_WIDTH),
    lost_frames=1,
    reader=InterHumanReader,
    convert=_convert,
    mirror=_mirror,
    convert_part=_convert,
    floor=lowest,
    known_missing=frozenset({"3945", "4106"}),
)


class InterHumanDataset(MotionDataset):
    """``MotionDataset`` of InterHuman's layout: items (2, T, 262). The arguments are those of ``MotionDataset``."""

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        min_frames: int | None = None,
        max_frames: int | None = None,
        mirror: bool = False,
        swap_persons: bool = False,
        seed: int = 0,
        training: bool | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(
            DATA_SET,
            root,
            split,
            min_frames=min_frames,
            max_frames=max_frames,
            mirror=mirror,
            swap_persons=swap_persons,
            seed=seed,
            training=training,
            strict=strict,
        )
