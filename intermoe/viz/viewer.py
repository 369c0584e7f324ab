"""A page with motions side by side, served to this machine alone: what a file of the page cannot have."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from intermoe.motion.skeleton import FOOT_JOINTS, NUM_JOINTS, PARENTS
from intermoe.viz.figures import PERSON_COLOURS
from intermoe.viz.panel import Lectern, Panel, PanelOnStage
from intermoe.viz.scene import Figures, looked_along, set_stage

if TYPE_CHECKING:
    import viser

GAP = 0.8
STANDING_HEIGHT, STANDING_SPEED = 0.12, 0.3
_BONES = [(PARENTS[joint], joint) for joint in range(1, NUM_JOINTS)]
_TRAIL = (0, 20, 21)  # pelvis and wrists
_RED = (214, 40, 40)
_BONE, _LINE = 0.02, 0.006  # metres


class Shown(NamedTuple):
    """A motion to show: ``joints`` (P, T, 22, 3) in metres, Y up, ``names`` of its P persons, a ``panel`` before it."""

    title: str
    joints: npt.NDArray[np.floating]
    fps: float
    names: Sequence[str]
    panel: Panel | None = None


class Viewer:
    """Motions side by side on a server, with controls for time and for what is drawn.

    Args:
        server: where they are shown.
        motions: what is shown, the first on the left.
        camera: see ``View``.
    """

    def __init__(self, server: viser.ViserServer, motions: Sequence[Shown], camera: str = "side") -> None:
        self._server = server
        placed = _side_by_side(motions)
        self.length = max(motion.joints.shape[1] / motion.fps for motion in motions)
        everybody = np.concatenate([joints.reshape(1, -1, NUM_JOINTS, 3) for joints in placed], axis=1)
        axes = looked_along(everybody, camera)
        lecterns = [
            None if motion.panel is None else Lectern.before(joints, axes, motion.panel)
            for motion, joints in zip(motions, placed, strict=True)
        ]
        corners = [
            lectern.corners(motion.panel)
            for motion, lectern in zip(motions, lecterns, strict=True)
            if motion.panel is not None and lectern is not None
        ]
        set_stage(server, everybody, camera, np.concatenate([np.zeros((0, 3)), *corners]))
        roots = [f"/{number} {motion.title.replace('/', ' ')}" for number, motion in enumerate(motions, start=1)]
        self._casts = [
            _Cast(server.scene, motion, joints, root if len(motions) > 1 else "")
            for motion, joints, root in zip(motions, placed, roots, strict=True)
        ]
        self._panels = [
            (PanelOnStage(server.scene, motion.panel, lectern, f"{root} experts"), motion)
            for motion, lectern, root in zip(motions, lecterns, roots, strict=True)
            if motion.panel is not None and lectern is not None
        ]
        self._time = 0.0
        self._build_controls()
        self.show(0.0)

    def show(self, seconds: float) -> None:
        """Everybody as at a moment of the motion."""
        self._time = seconds
        with self._server.atomic():
            for cast in self._casts:
                cast.show(seconds, self._bodies.value, self._skeletons.value, self._trails.value, self._contacts.value)
            for panel, motion in self._panels:
                count = motion.joints.shape[1]
                panel.show((frame_at(seconds, motion.fps, count) + 0.5) / count, self._experts.value)

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Play, as the controls say, until ``stop`` does."""
        rate = max(cast.fps for cast in self._casts)
        before = time.monotonic()
        while not stop():
            time.sleep(max(0.0, before + 1 / rate - time.monotonic()))
            now = time.monotonic()
            if self._playing.value:
                self._slider.value = (self._time + float(self._speed.value) * (now - before)) % self.length
            before = now

    def _build_controls(self) -> None:
        gui = self._server.gui
        self._slider: Any  # its value can be set, which viser's types do not tell
        self._playing = gui.add_checkbox("play", True)
        self._slider = gui.add_slider("seconds", 0.0, max(self.length, 0.01), 0.001, 0.0)
        self._speed = gui.add_slider("speed", 0.1, 2.0, 0.1, 1.0)
        self._bodies = gui.add_checkbox("bodies", True)
        self._skeletons = gui.add_checkbox("skeletons", False)
        self._trails = gui.add_checkbox("trails", False)
        self._contacts = gui.add_checkbox("feet that stand", False)
        self._experts = gui.add_checkbox("experts", True, visible=bool(self._panels))
        people = [(handle, person) for cast in self._casts for handle, person in cast.people]
        for handle, label in people:
            self._add_switch(gui.add_checkbox(label, True), handle)
        for control in (
            self._slider, self._bodies, self._skeletons, self._trails, self._contacts, self._experts
        ):  # fmt: skip
            control.on_update(lambda _: self.show(float(self._slider.value)))

    @staticmethod
    def _add_switch(control: Any, handle: Any) -> None:
        @control.on_update
        def switch(_: Any) -> None:
            handle.visible = control.value


