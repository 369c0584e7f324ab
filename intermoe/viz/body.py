"""A body of capsules around the 22 joints: what the figures are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intermoe.motion.skeleton import LEFT_JOINTS, NUM_JOINTS, PARENTS, RIGHT_JOINTS
from intermoe.viz.camera import Array

BODY, LEFT, RIGHT, SKIN = range(4)
TONE_NAMES = ("body", "left", "right", "skin")

# Radii in metres of a bone at its upper and lower joint, by the lower joint's index.
_BONE_RADII: dict[int, tuple[float, float]] = {
    1: (0.085, 0.085), 2: (0.085, 0.085), 3: (0.095, 0.095), 4: (0.078, 0.056), 5: (0.078, 0.056), 6: (0.095, 0.105),
    7: (0.056, 0.036), 8: (0.056, 0.036), 9: (0.105, 0.105), 10: (0.038, 0.03), 11: (0.038, 0.03), 12: (0.075, 0.05),
    13: (0.085, 0.07), 14: (0.085, 0.07), 15: (0.05, 0.05), 16: (0.07, 0.056), 17: (0.07, 0.056), 18: (0.054, 0.042),
    19: (0.054, 0.042), 20: (0.042, 0.03), 21: (0.042, 0.03),
}  # fmt: skip
_HEAD_RADIUS, _FACE_RADIUS, _HAND_RADIUS = 0.115, 0.06, 0.042
_SPINE3, _NECK, _HEAD, _LEFT_SHOULDER, _RIGHT_SHOULDER = 9, 12, 15, 16, 17
_ELBOW_OF_WRIST = {20: 18, 21: 19}


@dataclass(frozen=True)
class Body:
    """N capsules of every person and frame.

    ``ends`` (P, T, N, 2, 3) are the centres of their two round ends in metres, ``radii`` (N, 2) metres, ``tones`` (N,)
    one of ``BODY``, ``LEFT``, ``RIGHT``, ``SKIN``, ``joints`` (N,) the joint that each turns with.
    """

    ends: Array
    radii: Array
    tones: npt.NDArray[np.int64]
    joints: npt.NDArray[np.int64]


def build_body(joints: Array) -> Body:
    """Bones, hands, head and a face of ``joints`` (P, T, 22, 3); the face shows where the chest is heading."""
    ends: list[Array] = []
    radii: list[tuple[float, float]] = []
    tones: list[int] = []
    bound: list[int] = []

    def add(first: Array, last: Array, radius: tuple[float, float], tone: int, joint: int) -> None:
        ends.append(np.stack([first, last], axis=-2))
        radii.append(radius)
        tones.append(tone)
        bound.append(joint)

    for joint in range(1, NUM_JOINTS):
        add(joints[..., PARENTS[joint], :], joints[..., joint, :], _BONE_RADII[joint], _tone(joint), PARENTS[joint])
    for wrist, elbow in _ELBOW_OF_WRIST.items():
        hand = joints[..., wrist, :] + 0.07 * _unit(joints[..., wrist, :] - joints[..., elbow, :])
        add(joints[..., wrist, :], hand, (_HAND_RADIUS * 0.8, _HAND_RADIUS), SKIN, wrist)
    up = _unit(joints[..., _HEAD, :] - joints[..., _NECK, :])
    head = joints[..., _HEAD, :] + 0.07 * up
    add(head - 0.02 * up, head + 0.03 * up, (_HEAD_RADIUS * 0.9, _HEAD_RADIUS), BODY, _HEAD)
    left_to_right = joints[..., _RIGHT_SHOULDER, :] - joints[..., _LEFT_SHOULDER, :]
    ahead = _unit(np.cross(left_to_right, joints[..., _NECK, :] - joints[..., _SPINE3, :]))
    face = head - 0.01 * up - 0.085 * ahead
    add(face, face, (_FACE_RADIUS, _FACE_RADIUS), SKIN, _HEAD)
    return Body(np.stack(ends, axis=2), np.array(radii), np.array(tones), np.array(bound))


def _tone(joint: int) -> int:
    if joint in LEFT_JOINTS:
        return LEFT
    return RIGHT if joint in RIGHT_JOINTS else BODY


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
