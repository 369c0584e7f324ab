"""The live page on a server that only keeps what it is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.skeleton import JOINT_NAMES
from intermoe.viz import live

FRAMES = 4


class Steps:
    """Two people who go 1 m aside and 0.5 m towards Z a frame, the second 3 m beside the first."""

    def __init__(self) -> None:
        self.prompt, self.leads, self.made, self.told = "go", [], 0, []

    def __next__(self) -> np.ndarray:
        way = (self.made * FRAMES + np.arange(FRAMES))[:, None, None] * np.array([1.0, 0.0, 0.5])
        self.made += 1
        one = at_rest(REST_POSE) + way + (0, 1, 0)
        return np.stack([one, one + np.array([3.0, 0, 0])])

    def send(self, prompt: str) -> None:
        self.told.append(prompt)
        self.prompt = prompt

    def aim(self, leads: Any) -> None:
        if any(place[1] < 0 for _, _, place in leads):
            raise ValueError("positions: expected <above> the floor")
        self.leads.append(leads)


class Control(SimpleNamespace):
    """A box or a button; ``clicked`` is what happens when it is clicked."""

    def on_click(self, clicked: Any) -> None:
        self.clicked = clicked


class Server:
    """What a page tells viser, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.controls: dict[str, Control] = {}
        self.handles: list[Any] = []
        self.scene = mock.MagicMock()
        self.scene.add_frame.side_effect = lambda name, **_: SimpleNamespace(name=name)
        self.scene.add_transform_controls.side_effect = self._handle
        self.gui = mock.MagicMock()
        for kind in ("add_text", "add_button", "add_checkbox", "add_dropdown"):
            getattr(self.gui, kind).side_effect = self._control
        self.gui.add_markdown.side_effect = lambda content: SimpleNamespace(content=content)

    def _control(self, label: str, value: Any = None, **how: Any) -> Control:
        if isinstance(value, tuple):
            value = how.get("initial_value", value[0])
        self.controls[label] = Control(value=value)
        return self.controls[label]

    def _handle(self, name: str, **how: Any) -> Any:
        handle = mock.MagicMock()
        handle.name, handle.position = name, tuple(how["position"].tolist())
        self.handles.append(handle)
        return handle

    def atomic(self) -> Any:
        server = self

        class Whole:
            def __enter__(self) -> None:
                server.calls.append("begin")

            def __exit__(self, *_: object) -> None:
                server.calls.append("end")

        return Whole()

    def flush(self) -> None:
        self.calls.append("flush")


class Figures:
    """What figures are asked for."""

    def __init__(self, scene: Any, joints: Any, names: Any, *, root: str = "") -> None:
        self.given, self.loaded, self.shown = (scene, joints, names, root), [], []

    def load(self, joints: Any) -> None:
        self.loaded.append(joints)

    def show(self, frame: int) -> None:
        self.shown.append(frame)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> live.LivePage:
    """A page at 10 frames a second whose saving says what was saved."""
    monkeypatch.setattr(live, "Figures", Figures)
    stages: list[Any] = []
    monkeypatch.setattr(live, "set_stage", lambda *given: (stages.append(given), SimpleNamespace())[1])
    saved: list[Any] = []

    def save(joints: np.ndarray, prompt: str, format: str) -> list[Path]:
        saved.append((joints, prompt, format))
        return [Path("a"), Path("b")]

    page = live.LivePage(
        Server(),  # type: ignore[arg-type]
        Steps(),  # type: ignore[arg-type]
        10,
        ("Ann", "Bo"),
        save,
        ("npz", "glb"),
        unknown=lambda words: [word for word in words.split() if word != "go"],
        camera="top",
    )
    page.kept = SimpleNamespace(stages=stages, saved=saved)  # type: ignore[attr-defined]
    return page


def advance(page: Any, frames: int) -> None:
    for _ in range(frames):
        if page._frame == FRAMES:
            page._chunks.put(page._make())
        assert page._advance()


def test_what_is_set_up_at_first(page: Any) -> None:
    (server, chunk, camera), *_ = page.kept.stages
    assert (server, camera) == (page._server, "top")
    scene, joints, names, root = page._figures.given
    assert (scene, names, root) == (server.scene, ("Ann", "Bo"), "/stage")
    assert joints is chunk
    assert joints.dtype == np.float32
    assert page._motion.made == 1


def test_each_frame_is_shown_kept_and_sent_before_the_next(page: Any) -> None:
    page._follow.value = False
    advance(page, 6)
    assert page._figures.shown == [0, 1, 2, 3, 0, 1]
    assert page._server.calls == ["begin", "end", "flush"] * 6
    (loaded,) = page._figures.loaded
    assert loaded is page._chunk
    np.testing.assert_allclose(page.seen[:, :, 0, 0], [np.arange(6.0), np.arange(6.0) + 3], atol=1e-6)
    page._frame = FRAMES
    assert not page._advance()  # nothing is made yet
    assert page._figures.shown == [0, 1, 2, 3, 0, 1]


