"""Capsules, their colours and what is written, by hand."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image, ImageDraw, ImageFilter

from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.viz import figures
from intermoe.viz.body import BODY, LEFT, RIGHT, SKIN, TONE_NAMES, build_body
from intermoe.viz.colours import INK, PAPER
from intermoe.viz.figures import PERSON_COLOURS, SHADOW_SHRINK, TILES, Scene, _cut, _wrap, tinted

STANDING = at_rest(REST_POSE) + np.array([0.0, 1.0, 0.0])


def test_colours_of_persons_and_of_their_sides() -> None:
    """Left is 22 % whiter, right 20 % darker, skin has 15 % of its person's colour; four persons, then again."""
    assert (INK, PAPER) == ((46, 50, 60), (250, 250, 252))
    assert TILES.tolist() == [[232, 235, 241], [206, 211, 221]]
    assert PERSON_COLOURS == ((36, 104, 216), (238, 112, 28), (46, 152, 88), (150, 76, 190))
    assert [tinted(0, tone) for tone in (BODY, LEFT, RIGHT, SKIN)] == [
        (36, 104, 216), (84, 137, 225), (29, 83, 173), (214, 198, 190),
    ]  # fmt: skip
    assert tinted(5, BODY) == (238, 112, 28)
    assert TONE_NAMES == ("body", "left", "right", "skin")
    assert figures._paint((100, 200, 42)) == ((55, 110, 23), (100, 200, 42), (146, 216, 106))


def test_tubes_have_a_rim_and_a_light_from_the_upper_left() -> None:
    """The rim is 1.6 pixels thick; the highlight 0.42 of the tube, as far aside as leaves it within."""
    rim, tube, light = figures._tubes(np.array([[[50.0, 60.0, 10.0], [80.0, 90.0, 20.0]]]))[0]
    np.testing.assert_allclose(rim, [[50, 60, 11.6], [80, 90, 21.6]])
    np.testing.assert_allclose(tube, [[50, 60, 10], [80, 90, 20]])
    np.testing.assert_allclose(light, [[47.2, 57.2, 4.2], [74.4, 84.4, 8.4]])


@pytest.mark.parametrize(
    "ends", [((30, 20, 8), (70, 50, 16)), ((70, 60, 12), (25, 60, 4)), ((40, 20, 6), (40, 70, 12)), ((40, 40, 9),) * 2]
)
def test_a_capsule_is_two_discs_and_all_between_them(ends: Any) -> None:
    """A disc whose radius goes from one end's to the other's fills it; at its edge pixels are counted either way."""
    picture = Image.new("L", (100, 90))
    figures._draw_capsule(ImageDraw.Draw(picture), ends, 255)
    y, x = np.mgrid[:90, :100]
    inside = -np.inf * np.ones((90, 100))
    for share in np.linspace(0, 1, 400):
        centre = (1 - share) * np.array(ends[0]) + share * np.array(ends[1])
        inside = np.maximum(inside, centre[2] - np.hypot(x - centre[0], y - centre[1]))
    drawn = np.asarray(picture) > 0
    assert drawn[inside > 1.2].all()
    assert not drawn[inside < -1.2].any()


def test_what_is_drawn_anew_is_around_figures_and_the_blur_of_their_shadows() -> None:
    """In the frame's pixels, of which the large picture has two: 12 beyond the capsules, up to even numbers."""
    scene = Scene(STANDING[None, None], size=(128, 160))
    capsules = np.array([[[100.0, 80.0, 10.0], [140.0, 120.0, 20.0]], [[110.0, 90.0, 2.0], [112.0, 90.0, 2.0]]])
    assert scene._bounds(capsules) == (32, 22, 92, 82)
    assert scene._bounds(np.add(capsules, [2.0, 2.0, 0.0])) == (34, 24, 94, 84)
    assert scene._bounds(np.add(capsules, [-150.0, 150.0, 0.0])) == (0, 98, 18, 158)
    assert scene._bounds(np.add(capsules, [150.0, -250.0, 0.0])) == (108, 0, 128, 2)
    assert scene._bounds(np.add(capsules, [900.0, 900.0, 0.0])) == (126, 158, 128, 160)


