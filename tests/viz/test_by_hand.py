"""Triangles, cells, shadows and the camera's place, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from intermoe.viz import Grid
from intermoe.viz.camera import BODY_MARGIN, Camera, frame_motion
from intermoe.viz.colours import linear, mixed
from intermoe.viz.figures import Scene
from intermoe.viz.mesh import RINGS, SEGMENTS, capsule


@pytest.mark.parametrize("axis", [(0.0, 0.7, 0.0), (0.3, -0.2, 0.5), (0.0, -0.4, 0.0)])
def test_a_capsule_is_as_thick_as_it_is_at_each_of_its_ends(axis: tuple[float, float, float]) -> None:
    ends = np.array([[0.1, 0.2, 0.3], np.add((0.1, 0.2, 0.3), axis)])
    vertices, normals, faces = capsule(ends, np.array([0.05, 0.2]))
    low, high = np.split(vertices, [1 + RINGS * SEGMENTS])
    np.testing.assert_allclose(np.linalg.norm(low - ends[0], axis=-1), 0.05)
    np.testing.assert_allclose(np.linalg.norm(high - ends[1], axis=-1), 0.2)
    along = np.array(axis) / np.linalg.norm(axis)
    assert ((low - ends[0]) @ along).max() < 1e-9 < ((high - ends[1]) @ along).max()
    assert ((high - ends[1]) @ along).min() > -1e-9
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1)
    assert sorted(set(faces.ravel().tolist())) == list(range(len(vertices))), "every vertex is part of a triangle"


def test_a_short_motion_of_a_grid_waits_at_its_last_frame() -> None:
    class Plain:
        size, fps = (2, 2), 30.0

        def __init__(self, length: int) -> None:
            self.length = length

        def __len__(self) -> int:
            return self.length

        def frame(self, index: int) -> np.ndarray:
            return np.full((2, 2, 3), index, dtype=np.uint8)

    grid = Grid([Plain(5), Plain(2)])
    assert [frame[0, 2, 0] for frame in grid.frames()] == [0, 1, 1, 1, 1]


def test_shadows_lie_on_the_floor_where_the_sun_throws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.28 m along X and 0.16 m along Z of each metre that light falls."""
    seen = []
    project = Camera.project
    monkeypatch.setattr(Camera, "project", lambda camera, points: (seen.append(points), project(camera, points))[1])
    joints = np.random.default_rng(0).uniform(0.2, 1.5, size=(1, 1, 22, 3))
    scene = Scene(joints, size=(128, 128))
    seen.clear()
    scene.frame(0)
    bodies, shadows = seen
    np.testing.assert_allclose(shadows, bodies * (1, 0, 1) + bodies[..., 1:2] * (0.28, 0.0, 0.16), atol=1e-12)


def test_the_line_between_two_counts_by_how_far_they_are_apart() -> None:
    """Six frames 3 m apart along X outweigh ten within reach of each other along Z."""
    joints = np.zeros((2, 16, 22, 3))
    joints[..., 1] = 1.0
    joints[1, :6, :, 0] = 3.0
    joints[1, 6:, :, 2] = 0.2
    forward = frame_motion(joints, (10.0, 20.0, 410.0, 320.0)).axes[2]
    assert abs(forward[2]) > 5 * abs(forward[0])


@pytest.mark.parametrize(("width", "height"), [(0.2, 6.0), (9.0, 1.0)], ids=["high", "wide"])
def test_a_page_shows_all_of_what_is_high_or_wide(width: float, height: float) -> None:
    """What is seen, with its margin, fills the angle of view in the direction in which it is the larger.

    The camera looks down a little, so what is flat is up to 7 % smaller than it is.
    """
    pytest.importorskip("viser", reason="pages are viser's")
    from intermoe.viz.scene import HALF_HEIGHT, HALF_WIDTH, serving, set_stage

    joints = np.zeros((2, 1, 22, 3))
    joints[0, ..., 2], joints[1, ..., 2] = -width / 2, width / 2  # seen from the side, one is left, one is right
    joints[:, :, ::2, 1] = height
    with serving() as server:
        set_stage(server, joints, "side")
        way = np.subtract(server.initial_camera.look_at, server.initial_camera.position)
    nearest = np.linalg.norm(way) - BODY_MARGIN  # where the margin before them is
    shares = [(width / 2 + BODY_MARGIN) / HALF_WIDTH / nearest, (height / 2 + BODY_MARGIN) / HALF_HEIGHT / nearest]
    assert 0.93 < max(shares) < 1.001


def test_motions_side_by_side_do_not_meet_wherever_they_are() -> None:
    pytest.importorskip("viser", reason="pages are viser's")
    from intermoe.viz.viewer import GAP, Shown, _side_by_side

    joints = np.zeros((1, 2, 22, 3))
    joints[..., 1:, 0] = 1.0
    left, right = _side_by_side([Shown("a", joints - [7.0, 0, 0], 30, "A"), Shown("b", joints - [3.0, 0, 0], 30, "B")])
    assert (left[..., 0].min(), left[..., 0].max()) == pytest.approx((0.0, 1.0))
    assert (right[..., 0].min(), right[..., 0].max()) == pytest.approx((1.0 + GAP, 2.0 + GAP))


@pytest.mark.parametrize(("fps", "stands"), [(20, True), (120, False)])
def test_feet_that_stand_are_told_by_their_speed_in_metres_a_second(fps: int, stands: bool) -> None:
    """A centimetre a frame: 0.2 m/s at 20 frames a second, 1.2 at 120."""
    pytest.importorskip("viser", reason="pages are viser's")
    from intermoe.motion.rig import REST_POSE, at_rest
    from intermoe.viz.scene import serving
    from intermoe.viz.viewer import Shown, Viewer

    one = at_rest(REST_POSE)
    one = one - [0.0, one[:, 1].min(), 0.0] + np.arange(4)[:, None, None] * [0.01, 0.0, 0.0]
    with serving() as server:
        viewer = Viewer(server, [Shown("slow", one[None], fps, ("Ann",))])
        assert viewer._casts[0]._stands[0, 0].any() == stands


def test_shares_of_light_of_dark_and_of_bright_numbers() -> None:
    """sRGB is a line up to 10 of 255, then a power: 0.5 is 0.21404 of the light."""
    assert linear((0, 10, 255)) == pytest.approx((0.0, 10 / 255 / 12.92, 1.0))
    assert linear((11, 51, 128)) == pytest.approx((0.003347, 0.033105, 0.215861), abs=1e-6)
    assert mixed((10, 20, 30), (110, 0, 30), 0.25) == (35, 15, 30)
