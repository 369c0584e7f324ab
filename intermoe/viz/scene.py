"""Figures in a viser scene: what a page in a browser shows, whether it comes from a file or from a server.

viser (``intermoe[view]``) draws and plays; here is what it is told: the capsules of the video, a floor, a camera that
sees everybody. A capsule is two balls and a stump of a cone between them. All balls of a person are one object of the
scene, and so are all stumps of one form: seven messages a frame move a person, not one for every joint. A machine that
draws without a GPU shall keep up (`benchmarks/page.py`): balls within others are left out, forms are of few triangles,
light comes from lamps, not from a picture of surroundings, and shadows are the stumps once more, pressed flat onto the
floor, for those that lamps cast cost a second drawing of everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.rotations import shortest_arc, to_quaternions, unit
from intermoe.viz.body import Body, build_body
from intermoe.viz.browser import served_head
from intermoe.viz.camera import BODY_MARGIN, Array, frame_motion
from intermoe.viz.colours import PAPER, Colour, linear
from intermoe.viz.figures import TILE_METRES, TILES, tinted
from intermoe.viz.guard import guarded

if TYPE_CHECKING:
    import viser

FIELD_OF_VIEW = math.radians(40)
HALF_HEIGHT = 0.9 * math.tan(FIELD_OF_VIEW / 2)
HALF_WIDTH = 0.9 * HALF_HEIGHT
"""What is seen at a distance of 1, with a margin; windows are mostly wider than high, those of telephones are not."""
TAPERS = (1.0, 0.73)
"""Radii of the far ends of stumps to those of the near ones; every bone takes the nearest."""
SEGMENTS = 10
_SUN, _SUNSHINE = (-3.0, 6.0, -2.0), 1.6
_SKY, _GROUND, _GLOW = (255, 255, 255), (206, 206, 214), 1.8
"""Light from a place far away, from above and from below, and how strong."""
_SHADE, _SHADE_SEGMENTS, _SHADE_ENDS = (150, 153, 162), 5, 0.12
_FLAT, _ABOVE = 1e-3, 2e-3
"""Shadows: colour, sides, how far they taper beyond a bone's ends, how flat they are, metres above the floor."""
_STEPS = 2**12
"""Places are rounded to this part of a metre, quaternions to this part of 1: a file of them is half as large."""


@dataclass
class _Part:
    """Objects of one form, of one person: ``places`` (T, N, 3), and ``turns`` (T, N, 4) of what is no ball.

    ``chosen`` are the capsules of the body that they belong to; of balls, the ends of capsules.
    """

    handle: viser.BatchedMeshHandle
    person: int
    chosen: npt.NDArray[np.int64]
    places: npt.NDArray[np.float32]
    turns: npt.NDArray[np.float32] | None