class _Cast:
    """The persons of one motion, and what else can be drawn of them."""

    def __init__(self, scene: viser.SceneApi, motion: Shown, joints: npt.NDArray[np.float64], root: str) -> None:
        self.fps = motion.fps
        self._joints = joints
        self._figures = Figures(scene, joints, motion.names, root=root)
        title = f"{root[1:]}: " if root else ""
        self.people = [
            (handle, f"{title}{name}") for handle, name in zip(self._figures.people, motion.names, strict=True)
        ]
        self._feet = joints[:, :, list(FOOT_JOINTS)]
        speed = np.linalg.norm(np.diff(self._feet, axis=1, append=self._feet[:, -1:]), axis=-1) * motion.fps
        self._stands = (self._feet[..., 1] < STANDING_HEIGHT) & (speed < STANDING_SPEED)
        self._skeletons, self._trails, self._marks = [], [], []
        for person, handle in enumerate(self._figures.people):
            colour = PERSON_COLOURS[person % len(PERSON_COLOURS)]
            lines = self._bones(person, 0)
            self._skeletons.append(scene.add_line_segments(f"{handle.name}/skeleton", lines, colour, thickness=_BONE))
            path = joints[person][:, list(_TRAIL)]
            trails = np.stack([path[:-1], path[1:]], axis=2).reshape(-1, 2, 3)
            trails = trails if len(trails) else np.zeros((1, 2, 3))
            self._trails.append(scene.add_line_segments(f"{handle.name}/trails", trails, colour, thickness=_LINE))
            feet = self._feet[person, 0]
            self._marks.append(scene.add_point_cloud(f"{handle.name}/feet", feet, _RED, point_size=0.05))

    def show(self, seconds: float, bodies: bool, skeletons: bool, trails: bool, contacts: bool) -> None:
        frame = frame_at(seconds, self.fps, self._joints.shape[1])
        self._figures.set_visible(bodies)
        if bodies:
            self._figures.show(frame)
        for person, (skeleton, trail, mark) in enumerate(zip(self._skeletons, self._trails, self._marks, strict=True)):
            skeleton.visible, trail.visible, mark.visible = skeletons, trails, contacts
            if skeletons:
                skeleton.points = self._bones(person, frame)
            if contacts:
                stands = self._stands[person, frame][:, None]
                mark.points = np.where(stands, self._feet[person, frame], (0, -9, 0)).astype(np.float32)

    def _bones(self, person: int, frame: int) -> npt.NDArray[np.float32]:
        return self._joints[person, frame][np.array(_BONES)].astype(np.float32)


def frame_at(seconds: float, fps: float, count: int) -> int:
    """The one of ``count`` frames that is seen at a moment: the last one from then on."""
    return min(int(seconds * fps + 1e-6), count - 1)


def _side_by_side(motions: Sequence[Shown]) -> list[npt.NDArray[np.float64]]:
    """Joints of the motions, moved along X so that none meets another."""
    placed: list[npt.NDArray[np.float64]] = []
    edge = 0.0
    for motion in motions:
        joints = motion.joints.astype(np.float64)
        if len(motions) > 1:
            joints = joints + ((edge - joints[..., 0].min()) * np.array([1.0, 0.0, 0.0]))
            edge = joints[..., 0].max() + GAP
        placed.append(joints)
    return placed
