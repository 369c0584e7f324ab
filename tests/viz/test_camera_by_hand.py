"""What a camera shows, by projections computed by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from intermoe.viz.camera import BODY_MARGIN, FOLLOW_SECONDS, centre_path, frame_motion

Floats = npt.NDArray[np.float64]
VIEWPORT = (10.0, 20.0, 410.0, 320.0)


def people(frames: int = 20, height: float = 0.0) -> Floats:
    """Joints (2, T, 22, 3) of two who stand a metre apart along X, each a cloud of a metre."""
    cloud = np.random.default_rng(0).uniform(0, 1, (22, 3)) + np.array([0, height, 0])
    return np.stack([np.tile(cloud + np.array([x, 0, 0]), (frames, 1, 1)) for x in (0.0, 2.0)])


@pytest.mark.parametrize("camera", ["side", "front", "top"])
@pytest.mark.parametrize("height", [0.0, 2.0])
def test_bodies_their_margin_and_their_shadows_just_fit(camera: str, height: float) -> None:
    joints = people(height=height)
    view = frame_motion(joints, VIEWPORT, camera)
    points = np.concatenate([joints.reshape(-1, 3), joints.reshape(-1, 3) * (1, 0, 1)])
    pixels, depth = view.project(points)
    margin = view.scale * BODY_MARGIN / depth[:, None]
    left, top, right, bottom = VIEWPORT
    slack = np.concatenate([(pixels - margin).min(0) - (left, top), (right, bottom) - (pixels + margin).max(0)])
    assert slack.min() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(slack[:2], slack[2:], atol=1e-6)  # in the middle
    assert BODY_MARGIN == 0.2


def test_a_larger_image_shows_the_same() -> None:
    joints = people()
    view = frame_motion(joints, VIEWPORT)
    pixels, depth = view.project(joints[0])
    larger, same = view.scaled(2.5).project(joints[0])
    np.testing.assert_allclose(larger, 2.5 * pixels)
    np.testing.assert_array_equal(same, depth)


def test_from_the_side_is_across_where_they_mostly_stand() -> None:
    """In the first frame one behind the other along Z, in the other 19 beside each other along X."""
    joints = people()
    joints[1, 0] += (-2.0, 0, 2.0)
    forward = frame_motion(joints, VIEWPORT).axes[2]
    assert abs(forward[2]) > 5 * abs(forward[0])
    along_z = joints[..., [2, 1, 0]]
    forward = frame_motion(along_z, VIEWPORT).axes[2]
    assert abs(forward[0]) > 5 * abs(forward[2])


@pytest.mark.parametrize("camera", ["side", "front", "top"])
@pytest.mark.parametrize(
    ("extent", "distance"),
    [
        ((1.0, 1.7, 1.0), 5.0),  # nobody is looked at from nearer
        ((1.0, 9.0, 1.0), 5.0),  # height alone takes nobody farther away
        ((6.0, 1.7, 0.0), 10.8),
        ((0.0, 1.7, 6.0), 10.8),
        ((3.0, 1.7, 4.0), 9.0),
    ],
)
def test_who_spreads_over_the_floor_is_looked_at_from_farther_away(
    extent: tuple[float, float, float], distance: float, camera: str
) -> None:
    joints = np.zeros((2, 3, 22, 3))
    joints[1] = extent
    position = frame_motion(joints, VIEWPORT, camera).position
    assert np.linalg.norm(position - np.array(extent) / 2) == pytest.approx(distance)


@pytest.mark.parametrize("fps", [30, 60])
def test_a_path_is_smoothed_over_half_a_second_at_any_rate(fps: int) -> None:
    """Both step aside by 2 m at once after 4 s: a deviation earlier 16 % of the way are done, later 84 %."""
    frames = 8 * fps
    joints = np.zeros((2, frames, 22, 3))
    joints[:, 4 * fps :, :, 0] = 2.0
    joints[..., 1] = 1.0
    path = centre_path(joints, fps)
    assert path.shape == (frames, 3)
    assert FOLLOW_SECONDS == 0.5
    for seconds, share in ((-0.5, 0.159), (0.0, 0.5), (0.5, 0.841)):
        place = int((4 + seconds) * fps)
        assert path[place - 1 : place + 1, 0].mean() / 2 == pytest.approx(share, abs=0.005)
    np.testing.assert_allclose(path[[0, -1]], [[0, 0, 0], [2, 0, 0]], atol=1e-9)


def test_a_path_is_between_all_persons_and_rests_before_and_after() -> None:
    """A walk of 1 m/s: half of what is smoothed at an end rests there, 0.5 s / sqrt(2 pi) of a walk within it."""
    joints = np.zeros((3, 120, 22, 3))
    joints[:, :, 0] = [[[0.0, 0.9, 0.0]], [[6.0, 1.0, 0.0]], [[0.0, 1.1, 9.0]]]
    joints[:, :, :, 2] += np.arange(120)[:, None] / 30
    path = centre_path(joints, 30)
    np.testing.assert_allclose(path[:, 0], 2.0)
    np.testing.assert_allclose(path[:, 1], 0.0)
    inside = FOLLOW_SECONDS / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(path[[0, 60, -1], 2], [3 + inside, 5, 3 + 119 / 30 - inside], atol=5e-3)
