"""A page on which motion is drawn while it is made, with a box for what the persons shall do next.

Joints can be led: each gets a handle that the mouse drags, and the next frames that are made bring the joint there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from intermoe.motion.skeleton import JOINT_NAMES
from intermoe.viz.figures import TILE_METRES
from intermoe.viz.scene import Figures, set_stage

if TYPE_CHECKING:
    import viser

KEPT_SECONDS = 600
"""Of what was seen, so much can be saved: 5 kB a second and person."""
WAITING = 1
"""Chunks that are made ahead: more would let a changed prompt wait."""
_EASE = 0.1
"""Of the way between the persons and the middle of the page, they come so much nearer to it a frame."""

Joints = npt.NDArray[np.float32]


class Motion(Protocol):
    """Joints (P, t, 22, 3) in metres, Y up, chunk after chunk.

    ``send`` and ``aim``, which takes (person, joint, place), raise ``ValueError`` for what they refuse.
    """

    prompt: str

    def __next__(self) -> npt.ArrayLike: ...
    def send(self, prompt: str) -> None: ...
    def aim(self, leads: Sequence[tuple[int, str, Sequence[float]]]) -> None: ...


class LivePage:
    """Shows a motion while another thread makes it, at its rate or, where that is too slow, as it comes.

    Args:
        server: where it is shown.
        motion: what makes it.
        fps: frames a second.
        names: of the persons.
        save: writes what was seen, called as ``save(joints, prompt, format)``, and returns the files.
        formats: its names.
        unknown: the words of a prompt that the model does not know.
        camera: see ``View``.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        motion: Motion,
        fps: float,
        names: Sequence[str],
        save: Callable[[Joints, str, str], list[Path]],
        formats: Sequence[str],
        *,
        unknown: Callable[[str], list[str]] = lambda _: [],
        camera: str = "side",
    ) -> None:
        self._server, self._motion, self._fps, self._save, self._unknown = server, motion, fps, save, unknown
        self._chunks: queue.Queue[tuple[str, Joints]] = queue.Queue(maxsize=WAITING)
        self._made: tuple[str, Joints] | None = None  # and waits for its place
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._seen: deque[tuple[str, Joints]] = deque(maxlen=round(KEPT_SECONDS * fps))
        prompt, self._chunk = self._make()
        self._floor = set_stage(server, self._chunk, camera)
        self._stage = server.scene.add_frame("/stage", show_axes=False)
        self._figures = Figures(server.scene, self._chunk, names, root=self._stage.name)
        self._handles: dict[tuple[int, str], Any] = {}
        self._build_controls(prompt, formats, tuple(names))
        self._prompt, self._frame = prompt, 0
        self._start, self._gone = _middle(self._chunk[:, 0]), np.zeros(3)

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Make and show until ``stop`` does.

        Raises:
            Exception: what making the motion raised.
        """
        self._ended.clear()
        maker = threading.Thread(target=self._keep_making, daemon=True)
        maker.start()
        due = time.monotonic()
        try:
            while not stop():
                if self._failure is not None:
                    raise self._failure
                if not self._playing.value or not self._advance():
                    time.sleep(0.01)
                    due = time.monotonic()
                    continue
                due = max(due + 1 / self._fps, time.monotonic() - 1 / self._fps)
                time.sleep(max(0.0, due - time.monotonic()))
        finally:
            self._ended.set()
            maker.join()

    @property
    def seen(self) -> Joints:
        """(P, T, 22, 3): the frames shown so far, the last ``KEPT_SECONDS`` of them."""
        with self._lock:
            frames = [frame for _, frame in self._seen]
        return np.stack(frames, axis=1)

    def _advance(self) -> bool:
        """Show the next frame; false if it is not made yet."""
        if self._frame == self._chunk.shape[1]:
            try:
                self._prompt, self._chunk = self._chunks.get_nowait()
            except queue.Empty:
                return False
            self._figures.load(self._chunk)
            self._frame = 0
        with self._server.atomic():
            self._figures.show(self._frame)
            if self._follow.value:
                self._go_along(_middle(self._chunk[:, self._frame]))
        self._server.flush()  # or it may wait for the next frame, which would take its place
        with self._lock:
            self._seen.append((self._prompt, self._chunk[:, self._frame]))
        self._frame += 1
        return True

    def _make(self) -> tuple[str, Joints]:
        prompt = self._motion.prompt
        return prompt, np.asarray(next(self._motion), dtype=np.float32)

    def _keep_making(self) -> None:
        try:
            while not self._ended.is_set():
                self._made = self._made or self._make()
                try:
                    self._chunks.put(self._made, timeout=0.1)
                except queue.Full:
                    continue
                self._made = None
        except BaseException as error:
            self._failure = error

    def _go_along(self, middle: npt.NDArray[np.float64]) -> None:
        """The stage glides back under the persons: cameras are their browsers' own, which tell late where they are."""
        self._gone = self._gone + _EASE * (middle - self._start - self._gone)
        self._stage.position = -self._gone
        self._floor.position = -(self._gone % (2 * TILE_METRES))  # its lines are the same again after two tiles

    def _build_controls(self, prompt: str, formats: Sequence[str], names: tuple[str, ...]) -> None:
        gui = self._server.gui
        words = gui.add_text("prompt", prompt)
        say = gui.add_button("do this next")
        self._playing = gui.add_checkbox("play", True)
        self._follow = gui.add_checkbox("camera goes along", True)
        with gui.add_folder("lead a joint with the mouse", expand_by_default=False):
            who = gui.add_dropdown("person", names)
            joint = gui.add_dropdown("joint", JOINT_NAMES, initial_value="right_wrist")
            lead, let_go = gui.add_button("lead it"), gui.add_button("let go of all")
        chosen = gui.add_dropdown("format", tuple(formats))
        save = gui.add_button("save what was seen")
        self._told: Any = gui.add_markdown("")

        @say.on_click
        def _(_: Any) -> None:
            self.say(words.value)

        @lead.on_click
        def _(_: Any) -> None:
            self.lead(names.index(who.value), joint.value)

        @let_go.on_click
        def _(_: Any) -> None:
            self.let_go()

        @save.on_click
        def _(_: Any) -> None:
            self.save(chosen.value)

    def say(self, prompt: str) -> None:
        """Change the prompt, from the next chunk that is made on; a refusal is told on the page."""
        try:
            self._motion.send(prompt)
        except ValueError as error:
            self._tell(f"error: {error}")
            return
        unknown = self._unknown(prompt)
        self._tell(f"the model has never seen: {', '.join(unknown)}; it can only guess" if unknown else "")

    def lead(self, person: int, joint: str) -> None:
        """Give a joint a handle where it is now; wherever that is dragged, the joint follows."""
        if (person, joint) in self._handles:
            return
        frame = max(0, self._frame - 1)
        handle = self._server.scene.add_transform_controls(
            f"{self._stage.name}/leads/{person + 1} {joint}",
            scale=0.3,
            disable_rotations=True,
            depth_test=False,
            position=self._chunk[person, frame, JOINT_NAMES.index(joint)].astype(float),
        )
        self._handles[person, joint] = handle
        handle.on_update(lambda _: self._aim())
        self._aim()

    def let_go(self) -> None:
        """Take all handles away."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._aim()

    def _aim(self) -> None:
        leads = [
            (who, joint, [float(part) for part in handle.position])
            for (who, joint), handle in list(self._handles.items())
        ]
        try:
            self._motion.aim(leads)
        except ValueError as error:
            for handle in self._handles.values():
                handle.remove()
            self._handles.clear()
            self._tell(f"error: {error}")

    def save(self, format: str) -> None:
        """Write what was seen; where, or why not, is told on the page."""
        with self._lock:
            seen = list(self._seen)
        if not seen:
            self._tell("error: nothing was seen yet")
            return
        prompts = "; ".join(dict.fromkeys(prompt for prompt, _ in seen))
        try:
            paths = self._save(np.stack([frame for _, frame in seen], axis=1), prompts, format)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            self._tell(f"error: {error}")
            return
        self._tell("saved " + ", ".join(str(path) for path in paths))

    def _tell(self, text: str) -> None:
        self._told.content = text.translate(_PLAIN)


def _middle(joints: Joints) -> npt.NDArray[np.float64]:
    """Between the pelvises of (P, 22, 3), on the floor."""
    return joints[:, 0].mean(0).astype(np.float64) * np.array([1.0, 0.0, 1.0])


_PLAIN = str.maketrans({mark: f"\\{mark}" for mark in r"\`*_{}[]<>()#+-!|~"})
"""What was typed is shown as it is: Markdown has no say in it."""
