"""The 262-number motion representation of InterHuman (Liang et al., InterGen, 2023) and its source columns.

One person and frame: 66 positions, 66 velocities, 126 rot6D (joints 1..21), 4 foot contacts. Positions are in metres,
Y up, at 30 frames per second; both persons share one frame of reference: person 1 starts at its origin, facing Z+.
A rot6D holds the first two columns of a local rotation row by row: r00 r01 r10 r11 r20 r21.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intermoe.motion.arrays import Array, ArrayOrTensor
from intermoe.motion.representation import ABSENT, Representation, columns, contact_column
from intermoe.motion.rig import fit_rig
from intermoe.motion.skeleton import BODY, FOOT_JOINTS, LEFT_HIP, LEFT_JOINTS, NUM_JOINTS, RIGHT_HIP, RIGHT_JOINTS

FPS = 30
RAW_WIDTH = 192
MOTION_WIDTH = 262
CONTACT_COLUMNS = slice(258, 262)

# Height under which each joint of FOOT_JOINTS may count as standing.
CONTACT_HEIGHTS = (0.12, 0.05, 0.12, 0.05)
CONTACT_SQUARED_SPEED = 0.001

# Horizontal distance of the hips, in metres, below which a pose faces nowhere.
_HIPS_APART = 1e-8

# Under the reflection x -> -x those entries of r00 r01 r10 r11 r20 r21 change sign that have x as exactly one index.
_MIRRORED_ROT6D = np.array([1, -1, -1, 1, -1, 1], dtype=np.float32)


def process_pair(raw1: npt.NDArray[np.floating], raw2: npt.NDArray[np.floating]) -> tuple[Array, Array]:
    """Two persons' source columns to the 262 representation, in person 1's starting frame.

    Each person stands on the lowest point of their own clip. Rotations are local and pass through unchanged.

    Args:
        raw1, raw2: (T, 192) with T >= 2: 66 positions (metres, Z up) and 126 rot6D, in one world frame.

    Returns:
        Two arrays (T - 1, 262) float32: velocities are differences to the next frame, so the last frame drops out.

    Raises:
        ValueError: wrong shape, different lengths, or hips that lie above each other in frame 0 (no facing direction).
    """
    for name, raw in (("raw1", raw1), ("raw2", raw2)):
        if raw.ndim != 2 or raw.shape[1] != RAW_WIDTH or raw.shape[0] < 2:
            raise ValueError(f"{name}: expected shape (T >= 2, {RAW_WIDTH}), got {raw.shape}")
    if raw1.shape != raw2.shape:
        raise ValueError(f"raw2: expected as many frames as raw1 ({raw1.shape[0]}), got {raw2.shape[0]}")
    positions1, positions2 = _y_up_on_floor(raw1), _y_up_on_floor(raw2)
    origin = positions1[0, 0] * (1.0, 0.0, 1.0)
    turn = _turn_to_face_forward(positions1[0])
    return (
        _assemble((positions1 - origin) @ turn.T, raw1),
        _assemble((positions2 - origin) @ turn.T, raw2),
    )


def _y_up_on_floor(raw: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    z_up = raw[:, : 3 * NUM_JOINTS].astype(np.float64).reshape(-1, NUM_JOINTS, 3)
    y_up = np.stack([z_up[..., 0], z_up[..., 2], -z_up[..., 1]], axis=-1)
    y_up[..., 1] -= y_up[..., 1].min()
    return y_up


def has_direction(raw: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """In which frames of source columns (T, 192) the hips do not lie above each other: (T,)."""
    hips = raw[:, : 3 * NUM_JOINTS].reshape(-1, NUM_JOINTS, 3)[:, [LEFT_HIP, RIGHT_HIP], :2].astype(np.float64)
    across: npt.NDArray[np.bool_] = np.hypot(*np.moveaxis(hips[:, 1] - hips[:, 0], -1, 0)) >= _HIPS_APART
    return across


def _turn_to_face_forward(pose: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotation (3, 3) about Y that makes a pose (22, 3) face Z+; forward = Y x (right hip - left hip)."""
    across = pose[RIGHT_HIP] - pose[LEFT_HIP]
    forward_x, forward_z = across[2], -across[0]
    length = np.hypot(forward_x, forward_z)
    if length < _HIPS_APART:
        raise ValueError("raw1: the hips of frame 0 lie above each other, so it has no facing direction")
    sin, cos = forward_x / length, forward_z / length
    return np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])


def _assemble(positions: npt.NDArray[np.float64], raw: npt.NDArray[np.floating]) -> Array:
    frames = positions.shape[0] - 1
    velocity = positions[1:] - positions[:-1]
    feet = list(FOOT_JOINTS)
    still = (velocity[:, feet] ** 2).sum(-1) < CONTACT_SQUARED_SPEED
    low = positions[:-1, feet, 1] < CONTACT_HEIGHTS
    columns = (
        positions[:-1].reshape(frames, -1),
        velocity.reshape(frames, -1),
        raw[:-1, 3 * NUM_JOINTS :],
        still & low,
    )
    return np.concatenate(columns, axis=1).astype(np.float32)


