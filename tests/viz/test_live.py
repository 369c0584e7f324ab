"""The live page: what is made is shown in order and in time, prompts change, strangers are refused."""

from __future__ import annotations

import http.client
import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe.motion.rig import REST_POSE, at_rest

pytest.importorskip("viser", reason="pages are viser's")
import viser
from msgspec.msgpack import encode
from viser._messages import GuiUpdateMessage
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from intermoe.viz.browser import served_head
from intermoe.viz.figures import TILE_METRES
from intermoe.viz.guard import BURST_SECONDS, BYTE_RATE, MAX_MESSAGE, MESSAGE_RATE, Allowance, refusal
from intermoe.viz.live import LivePage
from intermoe.viz.scene import serving

CHUNK = 5
SOFTWARE = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


class Steps:
    """Two people who rise by a centimetre a frame: what they are shown as tells the frame."""

    def __init__(self, last: int | None = None) -> None:
        self.prompt, self.made, self._last = "rise", [], last
        self.leads: list[tuple[int, str, list[float]]] = []

    def __next__(self) -> np.ndarray:
        if self._last == len(self.made):
            raise FloatingPointError("it fell over")
        frames = len(self.made) * CHUNK + np.arange(CHUNK)
        self.made.append(self.prompt)
        one = at_rest(REST_POSE) + frames[:, None, None] * (0, 0.01, 0)
        return np.stack([one, one + np.array([0, 0, 1.0])])

    def send(self, prompt: str) -> None:
        if not prompt:
            raise ValueError("prompts: a prompt must not be *empty*")
        self.prompt = prompt

    def aim(self, leads: list[tuple[int, str, list[float]]]) -> None:
        if any(place[1] < 0 for _, _, place in leads):
            raise ValueError("positions: expected a place above the floor")
        self.leads = leads


def page_of(server: Any, motion: Steps, saved: list[Any] | None = None, fps: float = 200) -> LivePage:
    def save(joints: np.ndarray, prompt: str, format: str) -> list[Path]:
        if saved is None:
            raise OSError("the disk is full")
        saved.append((joints, prompt, format))
        return [Path("a_b.npz")]

    return LivePage(server, motion, fps, ("Ann", "Bo"), save, ("npz", "glb"), unknown=lambda words: words.split()[1:])


def run(page: LivePage, stop: Callable[[], bool]) -> None:
    """For a minute at most: no test waits for ever."""
    end = time.monotonic() + 60
    page.run(lambda: stop() or time.monotonic() > end)
    assert stop()


def heights(joints: np.ndarray) -> np.ndarray:
    return joints[0, :, 0, 1] - at_rest(REST_POSE)[0, 1]


def test_every_frame_is_shown_once_and_in_order() -> None:
    with serving() as server:
        page = page_of(server, Steps())
        run(page, lambda: len(page._seen) >= 4 * CHUNK)
        np.testing.assert_allclose(heights(page.seen), np.arange(4 * CHUNK) * 0.01, atol=1e-5)
        handle = page._figures._parts[0].handle
        at_first = page._figures._parts[0].places[0, 0, 1] - (CHUNK - 1) * 0  # of the chunk that is shown
        assert handle.batched_positions[0, 1] - at_first == pytest.approx((CHUNK - 1) * 0.01, abs=1e-3)


class Walk(Steps):
    """Two people who go a quarter of a metre a frame along X, and stop after ten chunks."""

    def __next__(self) -> np.ndarray:
        rising = super().__next__()
        gone = np.minimum(rising[0, :, 0, 1] - at_rest(REST_POSE)[0, 1], 0.5) * 25.6
        return rising * (1, 0, 1) + at_rest(REST_POSE) * (0, 1, 0) + gone[:, None, None] * (1, 0, 0)


