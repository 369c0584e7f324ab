"""Reader of two-person whole-body motion in Inter-X's layout (Xu et al. 2024)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from intermoe.data.interhuman import check_finite
from intermoe.data.items import Clip, DataSet, ItemError, absent, read_captions, read_lines
from intermoe.motion.arrays import Array
from intermoe.motion.interx import FPS, INTERX, JOINT_WIDTH, NUM_JOINTS, raw_motion
from intermoe.motion.rotations import rotation_matrices, rows_rot6d

# of one person: position, velocity, axis-angle; and position, velocity, rot6D
_PROCESSED_WIDTHS = (9, 12)


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
            raise ValueError(f"source_fps: must be a multiple of {FPS}, got {source_fps}")
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

    def read(self, split: str, name: str) -> list[Clip]:
        """One clip (T, 2, 55, 12)."""
        captions = tuple(line.split("#")[0].strip() for line in read_captions(self._texts(), name))
        return [Clip(name, captions, self._motion(self._array(split, name), name))]

    def files(self) -> list[Path]:
        """Motion, captions and splits."""
        lists = list((self.root / "splits").glob("*.txt"))
        motion = [path for split in lists if (path := self._path(split.stem)).exists()]
        return [*lists, *motion, *self._texts().glob("*.txt")]

    def absent(self, split: str) -> list[str]:
        """Its list and its file of motion."""
        return absent(self.root, f"splits/{split}.txt", str(self._path(split).relative_to(self.root)))

    def _motion(self, values: Array, name: str) -> Array:
        shape = values.shape
        raw = values.ndim == 3 and shape[1:] == (NUM_JOINTS + 1, 6)
        processed = values.ndim == 3 and shape[1] == NUM_JOINTS and shape[2] in [2 * w for w in _PROCESSED_WIDTHS]
        if not (raw or processed) or shape[0] == 0:
            raise ItemError("wrong shape", f"{name}: expected (T, 56, 6), (T, 55, 18) or (T, 55, 24), got {shape}")
        check_finite(values, name)
        persons = np.stack(np.split(values, 2, axis=-1), axis=1)
        if not raw:
            return persons if persons.shape[-1] == JOINT_WIDTH else _with_rot6d(persons)
        if self.skeleton is None:
            raise ValueError(
                f"skeleton: {self._path('train').parent} holds rotations without positions; give the rest skeleton, a "
                "file with (55, 3) joint positions or SMPLX_NEUTRAL.npz, or files that are processed already"
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
        try:
            # opened for each array: an open file can neither be pickled nor shared with a loader's workers
            with _import_h5py().File(path, "r") as file:
                if name not in file:
                    raise ItemError("no motion", f"{name}: not in {path.name}")
                return np.asarray(file[name], dtype=np.float32)
        except (OSError, TypeError) as error:
            raise ValueError(f"{path}: not a readable HDF5 file of motion: {error}") from error


def load_skeleton(path: Path) -> Array:
    """Rest joints (55, 3) in metres from a ``.npy`` of that shape, or from SMPL-X's own model file (``.npz``).

    Raises:
        ValueError: another shape, or a file without ``J_regressor`` and ``v_template``. OSError: no such file.
    """
    expected = f"{path}: expected (55, 3) joint positions (.npy), or J_regressor and v_template (.npz)"
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            with values as model:
                values = model["J_regressor"] @ model["v_template"]
        skeleton = np.asarray(values, dtype=np.float32)
    except (KeyError, TypeError, ValueError, EOFError) as error:
        raise ValueError(f"{expected}: {error}") from error
    if skeleton.shape != (NUM_JOINTS, 3) or not np.isfinite(skeleton).all():
        raise ValueError(f"{expected}, got shape {skeleton.shape}")
    return skeleton


def _with_rot6d(motion: Array) -> Array:
    rotation = rows_rot6d(rotation_matrices(motion[..., 6:].astype(np.float64)))
    return np.concatenate([motion[..., :6], rotation], axis=-1).astype(np.float32)


def _import_h5py() -> ModuleType:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Inter-X's files need h5py: pip install 'intermoe[interx]'") from error
    return h5py


def _convert(source: Array) -> Array:
    return np.array(source, dtype=np.float32)


DATA_SET = DataSet(
    INTERX,
    source_shape=(2, NUM_JOINTS, JOINT_WIDTH),
    lost_frames=0,
    reader=InterXReader,
    convert=_convert,
    options=("skeleton", "source_fps"),
)
