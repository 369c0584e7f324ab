r"""The 12-per-joint motion representation of Inter-X (Xu et al. 2024), of two persons with hands and faces.

One person and frame: 55 SMPL-X joints of 12 numbers, position 3, velocity 3, rotation 6. Positions are in metres, Y up,
relative to the pelvis of person 1 in the first frame; the velocity is the difference to the next frame, zero in the
last; the rotation is local, the first two rows of its matrix (r00 r01 r02 r10 r11 r12), of the root the global one.

The published files hold rotations and one translation only. Where joints are follows from a skeleton at rest, whose
joints are at :math:`J_j` with parent :math:`p(j)`, by forward kinematics:

.. math:: x_0 = J_0 + t, \quad G_0 = R_0, \quad x_j = x_{p(j)} + G_{p(j)} (J_j - J_{p(j)}), \quad G_j = G_{p(j)} R_j
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from intermoe.motion.arrays import Array
from intermoe.motion.representation import Representation, columns
from intermoe.motion.rotations import rotation_matrices, rows_rot6d
from intermoe.motion.skeleton import WHOLE_BODY

FPS = 30
NUM_JOINTS = WHOLE_BODY.num_joints
JOINT_WIDTH = 12


def raw_motion(rotations: Array, translation: Array, skeleton: Array) -> Array:
    """Axis-angles (T, P, 55, 3), translations (T, P, 3), rest joints (55, 3) to motion (T, P, 55, 12)."""
    matrices = rotation_matrices(rotations.astype(np.float64))
    rest = skeleton.astype(np.float64)
    positions = np.empty(rotations.shape, np.float64)
    positions[..., 0, :] = rest[0] + translation
    turned = matrices.copy()
    for parent, joint in WHOLE_BODY.bones:
        bone = turned[..., parent, :, :] @ (rest[joint] - rest[parent])
        positions[..., joint, :] = positions[..., parent, :] + bone
        turned[..., joint, :, :] = turned[..., parent, :, :] @ matrices[..., joint, :, :]
    velocity = np.diff(positions, axis=0, append=positions[-1:])
    return np.concatenate([positions, velocity, rows_rot6d(matrices)], axis=-1).astype(np.float32)


def _joints(motion: Tensor) -> Tensor:
    return motion[..., :3]


INTERX = Representation(
    name="interx",
    fps=FPS,
    persons=2,
    min_frames=24,
    max_frames=150,
    skeleton=WHOLE_BODY,
    frame_shape=(NUM_JOINTS, JOINT_WIDTH),
    features=tuple(columns(JOINT_WIDTH * joint, JOINT_WIDTH) for joint in range(NUM_JOINTS)),
    joints=_joints,
    positions=_joints,
    velocity=slice(3, 6),
    rotation=slice(6, 12),
)