def test_who_walks_away_stays_in_view_and_the_floor_goes_by() -> None:
    """The stage glides back under them; a joint's handle lies on it, where the motion has the joint."""
    with serving() as server:
        page = page_of(server, Walk())
        run(page, lambda: len(page._seen) >= 40 * CHUNK)
        (gone, height, aside), end = page._stage.position, page.seen[:, -1, 0].mean(0)
        assert end[0] - page.seen[:, 0, 0, 0].mean() == pytest.approx(12.8, abs=1e-3)
        assert gone == pytest.approx(-12.8, abs=0.01)
        assert (height, aside) == (0, 0)
        assert all(part.handle.name.startswith(f"{page._stage.name}/") for part in page._figures._parts)
        tiles = (page._floor.position - page._stage.position) / (2 * TILE_METRES)
        np.testing.assert_allclose(tiles, np.round(tiles), atol=1e-4)
        assert np.abs(page._floor.position).max() <= 2 * TILE_METRES
        page.lead(1, "left_wrist")
        (handle,) = page._handles.values()
        assert handle.name.startswith(f"{page._stage.name}/")
        np.testing.assert_allclose(handle.position, page.seen[1, -1, 20], atol=1e-6)
        page._follow.value = False
        before = tuple(page._stage.position)
        run(page, lambda: len(page._seen) >= 42 * CHUNK)
        assert tuple(page._stage.position) == before


def test_it_keeps_time_and_does_not_hurry_after_a_pause() -> None:
    with serving() as server:
        page = page_of(server, Steps(), fps=50)
        started = time.monotonic()
        run(page, lambda: time.monotonic() - started > 1.0)
        assert 0 < len(page._seen) <= 53  # a busy machine shows fewer, and none faster
        page._playing.value = False
        before, started = len(page._seen), time.monotonic()
        run(page, lambda: time.monotonic() - started > 0.2)
        assert len(page._seen) == before


def test_little_is_made_ahead_so_that_words_act_soon() -> None:
    with serving() as server:
        motion = Steps()
        page = page_of(server, motion)
        run(page, lambda: len(page._seen) >= CHUNK)
        page.say("sink now")
        assert page._told.content == "the model has never seen: now; it can only guess"
        before = len(motion.made)
        run(page, lambda: len(motion.made) >= before + 4)
        assert motion.made[before + 1 :] == ["sink now"] * (len(motion.made) - before - 1)
        assert motion.made[:before] == ["rise"] * before
        assert before * CHUNK - len(page.seen[0]) < 4 * CHUNK


def test_a_refused_prompt_changes_nothing_and_is_told_as_it_is() -> None:
    with serving() as server:
        motion = Steps()
        page = page_of(server, motion)
        page.say("")
        assert motion.prompt == "rise"
        assert page._told.content == r"error: prompts: a prompt must not be \*empty\*"


def test_a_joint_is_led_by_a_handle_from_where_it_is() -> None:
    with serving() as server:
        motion = Steps()
        page = page_of(server, motion)
        run(page, lambda: len(page._seen) >= CHUNK - 2)  # amid a chunk
        page.lead(1, "left_wrist")
        ((person, joint, place),) = motion.leads
        assert (person, joint) == (1, "left_wrist")
        np.testing.assert_allclose(place, page.seen[1, -1, 20], atol=1e-6)
        page.lead(0, "head")
        page.lead(0, "head")  # a second handle would hide the first
        handle = page._handles[1, "left_wrist"]
        handle.position = (0.5, 1.5, -0.5)  # as a drag sets it, and then tells
        for callback in handle._impl_aux.update_cb:
            callback(None)
        assert [lead[:2] for lead in motion.leads] == [(1, "left_wrist"), (0, "head")]
        assert motion.leads[0][2] == [0.5, 1.5, -0.5]
        page.let_go()
        assert (motion.leads, page._handles) == ([], {})
        page.lead(0, "head")
        refused = page._handles[0, "head"]
        refused.position = (0.0, -1.0, 0.0)
        page._aim()
        assert page._handles == {}
        assert refused._impl.removed  # from the page, too
        assert "above the floor" in page._told.content


def test_ten_minutes_are_kept_whatever_the_rate() -> None:
    with serving() as server:
        assert page_of(server, Steps(), fps=20)._seen.maxlen == 12_000