class Figures:
    """The persons of one motion in a scene.

    Args:
        scene: a server's scene.
        joints: (P, T, 22, 3) metres, Y up.
        names: of the persons, and of their objects.
        root: where in the scene's tree they are, such as "/generated".
    """

    def __init__(
        self,
        scene: viser.SceneApi,
        joints: npt.NDArray[np.floating],
        names: Sequence[str],
        *,
        root: str = "",
    ) -> None:
        body = build_body(joints.astype(np.float64))
        self._frames = joints.shape[1]
        self._parts: list[_Part] = []
        self.people = [scene.add_frame(f"{root}/{name.replace('/', ' ')}", show_axes=False) for name in names]
        tapers = np.abs(np.array(TAPERS) - (body.radii[:, 1:] / body.radii[:, :1])).argmin(-1)
        ball, stumps = _ball(), [_stump(taper) for taper in TAPERS]
        seen = seen_balls()
        for person, handle in enumerate(self.people):
            colours = np.stack([_lit(tinted(person, tone)) for tone in body.tones.tolist()])
            ends = body.ends[person]
            self._add(
                scene,
                f"{handle.name}/balls",
                ball,
                (ball_places(body, person, seen), None),
                person,
                seen,
                scales=np.repeat(body.radii.reshape(-1, 1)[seen], 3, axis=1),
                colours=colours.repeat(2, axis=0)[seen],
            )
            lengths = np.linalg.norm(ends[:, :, 1] - ends[:, :, 0], axis=-1).mean(0)
            sizes = np.stack([body.radii[:, 0], lengths, body.radii[:, 0]], axis=-1)
            chosen_of_form = [np.flatnonzero((tapers == form) & (lengths > 0)) for form in range(len(stumps))]
            for form, (stump, chosen) in enumerate(zip(stumps, chosen_of_form, strict=True), start=1):
                self._add(
                    scene,
                    f"{handle.name}/bones {form}",
                    stump,
                    _stumps(body, person, chosen),
                    person,
                    chosen,
                    scales=sizes[chosen],
                    colours=colours[chosen],
                )
            every = np.concatenate(chosen_of_form)  # in the order of the messages before: a file says it once
            self._add(
                scene,
                f"{handle.name}/shadow",
                _spindle(),
                _stumps(body, person, every),
                person,
                every,
                scales=sizes[every],
                colours=np.tile(_lit(_SHADE), (len(every), 1)),
                flat=True,
            )

    def __len__(self) -> int:
        return self._frames

    def show(self, frame: int) -> None:
        """Pose everybody as at ``frame``, or at the last one if there are fewer."""
        frame = min(frame, self._frames - 1)
        for part in self._parts:
            part.handle.batched_positions = part.places[frame]
            if part.turns is not None:
                part.handle.batched_wxyzs = part.turns[frame]

    def load(self, joints: npt.NDArray[np.floating]) -> None:
        """Other frames of the same persons, (P, T, 22, 3), in place of those there are."""
        body = build_body(joints.astype(np.float64))
        self._frames = joints.shape[1]
        for part in self._parts:
            if part.turns is None:
                part.places = ball_places(body, part.person, part.chosen)
            else:
                part.places, part.turns = _stumps(body, part.person, part.chosen)

    def set_visible(self, visible: bool) -> None:
        """Draw the bodies or not."""
        for part in self._parts:
            part.handle.visible = visible

    def _add(
        self,
        scene: viser.SceneApi,
        name: str,
        form: tuple[Array, npt.NDArray[np.int64]],
        pose: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None],
        person: int,
        chosen: npt.NDArray[np.int64],
        *,
        scales: Array,
        colours: npt.NDArray[np.uint8],
        flat: bool = False,
    ) -> None:
        places, turns = pose
        unturned = np.tile(np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32), (len(scales), 1))
        handle = scene.add_batched_meshes_simple(
            name,
            form[0].astype(np.float32),
            form[1].astype(np.uint32),
            batched_wxyzs=unturned if turns is None else turns[0],
            batched_positions=places[0],
            batched_scales=scales.astype(np.float32),
            batched_colors=colours,
            lod="off",
            flat_shading=flat,
            cast_shadow=False,
            receive_shadow=False,
            scale=(1.0, _FLAT, 1.0) if flat else 1.0,
            position=(0.0, _ABOVE, 0.0) if flat else (0.0, 0.0, 0.0),
        )
        self._parts.append(_Part(handle, person, chosen, places, turns))