def test_a_shadow_is_soft_within_the_room_that_is_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three deviations of the blur, in pixels of the mask, are the 12 of the frame; a shadow is 0.62 of the light."""
    radii: list[float] = []
    blur = ImageFilter.GaussianBlur
    monkeypatch.setattr(ImageFilter, "GaussianBlur", lambda radius: (radii.append(radius), blur(radius))[1])
    scene = Scene(STANDING[None, None], size=(256, 256))
    scene.frame(0)
    assert [3 * radius * SHADOW_SHRINK for radius in radii] == [12]
    lit, shaded = (np.asarray(picture).astype(float) for picture in scene._floor(np.zeros(3)))
    whole = (np.abs(lit - TILES[0]) < 1).all(-1) | (np.abs(lit - TILES[1]) < 1).all(-1)
    assert whole.sum() > 1000
    share = shaded[whole] / lit[whole]
    assert np.median(share) == pytest.approx(0.62, abs=0.01)
    bare = (lit == PAPER).all(-1)
    assert bare.sum() > 1000
    np.testing.assert_array_equal(shaded[bare], lit[bare])  # where there is no floor there is no shadow


class Font:
    """Letters of 6 pixels each, dots of an ellipsis as well."""

    size = 10

    def getlength(self, text: str) -> float:
        return 6.0 * len(text)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 60, []),
        (" two  people\nbow ", 60, ["two people", "bow"]),
        ("two people bow", 59, ["two", "people", "bow"]),
        ("two people bow", 84, ["two people bow"]),
        ("a b c d", 6, ["a", "b", "c", "d"]),
        ("a b c d e", 18, ["a b", "c d", "e"]),
        ("a b c d e", 6, ["a", "b", "c", "…"]),
        ("aaa bbb ccc ddd eee", 30, ["aaa", "bbb", "ccc", "ddd …"]),
        ("aaa bbb ccc ddd eee", 24, ["aaa", "bbb", "ccc", "ddd…"]),
        ("abcdefgh i", 30, ["abcd…", "i"]),
    ],
    ids=count(),
)
def test_words_in_lines(text: str, width: int, lines: list[str]) -> None:
    assert _wrap(text, Font(), width) == lines


def test_a_line_is_cut_to_what_fits_beside_an_ellipsis() -> None:
    assert [_cut("abcdef", Font(), width) for width in (36, 35, 18, 6, 5)] == ["abcdef", "abcd…", "ab…", "…", "…"]


def test_letters_are_large_enough_to_be_read() -> None:
    assert [figures._font(size).size for size in (3, 10, 11, 30)] == [10, 10, 11, 30]
    assert figures._line_height(Font()) == pytest.approx(13)


def test_a_scene_is_as_it_is_told_and_refuses_more() -> None:
    plain = Scene(STANDING[None, None])
    assert (plain.fps, plain.size, len(plain)) == (30, (640, 640), 1)
    assert len(Scene(np.tile(STANDING, (4, 3, 1, 1)), size=(128, 128))) == 3
    for shape in ((5, 1, 22, 3), (0, 1, 22, 3), (1, 1, 22, 2), (1, 22, 3)):
        with pytest.raises(ValueError, match=r"^joints: expected shape \(1\.\.4, T >= 1, 22, 3\), got "):
            Scene(np.ones(shape))


def test_a_scene_that_is_followed_is_drawn_from_where_everybody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies are as far from the path as the persons; each frame has the floor of its own moment, at its rate."""
    asked: list[Any] = []
    path = np.stack([np.arange(3.0), np.zeros(3), -np.arange(3.0)], axis=-1)
    monkeypatch.setattr(figures, "centre_path", lambda joints, fps: (asked.append(fps), path)[1])
    joints = np.stack([STANDING + step for step in path])[None]
    scene = Scene(joints, fps=12.5, size=(128, 128), camera="follow")
    assert asked == [12.5]
    np.testing.assert_allclose(scene._body.ends, build_body(np.tile(STANDING, (1, 3, 1, 1))).ends, atol=1e-12)
    shifts: list[Any] = []
    floor = scene._floor
    monkeypatch.setattr(scene, "_floor", lambda shift: (shifts.append(shift), floor(shift))[1])
    for index in (2, 0):
        scene.frame(index)
    np.testing.assert_array_equal(shifts, path[[2, 0]])
    assert asked == [12.5]


