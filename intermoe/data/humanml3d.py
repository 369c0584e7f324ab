"""Reader of single-person motion in HumanML3D's layout (Guo et al. 2022), and the joints of its representation.

One frame: 263 = rotation velocity of the root about Y (1), velocity of the root in the ground plane (2), its height
(1), positions of joints 1 to 21 relative to the root and turned with it (63), rot6D of joints 1 to 21 (126), velocities
of all joints (66), foot contacts (4); at 20 frames a second.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intermoe.data.interhuman import check_finite, read_array
from intermoe.data.items import Clip, ItemError, MotionKind, absent, read_captions, read_lines
from intermoe.motion.arrays import Array
from intermoe.motion.skeleton import NUM_JOINTS

FPS = 20
WIDTH = 263
MIN_FRAMES = 40
MAX_FRAMES = 196


class HumanML3DReader:
    """Folder with ``new_joint_vecs/<name>.npy`` (T, 263), ``texts/<name>.txt`` and ``<split>.txt``.

    A line of text is ``caption#tokens#start#end``. Where start and end are given, in seconds, the caption describes
    that part of the sequence, which becomes a clip of its own, named ``<name>@<start>-<end>``.
    """

    layout = "<split>.txt, new_joint_vecs/<name>.npy, texts/<name>.txt"

    def __init__(self, root: Path) -> None:
        self.root = root

    def splits(self) -> list[str]:
        """Names of the lists beside the folders of motion and text."""
        return sorted(path.stem for path in self.root.glob("*.txt"))

    def names(self, split: str) -> tuple[list[str], int]:
        """Names of a split; HumanML3D has no ignore list."""
        return read_lines(self.root / f"{split}.txt", "HumanML3D"), 0

    def read(self, split: str, name: str) -> list[Clip]:
        """The sequence and the parts that captions describe, each (T, 1, 263)."""
        path = self.root / "new_joint_vecs" / f"{name}.npy"
        if not path.exists():
            raise ItemError("no motion file", name)
        spans: dict[tuple[float, float], list[str]] = defaultdict(list)
        for line in read_captions(self.root / "texts", name):
            caption, span = _parse(line, name)
            spans[span].append(caption)
        motion = read_array(path, name, WIDTH)
        check_finite(motion, name)
        clips = []
        for (start, end), captions in spans.items():
            whole = start == end == 0
            part = motion if whole else motion[int(start * FPS) : int(end * FPS)]
            if len(part):
                title = name if whole else f"{name}@{start:g}-{end:g}"
                clips.append(Clip(title, tuple(captions), part[:, None]))
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
        span = (float(start), float(end))
    except ValueError:
        raise ItemError("unreadable caption file", f"{name}: not caption#tokens#start#end: {line[:40]!r}") from None
    # a missing time is written as nan
    return caption.strip(), (float(np.nan_to_num(span[0])), float(np.nan_to_num(span[1])))


def root_centred_joints(motion: Tensor) -> Tensor:
    """Joints (..., 22, 3) of un-normalised motion (..., 263), in metres.

    They stand where the root is on the ground, and turn with it.
    """
    zero = torch.zeros_like(motion[..., 3])
    root = torch.stack([zero, motion[..., 3], zero], dim=-1)
    others = motion[..., 4 : 4 + 3 * (NUM_JOINTS - 1)].unflatten(-1, (NUM_JOINTS - 1, 3))
    return torch.cat([root[..., None, :], others], dim=-2)


def world_joints(motion: Tensor) -> Tensor:
    """Joints (..., T, 22, 3) in metres, Y up, of un-normalised motion (..., T, 263); the first frame faces Z+.

    The root's turn is the running sum of its velocities. The stored rotation velocity is half the angle a frame, the
    argument of a quaternion; the stored velocity of the root is turned with the root.
    """
    half = torch.cat([torch.zeros_like(motion[..., :1, 0]), motion[..., :-1, 0]], dim=-1).cumsum(dim=-1)
    cos, sin = torch.cos(-2 * half), torch.sin(-2 * half)
    velocity = torch.cat([torch.zeros_like(motion[..., :1, 1:3]), motion[..., :-1, 1:3]], dim=-2)
    x, z = _turn(velocity[..., 0], velocity[..., 1], cos, sin)
    joints = root_centred_joints(motion)
    turned_x, turned_z = _turn(joints[..., 0], joints[..., 2], cos[..., None], sin[..., None])
    x, z = x.cumsum(dim=-1)[..., None], z.cumsum(dim=-1)[..., None]
    return torch.stack([turned_x + x, joints[..., 1], turned_z + z], dim=-1)


def _turn(x: Tensor, z: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation about Y."""
    return cos * x + sin * z, cos * z - sin * x


def _convert(source: Array) -> Array:
    return np.array(source, dtype=np.float32)


HUMANML3D = MotionKind(
    name="humanml3d",
    fps=FPS,
    persons=1,
    source_shape=(1, WIDTH),
    lost_frames=0,
    min_frames=MIN_FRAMES,
    max_frames=MAX_FRAMES,
    reader=HumanML3DReader,
    convert=_convert,
    joints=world_joints,
)
