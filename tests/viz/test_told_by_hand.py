"""Every word that a scene tells viser: stage, meshes, skeletons, trails and standing feet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("viser", reason="scenes are viser's")
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.rotations import about_axis
from intermoe.motion.skeleton import FOOT_JOINTS, JOINT_NAMES
from intermoe.viz import browser, live, viewer
from intermoe.viz import scene as module
from intermoe.viz.camera import BODY_MARGIN
from intermoe.viz.colours import INK, PAPER
from intermoe.viz.figures import PERSON_COLOURS, TILE_METRES, TILES
from intermoe.viz.panel import Lectern, Panel, PanelOnStage
from intermoe.viz.scene import Figures, looked_along, set_stage
from intermoe.viz.viewer import STANDING_HEIGHT, STANDING_SPEED, Shown


def told() -> Any:
    """A scene that keeps what it is told, and whose objects have names."""
    scene = mock.MagicMock()
    for name in ("add_frame", "add_batched_meshes_simple", "add_line_segments", "add_point_cloud", "add_image"):
        getattr(scene, name).side_effect = lambda name, *_, **__: SimpleNamespace(name=name)
    return scene


def standing(frames: int = 4) -> np.ndarray:
    """Two people (2, T, 22, 3) who stand 3 m apart along X."""
    one = np.tile(at_rest(REST_POSE) + np.array([0.0, 1.0, 0.0]), (frames, 1, 1))
    return np.stack([one, one + np.array([3.0, 0.0, 0.0])])


@pytest.mark.parametrize("beside", [None, np.array([[0.0, 9.0, 0.0], [-7.0, 0.0, 4.0]])])
@pytest.mark.parametrize("camera", ["side", "front", "top"])
def test_the_stage(camera: str, beside: np.ndarray | None) -> None:
    """The floor fades at three times the distance from which the camera sees all, with a margin, in its middle."""
    server, joints = mock.MagicMock(), standing()
    floor = set_stage(server, joints, camera, beside)
    scene, look = server.scene, server.initial_camera
    assert floor is scene.add_grid.return_value
    scene.set_up_direction.assert_called_once_with("+y")
    server.gui.main_panel.dock_right.assert_called_once_with()
    server.gui.configure_theme.assert_called_once_with(show_share_button=False)
    points = joints.reshape(-1, 3) if beside is None else np.concatenate([joints.reshape(-1, 3), beside])
    axes = looked_along(joints, camera)
    low, high = (points @ axes.T).min(0) - BODY_MARGIN, (points @ axes.T).max(0) + BODY_MARGIN
    right, up, depth = (high - low) / 2
    distance = depth + max(up / module.HALF_HEIGHT, right / module.HALF_WIDTH)
    middle = (low + high) / 2 @ axes
    np.testing.assert_allclose(look.look_at, middle)
    np.testing.assert_allclose(look.position, middle - distance * axes[2])
    assert (look.up, look.fov) == ((0.0, 1.0, 0.0), module.FIELD_OF_VIEW)
    (name,), grid = scene.add_grid.call_args
    assert name == "/floor"
    for key in ("cell_color", "section_color"):
        assert list(grid.pop(key)) == TILES[1].astype(int).tolist()
    assert grid == {
        "plane": "xz", "infinite_grid": True, "cell_size": TILE_METRES, "section_size": 2 * TILE_METRES,
        "plane_color": PAPER, "plane_opacity": 1.0, "fade_distance": pytest.approx(3 * distance),
    }  # fmt: skip
    scene.configure_environment_map.assert_called_once_with(hdri=None)
    scene.configure_default_lights.assert_called_once_with(enabled=False)
    sun, sky = scene.add_light_directional.call_args, scene.add_light_hemisphere.call_args
    assert (sun.args, sun.kwargs) == (("/sun",), {"intensity": 1.6, "position": (-3.0, 6.0, -2.0)})
    glow = {"sky_color": (255, 255, 255), "ground_color": (206, 206, 214), "intensity": 1.8}
    assert (sky.args, sky.kwargs) == (("/sky",), glow)


def test_meshes_are_told_all_that_they_are() -> None:
    """Shadows alone are pressed flat and lie above the floor; no lamp casts another."""
    scene = told()
    Figures(scene, standing(), ("Ann", "B/o"), root="/1 real")
    frames = [call.args[0] for call in scene.add_frame.call_args_list]
    assert frames == ["/1 real/Ann", "/1 real/B o"]
    assert all(call.kwargs == {"show_axes": False} for call in scene.add_frame.call_args_list)
    calls = scene.add_batched_meshes_simple.call_args_list
    parts = ("balls", "bones 1", "bones 2", "shadow")
    assert [call.args[0] for call in calls] == [f"{name}/{part}" for name in frames for part in parts]
    for call in calls:
        vertices, faces = call.args[1:]
        assert (vertices.dtype, faces.dtype) == (np.float32, np.uint32)
        given = call.kwargs
        flat = call.args[0].endswith("shadow")
        assert {key: given[key] for key in ("lod", "flat_shading", "cast_shadow", "receive_shadow")} == {
            "lod": "off", "flat_shading": flat, "cast_shadow": False, "receive_shadow": False,
        }  # fmt: skip
        assert given["scale"] == ((1.0, 1e-3, 1.0) if flat else 1.0)
        assert given["position"] == ((0.0, 2e-3, 0.0) if flat else (0.0, 0.0, 0.0))
        count = len(given["batched_positions"])
        assert given["batched_wxyzs"].shape == (count, 4)
        assert given["batched_scales"].shape == given["batched_colors"].shape == (count, 3)
        assert (given["batched_scales"] > 0).all()
        if call.args[0].endswith("balls"):
            assert (given["batched_wxyzs"] == [1, 0, 0, 0]).all()


def test_a_bone_that_changes_is_drawn_as_long_as_it_is_on_average() -> None:
    """Two people who grow from their size to three times that, the second of them half as large as the first."""
    growing = at_rest(REST_POSE) * np.linspace(1, 3, 5)[:, None, None]
    scene = told()
    Figures(scene, np.stack([growing, growing / 2]), ("Ann", "Bo"))
    wanted = np.linalg.norm(REST_POSE[1:], axis=-1)
    calls = scene.add_batched_meshes_simple.call_args_list
    for name, size in (("Ann", 1.0), ("Bo", 0.5)):
        drawn = [call.kwargs["batched_scales"][:, 1] for call in calls if call.args[0].startswith(f"/{name}/bones")]
        shadow = next(call.kwargs["batched_scales"][:, 1] for call in calls if call.args[0] == f"/{name}/shadow")
        for lengths in (np.concatenate(drawn), shadow):
            # two hands and the head, which do not grow, are 0.07 and 0.05 m
            np.testing.assert_allclose(np.sort(lengths), np.sort([*(2 * size * wanted), 0.07, 0.07, 0.05]), rtol=1e-5)


@pytest.mark.parametrize("frames", [2, 7])
def test_people_who_go_on_are_as_if_they_had_begun_so(frames: int) -> None:
    """After a load, each is told their own places and turns, up to the last frame of what was loaded."""
    turns = about_axis(1, np.arange(frames) / 5) @ about_axis(0, np.arange(frames) / 7)
    others = np.stack([standing(frames)[0] @ turns, standing(frames)[1] @ turns.transpose(0, 2, 1)])
    loaded, begun = Figures(told(), standing(), ("Ann", "Bo")), Figures(told(), others, ("Ann", "Bo"))
    loaded.load(others)
    assert len(loaded) == frames
    for frame in (0, frames - 1, 500):
        loaded.show(frame)
        begun.show(min(frame, frames - 1))
        for part, wanted in zip(loaded._parts, begun._parts, strict=True):
            np.testing.assert_array_equal(part.handle.batched_positions, wanted.handle.batched_positions)
            if part.turns is not None:
                np.testing.assert_array_equal(part.handle.batched_wxyzs, wanted.handle.batched_wxyzs)


def test_the_page_goes_along_with_what_is_between_all_pelvises() -> None:
    joints = np.full((3, 22, 3), 7.0)
    joints[:, 0] = [[0.0, 0.9, 0.0], [6.0, 1.0, 0.0], [0.0, 1.1, 9.0]]
    np.testing.assert_allclose(live._middle(joints), [2.0, 0.0, 3.0])


@pytest.mark.parametrize("fps", [30.0, 120.0])
def test_feet_stand_that_are_low_and_slow(fps: float) -> None:
    """Of Ann one foot stands and one is too high; of Bo one is too quick until the last frame, one is slow enough."""
    joints = standing()
    left, right = FOOT_JOINTS[0], FOOT_JOINTS[2]
    joints[:, :, list(FOOT_JOINTS), 1] = 0.5
    joints[0, :, left, 1], joints[0, :, right, 1] = STANDING_HEIGHT - 1e-3, STANDING_HEIGHT + 1e-3
    joints[1, :, left, 1] = joints[1, :, right, 1] = 0.0
    joints[1, :, left, 2] += np.arange(4) * 1.01 * STANDING_SPEED / fps
    joints[1, :, right, 2] += np.arange(4) * 0.99 * STANDING_SPEED / fps
    scene = told()
    cast = viewer._Cast(scene, Shown("real", joints, fps, ("Ann", "Bo")), joints, "/1 real")
    assert [label for _, label in cast.people] == ["1 real: Ann", "1 real: Bo"]
    for frame, quick in ((0, False), (2, False), (3, True)):
        cast.show((frame + 0.5) / fps, False, True, True, True)
        for person, expected in enumerate(([True, False, False, False], [quick, False, True, False])):
            places = joints[person, frame, list(FOOT_JOINTS)]
            found = cast._marks[person].points
            np.testing.assert_allclose(found, np.where(np.array(expected)[:, None], places, (0, -9, 0)), rtol=1e-6)
            bones = cast._skeletons[person].points
            np.testing.assert_allclose(bones, joints[person, frame][np.array(viewer._BONES)], rtol=1e-6)
    for call, what in zip(scene.add_line_segments.call_args_list, ("skeleton", "trails") * 2, strict=True):
        name, lines, colour = call.args
        person = ("Ann", "Bo").index(name.split("/")[2])
        assert name == f"/1 real/{('Ann', 'Bo')[person]}/{what}"
        assert colour == PERSON_COLOURS[person]
        assert call.kwargs == {"thickness": viewer._BONE if what == "skeleton" else viewer._LINE}
        if what == "trails":  # from each frame to the next, of each joint of the trail
            steps = joints[person][:, list(viewer._TRAIL)]
            assert len(lines) == 3 * len(viewer._TRAIL)
            np.testing.assert_allclose(lines, np.stack([steps[:-1], steps[1:]], axis=2).reshape(-1, 2, 3))
    for call in scene.add_point_cloud.call_args_list:
        assert call.args[2] == viewer._RED
        assert call.kwargs == {"point_size": 0.05}


def test_a_panel_is_told_its_size_and_place() -> None:
    panel = Panel(np.full((100, 300, 3), 200, dtype=np.uint8), [30.0, 170.0], 100.0)
    joints, scene = standing(), told()
    lectern = Lectern.before(joints, looked_along(joints, "side"), panel)
    PanelOnStage(scene, panel, lectern, "/experts")
    name, image, width, height = scene.add_image.call_args.args
    assert (name, width, height) == ("/experts", 300 * lectern.pixel, 100 * lectern.pixel)
    assert image is panel.image
    given = scene.add_image.call_args.kwargs
    np.testing.assert_allclose(
        given.pop("position"), lectern.corner + lectern.pixel * (150 * lectern.right + 50 * lectern.down)
    )
    assert len(given.pop("wxyz")) == 4
    assert given == {"format": "png", "cast_shadow": False, "receive_shadow": False}
    name, lines, colour = scene.add_line_segments.call_args.args
    assert (name, colour, lines.shape) == ("/experts now", INK, (2, 2, 3))
    assert 0.001 < scene.add_line_segments.call_args.kwargs["thickness"] < 0.05


class Led:
    """A motion of two people who stand; what it is told is kept."""

    prompt = "stand"

    def __init__(self) -> None:
        self.leads: list[Any] = []

    def __next__(self) -> np.ndarray:
        return standing()

    def send(self, prompt: str) -> None:
        self.prompt = prompt

    def aim(self, leads: list[Any]) -> None:
        self.leads = leads


def a_page(server: Any, motion: Led, fps: float = 10.0) -> live.LivePage:
    return live.LivePage(server, motion, fps, ("Ann", "Bo"), lambda *_: [], ("npz", "glb"), unknown=lambda words: [])


def test_a_live_page_has_these_controls() -> None:
    with module.serving() as server:
        page = a_page(server, Led())
        inputs = {each.label: each for each in server.gui._gui_input_handle_from_uuid.values()}
        values = {label: each.value for label, each in inputs.items() if not isinstance(each.value, bool)}
        assert {label: values[label] for label in ("prompt", "person", "joint", "format")} == {
            "prompt": "stand", "person": "Ann", "joint": "right_wrist", "format": "npz",
        }  # fmt: skip
        assert {label for label, each in inputs.items() if each.value is True} >= {"play", "camera goes along"}
        options = {label: tuple(inputs[label].options) for label in ("person", "joint", "format")}
        assert options == {"person": ("Ann", "Bo"), "joint": tuple(JOINT_NAMES), "format": ("npz", "glb")}
        assert {"do this next", "lead it", "let go of all", "save what was seen"} <= inputs.keys()
        with mock.patch.object(
            server.scene, "add_transform_controls", wraps=server.scene.add_transform_controls
        ) as add:
            page.lead(1, "left_wrist")
        assert add.call_args.args[0].endswith("/leads/2 left_wrist")
        given = add.call_args.kwargs
        np.testing.assert_allclose(given.pop("position"), standing()[1, 0, JOINT_NAMES.index("left_wrist")], atol=1e-6)
        assert given == {"scale": 0.3, "disable_rotations": True, "depth_test": False}


def test_a_live_page_does_not_hurry_after_a_frame_that_was_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first frame takes a second: two frames follow at once, then there is one every tenth again."""
    now, shown = [0.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def advance() -> bool:
        now[0] += 0.0 if shown else 1.0
        shown.append(now[0])
        return True

    with module.serving() as server:
        page = a_page(server, Led())
        monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
        monkeypatch.setattr(page, "_advance", advance)
        page.run(lambda: len(shown) == 6)
    np.testing.assert_allclose(shown, [1.0, 1.0, 1.0, 1.1, 1.2, 1.3])


def test_a_file_does_not_fade_in_and_a_served_page_counts_its_pauses() -> None:
    assert browser.file_head().startswith(browser.STYLE)
    assert browser.STYLE not in browser.served_head()
    for head in (browser.file_head(), browser.served_head()):
        assert browser.SOFTWARE in head
        assert "%s" not in head
    assert [str(browser.LONGEST_PAUSE) in head for head in (browser.file_head(), browser.served_head())] == [
        False,
        True,
    ]