def test_head_face_and_hands_have_their_sizes() -> None:
    """Metres: a head from 5 to 10 cm above its joint, a face 8.5 cm before it, hands 7 cm beyond the wrists."""
    body = build_body(STANDING[None, None])
    *bones, left, right, head, face = range(len(body.tones))
    assert bones == list(range(21))
    up = STANDING[15] - STANDING[12]
    up /= np.linalg.norm(up)
    np.testing.assert_allclose(body.ends[0, 0, head], STANDING[15] + np.outer([0.05, 0.10], up))
    np.testing.assert_allclose(body.radii[head], [0.1035, 0.115])
    away = body.ends[0, 0, face] - (STANDING[15] + 0.06 * up)
    np.testing.assert_allclose(np.linalg.norm(away, axis=-1), 0.085)
    assert (away[:, 2] > 0.08).all()  # who rests faces Z+
    np.testing.assert_allclose(body.radii[face], 0.06)
    for hand, wrist, elbow in ((left, 20, 18), (right, 21, 19)):
        along = (STANDING[wrist] - STANDING[elbow]) / np.linalg.norm(STANDING[wrist] - STANDING[elbow])
        np.testing.assert_allclose(body.ends[0, 0, hand], STANDING[wrist] + np.outer([0, 0.07], along))
        np.testing.assert_allclose(body.radii[hand], [0.0336, 0.042])
    assert body.tones[[left, right, head, face]].tolist() == [SKIN, SKIN, BODY, SKIN]
    assert body.joints[[left, right, head, face]].tolist() == [20, 21, 15, 15]


def test_limbs_grow_thinner_without_a_step() -> None:
    """Each bone begins within 8 mm as thick as the one above it ends; only the chest is thicker above than below."""
    body = build_body(STANDING[None, None])
    radii = {joint: body.radii[joint - 1] for joint in range(1, 22)}
    for above, below in ((1, 4), (4, 7), (7, 10), (3, 6), (6, 9), (13, 16), (16, 18), (18, 20), (12, 15)):
        assert abs(radii[above][1] - radii[below][0]) <= 0.008 + 1e-9
    for joint, (upper, lower) in radii.items():
        assert lower <= upper or joint == 6
        assert 0.03 <= lower <= upper + 0.0101 <= 0.1151 + 1e-9
    # rounder than a rod, thinner than a barrel: a thigh is 15 cm across, a waist 19, an upper arm 11, a calf 11
    assert [round(200 * radii[joint][0]) for joint in (4, 3, 18, 7)] == [16, 19, 11, 11]


