"""The page, opened in a browser without a network."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.viz import browser as told
from intermoe.viz.camera import CAMERAS

pytest.importorskip("viser", reason="pages of figures need viser")
PROMPT = "two people <b>bow</b> & wave"
WAIT = 240_000
"""Milliseconds: a browser without a GPU on a busy machine is slow."""
SOFTWARE = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
FPS, FRAMES, STEP, APART = 10, 16, 0.1, 1.8
"""Two people stand ``APART`` metres from each other along X and go ``STEP`` metres along it every frame."""
HALF = 0.5
"""Of a frame: what is seen is nearer to it than to any other."""
PATIENCE = 5
"""Pictures after which the bar of time is clicked again."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two people who walk sideways."""
    from intermoe.motion.rig import REST_POSE, at_rest

    steps = np.arange(FRAMES)[:, None, None] * (STEP, 0, 0)
    joints = np.stack([at_rest(REST_POSE) + steps + (x, 0.95, 0) for x in (-APART / 2, APART / 2)])
    return export.save(tmp_path_factory.mktemp("page") / "bow.html", joints, FPS, ["Ann", "Bo <3"], PROMPT)[0]


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


@pytest.fixture
def opened_blank(browser: Any) -> Iterator[Any]:
    """An empty page."""
    tab = browser.new_page()
    tab.set_default_timeout(WAIT)
    yield tab
    tab.close()


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Callable[[int, int], Page]]:
    """``opened(width, height)`` is the page in a window; a page that stays open would play on beside the next."""
    pages = []

    def open_page(width: int, height: int) -> Page:
        pages.append(Page(browser, page_file, width, height))
        return pages[-1]

    yield open_page
    for page in pages:
        page.tab.close()


DRAWN = """() => new Promise(done => requestAnimationFrame(() => setTimeout(
    () => done(document.querySelector("canvas[data-engine]").toDataURL())
)))"""
"""The canvas after the next frame: whoever reads it without a break leaves a slow page no time to draw."""


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

    def picture(self) -> np.ndarray:
        """What is drawn, (height, width, 3)."""
        image = pytest.importorskip("PIL.Image")
        data = self.tab.evaluate(DRAWN).split(",")[1]
        drawn = image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
        return np.asarray(image.alpha_composite(image.new("RGBA", drawn.size, "white"), drawn))[..., :3].astype(int)

    def frame(self) -> float | None:
        """Which frame is seen, by where the figures are; ``None`` while they are not drawn.

        The camera looks at the middle of the whole way; the distance of the two is the measure of a metre.
        """
        picture = self.picture()
        blue, orange = _blue(picture), _orange(picture)
        if blue.sum() < 100 or orange.sum() < 100:
            return None
        left, right = _middle(blue), _middle(orange)
        metres = ((left + right) / 2 - picture.shape[1] / 2) * APART / (right - left)
        return metres / STEP + (FRAMES - 1) / 2

    def until(self, holds: Callable[[float], bool]) -> float | None:
        """The first frame that is seen of which ``holds`` is true, or the one seen when time is over."""
        over = time.monotonic() + WAIT / 1000
        while True:
            seen = self.frame()
            if (seen is not None and holds(seen)) or time.monotonic() > over:
                return seen

    def toggle(self) -> None:
        """Play, or pause."""
        self.clock.locator("xpath=preceding::button[1]").click()

    def at(self, frame: int) -> float | None:
        """The frame that is seen once the bar of time has been clicked in the middle of ``frame``."""
        moment = (frame + 0.5) / FPS
        bar = self.tab.locator(".mantine-Slider-track").bounding_box()
        pictures = 0

        def landed(seen: float) -> bool:
            nonlocal pictures
            there = abs(float(self.clock.input_value()) - moment) < 0.06 and abs(seen - frame) < HALF
            if not there and pictures % PATIENCE == 0:  # a step that was due before it paused may come after the click
                self.tab.mouse.click(bar["x"] + bar["width"] * moment * FPS / FRAMES, bar["y"] + bar["height"] / 2)
            pictures += 1
            return there

        return self.until(landed)


def _blue(picture: np.ndarray) -> np.ndarray:
    return picture[..., 2] - picture[..., 0] > 40


def _orange(picture: np.ndarray) -> np.ndarray:
    """Skin, whose red and green are closer, is none."""
    return picture[..., 0] - picture[..., 1] > 25


def _middle(mask: np.ndarray) -> float:
    columns = np.flatnonzero(mask.any(0))
    return float(columns[0] + columns[-1] + 1) / 2


