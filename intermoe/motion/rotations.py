"""Rotations as matrices, axis-angles and rot6D (Zhou et al. 2019), in the orders in which data sets store them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def rotation_matrices(axis_angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Axis-angles (..., 3) in radians to matrices (..., 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(axis_angles, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(axis_angles, -1, 0)
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
    by_row = np.stack([rotations[..., 0::2], rotations[..., 1::2]], axis=-1)
    by_column = np.stack([rotations[..., :3], rotations[..., 3:]], axis=-1)
    if _is_orthonormal(by_column) and not _is_orthonormal(by_row):
        return by_column.reshape(rotations.shape)
    return rotations


def _is_orthonormal(columns: npt.NDArray[np.floating]) -> bool:
    """Whether the two columns of (..., 3, 2) are, typically: a few bad frames do not hide a file's order."""
    products = np.einsum("...ij,...ik->...jk", columns, columns)
    return bool(np.median(np.abs(products - np.eye(2)).max(axis=(-1, -2))) < 0.01)
