"""Reader of two-person whole-body motion in Inter-X's layout (Xu et al. 2024)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from intermoe.data.items import DataSet, ItemError, RawClip, absent, check_values, read_captions, read_lines
from intermoe.motion.arrays import LARGEST, Array
from intermoe.motion.interx import FPS, INTERX, JOINT_WIDTH, NUM_JOINTS, raw_motion
from intermoe.motion.rotations import rotation_matrices, rows_rot6d
from intermoe.reading import first_line, read_npy, read_npz

_RAW_SHAPES = ((NUM_JOINTS + 1, 6),)
# of each person: position, velocity, axis-angle; and position, velocity, rot6D
_PROCESSED_SHAPES = ((NUM_JOINTS, 2 * 9), (NUM_JOINTS, 2 * JOINT_WIDTH))
_MOST_FRAMES = 10**6
"""Beyond any recording, though a broken file may say so: room is made before it is read."""


class InterXReader:
    """Folder with ``motions/<split>.h5``, ``splits/<split>.txt`` and ``texts_processed/`` or ``texts/<name>.txt``.

    A file of motion holds an array a sequence, person 1 and person 2 side by side in the last dimension:

    - processed, ``motions/<split>_global.h5`` (taken where it exists) or ``<split>.h5``: (T, 55, 18) with position,
      velocity and axis-angle of a person, or (T, 55, 24) with a rot6D in its place; at 30 frames a second;
    - raw, ``motions/<split>.h5``: (T, 56, 6), 55 axis-angles and the translation of a person. Needs ``skeleton``.

    Args:
        root: the folder.
        skeleton: (55, 3) rest positions of the joints in metres, or a file that ``load_skeleton`` reads.
        source_fps: frames a second of raw files, a multiple of 30. Inter-X's own preparation of the recordings, which
            are at 120, keeps every fourth frame.

    Raises:
        ModuleNotFoundError: h5py is not installed; says how to install it. ValueError: a bad ``source_fps``.
    """

    layout = "splits/<split>.txt, motions/<split>.h5, texts_processed or texts/<name>.txt"

    def __init__(self, root: Path, *, skeleton: Array | Path | None = None, source_fps: int | None = None) -> None:
        source_fps = FPS if source_fps is None else source_fps
        if source_fps < FPS or source_fps % FPS:
            raise ValueError(f"source_fps: expected a multiple of {FPS}, got {source_fps}")
        self.root, self.keep_every = root, source_fps // FPS
        self.skeleton = load_skeleton(skeleton) if isinstance(skeleton, Path) else skeleton
        rest = None if self.skeleton is None else self.skeleton.tolist()
        self.settings: dict[str, Any] = {"source_fps": source_fps, "skeleton": rest}
        _import_h5py()

    def splits(self) -> list[str]:
        """Names of the lists in ``splits`` that have a file of motion."""
        return sorted(path.stem for path in (self.root / "splits").glob("*.txt") if self._path(path.stem).exists())

    def names(self, split: str) -> tuple[list[str], int]:
        """Names of a split; Inter-X has no ignore list."""
        return read_lines(self.root / "splits" / f"{split}.txt", "Inter-X"), 0

    def read(self, split: str, name: str) -> list[RawClip]:
        """One clip (T, 2, 55, 12)."""
        texts = self._texts()
        written = (line.split("#")[0].strip() for line in read_captions(texts, name))
        captions = tuple(caption for caption in written if caption)
        if not captions:
            raise ItemError(
                "no caption", f"{name}: no line of {texts.name}/{name}.txt has a caption before its first #"
            )
        return [RawClip(name, captions, self._motion(self._array(split, name), f"{name}: {self._path(split).name}"))]

    def files(self) -> list[Path]:
        """Motion, captions and splits."""
        lists = list((self.root / "splits").glob("*.txt"))
        motion = [path for split in lists if (path := self._path(split.stem)).exists()]
        return [*lists, *motion, *self._texts().glob("*.txt")]

    def absent(self, split: str) -> list[str]:
        """Its list and its file of motion."""
        return absent(self.root, f"splits/{split}.txt", str(self._path(split).relative_to(self.root)))

    def _motion(self, values: Array, label: str) -> Array:
        check_values(values, label)
        persons = np.stack(np.split(values, 2, axis=-1), axis=1)
        if values.shape[1:] not in _RAW_SHAPES:
            return persons if persons.shape[-1] == JOINT_WIDTH else _with_rot6d(persons)
        if self.skeleton is None:
            raise ItemError(
                "skeleton: rotations without positions; give the rest skeleton, a file with (55, 3) joint positions or "
                "SMPLX_NEUTRAL.npz, or files that are processed already",
                label,
            )
        persons = persons[:: self.keep_every]
        return raw_motion(persons[:, :, :-1], persons[:, :, -1], self.skeleton)

    def _path(self, split: str) -> Path:
        processed = self.root / "motions" / f"{split}_global.h5"
        return processed if processed.exists() else self.root / "motions" / f"{split}.h5"

    def _texts(self) -> Path:
        processed = self.root / "texts_processed"
        return processed if processed.is_dir() else self.root / "texts"

    def _array(self, split: str, name: str) -> Array:
        path = self._path(split)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file (expected Inter-X's layout)")
        h5py = _import_h5py()
        try:
            # opened for each array: an open file can neither be pickled nor shared with a loader's workers
            file = h5py.File(path, "r")
        except Exception as error:  # of broken bytes the library raises whatever it stumbles over
            raise ValueError(f"{path}: expected a readable HDF5 file of motion: {first_line(error)}") from error
        with file:
            try:
                return _read_entry(file, name, f"{name}: {path.name}")
            except ItemError:
                raise
            except Exception as error:
                raise ItemError("unreadable array", f"{name}: {path.name}: {first_line(error)}") from error


def _read_entry(file: Any, name: str, label: str) -> Array:
    """An array of the file itself: what it links to elsewhere is not followed."""
    h5py = _import_h5py()
    link = file.get(name, getlink=True)
    if link is None:
        raise ItemError("no motion", f"{label}: no such array")
    if isinstance(link, h5py.ExternalLink):
        raise ItemError("array of another file", label)
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.dtype.kind != "f":
        raise ItemError("unreadable array", f"{label}: expected an array of floating-point numbers")
    if array.is_virtual or array.external or array.file.filename != file.filename:
        raise ItemError("array of another file", label)
    shape = array.shape
    if len(shape) != 3 or shape[1:] not in (*_RAW_SHAPES, *_PROCESSED_SHAPES) or shape[0] > _MOST_FRAMES:
        raise ItemError("wrong shape", f"{label}: expected (T, 56, 6), (T, 55, 18) or (T, 55, 24), got {shape}")
    return np.asarray(array, dtype=np.float32)


def load_skeleton(path: Path) -> Array:
    """Rest joints (55, 3) in metres from a ``.npy`` of that shape, or from SMPL-X's own model file (``.npz``).

    Raises:
        ValueError: another shape, or a file without ``J_regressor`` and ``v_template``. OSError: no such file.
    """
    wanted = "(55, 3) joint positions (.npy), or J_regressor and v_template (.npz)"
    if path.suffix == ".npz":
        regressor, vertices = read_npz(path, "J_regressor", "v_template")
        if regressor.ndim != 2 or vertices.shape != (regressor.shape[1], 3):
            raise ValueError(f"{path}: expected {wanted}, got shapes {regressor.shape} and {vertices.shape}")
        skeleton = regressor @ vertices
    else:
        skeleton = read_npy(path)
    if skeleton.shape != (NUM_JOINTS, 3) or not np.abs(skeleton).max() < LARGEST:
        raise ValueError(f"{path}: expected {wanted}, in metres, got shape {skeleton.shape}")
    return skeleton.astype(np.float32)


def _with_rot6d(motion: Array) -> Array:
    rotation = rows_rot6d(rotation_matrices(motion[..., 6:].astype(np.float64)))
    return np.concatenate([motion[..., :6], rotation], axis=-1).astype(np.float32)


def _import_h5py() -> ModuleType:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Inter-X's files need h5py: pip install 'intermoe[interx]'") from error
    return h5py


def _convert(source: Array, frames: slice | None = None, *_: object) -> Array:
    return np.array(source if frames is None else source[frames], dtype=np.float32)


DATA_SET = DataSet(
    INTERX,
    source_shape=(2, NUM_JOINTS, JOINT_WIDTH),
    lost_frames=0,
    reader=InterXReader,
    convert=_convert,
    convert_part=_convert,
    options=("skeleton", "source_fps"),
)