def test_the_file_is_small_and_says_what_it_shows(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert page_file.stat().st_size < 2_000_000
    assert "<title>two people &lt;b&gt;bow&lt;/b&gt; &amp; wave</title>" in text
    assert "Bo &lt;3" in text
    assert "<b>bow" not in text


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_page_hands_on_all_that_a_take_says(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is seen from, how long a frame is, who the persons are and what colours they have."""
    from viser.infra._infra import StateSerializer

    from intermoe.export import html
    from intermoe.viz.figures import PERSON_COLOURS

    looks: list[Any] = []
    pauses: list[float] = []
    set_stage, insert_sleep = html.set_stage, StateSerializer.insert_sleep
    monkeypatch.setattr(html, "set_stage", lambda server, *how: (looks.append(how), set_stage(server, *how))[1])
    monkeypatch.setattr(
        StateSerializer, "insert_sleep", lambda each, pause: (pauses.append(pause), insert_sleep(each, pause))[1]
    )
    joints = np.random.default_rng(0).uniform(size=(2, 3, 24, 3))
    take = export.Take(joints, 8, ("Ann", "Bo"), "they bow", view=export.View(camera))
    text = html.page(take)
    ((seen, place),) = looks
    assert place == camera
    np.testing.assert_array_equal(seen, take.body)
    np.testing.assert_allclose(seen[..., [0, 2]], joints[:, :, :22, [0, 2]], atol=1e-6)
    assert pauses == [1 / 8] * 3
    for name, colour in zip(("Ann", "Bo"), PERSON_COLOURS, strict=False):
        assert f'<i style="background: rgb{colour}"></i>{name}</span>' in text
    assert "<p>they bow</p>" in text
    assert "<title>they bow</title>" in text
    assert "<title>intermoe</title>" in html.page(replace(take, prompt=""))


@pytest.mark.parametrize("height", [480, 300])
def test_a_notebook_shows_the_page_as_high_as_it_is_told(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from intermoe.export import html

    monkeypatch.setattr(html, "page", lambda take: f'<p title="{take.prompt}">')
    take = export.Take(np.zeros((1, 2, 22, 3), np.float32), prompt="bow")
    shown = (html.Page(take) if height == 480 else html.Page(take, height))._repr_html_()
    assert shown == (
        '<iframe srcdoc="&lt;p title=&quot;bow&quot;&gt;" '
        f'style="width: 100%; height: {height}px; border: none"></iframe>'
    )


@pytest.mark.parametrize("processor", [True, False])
def test_edges_are_smooth_where_a_graphics_card_draws_and_fast_where_the_processor_does(
    opened_blank: Any, processor: bool
) -> None:
    """The script of a page touches WebGL's ``antialias`` alone, and only where the processor draws."""
    script = told.file_head() if processor else told.file_head().replace("swiftshader", "another")
    opened_blank.set_content(f"<html><head>{script}</head><body></body></html>")
    smooth = opened_blank.evaluate(
        """() => ["webgl2", "webgl"].map(kind => document.createElement("canvas")
            .getContext(kind, {antialias: true, preserveDrawingBuffer: true}).getContextAttributes())
            .map(told => [told.antialias, told.preserveDrawingBuffer])"""
    )
    assert smooth == [[not processor, True]] * 2
    assert opened_blank.evaluate("() => document.createElement('canvas').getContext('2d') !== null")


DRAW = """() => new Promise(done => {
    const moments = [];
    cancelAnimationFrame(requestAnimationFrame(() => done(["cancelled"])));
    requestAnimationFrame(function draw(now) {
        moments.push(now);
        if (moments.length > 20) return done(moments);
        const start = performance.now();
        while (performance.now() - start < 40);
        requestAnimationFrame(draw);
    });
    requestAnimationFrame(() => { throw new Error("one that fails"); });
    requestAnimationFrame(() => moments.push(0));
})"""
"""Pictures of 40 ms each, beside others that are called off, fail, or end with the first."""


@pytest.mark.parametrize("processor", [True, False])
def test_a_served_page_pauses_where_the_processor_draws(opened_blank: Any, processor: bool) -> None:
    """Twice as long as a picture took: what makes the motion on this machine needs the processor, too."""
    script = told.served_head() if processor else told.served_head().replace("swiftshader", "another")
    opened_blank.set_content(f"<html><head>{script}</head><body></body></html>")
    moments = np.array(opened_blank.evaluate(DRAW))
    assert moments[1] == 0
    between = np.diff(np.delete(moments, 1))
    assert bool((between > 75).all()) == processor


def test_a_page_of_300_frames_is_at_most_2_mb(tmp_path: Path) -> None:
    joints = np.random.default_rng(0).normal(size=(2, 300, 22, 3)).cumsum(1) * 0.01 + (0, 1, 0)
    assert export.save(tmp_path / "long.html", joints)[0].stat().st_size < 2_000_000


def test_figures_play_and_the_slider_lands_on_the_frame(opened: Callable[[int, int], Page], page_file: Path) -> None:
    page = opened(480, 400)
    first = page.until(lambda _: True)
    assert first is not None
    assert abs(page.until(lambda seen: abs(seen - first) > 2) - first) > 2  # it plays by itself
    page.toggle()
    for frame in (1, FRAMES - 2, 1):
        assert page.at(frame) == pytest.approx(frame, abs=HALF)
        assert float(page.clock.input_value()) == pytest.approx((frame + 0.5) / FPS, abs=0.06)  # to a tenth
    page.toggle()
    assert abs(page.until(lambda seen: abs(seen - 1) > 2) - 1) > 2
    assert page.tab.title() == PROMPT
    assert page.requests == [page_file.as_uri()]
    assert page.errors == []


def test_a_narrow_screen_shows_everything(opened: Callable[[int, int], Page]) -> None:
    page = opened(320, 560)
    assert page.at(8) == pytest.approx(8, abs=HALF)
    picture = page.picture()
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
