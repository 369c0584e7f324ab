"""What the benchmark of a page shows and looks for in a picture."""

from __future__ import annotations

import io
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe.benchmarks import page
from intermoe.benchmarks.harness.case import WrongResult
from intermoe.benchmarks.page import _coloured, walking
from intermoe.motion.rig import REST_POSE, at_rest


def test_people_beside_each_other_who_go_on() -> None:
    joints = walking(3, 5)
    np.testing.assert_allclose(joints[0, 0], at_rest(REST_POSE) + np.array([0, 0.95, 0]), atol=1e-12)
    assert joints.shape == (3, 5, 22, 3)
    np.testing.assert_allclose(np.diff(joints, axis=1), np.tile([0, 0, 0.02], (3, 4, 22, 1)), atol=1e-12)
    np.testing.assert_allclose(np.diff(joints, axis=0), np.tile([0.9, 0, 0], (2, 5, 22, 1)), atol=1e-12)
    assert (joints[..., 1] > -0.1).all()


def test_figures_are_blue_or_orange_between_caption_and_controls() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.full((200, 4, 3), 200, dtype=np.uint8)
    pixels[100, 0], pixels[100, 1], pixels[100, 2] = (31, 90, 145), (194, 87, 26), (100, 120, 160)
    pixels[59, 0] = pixels[140, 0] = (0, 0, 255)  # a link in the caption, a control
    data = io.BytesIO()
    image.fromarray(pixels).save(data, "png")
    seen = _coloured(data.getvalue())
    assert seen.shape == (80, 4)
    assert np.argwhere(seen).tolist() == [[40, 0], [40, 1]]


class Tab:
    """A page in a browser that tells what it was asked, and shows the pictures in turn."""

    def __init__(self, *pictures: bytes) -> None:
        self.asked: list[Any] = []
        self.pictures = list(pictures)

    def __getattr__(self, name: str) -> Any:
        def ask(*given: Any, **more: Any) -> Any:
            self.asked.append((name, *given, *more.items()))
            return {page.FIRST: 1.5, page.RATE: 12.5}.get(given[0]) if name == "evaluate" else self

        return ask

    def screenshot(self) -> bytes:
        self.asked.append("screenshot")
        return self.pictures.pop(0)