def ball_places(body: Body, person: int, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Where the ``chosen`` ends of capsules are, (T, N, 3)."""
    ends = body.ends[person]
    return _rounded(ends.reshape(len(ends), -1, 3)[:, chosen])


def _stumps(
    body: Body, person: int, chosen: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Where the stumps of ``chosen`` capsules begin (T, N, 3), and how they are turned (T, N, 4)."""
    ends = body.ends[person][:, chosen]
    bones = ends[:, :, 1] - ends[:, :, 0]
    return _rounded(ends[:, :, 0]), _rounded(to_quaternions(shortest_arc(np.array([0.0, 1.0, 0.0]), unit(bones))))


def seen_balls() -> npt.NDArray[np.int64]:
    """The ends of capsules that are seen: of those around one joint, the largest."""
    body = build_body(at_rest(REST_POSE)[None, None])
    centres, radii = body.ends[0, 0].reshape(-1, 3), body.radii.reshape(-1)
    largest: dict[tuple[float, ...], int] = {}
    for ball in np.argsort(-radii, kind="stable").tolist():
        largest.setdefault(tuple(np.round(centres[ball], 6).tolist()), ball)
    return np.array(sorted(largest.values()))


def _rounded(values: Array) -> npt.NDArray[np.float32]:
    return (np.round(values * _STEPS) / _STEPS).astype(np.float32)


def _lit(colour: Colour) -> npt.NDArray[np.uint8]:
    """``colour`` (3,) as objects of one form want it: in shares of light, not in sRGB as all else in viser."""
    return np.round(255 * np.array(linear(colour))).astype(np.uint8)


def _stump(taper: float, segments: int = SEGMENTS) -> tuple[Array, npt.NDArray[np.int64]]:
    """The wall of a cone of height 1 along Y: radius 1 at 0, ``taper`` at 1."""
    angles = np.arange(segments) * (2 * np.pi / segments)
    ring = np.stack([np.cos(angles), np.zeros(segments), -np.sin(angles)], axis=-1)
    around, after = np.arange(segments), np.roll(np.arange(segments), -1)
    lower = np.stack([around, after, after + segments], axis=-1)
    upper = np.stack([around, after + segments, around + segments], axis=-1)
    return np.concatenate([ring, taper * ring + np.array([0.0, 1.0, 0.0])]), np.concatenate([lower, upper])


def _ball() -> tuple[Array, npt.NDArray[np.int64]]:
    """A ball of radius 1: an icosahedron with every face in four, its corners moved out onto the ball."""
    from trimesh.creation import icosphere

    ball = icosphere(subdivisions=1)
    return np.asarray(ball.vertices), np.asarray(ball.faces)


def _spindle() -> tuple[Array, npt.NDArray[np.int64]]:
    """A closed wall of radius 1 along Y from 0 to 1 that ends in points: what a stump with its round ends covers."""
    walls, faces = _stump(1.0, _SHADE_SEGMENTS)
    around, after = np.arange(_SHADE_SEGMENTS), np.roll(np.arange(_SHADE_SEGMENTS), -1)
    low, high = np.full_like(around, len(walls)), np.full_like(around, len(walls) + 1)
    points = [[0.0, -_SHADE_ENDS, 0.0], [0.0, 1.0 + _SHADE_ENDS, 0.0]]
    below = np.stack([low, after, around], axis=-1)
    above = np.stack([high, around + _SHADE_SEGMENTS, after + _SHADE_SEGMENTS], axis=-1)
    return np.concatenate([walls, points]), np.concatenate([faces, below, above])


def check_port(port: int) -> None:
    """Raise ``ValueError`` where no port has that number."""
    if not 0 <= port < 2**16:
        raise ValueError(f"port: expected 0 to {2**16 - 1}, got {port}")


@contextmanager
def serving(port: int = 0) -> Iterator[viser.ViserServer]:
    """A server on this machine alone, stopped in the end; a free port is taken if ``port`` is 0 or not free.

    It is ``guarded``: pages of other origins, other hosts' names and huge messages are refused.

    Raises:
        ValueError: no port has that number. ModuleNotFoundError: viser is not installed; says how to install it.
    """
    check_port(port)
    try:
        import viser
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "viser is needed to see figures in a browser: pip install 'intermoe[view]'"
        ) from error
    server = None
    try:
        with redirect_stdout(StringIO()), guarded(served_head()):  # it greets, and standard output is for results
            server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
        yield server
    finally:
        if server is not None:
            with redirect_stdout(StringIO()):
                server.stop()


def looked_along(joints: npt.NDArray[np.floating], camera: str) -> Array:
    """Axes right, up, forward (3, 3) of the first look at ``joints`` (P, T, 22, 3) from where ``camera`` says."""
    return frame_motion(joints.astype(np.float64), (0.0, 0.0, 1.0, 1.0), camera).axes


def set_stage(
    server: viser.ViserServer, joints: npt.NDArray[np.floating], camera: str = "side", beside: Array | None = None
) -> viser.GridHandle:
    """The floor of a scene, its light, and the first look at ``joints`` (P, T, 22, 3), from where ``camera`` says.

    Places ``beside`` them (N, 3) are to be seen as well. Returns the floor.
    """
    scene = server.scene
    scene.set_up_direction("+y")
    server.gui.main_panel.dock_right()  # beside the figures, not before them
    server.gui.configure_theme(show_share_button=False)  # it would ask another machine to show the page to anybody
    axes = looked_along(joints, camera)
    points = joints.reshape(-1, 3).astype(np.float64)
    seen = (points if beside is None else np.concatenate([points, beside])) @ axes.T
    low, high = seen.min(0) - BODY_MARGIN, seen.max(0) + BODY_MARGIN
    half_width, half_height, half_depth = (high - low) / 2
    distance = half_depth + max(half_height / HALF_HEIGHT, half_width / HALF_WIDTH)
    middle = (low + high) / 2 @ axes
    line = TILES[1].astype(int)
    floor = scene.add_grid(
        "/floor",
        plane="xz",
        infinite_grid=True,
        cell_size=TILE_METRES,
        section_size=2 * TILE_METRES,
        cell_color=line,
        section_color=line,
        plane_color=PAPER,
        plane_opacity=1.0,
        fade_distance=3 * distance,
    )
    scene.configure_environment_map(hdri=None)
    scene.configure_default_lights(enabled=False)
    scene.add_light_directional("/sun", intensity=_SUNSHINE, position=_SUN)
    scene.add_light_hemisphere("/sky", sky_color=_SKY, ground_color=_GROUND, intensity=_GLOW)
    server.initial_camera.look_at = tuple(middle.tolist())
    server.initial_camera.position = tuple((middle - distance * axes[2]).tolist())
    server.initial_camera.up = (0.0, 1.0, 0.0)
    server.initial_camera.fov = FIELD_OF_VIEW
    return floor