def test_what_was_seen_is_saved_with_all_its_prompts() -> None:
    with serving() as server:
        saved: list[Any] = []
        page = page_of(server, Steps(), saved)
        page.save("glb")
        assert "nothing was seen" in page._told.content
        run(page, lambda: len(page._seen) >= 2 * CHUNK)
        page.say("sink")
        run(page, lambda: page._prompt == "sink" and page._frame > 1)
        page.save("glb")
        ((joints, prompt, format),) = saved
        assert (prompt, format) == ("rise; sink", "glb")
        np.testing.assert_array_equal(joints, page.seen)
        assert page._told.content == r"saved a\_b.npz"


def test_what_cannot_be_saved_or_made_is_told() -> None:
    with serving() as server:
        page = page_of(server, Steps(last=3))
        with pytest.raises(FloatingPointError, match="it fell over"):
            page.run()
        page.save("npz")
        assert page._told.content == "error: the disk is full"
    assert not [thread for thread in threading.enumerate() if "_keep_making" in thread.name]


@pytest.mark.parametrize(
    ("host", "origin"),
    [("127.0.0.1:8080", None), ("localhost:8080", "http://localhost:8080"), ("[::1]:80", "http://[::1]:80")],
)
def test_its_own_pages_are_let_in(host: str, origin: str | None) -> None:
    assert refusal({"Host": host} | ({"Origin": origin} if origin else {})) is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example:8080", None),
        ("127.0.0.1.evil.example", None),
        ("", None),
        ("127.0.0.1:8080", "http://evil.example"),
        ("127.0.0.1:8080", "http://127.0.0.1:9090"),
        ("127.0.0.1:8080", "https://127.0.0.1:8080"),
        ("127.0.0.1:8080", "null"),
        ("evil.example:8080", "http://evil.example:8080"),
    ],
)
def test_strangers_are_named_and_refused(host: str, origin: str | None) -> None:
    reason = refusal({"Host": host} | ({"Origin": origin} if origin else {}))
    assert reason is not None
    assert reason.startswith("Host" if "evil" in host or not host else "Origin")


def test_a_server_refuses_strangers_and_huge_messages_and_goes_on() -> None:
    with serving() as server:
        port = server.get_port()
        address = f"ws://127.0.0.1:{port}"
        protocol: Any = [f"viser-v{viser.__version__}"]
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            asked.request("GET", "/", headers=headers)
            answer = asked.getresponse()
            assert (answer.status, b"expected" in answer.read()) == (403, True)
        with pytest.raises(InvalidStatus) as refused, connect(address, origin="http://evil.example"):  # type: ignore[arg-type]
            pass
        assert refused.value.response.status_code == 403
        with connect(address, subprotocols=protocol) as huge:
            huge.send(b"0" * (MAX_MESSAGE + 1))
            with pytest.raises(ConnectionClosed) as closed:
                _read_on(huge)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009  # too big
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        asked.request("GET", "/", headers={"Accept-Encoding": "gzip"})
        answer = asked.getresponse()
        assert answer.status == 200
        assert f"{served_head()}</head>" in answer.read().decode()


def test_a_server_that_was_stopped_starts_again_at_its_address() -> None:
    protocol: Any = [f"viser-v{viser.__version__}"]
    with serving() as server:
        port = server.get_port()
        watching = connect(f"ws://127.0.0.1:{port}", subprotocols=protocol)
        assert watching.recv(timeout=20)
    with pytest.raises(ConnectionClosed):  # who watched is told
        _read_on(watching)
    with pytest.raises(ConnectionRefusedError):
        connect(f"ws://127.0.0.1:{port}", subprotocols=protocol)
    with serving(port) as again:
        assert again.get_port() == port
        page = page_of(again, Steps())
        run(page, lambda: len(page._seen) >= 2 * CHUNK)
        with connect(f"ws://127.0.0.1:{port}", subprotocols=protocol) as back:
            assert back.recv(timeout=20)
    np.testing.assert_allclose(np.diff(heights(page.seen)), 0.01, atol=1e-5)


