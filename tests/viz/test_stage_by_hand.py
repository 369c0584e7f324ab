"""Where cameras, panels and motions are, and what triangles they are of, by hand."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.rotations import about_axis, from_quaternions
from intermoe.motion.skeleton import JOINT_NAMES
from intermoe.viz import View, camera
from intermoe.viz.body import build_body
from intermoe.viz.camera import Camera, frame_motion
from intermoe.viz.mesh import body_meshes, capsule
from intermoe.viz.panel import Lectern, Panel, PanelOnStage

VIEWPORT = (10.0, 20.0, 410.0, 320.0)


def people(*places: tuple[float, float]) -> np.ndarray:
    """Who stands at ``places``, x and z, for two frames, facing Z+."""
    one = at_rest(REST_POSE) + np.array([0.0, 1.0, 0.0])
    return np.stack([np.tile(one + np.array([x, 0.0, z]), (2, 1, 1)) for x, z in places])


def test_views_that_can_be() -> None:
    assert (View(), View().moves, View("follow").moves) == (View("side", (640, 640)), False, True)
    assert camera.CAMERAS == ("side", "front", "top", "follow")
    for size in ((128, 8192), (8192, 128), (130, 128)):
        assert View("top", size).size == size
    for size in ((126, 640), (640, 126), (8194, 640), (640, 8194), (129, 640), (640, 131), (640,), (640, 640, 640)):
        with pytest.raises(ValueError, match=r"^size: expected even numbers >= 128 and <= 8192, got "):
            View("top", size)  # type: ignore[arg-type]


def test_pixels_of_points() -> None:
    """At (1, 2, 3), looking along X, with Z to the right; 100 pixels a metre at a metre."""
    axes = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    pixels, depth = Camera(np.array([1.0, 2.0, 3.0]), axes, 100.0, np.array([50.0, 40.0])).project(
        np.array([[3.0, 2.0, 3.0], [3.0, 3.0, 3.0], [5.0, 2.0, 5.0]])
    )
    np.testing.assert_allclose(pixels, [[50, 40], [50, -10], [100, 40]])
    np.testing.assert_allclose(depth, [2, 2, 4])


@pytest.mark.parametrize(("place", "degrees"), [("side", 16), ("front", 16), ("top", 89), ("follow", 16)])
def test_cameras_look_down(place: str, degrees: float) -> None:
    view = frame_motion(people((0.0, 0.0), (0.4, 1.0)), VIEWPORT, place)
    right, up, forward = view.axes
    assert np.degrees(np.arcsin(-forward[1])) == pytest.approx(degrees)
    assert right[1] == pytest.approx(0, abs=1e-12)
    assert up[1] > 0
    np.testing.assert_allclose(np.cross(right, forward), up, atol=1e-12)


def test_a_pair_along_z_is_seen_from_x_minus_with_the_first_to_the_left() -> None:
    """A third person has no say in it; one alone is seen from aside."""
    for places in (((0.0, 0.0), (0.0, 1.0)), ((0.0, 0.0), (0.0, 1.0), (4.0, 0.5))):
        joints = people(*places)
        view = frame_motion(joints, VIEWPORT)
        np.testing.assert_allclose(view.axes[0], [0, 0, 1], atol=1e-9)
        pixels, _ = view.project(joints[:2, 0, 0])
        assert pixels[0, 0] < pixels[1, 0]
    alone = frame_motion(people((0.0, 0.0)), VIEWPORT).axes[2]
    np.testing.assert_allclose(alone[[0, 2]] / np.linalg.norm(alone[[0, 2]]), [-(0.5**0.5), -(0.5**0.5)])


def test_from_the_front_it_is_where_the_first_faces_in_the_first_frame() -> None:
    for degrees in (0, 70, 200):
        turn = about_axis(1, np.radians(degrees))
        joints = people((0.0, 0.0), (0.3, 1.0)) @ turn.T
        joints[:, 1] = joints[:, 1] @ about_axis(1, np.array(1.0)).T
        forward = frame_motion(joints, VIEWPORT, "front").axes[2] * (1, 0, 1)
        np.testing.assert_allclose(forward / np.linalg.norm(forward), -turn[:, 2], atol=1e-6)


def test_a_panel_leans_before_them_at_their_feet() -> None:
    """2.4 m wide, half a metre before the nearest, in the middle; it rises 0.4 m a metre from its edge on the floor."""
    joints = np.zeros((2, 1, 22, 3))
    joints[0, 0, :, 0], joints[1, 0, :, 0] = -1.0, 2.0
    joints[1, 0, 5] = (2.0, 1.5, 3.0)
    elevation = np.radians(20)
    forward = np.array([0.0, -np.sin(elevation), -np.cos(elevation)])
    axes = np.stack([[1.0, 0.0, 0.0], np.cross([1.0, 0.0, 0.0], forward), forward])  # seen from Z+
    panel = Panel(np.zeros((200, 600, 3), np.uint8), [30.0, 330.0], 240.0)
    lectern = Lectern.before(joints, axes, panel)
    assert lectern.pixel == pytest.approx(0.004)
    long = 1.16**0.5
    np.testing.assert_allclose(lectern.right, [1, 0, 0])
    np.testing.assert_allclose(lectern.down, [0, -0.4 / long, 1 / long])
    np.testing.assert_allclose(lectern.corner, [0.5 - 1.2, 0.8 * 0.4 / long, 3.5])
    np.testing.assert_allclose(lectern.at(0, 200)[1], 0, atol=1e-12)
    np.testing.assert_allclose(lectern.at(100, 50) - lectern.corner, [0.4, -0.08 / long, 0.2 / long])
    np.testing.assert_allclose(lectern.at(0, 0, 2.0) - lectern.corner, [0, 2 / long, 0.8 / long], atol=1e-12)
    np.testing.assert_allclose(lectern.corners(panel), [lectern.at(0, 0), lectern.at(600, 200)])
    assert panel.moments(0.25) == [90.0, 390.0]
    scene = mock.MagicMock()
    stage = PanelOnStage(scene, panel, lectern, "/experts")
    turn = from_quaternions(np.asarray(scene.add_image.call_args.kwargs["wxyz"]))
    np.testing.assert_allclose(
        turn, np.stack([lectern.right, lectern.down, [0, -1 / long, -0.4 / long]], -1), atol=1e-9
    )
    (_, lines, _), how = scene.add_line_segments.call_args
    assert how == {"thickness": 0.008}
    for share, points in ((0.0, lines), (0.75, None)):
        if points is None:
            stage.show(share, True)
            points = stage._lines.points
        wanted = [[lectern.at(x + 240 * share, y, 0.004) for y in (0, 200)] for x in (30, 330)]
        np.testing.assert_allclose(points, wanted, atol=1e-6)
        assert points.dtype == np.float32
    assert (stage._image.visible, stage._lines.visible) == (True, True)
    stage.show(0.1, False)
    assert (stage._image.visible, stage._lines.visible) == (False, False)
    np.testing.assert_allclose(stage._lines.points, wanted, atol=1e-6)


def test_meshes_are_the_capsules_of_each_tone_in_their_order() -> None:
    rest = REST_POSE * np.random.default_rng(0).uniform(0.8, 1.2, (22, 3))
    body = build_body(at_rest(rest)[None, None])
    meshes = body_meshes(rest)
    assert [mesh.tone for mesh in meshes] == [0, 1, 2, 3]
    for mesh in meshes:
        end = 0
        triangles = 0
        for which in np.flatnonzero(body.tones == mesh.tone):
            vertices, normals, faces = capsule(body.ends[0, 0, which], body.radii[which])
            part = slice(end, end + len(vertices))
            np.testing.assert_array_equal(mesh.vertices[part], vertices)
            np.testing.assert_array_equal(mesh.normals[part], normals)
            assert (mesh.joints[part] == body.joints[which]).all()
            np.testing.assert_array_equal(mesh.faces[triangles : triangles + len(faces)], faces + end)
            end, triangles = end + len(vertices), triangles + len(faces)
        assert (end, triangles) == (len(mesh.vertices), len(mesh.faces))


@pytest.mark.parametrize("length", [0.0, 0.5])
def test_a_capsule_is_closed_and_round_and_of_few_triangles(length: float) -> None:
    """Twelve corners around, three rings a half: within 4 % of round; a ball has one equator, a capsule two."""
    vertices, normals, faces = capsule(np.array([[0.0, 0, 0], [0.0, length, 0]]), np.array([0.1, 0.1]))
    assert len(vertices) == (2 + 12 * 6 if length else 2 + 12 * 5)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert len(vertices) - len(edges) / 2 + len(faces) == 2
    corners = vertices[faces]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (outward * normals[faces].sum(1)).sum(-1).min() > 0
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1)
    around = vertices[edges].mean(1)
    around = around[np.ptp(vertices[edges][..., 1], axis=1) < 1e-9]
    level = around[np.abs(around[:, 1] - length / 2) <= length / 2 + 1e-9]
    assert (np.hypot(level[:, 0], level[:, 2]) > 0.096).all()
    heights = np.unique(np.round(np.degrees(np.arcsin(normals[:, 1]))))
    assert heights.tolist() == [-90, -60, -30, 0, 30, 60, 90]


class TestPages:
    """What needs viser."""

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("viser", reason="pages are viser's")

    def test_forms_of_bones(self) -> None:
        """Stumps of ten sides, of which each bone takes the one whose far end is nearest to as thick as its own."""
        from intermoe.viz import scene

        assert (scene.TAPERS, scene.SEGMENTS) == ((1.0, 0.73), 10)
        vertices, faces = scene._stump(0.73)
        assert vertices.shape == (20, 3)
        np.testing.assert_allclose(vertices[:, 1], [0.0] * 10 + [1.0] * 10)
        np.testing.assert_allclose(np.hypot(vertices[:, 0], vertices[:, 2]), [1.0] * 10 + [0.73] * 10)
        corners = vertices[faces]
        outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert len(faces) == 20
        assert (outward * corners.mean(1) * (1, 0, 1)).sum(-1).min() > 0
        spindle, _ = scene._spindle()
        assert len(spindle) == 12
        np.testing.assert_allclose(spindle[-2:], [[0, -0.12, 0], [0, 1.12, 0]])
        told = mock.MagicMock()
        told.add_frame.side_effect = lambda name, **_: SimpleNamespace(name=name)
        scene.Figures(told, people((0.0, 0.0)), ("Ann",))
        calls = {call.args[0]: call for call in told.add_batched_meshes_simple.call_args_list}
        radii = build_body(people((0.0, 0.0))).radii[:-1]  # the face is a ball
        full = np.abs(radii[:, 1] / radii[:, 0] - 1) < np.abs(radii[:, 1] / radii[:, 0] - 0.73)
        for name, chosen, taper in (("/Ann/bones 1", full, 1.0), ("/Ann/bones 2", ~full, 0.73)):
            np.testing.assert_allclose(calls[name].kwargs["batched_scales"][:, 0], radii[chosen, 0], rtol=1e-6)
            np.testing.assert_allclose(calls[name].kwargs["batched_scales"][:, 2], radii[chosen, 0], rtol=1e-6)
            assert np.hypot(*calls[name].args[1][10, [0, 2]]) == pytest.approx(taper)

    def test_places_are_rounded_to_a_quarter_of_a_millimetre(self) -> None:
        from intermoe.viz import scene

        values = np.random.default_rng(0).uniform(-3, 3, 50)
        rounded = scene._rounded(values)
        assert rounded.dtype == np.float32
        np.testing.assert_array_equal(rounded * 4096, np.round(rounded * 4096))
        assert np.abs(rounded - values).max() <= 0.5 / 4096
        assert np.abs(rounded - values).max() > 0.4 / 4096

    def test_shares_of_light_are_rounded_to_the_nearest(self) -> None:
        """sRGB's 128 is 0.2159 of the light, 55.04 of 255; 200 is 147.06... of them."""
        from intermoe.viz import scene

        assert scene._lit((0, 128, 255)).tolist() == [0, 55, 255]
        assert scene._lit((150, 153, 162)).tolist() == [78, 81, 92]
        assert scene._SHADE == (150, 153, 162)

    def test_a_window_is_seen_at_40_degrees_with_a_tenth_around(self) -> None:
        from intermoe.viz import scene

        assert np.degrees(scene.FIELD_OF_VIEW) == pytest.approx(40)
        assert pytest.approx(0.9 * 0.36397, abs=1e-5) == scene.HALF_HEIGHT
        assert pytest.approx(0.81 * 0.36397, abs=1e-5) == scene.HALF_WIDTH

    def test_ports(self) -> None:
        from intermoe.viz import scene

        for port in (0, 1, 65535):
            scene.check_port(port)
        for port in (-1, 65536):
            with pytest.raises(ValueError, match=f"^port: expected 0 to 65535, got {port}$"):
                scene.check_port(port)
            with pytest.raises(ValueError, match=r"^port: expected"), scene.serving(port):
                pass

    def test_a_server_is_asked_for_by_name_and_says_nothing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is guarded while it is made, stopped after a failure too, and nobody sees its hello or its goodbye."""
        from intermoe.viz import scene
        from intermoe.viz.browser import served_head

        calls: list[Any] = []

        class Server:
            def __init__(self, **how: Any) -> None:
                print("hello")
                calls.append(how)

            def stop(self) -> None:
                print("goodbye")
                calls.append("stop")

        def guarded(head: str) -> Any:
            block = mock.MagicMock()
            block.__enter__.side_effect = lambda *_: calls.append(("guarded", head))
            block.__exit__.side_effect = lambda *_: calls.append("made")
            return block

        monkeypatch.setitem(sys.modules, "viser", SimpleNamespace(ViserServer=Server))
        monkeypatch.setattr(scene, "guarded", guarded)
        with ExitStack() as stack:
            stack.enter_context(pytest.raises(KeyError))
            assert isinstance(stack.enter_context(scene.serving(81)), Server)
            print("mine")
            raise KeyError
        wanted = {"host": "127.0.0.1", "port": 81, "verbose": False}
        assert calls == [("guarded", served_head()), wanted, "made", "stop"]
        assert capsys.readouterr().out == "mine\n"
        monkeypatch.setitem(sys.modules, "viser", None)
        told = r"^viser is needed to see figures in a browser: pip install 'intermoe\[view\]'$"
        with pytest.raises(ModuleNotFoundError, match=told), scene.serving():
            pass

    def test_the_frame_of_a_moment(self) -> None:
        from intermoe.viz.viewer import frame_at

        assert [frame_at(seconds, 100, 50) for seconds in (0.0, 0.0099, 0.01, 0.29, 0.295, 0.49, 7.0)] == [
            0, 0, 1, 29, 29, 49, 49,
        ]  # fmt: skip

    def test_motions_stand_beside_each_other_and_one_alone_where_it_is(self) -> None:
        from intermoe.viz.viewer import Shown, _side_by_side

        first, second = people((5.0, 7.0)), people((-4.0, 2.0), (-1.0, 2.0))
        (alone,) = _side_by_side([Shown("a", first.astype(np.float32), 30, "A")])
        np.testing.assert_allclose(alone, first, atol=1e-6)
        left, right = _side_by_side([Shown("a", first, 30, "A"), Shown("b", second, 30, "BC")])
        assert right[..., 0].min() - left[..., 0].max() == pytest.approx(0.8)
        for moved, own in ((left, first), (right, second)):
            np.testing.assert_allclose(moved - moved[..., :1, :], own - own[..., :1, :], atol=1e-12)
            np.testing.assert_array_equal(moved[..., 1:], own[..., 1:])

    def test_what_stands_is_below_12_cm_and_slower_than_30_cm_a_second(self) -> None:
        from intermoe.viz import viewer

        joints = np.zeros((1, 3, 22, 3))
        feet = [JOINT_NAMES.index(name) for name in ("left_ankle", "left_foot", "right_ankle", "right_foot")]
        joints[0, :, feet, 1] = np.array([0.119, 0.121, 0.0, 0.0])[:, None]
        joints[0, :, feet[2], 0], joints[0, :, feet[3], 2] = np.arange(3) * 0.029, np.arange(3) * 0.031
        scene = mock.MagicMock()
        scene.add_frame.side_effect = lambda name, **_: SimpleNamespace(name=name)
        cast = viewer._Cast(scene, viewer.Shown("a", joints, 10, ("Ann",)), joints, "")
        assert [label for _, label in cast.people] == ["Ann"]
        assert cast._stands[0, 0].tolist() == [True, False, True, False]
        assert cast._stands[0, 2].tolist() == [True, False, True, True]
        names = {call.args[0]: call for call in scene.add_line_segments.call_args_list}
        assert {name: call.kwargs["thickness"] for name, call in names.items()} == {
            "/Ann/skeleton": 0.02, "/Ann/trails": 0.006,
        }  # fmt: skip
        wanted = [JOINT_NAMES.index(name) for name in ("pelvis", "left_wrist", "right_wrist")]
        np.testing.assert_array_equal(names["/Ann/trails"].args[1][:3, 0], joints[0, 0, wanted])
        assert list(viewer._TRAIL) == wanted
        assert scene.add_point_cloud.call_args.args[2] == (214, 40, 40)
        one = viewer._Cast(scene, viewer.Shown("a", joints[:, :1], 10, ("Ann",)), joints[:, :1], "")
        np.testing.assert_array_equal(scene.add_line_segments.call_args.args[1], np.zeros((1, 2, 3)))
        assert one._stands[0, 0].tolist() == [True, False, True, True]

    def test_a_viewer_sets_the_stage_for_everybody_and_their_panels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each motion under a name of its own, with its number; one alone under its persons' names."""
        from intermoe.viz import viewer

        stages: list[Any] = []
        monkeypatch.setattr(viewer, "set_stage", lambda *given: stages.append(given))
        panel = Panel(np.full((100, 300, 3), 200, dtype=np.uint8), [30.0], 100.0)
        first = viewer.Shown("re/al", people((0.0, 0.0), (0.0, 1.0)), 20, ("Ann", "Bo"))
        second = viewer.Shown("made", people((0.0, 0.0))[:, :1], 8, ("Cid",), panel)
        server = mock.MagicMock()
        server.scene.add_frame.side_effect = lambda name, **_: SimpleNamespace(name=name)
        shown = viewer.Viewer(server, [first, second], "top")
        ((stage, everybody, place, beside),) = stages
        assert (stage, place) == (server, "top")
        left, right = viewer._side_by_side([first, second])
        assert everybody.shape == (1, 5, 22, 3)
        np.testing.assert_array_equal(everybody[0], np.concatenate([left.reshape(-1, 22, 3), right[0]]))
        axes = frame_motion(everybody, (0.0, 0.0, 1.0, 1.0), "top").axes
        np.testing.assert_allclose(beside, Lectern.before(right, axes, panel).corners(panel))
        names = [call.args[0] for call in server.scene.add_frame.call_args_list]
        assert names == ["/1 re al/Ann", "/1 re al/Bo", "/2 made/Cid"]
        assert server.scene.add_image.call_args.args[0] == "/2 made experts"
        assert shown.length == 0.125
        longer = viewer.Viewer(server, [second, first])
        assert longer.length == 0.125
        stages.clear()
        server.scene.add_frame.reset_mock()
        viewer.Viewer(server, [first])
        assert stages[0][2] == "side"
        assert stages[0][3].shape == (0, 3)
        assert [call.args[0] for call in server.scene.add_frame.call_args_list] == ["/Ann", "/Bo"]
