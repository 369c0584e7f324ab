"""Motion of two people who walk: made up, and real where there is any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.motion.interhuman import process_pair
from intermoe.motion.rig import REST_POSE
from intermoe.motion.rotations import about_axis
from intermoe.motion.skeleton import PARENTS

Floats = npt.NDArray[np.float64]
CYCLE, SPEED, PELVIS, BALL = 40, 0.02, 0.87, 0.02  # frames of two steps, metres a frame, heights


def walker(frames: int, shift: int) -> Floats:
    """Joints (T, 22, 3), Y up, of somebody with rigid bones who walks towards Z+ and ``shift`` frames ahead.

    Each foot stands still for half of a cycle and swings for the other half; knees bend as legs need it.
    """
    time = np.arange(frames) + shift
    joints = np.zeros((frames, 22, 3))
    joints[:, 0] = np.stack([0 * time, PELVIS + 0 * time, SPEED * time], axis=-1)
    swing = 0.4 * np.sin(2 * np.pi * time / CYCLE)
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            offset = np.broadcast_to(REST_POSE[joint], (frames, 3))
            if joint in (18, 19, 20, 21):  # arms hang and swing
                side = 1 if joint in (18, 20) else -1
                hang = about_axis(0, side * swing) @ about_axis(2, np.array(-1.3 * side))
                offset = (hang @ REST_POSE[joint][:, None])[..., 0]
            joints[:, joint] = joints[:, parent] + offset
    for side, (hip, knee, ankle, ball) in enumerate(((1, 4, 7, 10), (2, 5, 8, 11))):
        turn, place = np.divmod(time + side * CYCLE // 2, CYCLE)
        done = np.clip(2 * place / CYCLE - 1, 0, 1)
        stands = SPEED * (CYCLE * (turn + done * done * (3 - 2 * done)) + CYCLE / 4 - side * CYCLE / 2)
        foot = REST_POSE[ball]
        joints[:, ball] = np.stack([joints[:, hip, 0], BALL + 0.1 * np.sin(np.pi * done), stands + foot[2]], axis=-1)
        joints[:, ankle] = joints[:, ball] - foot
        way = joints[:, ankle] - joints[:, hip]
        reach = np.linalg.norm(way, axis=-1, keepdims=True)
        thigh, shin = np.linalg.norm(REST_POSE[knee]), np.linalg.norm(REST_POSE[ankle])
        along = (thigh**2 - shin**2 + reach**2) / (2 * reach)
        ahead = np.array([0.0, 0.0, 1.0]) - way * way[:, 2:] / reach**2
        ahead *= np.sqrt(thigh**2 - along**2) / np.linalg.norm(ahead, axis=-1, keepdims=True)
        joints[:, knee] = joints[:, hip] + along * way / reach + ahead
    return joints


def walking(frames: int = 120) -> torch.Tensor:
    """Motion (2, T, 262) of two people who walk towards each other and past."""
    first, second = walker(frames + 1, 0), walker(frames + 1, 13)
    people = first, second * [-1, 1, -1] + [0.8, 0, 3.0]
    rotations = np.random.default_rng(0).normal(size=126) + 0.1 * np.sin(np.arange(frames + 1))[:, None]
    raw = [
        np.concatenate([one[..., [0, 2, 1]].reshape(len(one), -1) * np.tile([1, -1, 1], 22), rotations], axis=1)
        for one in people
    ]
    return torch.as_tensor(np.asarray(process_pair(*raw)))


@pytest.fixture(params=["made up", "real"])
def clip(request: pytest.FixtureRequest) -> torch.Tensor:
    """Motion of two persons (2, T, 262) who walk or dance; their bones are rigid."""
    if request.param == "made up":
        return walking()
    salsa: Path = request.getfixturevalue("salsa")
    return torch.as_tensor(InterHumanDataset(salsa, "val", training=False)[1]["motion"])


@pytest.fixture
def items(request: pytest.FixtureRequest) -> Callable[[str], list[torch.Tensor]]:
    """``items("real")``: motion (2, T, 262) of a whole split, or ``"made up"``."""

    def make(kind: str) -> list[torch.Tensor]:
        if kind == "made up":
            return [walking(frames) for frames in (60, 120)]
        dataset = InterHumanDataset(request.getfixturevalue("salsa"), "val")
        return [dataset[index]["motion"] for index in range(len(dataset))]

    return make
