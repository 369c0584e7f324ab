"""The page, opened in a browser without a network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe import export

pytest.importorskip("viser", reason="pages of figures need viser")
PROMPT = "two people <b>bow</b> & wave"
WAIT = 240_000
"""Milliseconds: a browser without a GPU on a busy machine is slow."""
SOFTWARE = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two people who stand apart along X; they step sideways, half a metre in two seconds."""
    from intermoe.motion.rig import REST_POSE, at_rest

    steps = np.arange(60)[:, None, None] * (0.5 / 60, 0, 0)
    joints = np.stack([at_rest(REST_POSE) + steps + (x, 0.95, 0) for x in (-0.6, 0.6)])
    return export.save(tmp_path_factory.mktemp("page") / "bow.html", joints, 30, ["Ann", "Bo <3"], PROMPT)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=list(SOFTWARE))
        yield browser
        browser.close()


DRAWN = """() => new Promise(done => {
    let left = 5;
    (function next() { left-- ? requestAnimationFrame(next) : done() })();
})"""
"""Five frames later: what has been asked for by then is in the picture."""


STEADY = 1000.0
"""Milliseconds."""


class Page:
    """A page that is open, and what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, width: int, height: int) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.tab = browser.new_page(viewport={"width": width, "height": height})
        self.tab.set_default_timeout(WAIT)
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("canvas")
        self.clock = self.tab.locator("input").first
        self.clock.wait_for()

    def seconds(self) -> float:
        return float(self.clock.input_value())

    def at(self, seconds: float) -> np.ndarray:
        """The picture of a moment, once it has been drawn: (height, width, 3)."""
        self.clock.fill(f"{seconds}")  # which also pauses
        for button in self.tab.query_selector_all(".mantine-Notification-closeButton"):
            button.click()  # that WebGL has no GPU
        before, same = None, 0  # on a busy machine a frame may be late: what stays for a second is the moment's
        for _ in range(60):
            self.tab.evaluate(DRAWN)
            self.tab.wait_for_timeout(STEADY / 4)
            picture = self._picture()
            alike = before is not None and np.array_equal(picture, before) and _coloured(picture).any()
            same = same + 1 if alike else 0
            if same == 4:
                break
            before = picture
        return picture

    def _picture(self) -> np.ndarray:
        image = pytest.importorskip("PIL.Image")
        data = self.tab.screenshot(timeout=WAIT)
        return np.asarray(image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def _coloured(picture: np.ndarray) -> np.ndarray:
    return _blue(picture) | _orange(picture)


def _blue(picture: np.ndarray) -> np.ndarray:
    inside = picture[60:-60]
    return inside[..., 2] - inside[..., 0] > 60


def _orange(picture: np.ndarray) -> np.ndarray:
    inside = picture[60:-60]
    return inside[..., 0] - inside[..., 2] > 60


def _middle(mask: np.ndarray) -> float:
    return float(np.flatnonzero(mask.any(0)).mean())


def test_the_file_is_small_and_says_what_it_shows(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert page_file.stat().st_size < 2_000_000
    assert "<title>two people &lt;b&gt;bow&lt;/b&gt; &amp; wave</title>" in text
    assert "Bo &lt;3" in text
    assert "<b>bow" not in text


def test_a_page_of_300_frames_is_at_most_2_mb(tmp_path: Path) -> None:
    joints = np.random.default_rng(0).normal(size=(2, 300, 22, 3)).cumsum(1) * 0.01 + (0, 1, 0)
    assert export.save(tmp_path / "long.html", joints)[0].stat().st_size < 2_000_000


def test_figures_play_and_the_slider_lands_on_the_frame(browser: Any, page_file: Path) -> None:
    page = Page(browser, page_file, 480, 400)
    page.tab.wait_for_function(
        "before => document.querySelector('input').value != before", arg=page.clock.input_value()
    )
    first, last = page.at(0.0), page.at(1.9)
    for person in (_blue, _orange):
        assert person(first).sum() > 100
        assert person(last).sum() > 100
    moved = [_middle(person(last)) - _middle(person(first)) for person in (_blue, _orange)]
    apart = abs(_middle(_blue(first)) - _middle(_orange(first)))
    # They stand 1.2 m apart and go on by 1.9 / 2 of 0.5 m; the camera may look from either side.
    assert np.abs(moved) == pytest.approx(apart * 0.475 / 1.2, rel=0.15)
    again = page.at(0.0)
    assert np.abs(again.astype(int) - first).mean() < 1
    assert page.tab.title() == PROMPT
    assert page.requests == [page_file.as_uri()]
    assert page.errors == []


def test_a_narrow_screen_shows_everything(browser: Any, page_file: Path) -> None:
    page = Page(browser, page_file, 320, 560)
    picture = page.at(1.0)
    for person in (_blue, _orange):
        columns = np.flatnonzero(person(picture).any(0))
        assert len(columns) > 5
        assert columns.min() > 0
        assert columns.max() < 319
    box = page.tab.locator("#caption p").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 320
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 320
    bar = page.clock.bounding_box()
    assert bar["y"] + bar["height"] <= 560
    assert page.errors == []
