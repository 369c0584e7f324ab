"""What the benchmark of the live page believes of a client."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import intermoe
from intermoe.benchmarks import live, page
from intermoe.benchmarks.harness.case import WrongResult
from intermoe.benchmarks.live import BALLS, FIRST, NAMES, THEN, WARM, first_ball, processor_seconds, rate_of
from intermoe.viz.body import build_body
from intermoe.viz.scene import ball_places, seen_balls

SHOWN = [bytes([number]) for number in range(100)]


def test_frames_after_the_warm_up_count() -> None:
    frames = [(moment / 10, SHOWN[moment + 20]) for moment in range(60)]  # it came late, and each tenth of a second
    assert rate_of(frames, SHOWN, 2.0) == 10
    assert rate_of(frames[::2], SHOWN, 2.0) == 5
    assert rate_of(frames[: int(10 * WARM)], SHOWN, 2.0) == 0


@pytest.mark.parametrize("wrong", [[1, 3, 2], [4, 4], [7, 101]])
def test_frames_out_of_order_twice_or_of_nobody_are_an_error(wrong: list[int]) -> None:
    with pytest.raises(WrongResult, match="not shown"):
        rate_of([(WARM, bytes([number])) for number in wrong], SHOWN, 1.0)


def test_a_first_ball_is_found_among_the_buffers_of_a_message() -> None:
    """Buffers lie behind the words, each from a multiple of 8 bytes on."""
    msgspec = pytest.importorskip("msgspec")
    zstandard = pytest.importorskip("zstandard")
    others, balls = bytes(range(13)), bytes(range(100, 124))

    def message(name: str, update: str) -> bytes:
        told = {
            "binaryBufferLengths": [len(others), len(balls)],
            "messages": [
                {"name": "/stage/floor", "updates": {"batched_positions": {"__binary_index": 0}}},
                {"name": name, "updates": {update: {"__binary_index": 1}}},
            ],
        }
        words = zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(told))
        data = bytes(8) + len(words).to_bytes(8, "little") + words
        data += bytes(-len(data) % 8) + others
        return data + bytes(-len(data) % 8) + balls

    assert first_ball(message(BALLS, "batched_positions")) == balls[:12]
    assert first_ball(message(BALLS, "batched_scales")) is None
    assert first_ball(message("/stage/person 2/balls", "batched_positions")) is None


def test_processes_of_a_browser_count_with_all_below_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own, and those that its own have started; another's, and other programs, do not."""
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.getpid()
    for process, name, parent, user, system in (
        (own, "python", 1, 5, 5), (11, "chrome (a tab)", own, 1, 2), (12, "chromium", 11, 10, 20),
        (13, "chromium", 1, 100, 100), (14, "node", own, 100, 100),
    ):  # fmt: skip
        (tmp_path / str(process)).mkdir(exist_ok=True)
        fields = ["S", parent, *range(9), user * ticks, system * ticks, 7, 8]
        (tmp_path / str(process) / "stat").write_text(f"{process} ({name}) {' '.join(map(str, fields))}\n")
    monkeypatch.setattr(live, "Path", lambda _: tmp_path)
    monkeypatch.setattr(live.os, "times", lambda: SimpleNamespace(user=3.0, system=4.0))
    assert processor_seconds() == (7.0, 33.0)


class Page:
    """A live page that shows four frames a second of the clock ``now``, of people who walk."""

    made: Page

    def __init__(self, *given: Any) -> None:
        self.given, self.now, self.said = given, 100.0, []
        self.joints, self.frames = page.walking(2, 120).astype(np.float32), 1
        Page.made = self

    @property
    def seen(self) -> np.ndarray:
        return self.joints[:, : self.frames]

    def run(self, stop: Any) -> None:
        while not stop():
            self.now, self.frames = self.now + 0.25, self.frames + 1

    def say(self, words: str) -> None:
        self.said.append(words)