def test_a_frame_is_sent_before_the_next_takes_its_place() -> None:
    """viser gathers what comes within a sixtieth of a second, and of two frames sends the later one alone."""
    protocol: Any = [f"viser-v{viser.__version__}"]
    with serving() as server:
        page = page_of(server, Steps(), fps=150)
        with connect(f"ws://127.0.0.1:{server.get_port()}", subprotocols=protocol, max_size=None) as watching:
            sizes: list[int] = []

            def watch() -> None:
                with suppress(TimeoutError):
                    while True:
                        sizes.append(len(watching.recv(timeout=2)))

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            run(page, lambda: len(page._seen) >= 40 * CHUNK)
            watcher.join(timeout=60)
        assert not watcher.is_alive()
    frames = sum(size > 2000 for size in sizes)  # what moves everybody; other messages are shorter
    assert 0.5 * 40 * CHUNK < frames <= 40 * CHUNK + 2


def test_a_sender_has_a_rate_of_messages_and_of_bytes_and_a_burst() -> None:
    for size, rate in ((100, MESSAGE_RATE), (2**16, BYTE_RATE / 2**16)):
        allowance, now = Allowance(50.0), 50.0
        waits = []
        for _ in range(round(3 * rate)):
            waits.append(allowance.wait(size, now))
            now += waits[-1]
        assert waits[: round(BURST_SECONDS * rate)] == pytest.approx([0.0] * round(BURST_SECONDS * rate), abs=1e-9)
        assert now - 50 == pytest.approx(3 - BURST_SECONDS)
        assert allowance.wait(size, now + 1000) == 0  # silence is not saved up without bound
        assert sum(allowance.wait(size, now + 1000) > 0 for _ in range(round(2 * rate))) >= round(rate) - 1


