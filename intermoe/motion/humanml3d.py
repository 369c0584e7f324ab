"""The 263-number motion representation of HumanML3D (Guo et al. 2022), of one person.

One frame: 263 = rotation velocity of the root about Y (1), velocity of the root in the ground plane (2), its height
(1), positions of joints 1 to 21 relative to the root and turned with it (63), rot6D of joints 1 to 21 (126), velocities
of all joints (66), foot contacts (4); at 20 frames a second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.motion.representation import Representation, columns, contact_column
from intermoe.motion.skeleton import BODY, NUM_JOINTS

FPS = 20
WIDTH = 263


def root_centred_joints(motion: Tensor) -> Tensor:
    """Joints (..., 22, 3) of un-normalised motion (..., 263), in metres.

    They stand where the root is on the ground, and turn with it.
    """
    zero = torch.zeros_like(motion[..., 3])
    root = torch.stack([zero, motion[..., 3], zero], dim=-1)
    others = motion[..., 4 : 4 + 3 * (NUM_JOINTS - 1)].unflatten(-1, (NUM_JOINTS - 1, 3))
    return torch.cat([root[..., None, :], others], dim=-2)


def world_joints(motion: Tensor) -> Tensor:
    """Joints (..., T, 22, 3) in metres, Y up, of un-normalised motion (..., T, 263); the first frame faces Z+.

    The root's turn is the running sum of its velocities. The stored rotation velocity is half the angle a frame, the
    argument of a quaternion; the stored velocity of the root is turned with the root.
    """
    half = torch.cat([torch.zeros_like(motion[..., :1, 0]), motion[..., :-1, 0]], dim=-1).cumsum(dim=-1)
    cos, sin = torch.cos(-2 * half), torch.sin(-2 * half)
    velocity = torch.cat([torch.zeros_like(motion[..., :1, 1:3]), motion[..., :-1, 1:3]], dim=-2)
    x, z = _turn(velocity[..., 0], velocity[..., 1], cos, sin)
    joints = root_centred_joints(motion)
    turned_x, turned_z = _turn(joints[..., 0], joints[..., 2], cos[..., None], sin[..., None])
    x, z = x.cumsum(dim=-1)[..., None], z.cumsum(dim=-1)[..., None]
    return torch.stack([turned_x + x, joints[..., 1], turned_z + z], dim=-1)


def _turn(x: Tensor, z: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation about Y."""
    return cos * x + sin * z, cos * z - sin * x


HUMANML3D = Representation(
    name="humanml3d",
    fps=FPS,
    persons=1,
    min_frames=40,
    max_frames=196,
    skeleton=BODY,
    frame_shape=(WIDTH,),
    features=(
        columns(0, 4) + columns(193, 3),
        *(
            columns(4 + 3 * (joint - 1), 3)
            + columns(67 + 6 * (joint - 1), 6)
            + columns(193 + 3 * joint, 3)
            + contact_column(joint, 259)
            for joint in range(1, NUM_JOINTS)
        ),
    ),
    joints=world_joints,
    positions=root_centred_joints,
    velocity=slice(193, 259),
    rotation=slice(67, 193),
    contacts=slice(259, 263),
    root_centred=True,
)
