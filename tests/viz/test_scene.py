"""What the scene is told: bodies where the video draws them, and controls that do what they say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.rotations import about_axis, from_quaternions
from intermoe.viz.body import build_body

pytest.importorskip("viser", reason="scenes are viser's")
from intermoe.viz import viewer as module
from intermoe.viz.figures import PERSON_COLOURS, tinted
from intermoe.viz.panel import Panel
from intermoe.viz.scene import _SHADE, Figures, _ball, _lit, _spindle, serving
from intermoe.viz.viewer import Shown, Viewer


def people(frames: int = 20) -> np.ndarray:
    """Two people (2, T, 22, 3), one behind the other, who turn on the spot and rise."""
    turns = about_axis(1, np.arange(frames) / 5) @ about_axis(0, np.arange(frames) / 30)
    one = np.einsum("tij,nj->tni", turns, at_rest(REST_POSE)) + np.linspace(0.95, 1.2, frames)[:, None, None] * [
        0,
        1,
        0,
    ]
    return np.stack([one, one + np.array([0, 0, 1.0])])


def test_figures_are_the_capsules_of_the_video() -> None:
    joints = people()
    body = build_body(joints)
    with serving() as server:
        figures = Figures(server.scene, joints, ("Ann", "B/o"))
        assert [handle.name for handle in figures.people] == ["/Ann", "/B o"]
        for frame in (0, 7, 19):
            figures.show(frame)
            for person in range(2):
                balls, *stumps, shadow = figures._parts[4 * person : 4 * person + 4]
                ends = body.ends[person, frame]
                places, sizes = balls.handle.batched_positions, balls.handle.batched_scales[:, 0]
                apart = np.linalg.norm(ends.reshape(-1, 1, 3) - places, axis=-1)
                # every round end is a ball or lies in one
                assert (apart + body.radii.reshape(-1, 1) - sizes).min(1).max() < 2e-4
                assert apart.min(0).max() < 2e-4
                assert len(places) == 22 + 2 + 2 + 1  # joints, hands, both ends of the head, the face
                tips = np.concatenate([_tips(part.handle) for part in stumps])
                # every stump ends where the other end of its capsule is
                assert np.linalg.norm(tips[:, None] - ends[:, 1], axis=-1).min(1).max() < 1e-3
                assert len(tips) == len(ends) - 1  # the face is a ball
                # the shadow is all stumps once more, pressed flat just above the floor
                np.testing.assert_array_equal(_tips(shadow.handle), tips)
                assert 0 < shadow.handle.position[1] + 3 * shadow.handle.scale[1] < 0.01
                assert tuple(shadow.handle.scale)[::2] == (1.0, 1.0)
        figures.show(19)
        last = figures._parts[0].handle.batched_positions.copy()
        figures.show(0)
        figures.show(500)
        np.testing.assert_array_equal(figures._parts[0].handle.batched_positions, last)


@pytest.mark.parametrize("form", [_ball, _spindle])
def test_forms_are_closed_and_face_outward(form: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
    vertices, faces = form()
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert len(vertices) - len(edges) / 2 + len(faces) == 2  # Euler: one closed surface
    corners = vertices[faces]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((corners.mean(1) - vertices.mean(0)) * outward).sum(-1).min() > 0


def test_figures_have_the_colours_of_the_video_as_shares_of_light() -> None:
    with serving() as server:
        figures = Figures(server.scene, people(1), ("Ann", "Bo"))
        for person in range(2):
            shares = np.asarray(figures._parts[4 * person].handle.batched_colors) / 255
            shown = np.where(shares <= 0.0031308, 12.92 * shares, 1.055 * shares ** (1 / 2.4) - 0.055)
            away = np.abs(255 * shown - PERSON_COLOURS[person]).max(-1)
            assert away.min() < 4  # a share is rounded to a 255th: three steps of sRGB in the dark


def test_every_ball_and_stump_has_the_tone_of_its_limb() -> None:
    """Found by its place: a capsule of that tone ends, or begins, where it is, as thick as it is there."""
    joints = people(1)
    body = build_body(joints)
    with serving() as server:
        figures = Figures(server.scene, joints, ("Ann", "Bo"))
        for person in range(2):
            tones = [_lit(tinted(person, tone)) for tone in body.tones.tolist()]
            balls, *stumps, shadow = figures._parts[4 * person : 4 * person + 4]
            for part in (balls, *stumps):
                found = zip(part.places[0], part.handle.batched_scales, part.handle.batched_colors, strict=True)
                for place, scale, colour in found:
                    ends = np.linalg.norm(body.ends[person, 0] - place, axis=-1) < 5e-4
                    ends &= np.abs(body.radii - scale[0]) < 1e-5
                    assert ends.any()
                    assert any(np.array_equal(tones[capsule], colour) for capsule in np.flatnonzero(ends.any(axis=1)))
            assert len(np.unique(balls.handle.batched_colors, axis=0)) == 4  # trunk, left, right, skin
            assert (np.asarray(shadow.handle.batched_colors) == _lit(_SHADE)).all()


def _tips(handle: object) -> np.ndarray:
    turns = from_quaternions(np.asarray(handle.batched_wxyzs, dtype=float))
    return handle.batched_positions + turns[:, :, 1] * handle.batched_scales[:, 1:2]


def test_a_server_is_for_this_machine_alone_and_ends() -> None:
    with serving() as server:
        assert server.get_host() == "127.0.0.1"
        before = threading.active_count()
    assert threading.active_count() <= before


def test_controls_show_people_skeletons_trails_and_feet() -> None:
    motions = [Shown("real", people(), 30, ("Ann", "Bo")), Shown("generated", people(50), 30, ("Ann", "Bo"))]
    with serving() as server:
        viewer = Viewer(server, motions)
        assert viewer.length == pytest.approx(50 / 30)
        first, second = viewer._casts
        assert [handle.name for handle, _ in first.people] == ["/1 real/Ann", "/1 real/Bo"]
        assert first._joints[..., 0].max() < second._joints[..., 0].min()
        viewer._skeletons.value = viewer._contacts.value = True
        viewer._bodies.value = False
        viewer.show(10 / 30)
        assert not first._figures._parts[0].handle.visible
        assert first._skeletons[0].visible
        bones = first._skeletons[0].points
        np.testing.assert_allclose(bones[0, 1], first._joints[0, 10, 1], atol=1e-4)
        assert 0.001 < first._skeletons[0].thickness < 0.05  # metres
        assert not first._trails[0].visible
        assert first._marks[0].visible


def test_every_box_of_the_page_shows_and_hides_what_it_says() -> None:
    """Each box is taken out of what it was and put back; all that is seen elsewhere stays as it was."""
    panel = Panel(np.full((100, 300, 3), 200, dtype=np.uint8), [30.0, 170.0], 100.0)
    motions = [Shown("real", people(), 30, ("Ann", "Bo"), panel), Shown("made", people(), 30, ("Cid", "Dee"))]
    with serving() as server:
        viewer = Viewer(server, motions)
        drawn = [part.handle for cast in viewer._casts for part in cast._figures._parts]
        things: dict[str, list[Any]] = {
            "bodies": drawn,
            "skeletons": [each for cast in viewer._casts for each in cast._skeletons],
            "trails": [each for cast in viewer._casts for each in cast._trails],
            "feet that stand": [each for cast in viewer._casts for each in cast._marks],
            "experts": [viewer._panels[0][0]._image, viewer._panels[0][0]._lines],
            **{label: [handle] for cast in viewer._casts for handle, label in cast.people},
        }
        assert list(things)[5:] == ["1 real: Ann", "1 real: Bo", "2 made: Cid", "2 made: Dee"]
        inputs = server.gui._gui_input_handle_from_uuid.values()
        boxes = {box.label: box for box in inputs if isinstance(box.value, bool)}
        sliders = {box.label: (box.min, box.max, box.step, box.value) for box in inputs if box not in boxes.values()}
        assert sliders == {"seconds": (0.0, pytest.approx(20 / 30), 0.001, 0.0), "speed": (0.1, 2.0, 0.1, 1.0)}
        assert set(boxes) == {*things, "play"}

        def seen() -> dict[str, bool]:
            found = {name: {bool(each.visible) for each in handles} for name, handles in things.items()}
            assert all(len(each) == 1 for each in found.values())
            return {name: each.pop() for name, each in found.items()}

        start = seen()
        assert start == {name: name not in ("skeletons", "trails", "feet that stand") for name in things}
        for name in things:
            boxes[name].value = not start[name]
            wait_until(lambda name=name: seen() == {**start, name: not start[name]})
            boxes[name].value = start[name]
            wait_until(lambda: seen() == start)


def wait_until(done: Callable[[], bool]) -> None:
    """Callbacks may run in a thread of their own."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_panel_leans_before_its_figures_and_its_line_moves() -> None:
    """The line is in the picture where time is; the picture before the feet, upright, and the whole of it in view."""
    panel = Panel(np.full((100, 300, 3), 200, dtype=np.uint8), [30.0, 170.0], 100.0)
    motions = [Shown("a", people(), 30, ("Ann", "Bo"), panel), Shown("b", people(50), 30, ("Ann", "Bo"))]
    with serving() as server:
        viewer = Viewer(server, motions)
        assert len(viewer._panels) == 1
        stage = viewer._panels[0][0]
        joints = viewer._casts[0]._joints
        turn, middle = from_quaternions(np.asarray(stage._image.wxyz, dtype=float)), np.asarray(stage._image.position)
        eye = np.asarray(server.initial_camera.position)
        assert turn[1, 1] < 0 < middle[1]  # the picture's rows run down
        assert np.linalg.norm(eye - middle) < np.linalg.norm(eye - joints.reshape(-1, 3), axis=-1).min()
        viewer.show(0.0)
        first = stage._lines.points.copy()
        viewer.show(19.2 / 30)
        last = stage._lines.points
        pixel = stage._image.render_width / 300
        np.testing.assert_allclose(np.linalg.norm(last - first, axis=-1), 19 / 20 * 100 * pixel, rtol=1e-5)
        places = (last - middle) @ turn  # in the picture: right, down, away
        np.testing.assert_allclose(places[:, 0, 0], (np.array([30, 170]) + 97.5 - 150) * pixel, atol=1e-5)
        assert (places[:, :, 2] < 0).all()  # before the picture, not in it
        np.testing.assert_allclose(places[:, :, 1], [[-50 * pixel, 50 * pixel]] * 2, atol=1e-5)
        viewer._experts.value = False
        viewer.show(0.0)
        assert not stage._image.visible
        assert not stage._lines.visible


