"""Rotations as matrices, axis-angles, quaternions, Euler angles and rot6D (Zhou et al. 2019), and fits to directions.

Matrices (..., 3, 3) turn column vectors. Quaternions (..., 4) are in the order w x y z.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from einops import rearrange

Array = npt.NDArray[np.float64]

_SHORTEST = 1e-9


def rotation_matrices(axis_angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Axis-angles (..., 3) in radians to matrices (..., 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(axis_angles, axis=-1)[..., None, None]
    x, y, z = rearrange(axis_angles, "... c -> c ...")
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    # sin(a) / a and (1 - cos(a)) / a^2 without a division by zero
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def rows_rot6d(matrices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The first two rows of matrices (..., 3, 3), one after the other: (..., 6)."""
    return matrices[..., :2, :].reshape(*matrices.shape[:-2], 6)


def row_major_rot6d(rotations: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Bring rot6D (T, N, 6) to InterHuman's order r00 r01 r10 r11 r20 r21.

    Files in InterHuman's layout also come with one column after the other (r00 r10 r20 r01 r11 r21). Only in the true
    order are a rotation's two columns orthonormal, which tells them apart. Numbers that are rotations in neither order
    stay as they are.
    """
    first, second = rotations[..., :3], rotations[..., 3:]
    if _are_orthonormal(first, second) and not _are_orthonormal(rotations[..., 0::2], rotations[..., 1::2]):
        return np.stack([first, second], axis=-1).reshape(rotations.shape)
    return rotations


def _are_orthonormal(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> bool:
    """Whether two columns, each (..., 3), are, typically: a few bad frames do not hide a file's order."""
    error = np.abs(_dot(first, second))
    for column in (first, second):
        np.maximum(error, np.abs(_dot(column, column) - 1), out=error)
    return bool(np.median(error) < 0.01)


def _dot(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    # spelled out: a sum over three numbers costs several times its additions
    result: npt.NDArray[np.floating] = one[..., 0] * other[..., 0]
    for axis in (1, 2):
        result += one[..., axis] * other[..., axis]
    return result


def unit(vectors: Array) -> Array:
    """``vectors`` (..., N) of length 1; those of length 0 stay 0."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SHORTEST)


def from_rot6d(rot6d: npt.NDArray[np.floating]) -> Array:
    """Matrices of rot6D (..., 6) in the order r00 r01 r10 r11 r20 r21, by Gram-Schmidt (Zhou et al. 2019).

    Numbers that say no direction (a column of 0, two parallel columns) become a rotation nonetheless.
    """
    columns = np.asarray(rot6d, dtype=np.float64).reshape(*rot6d.shape[:-1], 3, 2)
    first = _direction(columns[..., 0], np.array([1.0, 0.0, 0.0]))
    second = columns[..., 1] - (first * columns[..., 1]).sum(-1, keepdims=True) * first
    second = _direction(second, _across(first))
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def from_quaternions(quaternions: Array) -> Array:
    """Matrices of unit quaternions (..., 4)."""
    w, x, y, z = rearrange(quaternions, "... c -> c ...")
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def to_quaternions(matrices: Array) -> Array:
    """Unit quaternions (..., 4) of rotation matrices; of both signs one, see ``of_one_sign``.

    4 q q^T is linear in the matrix; its row of the largest diagonal entry is q up to a factor (Bar-Itzhack 2000).
    """
    m = rearrange(matrices, "... row column -> row column ...")
    one = np.ones_like(m[0, 0])
    rows = [
        [one + m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], one + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
        [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], one - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1]],
        [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], one - m[0, 0] - m[1, 1] + m[2, 2]],
    ]
    outer = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    best = np.diagonal(outer, axis1=-2, axis2=-1).argmax(-1)
    return unit(np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :])


def of_one_sign(quaternions: Array, axis: int) -> Array:
    """The same rotations with signs such that neighbours along ``axis`` (time) are near each other."""
    moved = np.moveaxis(quaternions, axis, 0)
    turns = np.where((moved[1:] * moved[:-1]).sum(-1) < 0, -1.0, 1.0)
    signs = np.concatenate([np.ones((1, *turns.shape[1:])), turns]).cumprod(0)
    return np.moveaxis(moved * signs[..., None], 0, axis)


def to_rotation_vectors(matrices: Array) -> Array:
    """Rotation vectors (..., 3) of at most pi."""
    quaternions = to_quaternions(matrices)
    quaternions = quaternions * np.where(quaternions[..., :1] < 0, -1.0, 1.0)
    sine = np.linalg.norm(quaternions[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternions[..., :1])
    return quaternions[..., 1:] * np.where(sine > _SHORTEST, angle / np.maximum(sine, _SHORTEST), 2.0)


def about_axis(axis: int, radians: Array) -> Array:
    """Matrices of turns about x, y or z (0, 1, 2): (...) to (..., 3, 3)."""
    matrices = np.zeros((*np.shape(radians), 3, 3))
    after, last = (axis + 1) % 3, (axis + 2) % 3
    matrices[..., axis, axis] = 1
    matrices[..., after, after] = matrices[..., last, last] = np.cos(radians)
    matrices[..., last, after] = np.sin(radians)
    matrices[..., after, last] = -matrices[..., last, after]
    return matrices


def to_euler_zxy(matrices: Array, axis: int) -> Array:
    """Angles (..., 3) in radians with Rz(a) Rx(b) Ry(c) = matrix, in the order a b c, continuous along ``axis`` (time).

    Of the two solutions, (a, b, c) and (a + pi, pi - b, c + pi), each frame takes the one nearer to the frame before,
    and angles go beyond half a turn rather than jump. Near b = pi / 2 any such angles turn fast; the rotation does not.
    """
    m = np.moveaxis(matrices, axis, 0)
    middle = np.arctan2(m[..., 2, 1], np.hypot(m[..., 2, 0], m[..., 2, 2]))
    first = np.arctan2(-m[..., 0, 1], m[..., 1, 1])
    # The last angle is read from what the first leaves, which is sound at b = pi / 2 too.
    cos, sin = np.cos(first), np.sin(first)
    last = np.arctan2(cos * m[..., 0, 2] + sin * m[..., 1, 2], cos * m[..., 0, 0] + sin * m[..., 1, 0])
    angles = np.stack([first, middle, last], axis=-1)
    other = np.stack([first + np.pi, np.pi - middle, last + np.pi], axis=-1)
    for t in range(1, len(angles)):
        choices = np.stack([angles[t], other[t]])
        choices -= 2 * np.pi * np.round((choices - angles[t - 1]) / (2 * np.pi))
        nearer = np.abs(choices - angles[t - 1]).sum(-1).argmin(0)
        angles[t] = np.where(nearer[..., None] == 0, choices[0], choices[1])
    return np.moveaxis(angles, 0, axis)


def shortest_arc(source: Array, target: Array) -> Array:
    """The smallest rotations that turn unit vectors ``source`` into ``target``, both (..., 3)."""
    source, target = np.broadcast_arrays(source, target)
    w = 1 + (source * target).sum(-1, keepdims=True)
    # Opposite vectors: half a turn about any axis across them.
    axis = np.where(w < 1e-12, _across(source), np.cross(source, target))
    return from_quaternions(unit(np.concatenate([w, axis], axis=-1)))


def best_rotation(source: Array, target: Array) -> Array:
    """Rotations R (..., 3, 3) that minimise sum_k |target_k - R source_k|^2, for both (..., K, 3) (Kabsch 1976)."""
    u, _, vt = np.linalg.svd(np.swapaxes(target, -1, -2) @ source)
    flip = np.ones((*u.shape[:-2], 3))
    flip[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    return (u * flip[..., None, :]) @ vt


def _direction(vectors: Array, default: Array) -> Array:
    """``vectors`` of length 1, and ``default`` where they have none."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > _SHORTEST, vectors / np.maximum(length, _SHORTEST), default)


def _across(vectors: Array) -> Array:
    """Some unit vectors at right angles to unit ``vectors`` (..., 3)."""
    axes = np.eye(3)[np.abs(vectors).argmin(-1)]
    return unit(np.cross(vectors, axes))
