"""Several motions in one picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from intermoe.viz.video import Animation


class Grid:
    """Animations side by side and below each other, row by row; a shorter one stays at its last frame.

    Args:
        scenes: of one size and one rate.
        columns: in a row; a square, or nearly, if not given.

    Raises:
        ValueError: no scene, other sizes or rates than the first one's, or less than one column.
    """

    def __init__(self, scenes: Sequence[Animation], columns: int | None = None) -> None:
        if not scenes:
            raise ValueError("scenes: expected at least one, got none")
        formats = {(scene.size, scene.fps) for scene in scenes}
        if len(formats) > 1:
            raise ValueError(f"scenes: expected one size and rate, got {sorted(formats)}")
        if columns is not None and columns < 1:
            raise ValueError(f"columns: expected at least 1, got {columns}")
        self._scenes = list(scenes)
        self._columns = min(columns or math.ceil(math.sqrt(len(scenes))), len(scenes))
        rows = -(-len(scenes) // self._columns)
        width, height = scenes[0].size
        self.fps = scenes[0].fps
        self.size = (width * self._columns, height * rows)

    def __len__(self) -> int:
        return max(len(scene) for scene in self._scenes)

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """All frames in order, each (height, width, 3) uint8."""
        return (self.frame(index) for index in range(len(self)))

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Frame ``index``: (height, width, 3) uint8; cells without a motion are white."""
        width, height = self._scenes[0].size
        picture = np.full((self.size[1], self.size[0], 3), 255, dtype=np.uint8)
        for place, scene in enumerate(self._scenes):
            top, left = height * (place // self._columns), width * (place % self._columns)
            picture[top : top + height, left : left + width] = scene.frame(min(index, len(scene) - 1))
        return picture