@pytest.mark.parametrize("camera", ["side", "front", "top"])
def test_at_first_everybody_and_the_whole_panel_are_in_view(camera: str) -> None:
    """A panel is wider than two people who stand behind each other; windows are at least 0.9 times as wide as high."""
    panel = Panel(np.full((100, 300, 3), 200, dtype=np.uint8), [30.0, 170.0], 100.0)
    with serving() as server:
        viewer = Viewer(server, [Shown("a", people(), 30, ("Ann", "Bo"), panel)], camera)
        image, look = viewer._panels[0][0]._image, server.initial_camera
        turn, half = from_quaternions(np.asarray(image.wxyz, dtype=float)), (image.render_width, image.render_height)
        corners = [
            image.position + turn[:, :2] @ (np.array(half) / 2 * s) for s in ((-1, -1), (-1, 1), (1, -1), (1, 1))
        ]
        seen = np.concatenate([viewer._casts[0]._joints.reshape(-1, 3), corners]) - look.position
        ahead = np.asarray(look.look_at) - look.position
        ahead = ahead / np.linalg.norm(ahead)
        right = np.cross(ahead, look.up)
        right /= np.linalg.norm(right)
        depth, edge = seen @ ahead, np.tan(look.fov / 2)
        assert (np.abs(seen @ right) / depth).max() < 0.9 * edge
        assert (np.abs(seen @ np.cross(right, ahead)) / depth).max() < edge


