"""Skeletons: joints, bones, and the two levels at which joints are pooled into limbs and limbs into body parts.

The numbering of joints is SMPL's (22 body joints) and SMPL-X's (55: body, jaw, eyes, 15 joints per hand).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

Edges = tuple[tuple[int, int], ...]
Groups = tuple[tuple[int, ...], ...]

Positions = TypeVar("Positions", npt.NDArray[Any], Tensor)

NUM_JOINTS = 22
JOINT_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
LEFT_JOINTS = (1, 4, 7, 10, 13, 16, 18, 20)
RIGHT_JOINTS = (2, 5, 8, 11, 14, 17, 19, 21)
LEFT_HIP, RIGHT_HIP = 1, 2
FOOT_JOINTS = (7, 10, 8, 11)
"""Left ankle, left toes, right ankle, right toes: the order of the contact columns."""

BODY_LIMBS: Groups = (
    (0, 1, 2, 3),  # pelvis
    (0, 1, 4),  # left hip
    (4, 7, 10),  # left leg
    (0, 2, 5),  # right hip
    (5, 8, 11),  # right leg
    (0, 3, 6, 9),  # spine
    (6, 9, 12, 13, 14),  # chest
    (9, 13, 16),  # left shoulder
    (16, 18, 20),  # left arm
    (9, 14, 17),  # right shoulder
    (17, 19, 21),  # right arm
    (9, 12, 15),  # head
)
BODY_LIMB_EDGES: Edges = ((0, 1), (0, 3), (0, 5), (1, 2), (3, 4), (5, 6), (6, 7), (6, 9), (6, 11), (7, 8), (9, 10))
BODY_PARTS: Groups = (
    (0, 1, 3, 5),  # pelvis
    (0, 1, 2),  # left leg
    (0, 3, 4),  # right leg
    (0, 5, 6),  # spine
    (6, 7, 8),  # left arm
    (6, 9, 10),  # right arm
    (6, 11),  # head
)


def bone_vectors(joints: Positions) -> Positions:
    """From its parent to each of joints 1..21 of joints (..., 22, 3): (..., 21, 3)."""
    bones: Positions = joints[..., 1:, :] - joints[..., list(PARENTS[1:]), :]
    return bones


@dataclass(frozen=True)
class Skeleton:
    """Joints and how they are pooled.

    ``parents[j]`` is the parent of joint ``j``, -1 for the root. ``limbs`` are groups of joints, ``parts`` groups of
    limbs; a joint may be in several groups. ``limb_edges`` connects limbs as bones connect joints.
    """

    parents: tuple[int, ...]
    limbs: Groups
    limb_edges: Edges
    parts: Groups

    @property
    def num_joints(self) -> int:
        """Joints at full resolution."""
        return len(self.parents)

    @property
    def latent_joints(self) -> int:
        """Body parts at the coarsest resolution."""
        return len(self.parts)

    @property
    def bones(self) -> Edges:
        """(parent, child) of every bone."""
        return tuple((parent, joint) for joint, parent in enumerate(self.parents) if parent >= 0)

    @property
    def edges(self) -> tuple[Edges, Edges]:
        """Neighbours among joints and among limbs."""
        return self.bones, self.limb_edges

    @property
    def groups(self) -> tuple[Groups, Groups]:
        """Joints of each limb and limbs of each part."""
        return self.limbs, self.parts

    def adjacency(self, level: int) -> Tensor:
        """Symmetric 0/1 matrix of the edges of ``level``, self-connections included: float32 (J, J)."""
        size = self.num_joints if level == 0 else len(self.groups[level - 1])
        matrix = torch.eye(size)
        for a, b in self.edges[level]:
            matrix[a, b] = matrix[b, a] = 1.0
        return matrix

    def pool(self, level: int) -> Tensor:
        """Matrix that averages the joints of each group of ``level``: float32 (coarse joints, fine joints)."""
        fine = self.num_joints if level == 0 else len(self.groups[level - 1])
        matrix = torch.zeros(len(self.groups[level]), fine)
        for row, members in enumerate(self.groups[level]):
            matrix[row, list(members)] = 1.0 / len(members)
        return matrix


BODY = Skeleton(PARENTS, BODY_LIMBS, BODY_LIMB_EDGES, BODY_PARTS)
"""The 22 joints of SMPL without hands: 12 limbs, 7 parts."""


def _whole_body() -> Skeleton:
    head = (15, 15, 15)  # jaw, left eye, right eye
    fingers = tuple(
        wrist if joint == 0 else first + 3 * finger + joint - 1
        for wrist, first in ((20, 25), (21, 40))
        for finger in range(5)
        for joint in range(3)
    )
    hands = (tuple(range(25, 40)), tuple(range(40, 55)))
    limbs = (*BODY_LIMBS[:-1], (*BODY_LIMBS[-1], 22, 23, 24), *hands)
    limb_edges = (*BODY_LIMB_EDGES, (8, 12), (10, 13))
    parts = (*BODY_PARTS[:4], (*BODY_PARTS[4], 12), (*BODY_PARTS[5], 13), BODY_PARTS[6])
    return Skeleton(PARENTS + head + fingers, limbs, limb_edges, parts)


WHOLE_BODY = _whole_body()
"""The 55 joints of SMPL-X; each finger is a chain of three joints from its wrist."""
