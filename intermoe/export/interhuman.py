"""InterHuman's .npy of one person, as the data set is published; read only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from intermoe.export.format import Format
from intermoe.export.skeletons import unequal
from intermoe.export.take import Take, read_take
from intermoe.motion.interhuman import FPS, joints, process_pair
from intermoe.motion.rotations import row_major_rot6d
from intermoe.reading import read_npy

_FILE_WIDTH = 492
_USED_COLUMNS = np.r_[0:66, 186:312]
_FOLDERS = ("person1", "person2")


def partner_files(path: Path) -> list[Path]:
    """``person1/x.npy`` stands for both persons where there is a ``person2/x.npy`` beside its folder."""
    second = path.parent.parent / _FOLDERS[1] / path.name
    return [path, second] if path.parent.name == _FOLDERS[0] and second.is_file() else [path]


def read(paths: list[Path]) -> Take:
    """One or two persons, on the floor, the first of them starting at the origin and facing Z+.

    Raises:
        ValueError: no array of (T >= 2, 492) finite numbers, persons of different length; names the file.
    """
    persons = [_read_person(path) for path in paths]
    lengths = [len(raw) for raw in persons]
    if len(set(lengths)) > 1:
        raise ValueError(unequal(paths, lengths, [FPS] * len(paths)))
    if len(persons) > 2:
        raise ValueError(f"persons: expected one or two files, got {len(persons)}")
    try:
        pair = process_pair(persons[0], persons[-1])[: len(persons)]
    except ValueError as error:
        raise ValueError(f"{paths[0]}: {error}") from error
    motion = np.stack(pair)
    return read_take(paths, joints(motion), FPS, motion=motion)


def _read_person(path: Path) -> npt.NDArray[np.float32]:
    values = read_npy(path)
    if values.ndim != 2 or values.shape[1] != _FILE_WIDTH or len(values) < 2 or values.dtype.kind != "f":
        raise ValueError(f"{path}: expected floats (T >= 2, {_FILE_WIDTH}), got {values.dtype} {values.shape}")
    raw = values[:, _USED_COLUMNS].astype(np.float32)
    if not np.isfinite(raw).all():
        raise ValueError(f"{path}: expected finite values, got NaN or infinity")
    raw[:, 66:] = row_major_rot6d(raw[:, 66:].reshape(len(raw), -1, 6)).reshape(len(raw), -1)
    return raw


FORMAT = Format(".npy", read=read, per_person=True, partners=partner_files)