def mirror_raw(raw: npt.NDArray[np.floating]) -> Array:
    """Source columns (T, 192) of the mirror image: x negated, left and right exchanged. Its own inverse."""
    if raw.ndim != 2 or raw.shape[1] != RAW_WIDTH:
        raise ValueError(f"raw: expected shape (T, {RAW_WIDTH}), got {raw.shape}")
    exchanged = np.arange(NUM_JOINTS)
    exchanged[list(LEFT_JOINTS)], exchanged[list(RIGHT_JOINTS)] = RIGHT_JOINTS, LEFT_JOINTS
    positions = raw[:, : 3 * NUM_JOINTS].reshape(-1, NUM_JOINTS, 3)[:, exchanged] * (-1.0, 1.0, 1.0)
    rotations = raw[:, 3 * NUM_JOINTS :].reshape(-1, NUM_JOINTS - 1, 6)[:, exchanged[1:] - 1] * _MIRRORED_ROT6D
    frames = raw.shape[0]
    return np.concatenate([positions.reshape(frames, -1), rotations.reshape(frames, -1)], axis=1).astype(np.float32)


def joints(motion: ArrayOrTensor) -> ArrayOrTensor:
    """Joint positions (..., 22, 3) in metres, Y up, of un-normalised motion (..., 262)."""
    if motion.shape[-1] != MOTION_WIDTH:
        raise ValueError(f"motion: last dimension must be {MOTION_WIDTH}, got {tuple(motion.shape)}")
    return motion[..., : 3 * NUM_JOINTS].reshape(*motion.shape[:-1], NUM_JOINTS, 3)


def with_positions(motion: Tensor, positions: Tensor) -> Tensor:
    """Motion (..., T, 262) with other joint positions (..., T, 22, 3), and with their velocities.

    Velocities are the differences of the positions; the last frame's stays, as do rotations and contacts.
    """
    if motion.dim() < 2 or motion.shape[-1] != MOTION_WIDTH:
        raise ValueError(f"motion: expected shape (..., T, {MOTION_WIDTH}), got {tuple(motion.shape)}")
    columns = positions.flatten(-2)
    result = motion.clone()
    result[..., : 3 * NUM_JOINTS] = columns
    result[..., :-1, 3 * NUM_JOINTS : 6 * NUM_JOINTS] = columns.diff(dim=-2)
    return result


def from_joints(positions: Tensor) -> Tensor:
    """Motion (T, 262) of joints alone (T, 22, 3), metres, Y up; the positions stay bit for bit.

    Velocities and contacts follow by the rule of the representation, the last frame moving on like the one before.
    Rotations are those of a rig fitted to the joints, whose twist about a bone is a choice (``intermoe.motion.rig``).
    """
    joints = positions.numpy().astype(np.float64)
    following = 2 * joints[-1:] - joints[-2:-1] if len(joints) > 1 else joints[-1:]
    rotations = fit_rig(joints[None]).rotations[0, :, 1:, :, :2].reshape(len(joints), -1)
    raw = np.concatenate([joints.reshape(len(joints), -1), rotations], axis=1)
    return torch.from_numpy(_assemble(np.concatenate([joints, following]), np.concatenate([raw, raw[-1:]])))


def facing_forward(pose: Tensor) -> tuple[Tensor, Tensor]:
    """How the first person starts: rotation (3, 3) about Y that makes a pose (22, 3) face Z+, and the floor (3,) below.

    Raises:
        ValueError: hips that lie above each other, so that the pose faces nowhere.
    """
    try:
        turn = torch.from_numpy(_turn_to_face_forward(pose.numpy().astype(np.float64)))
    except ValueError:
        raise ValueError("joints: expected a pose that faces somewhere, got hips that lie above each other") from None
    return turn.to(pose.dtype), pose[0] * pose.new_tensor([1.0, 0.0, 1.0])


def turned(motion: Tensor, turn: Tensor, origin: Tensor) -> Tensor:
    """Motion (..., 262) seen from a frame at ``origin`` (3,) whose axes are the rows of ``turn`` (3, 3), about Y.

    Rotations are relative to the parent and stay, those of joint 1..21; so do contacts.
    """
    result = motion.clone()
    places = motion[..., : 6 * NUM_JOINTS].unflatten(-1, (2, NUM_JOINTS, 3))
    shift = torch.stack([origin, torch.zeros_like(origin)])[:, None]
    result[..., : 6 * NUM_JOINTS] = ((places - shift) @ turn.T).flatten(-3)
    return result


INTERHUMAN = Representation(
    name="interhuman",
    fps=FPS,
    persons=2,
    min_frames=15,
    max_frames=300,
    skeleton=BODY,
    frame_shape=(MOTION_WIDTH,),
    features=tuple(
        columns(3 * joint, 3)
        + (columns(132 + 6 * (joint - 1), 6) if joint else (ABSENT,) * 6)
        + columns(66 + 3 * joint, 3)
        + contact_column(joint, CONTACT_COLUMNS.start)
        for joint in range(NUM_JOINTS)
    ),
    joints=joints,
    positions=joints,
    velocity=slice(66, 132),
    rotation=slice(132, 258),
    contacts=CONTACT_COLUMNS,
    from_joints=from_joints,
    turned=turned,
)

SOLO = dataclasses.replace(INTERHUMAN, name="solo", persons=1)
"""InterHuman's columns of one person alone."""
