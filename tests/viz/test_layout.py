"""Where on a picture everything is: the figures' part of it, caption, labels, clock and the floor that fades."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL.ImageDraw import ImageDraw

from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.viz import figures
from intermoe.viz.colours import PAPER
from intermoe.viz.figures import OVERSAMPLING, PERSON_COLOURS, TILE_METRES, TILES, Scene

SIZE = (512, 1020)  # letters of 1020 // 34 = 30 pixels, lines of 39; margins of 0.03 * 512 = 15.36
LINE, MARGIN = 39.0, 15.36


def people(*places: tuple[float, float]) -> np.ndarray:
    """Persons who stand at ``places``, x and z, for two frames."""
    one = at_rest(REST_POSE) + np.array([0.0, 1.0, 0.0])
    return np.stack([np.tile(one + np.array([x, 0.0, z]), (2, 1, 1)) for x, z in places])


def test_figures_are_below_the_caption_and_within_the_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = figures.frame_motion
    monkeypatch.setattr(figures, "frame_motion", lambda *given: (asked.append(given), plain(*given))[1])
    Scene(people((0.0, 0.0)), "they bow", size=SIZE)
    ((_, viewport, camera),) = asked
    np.testing.assert_allclose(viewport, (MARGIN, 2.75 * LINE, 512 - MARGIN, 1020 - 2 * MARGIN))
    assert camera == "side"


def test_words_and_colours_are_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caption from the corner down, each person's colour to the left of its label, the clock below to the right."""
    texts: dict[str, tuple[tuple[float, float], str | None]] = {}
    squares: list[tuple[tuple[float, ...], Any]] = []

    def text(_: Any, place: tuple[float, float], words: str, **how: Any) -> None:
        texts[words] = (place, how.get("anchor"))

    monkeypatch.setattr(ImageDraw, "text", text)
    monkeypatch.setattr(ImageDraw, "rectangle", lambda _, box, fill: squares.append((box, fill)))
    scene = Scene(people((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)), "they bow", size=SIZE)
    scene.frame(0)
    place, anchor = texts.pop("they bow")
    np.testing.assert_allclose(place, (MARGIN, 0.4 * LINE))
    assert anchor is None
    place, anchor = texts.pop("0.0 s")
    np.testing.assert_allclose(place, (0.97 * 512, 0.98 * 1020))
    assert anchor == "rs"
    assert list(texts) == ["person 1", "person 2", "person 3"]
    end = 0.0
    for (label, (place, anchor)), ((left, top, right, bottom), colour), own in zip(
        texts.items(), squares[:3], PERSON_COLOURS, strict=False
    ):
        assert colour == own
        assert (right - left, bottom - top) == (pytest.approx(20), pytest.approx(20))
        assert end < left < right < place[0] < right + 20
        assert (place[1], anchor) == (pytest.approx((top + bottom) / 2), "lm")
        assert top > 1.4 * LINE
        end = place[0] + scene._font.getlength(label)


def floor_points(scene: Scene) -> np.ndarray:
    """x and z of the floor (2, rows, 4, width) at the four points of each pixel of the last rows of the picture."""
    width, height = scene.size
    _, *places = scene._camera.floor_grid(width * OVERSAMPLING, height * OVERSAMPLING)
    points = np.stack(places)
    points = points[:, points.shape[1] % 2 :]
    return points.reshape(2, -1, 2, width, 2).transpose(0, 1, 2, 4, 3).reshape(2, -1, 4, width)[:, -180:]  # no label


def test_the_floor_ends_around_the_middle_of_where_they_go() -> None:
    """Tiles as far as a metre beyond the outermost joint, paler half as far on, and none from twice as far on."""
    joints = people((0.0, 0.0), (0.0, 1.0), (2.5, 1.0))
    scene = Scene(joints, size=(1024, 256))
    ground = joints[..., [0, 2]].reshape(-1, 2)
    middle = (ground.max(0) + ground.min(0)) / 2
    reach = np.linalg.norm(ground - middle, axis=-1).max() + 1
    away = np.linalg.norm(floor_points(scene) - middle[:, None, None, None], axis=0)
    picture = np.asarray(scene._floor(np.zeros(3))[0])[-len(away) :].astype(int)
    tiled = (np.abs(picture - PAPER) > 2).any(-1)
    near, beyond = away.max(1) < 1.5 * reach, away.min(1) > 2 * reach
    assert near.sum() > 100
    assert tiled[near].all()
    assert beyond.sum() > 100
    assert not tiled[beyond].any()
    whole = (np.abs(picture - TILES[0]) < 1).all(-1) | (np.abs(picture - TILES[1]) < 1).all(-1)
    assert whole[away.max(1) < reach].mean() > 0.8  # but where two tiles meet
    assert not (picture <= TILES[1] + 1).all(-1)[away.min(1) > 1.1 * reach].any()


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.2, 0.0, 0.0), (0.0, 0.0, 0.3), (0.7, 0.0, -1.1)])
def test_tiles_stay_where_they_are_when_the_camera_goes(shift: tuple[float, float, float]) -> None:
    scene = Scene(people((0.0, 0.0)), size=(256, 256))
    x, z = floor_points(scene) + np.array([shift[0], shift[2]])[:, None, None, None]
    odd = (np.floor(x / TILE_METRES) + np.floor(z / TILE_METRES)) % 2
    picture = np.asarray(scene._floor(np.array(shift))[0])[-len(odd) :]
    inside = (odd.min(1) == odd.max(1)) & (np.hypot(*floor_points(scene)).max(1) < 1)
    assert inside.sum() > 1000
    np.testing.assert_allclose(picture[inside], TILES[odd.max(1)[inside].astype(int)], atol=1)


def test_a_capsule_is_as_far_as_its_middle_and_as_thick_as_each_end() -> None:
    scene = Scene(people((0.0, 0.0), (0.0, 1.0)), size=(256, 256))
    rng = np.random.default_rng(0)
    ends, radii = rng.uniform(0, 1, (5, 2, 3)), rng.uniform(0.05, 0.1, (5, 2))
    capsules, depth = scene._capsules(ends, radii)
    camera = scene._camera
    np.testing.assert_allclose(depth, (ends.mean(1) - camera.position) @ camera.axes[2])
    each = (ends - camera.position) @ camera.axes[2]
    np.testing.assert_allclose(capsules[..., 2], camera.scale * radii / each)
