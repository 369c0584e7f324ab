"""Motion to export: figures in awkward places, real people, a model's."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from intermoe.data.interhuman import DATA_SET, InterHumanReader
from intermoe.motion.interhuman import joints as joints_of
from intermoe.motion.rig import REST_POSE, Rig, forward_kinematics
from intermoe.motion.rotations import about_axis, rotation_matrices

DRAWN = (
    *(f"yaw {degrees}" for degrees in range(0, 360, 45)), "facing each other", "lying", "handstand", "jumping",
    "arms in circles", "one frame", "300 frames",
)  # fmt: skip
MADE = ("salsa", "duets", "generated")


class Motion(NamedTuple):
    """Joints (2, T, 22, 3) and, except of drawn figures, the motion (2, T, 262) that they are of."""

    case: str
    joints: np.ndarray
    motion: np.ndarray | None = None


def figure(root: np.ndarray, height: np.ndarray, seed: int, circling: bool = False) -> np.ndarray:
    """Joints (T, 22, 3) of somebody who moves all limbs smoothly, turned by ``root`` (3, 3) or (T, 3, 3).

    Arms that are ``circling`` come by where they point away from their rest.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(len(height))
    phases, speeds = rng.uniform(0, 2 * np.pi, (22, 3)), rng.uniform(0.5, 1, (22, 3))
    vectors = 0.3 * np.sin(phases + speeds * time[:, None, None] / 8)
    vectors[:, 16, 2] -= 1.1  # arms hang
    vectors[:, 17, 2] += 1.1
    vectors[:, 4:6, 0] = 0.6 + 0.5 * np.sin(time / 12)[:, None]
    rotations = rotation_matrices(vectors)
    if circling:
        rotations[:, [16, 17]] = (about_axis(2, np.array(0.03)) @ about_axis(1, time / 6))[:, None]
    rotations[:, 0] = root @ rotations[:, 0]
    offsets = np.tile(REST_POSE * rng.uniform(0.9, 1.1, (22, 3)), (len(time), 1, 1))
    offsets[:, 0] = np.stack([0.01 * time, height, 0 * time], axis=-1)
    return forward_kinematics(offsets, rotations)


def drawn(case: str) -> np.ndarray:
    """Two people (2, T, 22, 3) as ``DRAWN`` says."""
    frames = {"one frame": 1, "300 frames": 300}.get(case, 40)
    first, second, height = np.eye(3), about_axis(1, np.array(np.pi)), np.full(frames, 0.95)
    if case.startswith("yaw"):
        first = second = about_axis(1, np.radians(float(case.split()[1])))
    elif case == "lying":
        first, second = about_axis(0, np.array(-np.pi / 2)), about_axis(2, np.array(np.pi / 2))
        height = np.full(frames, 0.15)
    elif case == "handstand":
        first, second = about_axis(2, np.array(np.pi)), about_axis(0, np.array(np.pi))
    elif case == "jumping":
        height = 0.95 + 0.4 * np.abs(np.sin(np.arange(frames) / 5))
        first = about_axis(1, np.arange(frames) / 8)
    circling = case == "arms in circles"
    people = [figure(first, height, 0, circling), figure(second, height, 1, circling) + np.array([0, 0, 1.2])]
    return np.stack(people).astype(np.float32)


@pytest.fixture(scope="session")
def duets(shared_folder: Path) -> Path:
    """Folder of two-person motion capture of everyday life in InterHuman's layout."""
    path = shared_folder / "data" / "duets"
    if not path.exists():
        pytest.skip(f"real motion is absent: {path} not found")
    return path


@pytest.fixture(scope="session", params=DRAWN + MADE)
def motion(request: pytest.FixtureRequest) -> Motion:
    """Every motion that a file must hold."""
    case = request.param
    if case in DRAWN:
        return Motion(case, drawn(case))
    if case == "generated":
        from intermoe.systems.intermoe.pipeline import InterMoEPipeline

        model = InterMoEPipeline.from_pretrained("duets")
        motion = model("two people dance", num_frames=60).motion[0].numpy()
    else:
        clip = InterHumanReader(request.getfixturevalue(case)).read("train", {"salsa": "101", "duets": "181202"}[case])
        motion = DATA_SET.convert(clip[0].source).transpose(1, 0, 2)
    return Motion(case, joints_of(motion), motion)


@pytest.fixture
def two_people() -> np.ndarray:
    """Joints (2, 40, 22, 3) of two people who stand and move their limbs, facing each other."""
    return drawn("facing each other")


class Posed(NamedTuple):
    """A rig that is no figure's, and the angles (2, 3, 22, 3) about Z, X and Y, in degrees, that its rotations are."""

    rig: Rig
    angles: np.ndarray


@pytest.fixture(scope="session")
def posed() -> Posed:
    """Two people of different size over three frames; every number is another. Spine2 and left wrist slide."""
    rng = np.random.default_rng(0)
    rest = REST_POSE * rng.uniform(0.8, 1.2, (2, 22, 3)) + rng.uniform(-0.02, 0.02, (2, 22, 3))
    rest[:, 0] = 0
    offsets = np.repeat(rest[:, None], 3, axis=1)
    offsets[:, :, 0] = rng.uniform(-2, 2, (2, 3, 3))
    offsets[:, :, [6, 20]] += rng.uniform(-0.03, 0.03, (2, 3, 2, 3))
    angles = rng.uniform(-60, 60, (2, 1, 22, 3)) + rng.uniform(-15, 15, (2, 3, 22, 3))
    z, x, y = np.moveaxis(np.radians(angles), -1, 0)
    rotations = about_axis(2, z) @ about_axis(0, x) @ about_axis(1, y)
    return Posed(Rig(rest, offsets, rotations, (6, 20), fitted=True), angles)