def heights_received(watching: Any, seconds: float) -> list[float]:
    """Of the first sphere of each frame that arrives: the first numbers after what is packed, at a multiple of 8."""
    received, end = [], time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with suppress(TimeoutError):
            message = watching.recv(timeout=left)
            if len(message) > 2000:
                start = -(-(16 + int.from_bytes(message[8:16], "little")) // 8) * 8
                received.append(float(np.frombuffer(message[start : start + 12], np.float32)[1]))
    return received


@pytest.mark.parametrize("kind", ["flood", "idle"])
def test_a_busy_or_a_deaf_browser_does_not_starve_another(kind: str) -> None:
    """Frames go on to arrive in order, at least at half the rate without it; a busy machine has three tries."""
    protocol, ended = f"viser-v{viser.__version__}", threading.Event()
    with serving() as server:
        page = page_of(server, Steps(), fps=30)
        points = np.zeros((500_000, 3), np.float32)  # who does not read these fills all buffers on the way
        server.scene.add_point_cloud("/much", points, np.zeros(3, np.uint8))
        box = next(handle for handle in server.gui._gui_input_handle_from_uuid.values() if handle.value == "rise")
        update = GuiUpdateMessage(box._impl.uuid, {"value": "rise"}).as_serializable_dict([])
        command = [sys.executable, str(Path(__file__).with_name("busy_client.py")), kind, str(server.get_port())]
        showing = threading.Thread(target=page.run, args=(ended.is_set,))
        showing.start()
        try:
            address, options = f"ws://127.0.0.1:{server.get_port()}", {"max_size": None, "subprotocols": [protocol]}
            with connect(address, **options) as watching:  # type: ignore[arg-type]
                heights_received(watching, 1)  # the page, and what goes before
                alone = heights_received(watching, 2)
                other = subprocess.Popen([*command, protocol, encode(update).hex()], stdout=subprocess.PIPE)
                with other:
                    try:
                        assert other.stdout is not None
                        assert other.stdout.readline().decode().strip() == kind
                        beside: list[float] = []
                        for _ in range(3):
                            beside = heights_received(watching, 2)
                            assert (np.diff(beside) > 0).all()
                            if len(beside) >= len(alone) / 2:
                                break
                        assert other.poll() is None
                    finally:
                        other.kill()
                assert len(beside) >= len(alone) / 2 > 0
        finally:
            ended.set()
            showing.join(20)


def _read_on(connection: Any) -> None:
    for _ in itertools.count():
        connection.recv(timeout=20)


def pixel_of(point: np.ndarray, camera: Any, width: int, height: int) -> np.ndarray:
    """Where a point is on the canvas of a page that looks as it did at first."""
    position, look_at = np.asarray(camera.position), np.asarray(camera.look_at)
    forward = (look_at - position) / np.linalg.norm(look_at - position)
    right = np.cross(forward, (0, 1, 0))
    right /= np.linalg.norm(right)
    seen = np.stack([right, np.cross(right, forward), forward]) @ (point - position)
    return np.array([width, height]) / 2 + height / 2 / np.tan(camera.fov / 2) / seen[2] * seen[:2] * (1, -1)


@pytest.mark.slow
def test_a_mouse_drags_a_joint() -> None:
    """The button gives the joint a handle, the mouse takes it by an arrow, and the motion is told the place."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with serving() as server, playwright.sync_playwright() as running:
        motion = Steps()
        page = page_of(server, motion)
        run(page, lambda: len(page._seen) >= CHUNK)
        browser = running.chromium.launch(executable_path=chromium, args=list(SOFTWARE))
        tab = browser.new_page(viewport={"width": 900, "height": 600})
        tab.set_default_timeout(120_000)
        tab.goto(f"http://127.0.0.1:{server.get_port()}")
        canvas = tab.locator("canvas[data-engine]")
        tab.get_by_text("lead a joint with the mouse").click()
        tab.get_by_role("button", name="lead it").click()
        wait_for(lambda: bool(motion.leads))
        ((person, joint, start),) = motion.leads
        assert (person, joint) == (0, "right_wrist")
        (handle,) = page._handles.values()
        start, along = np.asarray(start), np.array([0.0, 0.0, 0.2])  # the arrow to the right
        box = canvas.bounding_box()
        size = box["width"], box["height"]
        assert (box["x"], box["y"]) == (0, 0)
        assert box["width"] < 600  # the controls lie beside the figures
        base, tip = (pixel_of(start + way, server.initial_camera, *size) for way in (along, 2 * along))
        tab.locator(".mantine-Notification-closeButton").first.click()  # that there is no GPU
        pause = 500  # milliseconds, in which a browser that draws slowly sees where the camera and the mouse are

        def drag() -> bool:
            """Once the handle is drawn, which takes a browser without a GPU a while; before that the camera turns."""
            for client in server.get_clients().values():
                client.camera.position = server.initial_camera.position
                client.camera.look_at = server.initial_camera.look_at
            tab.wait_for_timeout(pause)
            tab.mouse.move(*base)
            tab.wait_for_timeout(pause)
            tab.mouse.down()
            tab.mouse.move(*((base + tip) / 2), steps=4)
            tab.mouse.move(*tip, steps=4)
            tab.wait_for_timeout(pause)
            tab.mouse.up()
            return handle.position[2] > start[2] + 0.1

        wait_for(drag, 200)
        browser.close()
        np.testing.assert_allclose(handle.position, start + along, atol=0.05)
        np.testing.assert_allclose(motion.leads[0][2], handle.position)


def wait_for(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_two_browsers_see_it_and_either_changes_the_words() -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with serving() as server, playwright.sync_playwright() as running:
        motion, ended = Steps(), threading.Event()
        page = page_of(server, motion, fps=30)
        showing = threading.Thread(target=page.run, args=(ended.is_set,))
        showing.start()
        try:
            browsers = [running.chromium.launch(executable_path=chromium, args=list(SOFTWARE)) for _ in "ab"]
            tabs = [browser.new_page(viewport={"width": 900, "height": 600}) for browser in browsers]
            for tab in tabs:
                tab.set_default_timeout(120_000)
                tab.goto(f"http://127.0.0.1:{server.get_port()}")
            tabs[1].locator("input[value='rise']").fill("sink")  # viser's label does not name its box
            tabs[1].get_by_role("button", name="do this next").click()
            deadline = time.monotonic() + 60
            while page._prompt != "sink" and time.monotonic() < deadline:
                time.sleep(0.05)
            assert page._prompt == "sink"
            for browser in browsers:
                browser.close()
        finally:
            ended.set()
            showing.join(20)
        np.testing.assert_allclose(np.diff(heights(page.seen)), 0.01, atol=1e-5)
