"""Where the camera stands, and what it sees from there."""

from __future__ import annotations

import numpy as np
import pytest

from intermoe.viz import Scene, View
from intermoe.viz.camera import CAMERAS, frame_motion

PERSON = np.array([[0, 0.9, 0], [0.1, 0.85, 0], [-0.1, 0.85, 0], *[[0, 1.3, 0]] * 12, [0, 1.6, 0], *[[0, 1.2, 0]] * 6])


def walking(frames: int = 120, metres: float = 8.0) -> np.ndarray:
    """Two people (2, T, 22, 3) side by side, facing and walking along Z."""
    steps = np.linspace(0, metres, frames)[:, None, None] * (0, 0, 1)
    return np.stack([PERSON + steps, PERSON + steps + (1, 0, 0)])


def pixels(joints: np.ndarray, camera: str) -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("PIL")
    view = frame_motion(joints.astype(float), (0, 0, 640, 640), camera)
    return view.project(joints)


def test_from_the_front_the_first_person_looks_at_the_camera() -> None:
    for turn in range(4):
        cos, sin = np.cos(turn * np.pi / 2), np.sin(turn * np.pi / 2)
        about_y = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        joints = walking(metres=0.5) @ about_y.T
        place, depth = pixels(joints, "front")
        assert place[0, 0, 1, 0] > place[0, 0, 2, 0]  # left hip to the right, as of somebody who faces us
        assert depth[0, -1, 0] < depth[0, 0, 0]  # and who comes nearer


def test_from_the_side_nobody_hides_the_other() -> None:
    place, _ = pixels(walking(metres=0.5), "side")
    assert np.abs(place[0, :, 0, 0] - place[1, :, 0, 0]).min() > 100


def test_from_the_top_heights_vanish_and_distances_stay() -> None:
    place, _ = pixels(walking(metres=0.5), "top")
    head, pelvis = place[:, 0, 15], place[:, 0, 0]
    between = np.linalg.norm(pelvis[0] - pelvis[1])
    assert np.linalg.norm(head - pelvis, axis=-1).max() < 0.15 * between
    walked = np.linalg.norm(place[0, -1, 0] - place[0, 0, 0])
    assert walked == pytest.approx(0.5 * between, rel=0.05)


@pytest.mark.parametrize("camera", CAMERAS)
def test_everybody_is_in_the_picture(camera: str) -> None:
    """The middle of every body has a colour of its person, in the first frame, the middle and the last."""
    pytest.importorskip("PIL")
    scene = Scene(walking(), fps=30, size=(320, 240), camera=camera)
    for index in (0, 60, 119):
        frame = scene.frame(index).astype(int)
        blue = (frame[..., 2] - frame[..., 0] > 80).sum()
        orange = (frame[..., 0] - frame[..., 2] > 120).sum()
        assert blue > 20
        assert orange > 20


def test_a_camera_that_follows_is_nearer_and_sees_the_floor_pass() -> None:
    pytest.importorskip("PIL")

    def size(camera: str) -> int:
        frame = Scene(walking(), size=(320, 320), camera=camera).frame(60).astype(int)
        return int((frame[..., 2] - frame[..., 0] > 80).sum())

    assert size("follow") > 3 * size("side")
    scene = Scene(walking(), size=(320, 320), camera="follow")
    first, later = scene.frame(50)[-60:, :60].astype(int), scene.frame(60)[-60:, :60].astype(int)
    assert np.abs(first - later).max() > 10


@pytest.mark.parametrize(
    ("camera", "size", "told"),
    [
        ("below", (640, 640), "camera: expected one of side, front, top, follow, got 'below'"),
        ("side", (641, 640), "size: expected even numbers >= 128"),
        ("side", (640, 64), "size: expected even numbers >= 128"),
        ("side", (640, 100000), "and <= 8192, got"),
    ],
)
def test_views_that_cannot_be_are_refused(camera: str, size: tuple[int, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        View(camera, size)