def test_time_goes_as_fast_as_the_slider_says_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is 1/200 s further at each look and does not heed sleeps: 0.7 s of motion a turn, at 70."""
    with serving() as server:
        viewer = Viewer(server, [Shown("a", people(20), 30, ("Ann", "Bo")), Shown("b", people(60), 60, ("Ann", "Bo"))])
        slept: list[float] = []
        now = iter(np.arange(200) / 200)
        clock = SimpleNamespace(monotonic=lambda: float(next(now)), sleep=slept.append)
        monkeypatch.setattr(module, "time", clock)
        seen: list[float] = []
        monkeypatch.setattr(viewer, "_slider", SimpleNamespace(value=0.0))
        monkeypatch.setattr(viewer, "_speed", SimpleNamespace(value=70.0))

        def stop() -> bool:
            viewer._time = viewer._slider.value
            seen.append(viewer._time)
            viewer._playing = SimpleNamespace(value=len(seen) != 2)
            return len(seen) == 7

        viewer.run(stop)
        # two looks at the clock a turn; the second turn stands still; of 1 s of motion
        np.testing.assert_allclose(seen, [0.0, 0.7, 0.7, 0.4, 0.1, 0.8, 0.5], atol=1e-9)
        np.testing.assert_allclose(slept, [1 / 60 - 1 / 200] * 6)  # until the quickest motion's next frame


def test_it_plays_in_real_time_until_it_is_stopped() -> None:
    with serving() as server:
        viewer = Viewer(server, [Shown("bow", people(60), 30, ("Ann", "Bo"))])
        turns = iter([False] * 5 + [True])
        viewer.run(lambda: next(turns))
        assert 0 < viewer._time < 1.9