def test_the_stage_goes_a_tenth_of_what_is_left_under_them_each_frame(page: Any) -> None:
    """The floor, whose lines come again after a metre, shows the rest of what the stage has gone."""
    gone = np.zeros(3)
    for frame in range(FRAMES):
        advance(page, 1)
        gone += 0.1 * (frame * np.array([1.0, 0, 0.5]) - gone)
        np.testing.assert_allclose(page._stage.position, -gone, atol=1e-6)
        np.testing.assert_allclose(page._floor.position, -(gone % 1.0), atol=1e-6)
    page._go_along(page._start + np.array([-50.0, 0.0, 25.0]))
    gone += 0.1 * (np.array([-50.0, 0, 25.0]) - gone)
    np.testing.assert_allclose(page._stage.position, -gone, atol=1e-6)
    np.testing.assert_allclose(page._floor.position, -(gone % 1.0), atol=1e-6)


def test_handles_are_where_the_joint_is_seen_and_go_when_they_are_let_go(page: Any) -> None:
    wrist = JOINT_NAMES.index("left_wrist")
    page.lead(1, "left_wrist")  # before a frame was shown: where the first will be
    advance(page, 3)
    page.lead(0, "left_wrist")
    for handle, place in zip(page._server.handles, (page._chunk[1, 0, wrist], page._chunk[0, 2, wrist]), strict=True):
        np.testing.assert_allclose(handle.position, place, atol=1e-6)
    first, second = page._server.handles
    assert [handle.name for handle in (first, second)] == ["/stage/leads/2 left_wrist", "/stage/leads/1 left_wrist"]
    second.position = (1.0, 2.0, 3.0)
    second.on_update.call_args.args[0](None)
    assert page._motion.leads[-1] == [(1, "left_wrist", list(first.position)), (0, "left_wrist", [1.0, 2.0, 3.0])]
    assert all(isinstance(part, float) for _, _, place in page._motion.leads[-1] for part in place)
    page.let_go()
    for handle in (first, second):
        handle.remove.assert_called_once_with()
    assert page._motion.leads[-1] == []
    page.lead(0, "head")
    page._server.handles[-1].position = (0.0, -1.0, 0.0)
    page._aim()
    page._server.handles[-1].remove.assert_called_once_with()
    assert page._handles == {}
    assert page._told.content == r"error: positions: expected \<above\> the floor"


def test_buttons_do_what_they_say(page: Any) -> None:
    controls = page._server.controls
    controls["prompt"].value = "go up"
    controls["do this next"].clicked(None)
    assert page._motion.told == ["go up"]
    assert page._told.content == "the model has never seen: up; it can only guess"
    page.say("go")
    assert page._told.content == ""
    controls["person"].value, controls["joint"].value = "Bo", "head"
    controls["lead it"].clicked(None)
    assert list(page._handles) == [(1, "head")]
    controls["let go of all"].clicked(None)
    assert page._handles == {}
    controls["format"].value = "glb"
    controls["save what was seen"].clicked(None)
    assert page._told.content == "error: nothing was seen yet"
    advance(page, 1)
    controls["save what was seen"].clicked(None)
    assert [format for _, _, format in page.kept.saved] == ["glb"]
    assert page._told.content == "saved a, b"


def test_prompts_are_saved_once_each_in_their_order(page: Any) -> None:
    for prompt in ("stop", "go", "jump"):
        advance(page, 1)
        page.say("never seen")  # amid a chunk
        advance(page, FRAMES - 1)
        page.say(prompt)
    advance(page, FRAMES)
    page.say("never seen")
    page.save("npz")
    ((joints, prompt, format),) = page.kept.saved
    assert (prompt, format) == ("go; stop; jump", "npz")
    np.testing.assert_array_equal(joints, page.seen)


@pytest.mark.parametrize("error", [ValueError("a [b]"), OSError("a [b]"), ModuleNotFoundError("a [b]")])
def test_why_nothing_was_saved_is_told(page: Any, error: Exception) -> None:
    advance(page, 1)
    page._save = mock.Mock(side_effect=error)
    page.save("npz")
    assert page._told.content == r"error: a \[b\]"


def test_marks_of_markdown_are_shown_as_they_are(page: Any) -> None:
    page._tell("a\\`*_{}[]<>()#+-!|~b.c")
    assert page._told.content == r"a\\\`\*\_\{\}\[\]\<\>\(\)\#\+\-\!\|\~b.c"


def test_frames_come_at_their_rate_and_none_hurries_after_a_wait(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by hand: what is not made for 0.05 s, or is not played, is waited for a hundredth at a time."""
    now, shown, asked = [100.0], [], [0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def advance_later() -> bool:
        asked[0] += 1
        if 3 <= asked[0] < 8:
            return False
        shown.append(round(now[0] - 100, 3))
        return True

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(page, "_advance", advance_later)
    monkeypatch.setattr(page, "_keep_making", lambda: None)

    def stop() -> bool:
        page._playing.value = not 0.42 < now[0] - 100 < 0.46
        return len(shown) == 6

    page.run(stop)
    # a tenth each, five hundredths before the third; the fifth is due amid the pause, which ends at 0.46
    assert shown == pytest.approx([0.0, 0.1, 0.25, 0.35, 0.46, 0.56])
