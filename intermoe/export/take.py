"""A take: some persons' motion with all that a file may tell of it."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intermoe.motion.arrays import LARGEST, real_array
from intermoe.motion.rig import Rig, fit_rig
from intermoe.motion.rotations import from_rot6d
from intermoe.motion.skeleton import NUM_JOINTS
from intermoe.viz.camera import View

Array = npt.NDArray[np.float32]

_MOTION_WIDTH = 262
_PLACES, _ROTATIONS = slice(0, 66), slice(132, 258)
_SAME = 1e-3
SLOWEST, FASTEST = 1e-3, 1e6
"""Frames a second that a take may have: times of others are infinite, or nothing, in some formats."""


@dataclass(frozen=True, eq=False)
class Take:
    """Motion of P persons over T frames.

    Args:
        joints: (P, T, J, 3) metres, Y up; the first 22 of J are SMPL's body joints. Kept as float32.
        fps: frames a second.
        names: of the persons, all different; "person 1", ... if empty.
        prompt: what is done.
        motion: (P, T, ...) the same in a model's representation; in InterHuman's its places are those of ``joints``.
        rotations: (P, T, 21, 3, 3) of joints 1..21 relative to their parents, as SMPL has them; where they are not
            given they are those of ``motion`` in InterHuman's 262 columns, if it is.
        details: further numbers and words that an .npz keeps (seed, model, ...).
        view: how videos and pages look at it.

    Raises:
        ValueError: a wrong shape, a value that is not finite or beyond ``LARGEST`` metres, a motion of other joints, a
            rate out of bounds, names that are not P.
    """

    joints: Array
    fps: float = 30
    names: Sequence[str] = ()
    prompt: str = ""
    motion: Array | None = None
    rotations: npt.NDArray[np.float64] | None = None
    details: Mapping[str, str | int | float] = field(default_factory=dict)
    view: View = field(default_factory=View)

    def __post_init__(self) -> None:
        joints = _float32(self.joints, "joints")
        shape = joints.shape
        if joints.ndim != 4 or 0 in shape or shape[2] < NUM_JOINTS or shape[3] != 3:
            raise ValueError(f"joints: expected shape (P >= 1, T >= 1, joints >= {NUM_JOINTS}, 3), got {shape}")
        if isinstance(self.fps, bool) or not isinstance(self.fps, numbers.Real) or not SLOWEST <= self.fps <= FASTEST:
            raise ValueError(f"fps: expected a positive number from {SLOWEST:g} to {FASTEST:g}, got {self.fps}")
        names = tuple(self.names) or tuple(f"person {number}" for number in range(1, shape[0] + 1))
        if len(names) != shape[0] or len(set(names)) != shape[0] or not all(map(_is_name, names)):
            raise ValueError(f"names: expected {shape[0]} names, all different, got {list(names)}")
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt: expected text, got {self.prompt!r}")
        if not isinstance(self.view, View):
            raise ValueError(f"view: expected a View, got {self.view!r}")
        motion = None if self.motion is None else _float32(self.motion, "motion")
        if motion is not None and (motion.ndim < 3 or motion.shape[:2] != shape[:2]):
            raise ValueError(f"motion: expected shape {shape[:2]} + (width,), got {motion.shape}")
        if self.rotations is not None and self.rotations.shape != (*shape[:2], NUM_JOINTS - 1, 3, 3):
            raise ValueError(f"rotations: expected shape {(*shape[:2], 21, 3, 3)}, got {self.rotations.shape}")
        for part, values in (("joints", joints), ("motion", motion), ("rotations", self.rotations)):
            if values is not None and not np.isfinite(values).all():
                raise ValueError(f"{part}: expected finite values, got NaN or infinity")
        if (largest := np.abs(joints).max()) > LARGEST:
            raise ValueError(f"joints: expected metres up to {LARGEST:g}, got {largest:g}")
        if motion is not None and motion.shape[2:] == (_MOTION_WIDTH,):
            apart = np.abs(motion[..., _PLACES] - joints[:, :, :NUM_JOINTS].reshape(*shape[:2], -1)).max()
            if apart > _SAME:
                raise ValueError(
                    f"motion: expected that of joints, got another one: places are up to {apart:.3g} m apart"
                )
        object.__setattr__(self, "joints", joints)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "motion", motion)

    @property
    def body(self) -> Array:
        """(P, T, 22, 3). A take of more joints has its origin at a pelvis: its body is set on the floor."""
        if self.joints.shape[2] == NUM_JOINTS:
            return self.joints
        body = self.joints[:, :, :NUM_JOINTS].copy()
        body[..., 1] -= body[..., 1].min()
        return body

    @cached_property
    def rig(self) -> Rig:
        """The persons as jointed bodies."""
        own = self.rotations
        if own is None and self.motion is not None and self.motion.shape[2:] == (_MOTION_WIDTH,):
            own = from_rot6d(self.motion[..., _ROTATIONS].reshape(*self.motion.shape[:2], NUM_JOINTS - 1, 6))
        return fit_rig(self.body.astype(np.float64), own)


def _float32(values: Any, name: str) -> Array:
    try:
        return real_array(values, name)
    except TypeError as error:
        raise ValueError(error) from None


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip())


def read_take(paths: Sequence[Path], joints: npt.NDArray[Any], fps: float, **told: Any) -> Take:
    """What files tell as a ``Take``. Raises ``ValueError`` that names the files."""
    try:
        return Take(joints, fps, **told)
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, paths))}: {error}") from error