class Timer:
    """A timer that tells its wait, and acts when it is started."""

    waits: list[float]

    def __init__(self, seconds: float, act: Any, given: tuple[Any, ...]) -> None:
        self.waits.append(seconds)
        self.start = lambda: act(*given)

    def join(self) -> None:
        self.waits.append(0.0)


class Clients:
    """Processes that say that they are connected, and hear each third frame of the first ball."""

    def __init__(self, kind: str) -> None:
        assert kind == "spawn"
        self.asked: list[tuple[int, float]] = []
        self.told: list[Any] = []

    def Queue(self) -> Any:
        return SimpleNamespace(get=self.get)

    def Process(self, target: Any, args: tuple[Any, ...]) -> Any:
        assert target is live.listen
        self.asked.append(args[:2])
        return SimpleNamespace(start=lambda: self.told.append("connected"))

    def get(self, timeout: float) -> Any:
        if self.told:
            return self.told.pop()
        return heard(Page.made)


def heard(shown: Page, every: int = 3) -> live.Frames:
    """What came of the frames shown, each 0.25 s after the one before."""
    body = build_body(shown.joints.astype(np.float64))
    places = ball_places(body, 0, seen_balls())[:, 0]
    return [(0.25 * number, places[number].tobytes()) for number in range(0, shown.frames, every)]


