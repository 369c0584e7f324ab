"""A picture over time that leans at the feet of figures, with a line at the present moment of each person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from intermoe.motion.rotations import Array, to_quaternions, unit
from intermoe.viz.colours import INK

if TYPE_CHECKING:
    import viser

_WIDTH = 2.4  # metres
_APART, _SLOPE = 0.5, 0.4
_LINE = 0.008
_ABOVE = 0.004  # of the lines, so that they are not within the picture


class Panel(NamedTuple):
    """``image`` (H, W, 3) uint8; the time of each person runs from ``starts`` over ``width``, pixels of the image."""

    image: npt.NDArray[np.uint8]
    starts: Sequence[float]
    width: float

    def moments(self, share: float) -> list[float]:
        """Pixels from the left of what each person does when ``share`` of the time is over, from 0 to 1."""
        return [start + share * self.width for start in self.starts]


@dataclass(frozen=True)
class Lectern:
    """Where a ``Panel`` leans: its corner above to the left, and the directions to the right and down, metres."""

    corner: Array
    right: Array
    down: Array
    pixel: float

    @classmethod
    def before(cls, joints: Array, axes: Array, panel: Panel) -> Lectern:
        """In front of joints (P, T, 22, 3) as they are seen by a camera with ``axes`` right, up, forward (3, 3)."""
        right, away = axes[0], unit(axes[2] * np.array([1.0, 0.0, 1.0]))
        points = joints.reshape(-1, 3)
        pixel = _WIDTH / panel.image.shape[1]
        up = unit(away + _SLOPE * np.array([0.0, 1.0, 0.0]))
        middle, near = (points @ right).min() / 2 + (points @ right).max() / 2, (points @ away).min() - _APART
        top = middle * right + near * away + panel.image.shape[0] * pixel * up[1] * np.array([0.0, 1.0, 0.0])
        return cls(top - _WIDTH / 2 * right, right, -up, pixel)

    def at(self, column: float, row: float, above: float = 0.0) -> Array:
        """The place (3,) of a pixel, or ``above`` it in metres."""
        normal = np.cross(self.right, -self.down)
        return self.corner + self.pixel * (column * self.right + row * self.down) + above * normal

    def corners(self, panel: Panel) -> Array:
        """(2, 3): the opposite corners."""
        height, width = panel.image.shape[:2]
        return np.stack([self.at(0, 0), self.at(width, height)])


class PanelOnStage:
    """A ``Panel`` in a scene."""

    def __init__(self, scene: viser.SceneApi, panel: Panel, lectern: Lectern, name: str) -> None:
        height, width = panel.image.shape[:2]
        turn = np.stack([lectern.right, lectern.down, np.cross(lectern.right, lectern.down)], axis=-1)
        self._panel, self._lectern = panel, lectern
        self._image = scene.add_image(
            name,
            panel.image,
            width * lectern.pixel,
            height * lectern.pixel,
            format="png",
            cast_shadow=False,
            receive_shadow=False,
            wxyz=to_quaternions(turn),
            position=lectern.at(width / 2, height / 2),
        )
        self._lines = scene.add_line_segments(f"{name} now", self._now(0.0), INK, thickness=_LINE)

    def show(self, share: float, visible: bool) -> None:
        """The lines as when ``share`` of the time is over."""
        self._image.visible = self._lines.visible = visible
        if visible:
            self._lines.points = self._now(share)

    def _now(self, share: float) -> npt.NDArray[np.float32]:
        height = self._panel.image.shape[0]
        moments = self._panel.moments(share)
        lines = [[self._lectern.at(x, y, _ABOVE) for y in (0, height)] for x in moments]
        return np.array(lines, dtype=np.float32)
