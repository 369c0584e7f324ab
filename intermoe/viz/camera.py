"""A perspective camera that keeps a whole motion in view."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intermoe.motion.skeleton import LEFT_HIP, RIGHT_HIP

Array = npt.NDArray[np.float64]
Grid = npt.NDArray[np.float32]

CAMERAS = ("side", "front", "top", "follow")
SIZE_STEP, SMALLEST_SIZE, LARGEST_SIZE = 2, 128, 8192
ELEVATION = math.radians(16.0)
TOP_ELEVATION = math.radians(89.0)
FOLLOW_SECONDS = 0.5
BODY_MARGIN = 0.2
MIN_DISTANCE = 5.0


@dataclass(frozen=True)
class View:
    """How a motion is looked at: ``camera``, one of ``CAMERAS``, and ``size``, width and height in pixels, even.

    Raises:
        ValueError: another camera, a size that is odd, too small or too large.
    """

    camera: str = "side"
    size: tuple[int, int] = (640, 640)

    def __post_init__(self) -> None:
        if self.camera not in CAMERAS:
            raise ValueError(f"camera: expected one of {', '.join(CAMERAS)}, got {self.camera!r}")
        if len(self.size) != 2 or any(
            edge % SIZE_STEP or not SMALLEST_SIZE <= edge <= LARGEST_SIZE for edge in self.size
        ):
            raise ValueError(f"size: expected even numbers >= {SMALLEST_SIZE} and <= {LARGEST_SIZE}, got {self.size}")

    @property
    def moves(self) -> bool:
        """Whether the camera goes along."""
        return self.camera == "follow"


@dataclass(frozen=True)
class Camera:
    """Position in metres (Y up), viewing axes as rows right, up, forward, and the mapping to pixels.

    A point at depth z and lateral offsets (x, y) appears at ``centre + scale / z * (x, -y)``: one scale for both
    directions, so that lengths keep their proportions.
    """

    position: Array
    axes: Array
    scale: float
    centre: Array

    def project(self, points: Array) -> tuple[Array, Array]:
        """Pixels (..., 2) and depths (...) in metres of ``points`` (..., 3)."""
        local = (points - self.position) @ self.axes.T
        depth = local[..., 2]
        pixels = self.centre + self.scale / depth[..., None] * local[..., :2] * (1, -1)
        return pixels, depth

    def floor_grid(self, width: int, height: int) -> tuple[int, Grid, Grid]:
        """Where the rays through the pixels of an image meet the floor.

        Returns:
            The first row below the horizon, and for the rows from there on x and z in metres, each (rows, width).
        """
        lateral = ((np.arange(width) + 0.5 - self.centre[0]) / self.scale).astype(np.float32)
        upward = (self.centre[1] - np.arange(height) - 0.5) / self.scale
        right, up, forward = self.axes
        # The camera is level (right has no height), so how far a ray goes depends on its row alone.
        slope = upward * up[1] + forward[1]
        first = int((slope > -1e-6).sum())
        length = -self.position[1] / slope[first:]
        ahead = upward[first:, None] * up + forward
        x, z = (
            (self.position[axis] + length * ahead[:, axis]).astype(np.float32)[:, None]
            + (length * right[axis]).astype(np.float32)[:, None] * lateral
            for axis in (0, 2)
        )
        return first, x, z

    def scaled(self, factor: float) -> Camera:
        """The same view on an image ``factor`` times as large."""
        return Camera(self.position, self.axes, self.scale * factor, self.centre * factor)


def centre_path(joints: Array, fps: float) -> Array:
    """Where on the floor the persons of ``joints`` (P, T, J, 3) are together, smoothed over time: (T, 3), height 0."""
    middle = joints[:, :, 0].mean(0) * (1, 0, 1)
    deviation = FOLLOW_SECONDS * fps
    reach = math.ceil(3 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    padded = np.pad(middle, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, weights / weights.sum(), mode="valid") for column in padded.T], axis=-1)


def frame_motion(joints: Array, viewport: tuple[float, float, float, float], camera: str = "side") -> Camera:
    """Camera that shows all of ``joints`` (P, T, J, 3) inside ``viewport`` (left, top, right, bottom) in pixels.

    From the side the first two persons stand beside, not behind, each other; so they do from the top. From the front
    the first person is looked in the face, as they stand in the first frame.
    """
    points = joints.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    target = (low + high) / 2
    azimuth = _front_view(joints) if camera == "front" else _side_view(joints)
    elevation = TOP_ELEVATION if camera == "top" else ELEVATION
    distance = max(MIN_DISTANCE, 1.8 * float(np.linalg.norm((high - low)[[0, 2]])))
    towards = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.sin(azimuth),
        ]
    )
    forward = -towards
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, forward), forward])
    position = target + distance * towards

    unit = Camera(position, axes, 1.0, np.zeros(2))
    grounded = points * (1, 0, 1)  # shadows are to be seen as well
    pixels, depth = unit.project(np.concatenate([points, grounded]))
    reach = BODY_MARGIN / depth[:, None]
    first, last = (pixels - reach).min(0), (pixels + reach).max(0)
    left, top, right_edge, bottom = viewport
    size = np.array([right_edge - left, bottom - top])
    scale = float((size / (last - first)).min())
    centre = np.array([left, top]) + size / 2 - scale * (first + last) / 2
    return Camera(position, axes, scale, centre)


def _front_view(joints: Array) -> float:
    """Azimuth of where the first person faces in the first frame."""
    across = joints[0, 0, RIGHT_HIP] - joints[0, 0, LEFT_HIP]
    return math.atan2(-across[0], across[2])


def _side_view(joints: Array) -> float:
    """Azimuth across the mean line between the first two persons' pelvises, a line having no sign."""
    if len(joints) < 2:
        return math.pi / 4
    between = joints[1, :, 0] - joints[0, :, 0]
    angle = np.arctan2(between[:, 2], between[:, 0])
    weight = np.hypot(between[:, 2], between[:, 0])
    doubled = complex((weight * np.exp(2j * angle)).sum())
    # Half of an angle in [0, 2 pi): the jump is then at pairs along x; motions start with the pair along z, where
    # this puts the camera at negative x and person 1 to the left.
    return (math.atan2(-doubled.imag, -doubled.real) + math.pi) / 2 + math.pi / 2
