"""Joint layouts of the supported motion representations, their skeleton graphs and their two pooling levels.

A layout says which columns of a motion frame belong to which joint, which joints are bones' neighbours at each of three
resolutions (joints, limbs, body parts) and which joints are averaged into which part. The numbering of joints is
SMPL's (22 body joints) and SMPL-X's (55: body, jaw, eyes, 15 joints per hand).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Edges = tuple[tuple[int, int], ...]
Groups = tuple[tuple[int, ...], ...]

ABSENT = -1
"""Column index of a joint feature that the representation does not store; it reads as zero."""

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


@dataclass(frozen=True)
class SkeletonLayout:
    """How a motion frame splits into joints, and how joints are pooled.

    ``features[j]`` lists the columns of the flattened frame that make up joint ``j`` (``ABSENT`` where the
    representation has none). ``edges[i]`` and ``groups[i]`` are the bones and the pooling groups of level ``i``.
    """

    name: str
    frame_shape: tuple[int, ...]
    features: Groups
    edges: tuple[Edges, Edges]
    groups: tuple[Groups, Groups]

    @property
    def num_joints(self) -> int:
        """Joints at full resolution."""
        return len(self.features)

    @property
    def latent_joints(self) -> int:
        """Body parts at the coarsest resolution."""
        return len(self.groups[-1])

    @property
    def frame_size(self) -> int:
        """Values per frame."""
        return torch.Size(self.frame_shape).numel()

    def adjacency(self, level: int) -> Tensor:
        """Symmetric 0/1 matrix of the bones of ``level``, self-connections included: float32 (J, J)."""
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


def _columns(start: int, count: int) -> tuple[int, ...]:
    return tuple(range(start, start + count))


def _bones(parents: tuple[int, ...]) -> Edges:
    return tuple((parent, joint) for joint, parent in enumerate(parents) if parent >= 0)


def _contact(joint: int, start: int) -> tuple[int, ...]:
    return (start + FOOT_JOINTS.index(joint),) if joint in FOOT_JOINTS else ()


def _interhuman() -> SkeletonLayout:
    """262 = positions 22x3, velocities 22x3, rotations 21x6 (none for the root), 4 contacts."""
    features = tuple(
        _columns(3 * joint, 3)
        + (_columns(132 + 6 * (joint - 1), 6) if joint else (ABSENT,) * 6)
        + _columns(66 + 3 * joint, 3)
        + _contact(joint, 258)
        for joint in range(22)
    )
    edges = (_bones(PARENTS), BODY_LIMB_EDGES)
    return SkeletonLayout("interhuman", (262,), features, edges, (BODY_LIMBS, BODY_PARTS))


def _humanml3d() -> SkeletonLayout:
    """263 = root 4, root-relative positions 21x3, rotations 21x6, velocities 22x3, 4 contacts."""
    root = _columns(0, 4) + _columns(193, 3)
    others = tuple(
        _columns(4 + 3 * (joint - 1), 3)
        + _columns(67 + 6 * (joint - 1), 6)
        + _columns(193 + 3 * joint, 3)
        + _contact(joint, 259)
        for joint in range(1, 22)
    )
    edges = (_bones(PARENTS), BODY_LIMB_EDGES)
    return SkeletonLayout("humanml3d", (263,), (root, *others), edges, (BODY_LIMBS, BODY_PARTS))


def _interx() -> SkeletonLayout:
    """55 joints x 12 (position 3, rotation 6, velocity 3); each finger is a chain of three joints from its wrist."""
    head = (15, 15, 15)  # jaw, left eye, right eye
    fingers = tuple(
        wrist if joint == 0 else first + 3 * finger + joint - 1
        for wrist, first in ((20, 25), (21, 40))
        for finger in range(5)
        for joint in range(3)
    )
    hands = (_columns(25, 15), _columns(40, 15))
    limbs = (*BODY_LIMBS[:-1], (*BODY_LIMBS[-1], 22, 23, 24), *hands)
    limb_edges = (*BODY_LIMB_EDGES, (8, 12), (10, 13))
    parts = (*BODY_PARTS[:4], (*BODY_PARTS[4], 12), (*BODY_PARTS[5], 13), BODY_PARTS[6])
    features = tuple(_columns(12 * joint, 12) for joint in range(55))
    edges = (_bones(PARENTS + head + fingers), limb_edges)
    return SkeletonLayout("interx", (55, 12), features, edges, (limbs, parts))


_LAYOUTS = {layout.name: layout for layout in (_interhuman(), _interx(), _humanml3d())}


def skeleton_layout(name: str) -> SkeletonLayout:
    """The layout called ``name``. Raises ``ValueError`` for an unknown one."""
    if name not in _LAYOUTS:
        raise ValueError(f"layout: must be one of {tuple(_LAYOUTS)}, got {name!r}")
    return _LAYOUTS[name]