def test_what_is_written_beside_each_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1020 pixels letters of 30, lines of 39: two of a caption, then 9 pixels, squares of 20, words 32 further.

    The next square is 70 pixels and the length of the words after the one before.
    """
    asked: list[Any] = []
    monkeypatch.setattr(figures, "_font", lambda size: (asked.append(size), Font())[1])
    monkeypatch.setattr(Font, "size", 30)
    monkeypatch.setattr(figures, "_wrap", lambda *given: (asked.append(given), ["they", "bow"])[1])
    squares: list[Any] = []
    words: dict[str, Any] = {}
    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", lambda _, box, fill: squares.append((box, fill)))
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, place, text, **how: words.update({text: (place, how)}))
    scene = Scene(np.tile(STANDING, (2, 1, 1, 1)), "they bow", size=(512, 1020))
    assert asked[0] == 30
    assert (asked[1][0], asked[1][2]) == ("they bow", 481)  # 94 of 100
    for (text, top), anchor in zip((("they", 15.6), ("bow", 54.6)), (None, None), strict=True):
        place, how = words[text]
        np.testing.assert_allclose(place, (15.36, top))
        assert (how["fill"], how.get("anchor"), how["font"]) == (INK, anchor, scene._font)
    for person, left in enumerate((15.36, 15.36 + 70 + 6 * len("person 1"))):
        box, colour = squares[person]
        np.testing.assert_allclose(box, (left, 102.6, left + 20, 122.6))
        assert colour == PERSON_COLOURS[person]
        place, how = words[f"person {person + 1}"]
        np.testing.assert_allclose(place, (left + 32, 112.6))
        assert (how["fill"], how["anchor"]) == (INK, "lm")


def test_tiles_and_their_shadows_fade_into_the_paper() -> None:
    """Whole to the reach, gone at twice that: the rest of the way to the power 1.5; shadows, four times of it."""
    scene = Scene(STANDING[None, None], size=(256, 256))
    width, height = scene.size
    _, x, z = scene._camera.floor_grid(2 * width, 2 * height)
    tile = TILES[((np.floor(x / 0.5) + np.floor(z / 0.5)) % 2).astype(int)].astype(float)
    flat = STANDING[:, [0, 2]]
    middle = (flat.max(0) + flat.min(0)) / 2
    reach = np.linalg.norm(flat - middle, axis=-1).max() + 1
    solid = np.clip(2 - np.hypot(x - middle[0], z - middle[1]) / reach, 0, 1)[..., None] ** 1.5
    lit = 250 + solid * (tile - 250) + np.array([0, 0, 2]) * (1 - solid)
    dark = lit * (1 - 0.38 * np.minimum(4 * solid, 1))
    for wanted, picture in zip((lit, dark), scene._floor(np.zeros(3)), strict=True):
        wanted = wanted[len(wanted) % 2 :].reshape(-1, 2, width, 2, 3).mean((1, 3))
        found = np.asarray(picture)[-len(wanted) :].astype(float)
        assert ((solid > 0.05) & (solid < 0.95)).mean() > 0.1
        assert np.abs(found - wanted)[60:].max() < 2  # below the words, rounded twice


@pytest.mark.parametrize("size", [(256, 256), (130, 310)])
def test_a_picture_is_the_floor_with_bodies_and_shadows_where_they_are(size: tuple[int, int]) -> None:
    """Beyond the box around them nothing of the floor changes but the clock; in it a chest is of its person's."""
    scene = Scene(STANDING[None, None], size=size)
    lit, _ = scene._floor(np.zeros(3))
    changed = (scene.frame(0) != np.asarray(lit)).any(-1)
    changed[int(0.93 * size[1]) :, size[0] // 2 :] = False  # the clock
    ends = scene._body.ends[:, 0].reshape(-1, 2, 3)
    bodies, _ = scene._capsules(ends, scene._body.radii)
    shadows, _ = scene._capsules(ends * (1, 0, 1) + ends[..., 1:2] * (0.28, 0, 0.16), scene._body.radii)
    left, top, right, bottom = scene._bounds(np.concatenate([bodies, shadows]))
    inside = np.zeros_like(changed)
    inside[top:bottom, left:right] = True
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.05
    column, row = np.floor(scene._camera.project(STANDING[9])[0] / 2).astype(int)
    drawn = scene.frame(0)[row - 2 : row + 3, column - 2 : column + 3].astype(int)
    assert (drawn[..., 2] - drawn[..., 0] > 80).all()  # blue, whichever limb is before it