@pytest.mark.parametrize(("clients", "browsers", "seconds"), [(3, 2, 8.0), (2, 0, 20.0)])
def test_every_figure_of_the_live_page(
    clients: int, browsers: int, seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what is between the warm-up and the end counts, and of the processors only these seconds."""
    asked: list[Any] = []
    within: list[str] = []
    Timer.waits = []
    motion = SimpleNamespace(prompt="what it was told last")

    @contextmanager
    def entered(name: str, value: Any = None) -> Any:
        within.append(name)
        yield value
        within.remove(name)

    def start_live(*given: Any, **options: Any) -> Any:
        asked.append((*given, options))
        return motion

    def browse(opened: ExitStack, port: int, count: int) -> list[str]:
        assert within == ["half", "serving"]
        assert port == 8123
        return [f"tab {number}" for number in range(count)]

    frames = int(seconds * 4)
    spent = iter([(1.0, 10.0), (1.0 + 0.02049 * frames, 10.0 + 0.10049 * frames)])
    pictures = iter(
        [list(range(browsers)), [number + int(5 * (number + 1) * seconds) + 1 for number in range(browsers)]]
    )
    pipeline = SimpleNamespace(live=start_live, config=SimpleNamespace(fps=30.0))
    monkeypatch.setattr(
        intermoe,
        "InterMoEPipeline",
        SimpleNamespace(from_pretrained=lambda name: asked.append(name) or pipeline),
        raising=False,
    )
    process = Clients("spawn")
    monkeypatch.setattr(live.multiprocessing, "get_context", lambda kind: process)
    monkeypatch.setattr(live, "half_the_cores", partial(entered, "half"))
    monkeypatch.setattr(live, "serving", lambda: entered("serving", SimpleNamespace(get_port=lambda: 8123)))
    monkeypatch.setattr(live, "LivePage", Page)
    monkeypatch.setattr(live, "browse", browse)
    monkeypatch.setattr(live, "processor_seconds", lambda: next(spent))
    monkeypatch.setattr(live, "drawn", lambda tabs: next(pictures))
    monkeypatch.setattr(live, "frames_of", lambda tab: heard(Page.made, 1))
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: Page.made.now))
    monkeypatch.setattr(live.threading, "Timer", Timer)
    monkeypatch.setattr(live.os, "cpu_count", lambda: 7)
    given = ["--seconds", str(seconds), "--clients", str(clients), "--browsers", str(browsers)]
    monkeypatch.setattr(sys, "argv", ["live", *(given if browsers else [])])
    live.main()
    assert json.loads(capsys.readouterr().out) == {
        "clients": clients, "browsers": browsers, "cores": 7, "prompt": "what it was told last",
        "frames_per_second": [1.4] * clients + [4.0] * browsers,
        "drawn_per_second": [5.1, 10.1][:browsers],
        "shown_per_second": 4.0, "server_processor_ms": 20.5, "browsers_processor_ms": 100.5,
    }  # fmt: skip
    assert asked == ["duets", (FIRST, {"seed": 0, "num_inference_steps": 4, "chunk": 20})]
    shown = Page.made
    assert shown.given[1:4] == (motion, 30.0, NAMES)
    assert (shown.given[4]("joints", "words", "format"), shown.given[5]) == ([], ("npz",))
    assert process.asked == [(8123, WARM + seconds)] * clients
    assert (Timer.waits, shown.said) == ([seconds / 2, 0.0], [THEN])
    assert shown.now - 100 > WARM + seconds + 3, "clients that began late have ended"


def test_a_client_listens_from_the_first_frame_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages without a frame are none, and none begin the time; a frame is told with its time since the first."""
    viser = pytest.importorskip("viser")
    client = pytest.importorskip("websockets.sync.client")
    clock = [50.0]
    messages = [b"", b"a", b"", b"b", b"c"]

    def recv(timeout: float) -> bytes:
        clock[0] += 1.0
        return messages.pop(0)

    asked: list[Any] = []

    def connect(address: str, **options: Any) -> Any:
        asked.append((address, options))
        return nullcontext(SimpleNamespace(recv=recv))

    told: list[Any] = []
    monkeypatch.setattr(client, "connect", connect)
    monkeypatch.setattr(live, "first_ball", lambda data: data or None)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    live.listen(8123, 3.0, SimpleNamespace(put=told.append))
    assert told == ["connected", [(0.0, b"a"), (2.0, b"b"), (3.0, b"c")]]
    assert asked == [("ws://127.0.0.1:8123", {"subprotocols": [f"viser-v{viser.__version__}"], "max_size": None})]
    assert not messages


SHOWS = """<canvas></canvas><script>
    setTimeout(() => document.querySelector("canvas").dataset.engine = "one", 300);
    const script = `onmessage = ({data}) => setTimeout(() => postMessage(data), data.wait || 0)`;
    const worker = new Worker(URL.createObjectURL(new Blob([script])));
    const floor = {name: "/stage/floor", updates: {}};
    const told = (name, update, place, wait) => worker.postMessage({wait, messages: [floor,
        {name, updates: {[update]: new Float32Array(place)}}]});
    told("/stage/person 1/balls", "batched_positions", [0.1, 2, 3, 4]);
    told("/stage/person 2/balls", "batched_positions", [5, 6, 7, 8]);
    told("/stage/person 1/balls", "batched_scales", [5, 6, 7, 8]);
    told("/stage/person 1/balls", "batched_positions", [4, 5, 6, 7], 100);
    worker.postMessage({type: "other"});
</script>"""
"""A page whose worker answers with two frames of the first person, and with more that is none."""


def test_what_arrives_in_a_browser(tmp_path: Path) -> None:
    """By the page's own worker, with the time since the first; nothing is drawn there."""
    pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    (tmp_path / "index.html").write_text(SHOWS)
    serve = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with ExitStack() as opened:
            try:
                (tab,) = live.browse(opened, server.server_port, 1)
            except FileNotFoundError as error:
                pytest.skip(str(error))
            assert tab.evaluate("'engine' in document.querySelector('canvas').dataset"), "it waits for the page"
            tab.wait_for_function("window.arrived.length > 1")
            (start, first), (later, second) = live.frames_of(tab)
            assert live.drawn([tab, tab]) == [0, 0]
            assert tab.viewport_size == {"width": 640, "height": 480}
    finally:
        server.shutdown()
        server.server_close()
    assert start == 0.0
    assert 0.05 < later < 60, "in seconds"
    assert [np.frombuffer(place, dtype=np.float32).tolist() for place in (first, second)] == [
        [np.float32(0.1), 2.0, 3.0], [4.0, 5.0, 6.0]
    ]  # fmt: skip
    assert live.browse(ExitStack(), 8123, 0) == []
