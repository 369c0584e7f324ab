"""A data set of somebody else's: one person of two joints, the second above the first; a frame is their positions."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from intermoe.data.items import DataSet, RawClip
from intermoe.motion.representation import Representation, columns
from intermoe.motion.skeleton import Skeleton


def _joints(motion: Tensor) -> Tensor:
    return motion.unflatten(-1, (2, 3))


REPRESENTATION = Representation(
    name="toy",
    fps=10,
    persons=1,
    min_frames=4,
    max_frames=40,
    skeleton=Skeleton(parents=(-1, 0), limbs=((0,), (1,)), limb_edges=((0, 1),), parts=((0,), (1,))),
    frame_shape=(6,),
    features=(columns(0, 3), columns(3, 3)),
    joints=_joints,
    positions=_joints,
    velocity=slice(0, 0),
    rotation=slice(0, 0),
)


class _Reader:
    layout = "<split>.txt, a line a clip: its number of frames"

    def __init__(self, root: Path) -> None:
        self.root, self.settings = root, dict[str, Any]()

    def splits(self) -> list[str]:
        return sorted(path.stem for path in self.root.glob("*.txt"))

    def names(self, split: str) -> tuple[list[str], int]:
        return (self.root / f"{split}.txt").read_text(encoding="utf-8").split(), 0

    def read(self, split: str, name: str) -> list[RawClip]:
        walk = np.zeros((int(name), 1, 6), np.float32)
        walk[..., 0] = walk[..., 3] = np.arange(int(name))[:, None]
        walk[..., 4] = 1.0
        return [RawClip(name, (f"a walk of {name} frames",), walk)]

    def files(self) -> list[Path]:
        return sorted(self.root.glob("*.txt"))

    def absent(self, split: str) -> list[str]:
        return []


DATA_SET = DataSet(REPRESENTATION, source_shape=(1, 6), lost_frames=0, reader=_Reader, convert=np.copy)
