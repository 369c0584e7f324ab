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
from einops import rearrange
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

# The columns of all joints from the first foot to the last, and where among these joints FOOT_JOINTS are.
_FEET = slice(3 * min(FOOT_JOINTS), 3 * max(FOOT_JOINTS) + 3)
_FOOT_PLACES = [joint - min(FOOT_JOINTS) for joint in FOOT_JOINTS]

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
    first, second = process_persons(np.stack([raw1, raw2], axis=1))
    return first, second


def process_persons(
    source: npt.NDArray[np.floating],
    frames: slice | None = None,
    *,
    mirrored: bool = False,
    floor: npt.NDArray[np.floating] | None = None,
) -> Array:
    """``process_pair`` for any number of persons, (T, P, 192) with T >= 2, in the first one's starting frame.

    Args:
        frames: those of the result that are wanted, with start and stop in [0, T - 1]; they cost what they are.
        mirrored: of the mirror image, ``mirror_raw``, instead.
        floor: ``lowest(source)``, where it is known already: the one thing that all frames are needed for.

    Returns:
        (P, T - 1, 262) float32.
    """
    frames = slice(0, len(source) - 1) if frames is None else frames
    floor = lowest(source) if floor is None else floor  # a mirror image is as high
    width = 3 * NUM_JOINTS
    first, taken = source[0, :1], source[frames.start : frames.stop + 1]  # one more, for the velocities
    if mirrored:
        first, taken = (mirror_raw(part.reshape(-1, RAW_WIDTH)).reshape(part.shape) for part in (first, taken))
    start = first[0, :width].reshape(NUM_JOINTS, 3).astype(np.float64)
    sin, cos = _facing(start[:, 0], -start[:, 1])
    persons = rearrange(taken, "t p x -> p t x")
    places = persons[..., :width].astype(np.float64, order="C").reshape(*persons.shape[:2], NUM_JOINTS, 3)
    x, depth = places[..., 0] - start[0, 0], places[..., 1] - start[0, 1]
    height = places[..., 2] - floor[:, None, None]
    # Y up: z is minus the depth
    np.add(x * cos, depth * sin, out=places[..., 0])
    places[..., 1] = height
    x *= sin
    depth *= cos
    np.subtract(x, depth, out=places[..., 2])
    return _assemble(places, persons[:, :-1, width:])


def lowest(source: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Height (P,) of each person's lowest joint in any frame of source columns (T, P, 192), on which it is put down."""
    heights: npt.NDArray[np.floating] = source[..., : 3 * NUM_JOINTS].min(axis=0)[:, 2::3].min(axis=-1)
    return heights


def _assemble(places: npt.NDArray[np.float64], rotations: npt.NDArray[np.floating]) -> Array:
    """The 262 columns of joints (..., T + 1, 22, 3), Y up, and rot6D (..., T, 126)."""
    # Rows of neighbouring numbers, each read and written once: nearly all of the time goes to memory.
    motion = np.empty((*rotations.shape[:-1], MOTION_WIDTH), dtype=np.float32)
    width = 3 * NUM_JOINTS
    positions = places.reshape(*places.shape[:-2], width)
    now = positions[..., :-1, :]
    velocity = positions[..., 1:, :] - now
    motion[..., :width] = now
    motion[..., width : 2 * width] = velocity
    motion[..., 2 * width : CONTACT_COLUMNS.start] = rotations
    squared = velocity[..., _FEET] ** 2
    speed = squared[..., 0::3] + squared[..., 1::3] + squared[..., 2::3]
    slow = (speed < CONTACT_SQUARED_SPEED).take(_FOOT_PLACES, axis=-1)
    motion[..., CONTACT_COLUMNS] = slow & (places[..., :-1, :, 1].take(FOOT_JOINTS, axis=-1) < CONTACT_HEIGHTS)
    return motion


def has_direction(raw: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """In which frames of source columns (T, 192) the hips do not lie above each other: (T,)."""
    hips = raw[:, : 3 * NUM_JOINTS].reshape(-1, NUM_JOINTS, 3)[:, [LEFT_HIP, RIGHT_HIP], :2].astype(np.float64)
    across: npt.NDArray[np.bool_] = np.hypot(*rearrange(hips[:, 1] - hips[:, 0], "t c -> c t")) >= _HIPS_APART
    return across


def _facing(x: npt.NDArray[np.float64], z: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Sine and cosine of the turn about Y that makes a pose, each (22,), face Z+; forward = Y x (right - left hip)."""
    forward_x, forward_z = z[RIGHT_HIP] - z[LEFT_HIP], x[LEFT_HIP] - x[RIGHT_HIP]
    length = np.hypot(forward_x, forward_z)
    if length < _HIPS_APART:
        raise ValueError("raw1: expected a facing direction in frame 0, got hips that lie above each other")
    return float(forward_x / length), float(forward_z / length)


def mirror_raw(raw: npt.NDArray[np.floating]) -> Array:
    """Source columns (T, 192) of the mirror image: x negated, left and right exchanged. Its own inverse."""
    if raw.ndim != 2 or raw.shape[1] != RAW_WIDTH:
        raise ValueError(f"raw: expected shape (T, {RAW_WIDTH}), got {raw.shape}")
    mirrored = raw.astype(np.float32, copy=False).take(
        _MIRRORED_COLUMNS, axis=1, mode="clip"
    )  # unchecked: all are there
    mirrored *= _MIRRORED_SIGNS
    return mirrored


def _mirrored_columns() -> npt.NDArray[np.int64]:
    """For each column of the mirror image the source column that it is made of."""
    exchanged = np.arange(NUM_JOINTS)
    exchanged[list(LEFT_JOINTS)], exchanged[list(RIGHT_JOINTS)] = RIGHT_JOINTS, LEFT_JOINTS
    positions = 3 * exchanged[:, None] + np.arange(3)
    rotations = 3 * NUM_JOINTS + 6 * (exchanged[1:, None] - 1) + np.arange(6)
    return np.concatenate([positions.ravel(), rotations.ravel()])


_MIRRORED_COLUMNS = _mirrored_columns()
_MIRRORED_SIGNS = np.concatenate(
    [np.tile(np.array([-1, 1, 1], dtype=np.float32), NUM_JOINTS), np.tile(_MIRRORED_ROT6D, NUM_JOINTS - 1)]
)


def joints(motion: ArrayOrTensor) -> ArrayOrTensor:
    """Joint positions (..., 22, 3) in metres, Y up, of un-normalised motion (..., 262)."""
    if motion.shape[-1] != MOTION_WIDTH:
        raise ValueError(f"motion: expected last dimension {MOTION_WIDTH}, got {tuple(motion.shape)}")
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
    return torch.from_numpy(_assemble(np.concatenate([joints, following]), rotations))


def facing_forward(pose: Tensor) -> tuple[Tensor, Tensor]:
    """How the first person starts: rotation (3, 3) about Y that makes a pose (22, 3) face Z+, and the floor (3,) below.

    Raises:
        ValueError: hips that lie above each other, so that the pose faces nowhere.
    """
    try:
        sin, cos = _facing(*pose[:, ::2].numpy().astype(np.float64).T)
    except ValueError:
        raise ValueError("joints: expected a pose that faces somewhere, got hips that lie above each other") from None
    turn = pose.new_tensor([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
    return turn, pose[0] * pose.new_tensor([1.0, 0.0, 1.0])


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