@pytest.fixture
def chromium(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Playwright that opens a ``Tab`` instead, and tells which browser was started and how."""
    running = SimpleNamespace(started=[], tab=Tab())

    def launch(**options: Any) -> Any:
        running.started.append(options)
        return SimpleNamespace(new_page=lambda **given: running.started.append(given) or running.tab)

    running.chromium = SimpleNamespace(launch=launch)
    module = SimpleNamespace(sync_playwright=lambda: nullcontext(running))
    monkeypatch.setitem(sys.modules, "playwright.sync_api", module)
    monkeypatch.setattr(page.shutil, "which", lambda name: "/x/chrome" if name == "google-chrome" else None)
    monkeypatch.setattr(page.time, "sleep", lambda seconds: running.tab.asked.append(("sleep", seconds)))
    return running


def picture(*places: int) -> bytes:
    """400 pixels of width and height of grey, and blue ones in these columns of the middle row."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.full((400, 400, 3), 200, dtype=np.uint8)
    pixels[200, list(places)] = (31, 90, 145)
    data = io.BytesIO()
    image.fromarray(pixels).save(data, "png")
    return data.getvalue()


def test_a_page_is_opened_looked_at_and_counted_in_this_order(chromium: Any, tmp_path: Path) -> None:
    """The browser has had time to start before the page's own clock does; what counts is there before the page."""
    chromium.tab = Tab(picture(3), picture(4))
    assert page.opened(tmp_path / "a.html", 320, 240, 2.5) == (1.5, 12.5)
    launched, window = chromium.started
    assert launched == {"executable_path": "/x/chrome", "args": list(page.SOFTWARE)}
    assert window == {"viewport": {"width": 320, "height": 240}}
    assert chromium.tab.asked == [
        ("set_default_timeout", page.WAIT),
        ("add_init_script", page.HOOK),
        ("sleep", page.SETTLE),
        ("goto", (tmp_path / "a.html").as_uri(), ("wait_until", "commit")),
        ("evaluate", page.FIRST),
        "screenshot",
        ("evaluate", page.RATE, 2.5),
        "screenshot",
    ]
    assert page.WAIT == 1000 * 240


@pytest.mark.parametrize(("shown", "what"), [([(), (3,)], "no figure is seen"), ([(3,), (3,)], "no figure moves")])
def test_a_page_without_figures_that_move_is_an_error(
    shown: list[tuple[int, ...]], what: str, chromium: Any, tmp_path: Path
) -> None:
    chromium.tab = Tab(*(picture(*places) for places in shown))
    with pytest.raises(WrongResult, match=what):
        page.opened(tmp_path / "a.html", 320, 240, 2.5)


@pytest.mark.parametrize("found", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_may_have_one_of_three_names(found: str, chromium: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.shutil, "which", lambda name: f"/y/{name}" if name == found else None)
    page.new_tab(chromium, 1, 2)
    assert chromium.started[0]["executable_path"] == f"/y/{found}"


def test_without_a_browser(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="chromium: expected it to be installed"):
        page.opened(tmp_path / "a.html", 320, 240, 2.5)


@pytest.mark.parametrize(
    ("given", "persons", "frames", "seconds", "window"),
    [
        (["--persons", "3", "--frames", "7", "--seconds", "2.5", "--size", "320x240"], 3, 7, 2.5, (320, 240)),
        ([], 4, 300, 5.0, (640, 480)),
    ],
)
def test_the_command_opens_what_it_was_asked_for(
    given: list[str],
    persons: int,
    frames: int,
    seconds: float,
    window: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of 1,234,567 bytes, whose motion lasts a second for 30 frames."""

    def save(file: Path, joints: Any, fps: float) -> None:
        assert (joints.shape, fps) == ((persons, frames, 22, 3), 30)
        file.write_bytes(bytes(1_234_567))

    def opened(file: Path, *asked: Any) -> tuple[float, float]:
        assert (file.suffix, file.stat().st_size, asked) == (".html", 1_234_567, (*window, seconds))
        return 1.237, 9.96

    monkeypatch.setattr(page.export, "save", save)
    monkeypatch.setattr(page, "opened", opened)
    monkeypatch.setattr(sys, "argv", ["page", *given])
    page.main()
    assert json.loads(capsys.readouterr().out) == {
        "persons": persons, "frames": frames, "window": f"{window[0]}x{window[1]}", "megabytes": 1.23,
        "first_picture_seconds": 1.24, "drawn_per_second": 10.0,
    }  # fmt: skip


DRAWS = """<canvas data-engine width="640" height="480"></canvas><script>
    const gl = document.querySelector("canvas").getContext("webgl2", {preserveDrawingBuffer: true});
    let frames = 0;
    window.drawn = [];
    (function next() {
        requestAnimationFrame(next);
        if (++frames % 5) return;
        gl.clearColor(...(window.drawn.length < 3 ? [0.5, 0.5, 0.5, 1] : [0.1, 0.3, 0.6, 1]));
        gl.clear(gl.COLOR_BUFFER_BIT);
        gl.drawArrays(gl.POINTS, 0, 0);
        gl.drawElements(gl.POINTS, 0, gl.UNSIGNED_SHORT, 0);
        window.drawn.push(performance.now() / 1000);
    })();
</script>"""
"""A page that draws in each fifth of its frames, with two calls each, and something blue from the fourth time on."""

COUNTED = f"""async seconds => {{
    const before = window.drawn.length, start = performance.now();
    const rate = await ({page.RATE})(seconds);
    return [rate, window.drawn.length - before, (performance.now() - start) / 1000];
}}"""


def test_what_counts_the_pictures_of_a_page(tmp_path: Path) -> None:
    """In a browser, beside what the page itself knows of its pictures."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    file = tmp_path / "draws.html"
    file.write_text(DRAWS)
    with playwright.sync_playwright() as running:
        try:
            tab = page.new_tab(running, 320, 240)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        tab.goto(file.as_uri(), wait_until="commit")
        first = tab.evaluate(page.FIRST)
        rate, drawn, seconds = tab.evaluate(COUNTED, 0.5)
        moments, pictures = tab.evaluate("[window.drawn, window.pictures]")
        assert moments[3] <= first <= moments[4], "the first with colour in it"
        assert seconds >= 0.5
        assert drawn >= 2
        assert rate * seconds == pytest.approx(drawn, abs=1.01)
        assert len(moments) - 1 <= pictures <= len(moments), "a picture is one, however many calls draw it"
        assert tab.viewport_size == {"width": 320, "height": 240}
