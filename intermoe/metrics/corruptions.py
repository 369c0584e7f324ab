"""Copies of real motion in which the persons' identity is broken in a known way, to judge metrics by.

Joints are (2, T, 22, 3) in metres, Y up, floor at 0; every function returns a new array of that shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from intermoe.metrics.frames import LEFT_RIGHT_EXCHANGED, body_frames, to_body
from intermoe.motion.skeleton import NUM_JOINTS, PARENTS

Floats = npt.NDArray[np.floating]


def swap_midway(joints: Floats, *, blend: int = 0) -> Floats:
    """Each person goes on as the other from the middle frame; ``blend`` frames around it cross over linearly."""
    return _splice(joints, joints[::-1], blend)


def mirror_midway(joints: Floats, *, blend: int = 0) -> Floats:
    """The second half is the scene's mirror image, in the vertical plane through both pelvises at the middle frame.

    In that plane nobody jumps: what changes at the cut are left and right alone, the mildest mirroring there is.
    """
    _check(joints)
    middle = joints.shape[1] // 2
    one, other = joints[:, middle, 0, [0, 2]].astype(np.float64)
    along = other - one
    length = np.linalg.norm(along)
    normal = np.array([-along[1], along[0]]) / length if length > 1e-6 else np.array([1.0, 0.0])
    offset = (joints[..., [0, 2]] - one) @ normal
    mirrored = joints.astype(np.float64)
    mirrored[..., [0, 2]] -= 2 * offset[..., None] * normal
    return _splice(joints, mirrored[:, :, LEFT_RIGHT_EXCHANGED].astype(joints.dtype), blend)


def average(joints: Floats) -> Floats:
    """Both persons are the mean of the two, joint by joint, in every frame."""
    _check(joints)
    return np.repeat(joints.mean(axis=0, keepdims=True, dtype=np.float64), 2, axis=0).astype(joints.dtype)


def average_in_place(joints: Floats) -> Floats:
    """Both persons keep place and heading, but their pose is the mean of both, with bones of their own lengths.

    Neither the distance between the persons nor their bones give this away.
    """
    _check(joints)
    shared = to_body(joints, joints).mean(axis=0)
    posed = np.einsum("ptax,tja->ptjx", body_frames(joints), shared)
    return _rebuild(joints, posed, np.ones(NUM_JOINTS)).astype(joints.dtype)


def scale_skeleton(joints: Floats, factors: Sequence[float] | npt.NDArray[np.floating], *, person: int = 1) -> Floats:
    """One person with other bones: ``factors`` (22,) scale the bone that ends in each joint; the first, the height.

    Directions of bones and the ground track of the pelvis stay as they are.
    """
    _check(joints)
    scale = np.asarray(factors, dtype=np.float64)
    if scale.shape != (NUM_JOINTS,) or not (scale > 0).all():
        raise ValueError(f"factors: expected {NUM_JOINTS} positive numbers, got {factors!r}")
    scaled = joints.copy()
    scaled[person] = _rebuild(joints[person : person + 1], joints[person : person + 1], scale)[0]
    return scaled


def _splice(before: Floats, after: Floats, blend: int) -> Floats:
    _check(before)
    frames = before.shape[1]
    if not 0 <= blend <= frames:
        raise ValueError(f"blend: expected a value in [0, {frames}] frames, got {blend}")
    ahead = np.arange(frames) - frames // 2
    weight = (ahead >= 0).astype(np.float64) if blend == 0 else np.clip((ahead + 0.5) / blend + 0.5, 0, 1)
    weight = weight[None, :, None, None]
    return ((1 - weight) * before + weight * after).astype(before.dtype)


def _rebuild(joints: Floats, directions: Floats, factors: Floats) -> npt.NDArray[np.float64]:
    """Pelvises and bone lengths of ``joints`` (P, T, 22, 3) times ``factors``, bones along those of ``directions``."""
    rebuilt = joints.astype(np.float64)
    rebuilt[..., 0, 1] *= factors[0]
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            bone = directions[..., joint, :] - directions[..., parent, :]
            own = np.linalg.norm(joints[..., joint, :] - joints[..., parent, :], axis=-1, keepdims=True)
            bone = bone / np.maximum(np.linalg.norm(bone, axis=-1, keepdims=True), 1e-9)
            rebuilt[..., joint, :] = rebuilt[..., parent, :] + factors[joint] * own * bone
    return rebuilt


def _check(joints: Floats) -> None:
    if joints.ndim != 4 or joints.shape[0] != 2 or joints.shape[1] < 2 or joints.shape[2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: expected shape (2, T >= 2, {NUM_JOINTS}, 3), got {joints.shape}")
