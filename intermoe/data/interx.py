r"""Reader of two-person whole-body motion in Inter-X's layout (Xu et al. 2024), and its 12-per-joint representation.

One person and frame: 55 SMPL-X joints of 12 numbers, position 3, velocity 3, rotation 6. Positions are in metres, Y up,
relative to the pelvis of person 1 in the first frame; the velocity is the difference to the next frame, zero in the
last; the rotation is local, the first two rows of its matrix (r00 r01 r02 r10 r11 r12), of the root the global one.

The published files hold rotations and one translation only. Where joints are follows from a skeleton at rest, whose
joints are at :math:`J_j` with parent :math:`p(j)`, by forward kinematics:

.. math:: x_0 = J_0 + t, \quad G_0 = R_0, \quad x_j = x_{p(j)} + G_{p(j)} (J_j - J_{p(j)}), \quad G_j = G_{p(j)} R_j
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from intermoe.data.interhuman import check_finite
from intermoe.data.items import Clip, ItemError, MotionKind, absent, read_captions, read_lines
from intermoe.motion.arrays import Array
from intermoe.motion.skeleton import skeleton_layout

NUM_JOINTS = 55
JOINT_WIDTH = 12
FPS = 30
# of one person: position, velocity, axis-angle; and position, velocity, rot6D
_PROCESSED_WIDTHS = (9, 12)

PARENTS = tuple(parent for parent, _ in sorted(skeleton_layout("interx").edges[0], key=lambda bone: bone[1]))
"""Parent of each joint but the root, joints 1 to 54."""


class InterXReader:
    """Folder with ``motions/<split>.h5``, ``splits/<split>.txt`` and ``texts_processed/`` or ``texts/<name>.txt``.

    A file of motion holds an array a sequence, person 1 and person 2 side by side in the last dimension:

    - processed, ``motions/<split>_global.h5`` (taken where it exists) or ``<split>.h5``: (T, 55, 18) with position,
      velocity and axis-angle of a person, or (T, 55, 24) with a rot6D in its place; at 30 frames a second;
    - raw, ``motions/<split>.h5``: (T, 56, 6), 55 axis-angles and the translation of a person. Needs ``skeleton``.

    Args:
        root: the folder.
        skeleton: (55, 3) rest positions of the joints in metres, from ``load_skeleton``.
        source_fps: frames a second of raw files, a multiple of 30. Inter-X's own preparation of the recordings, which
            are at 120, keeps every fourth frame.

    Raises:
        ModuleNotFoundError: h5py is not installed; says how to install it. ValueError: a bad ``source_fps``.
    """

    layout = "splits/<split>.txt, motions/<split>.h5, texts_processed or texts/<name>.txt"

    def __init__(self, root: Path, *, skeleton: Array | None = None, source_fps: int = FPS) -> None:
        if source_fps < FPS or source_fps % FPS:
            raise ValueError(f"source_fps: must be a multiple of {FPS}, got {source_fps}")
        self.root, self.skeleton, self.keep_every = root, skeleton, source_fps // FPS
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


def raw_motion(rotations: Array, translation: Array, skeleton: Array) -> Array:
    """Axis-angles (T, P, 55, 3), translations (T, P, 3), rest joints (55, 3) to motion (T, P, 55, 12)."""
    matrices = rotation_matrices(rotations.astype(np.float64))
    rest = skeleton.astype(np.float64)
    positions = np.empty(rotations.shape, np.float64)
    positions[..., 0, :] = rest[0] + translation
    turned = matrices.copy()
    for joint, parent in enumerate(PARENTS, start=1):
        bone = turned[..., parent, :, :] @ (rest[joint] - rest[parent])
        positions[..., joint, :] = positions[..., parent, :] + bone
        turned[..., joint, :, :] = turned[..., parent, :, :] @ matrices[..., joint, :, :]
    velocity = np.diff(positions, axis=0, append=positions[-1:])
    return np.concatenate([positions, velocity, _rot6d(matrices)], axis=-1).astype(np.float32)


def rotation_matrices(axis_angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Axis-angles (..., 3) in radians to matrices (..., 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(axis_angles, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(axis_angles, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    # sin(a) / a and (1 - cos(a)) / a^2 without a division by zero
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


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
    rotation = _rot6d(rotation_matrices(motion[..., 6:].astype(np.float64)))
    return np.concatenate([motion[..., :6], rotation], axis=-1).astype(np.float32)


def _rot6d(matrices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return matrices[..., :2, :].reshape(*matrices.shape[:-2], 6)


def _import_h5py() -> ModuleType:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Inter-X's files need h5py: pip install 'intermoe[interx]'") from error
    return h5py


def _convert(source: Array) -> Array:
    return np.array(source, dtype=np.float32)


def _joints(motion: torch.Tensor) -> torch.Tensor:
    return motion[..., :3]


INTERX = MotionKind(
    name="interx",
    fps=FPS,
    persons=2,
    source_shape=(2, NUM_JOINTS, JOINT_WIDTH),
    lost_frames=0,
    min_frames=24,
    max_frames=150,
    reader=InterXReader,
    convert=_convert,
    joints=_joints,
)
