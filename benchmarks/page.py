"""A page of figures in a browser without a GPU: how soon it is there, and how often it is drawn.

    python -m intermoe.benchmarks.page --persons 4

A page of people who walk is written as ``intermoe export --format html`` does and opened in a headless chromium that
draws in software (playwright; `apt-get install chromium`), once that has had time to start. The first picture is the
first with the figures' colours in it; its time is the page's own, from the opening. The rate is that of the pictures
that the page draws while it plays; a page on which nothing moves meanwhile is an error.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intermoe import export
from intermoe.benchmarks.harness.case import WrongResult
from intermoe.motion.rig import REST_POSE, at_rest

SOFTWARE = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WAIT = 240_000
SETTLE = 4
"""Seconds that a browser has, which works on its own pages when it starts."""
HOOK = """(() => {
    window.pictures = 0;
    let drawn = false;
    for (const name of ["drawElements", "drawArrays", "drawElementsInstanced"]) {
        const draw = WebGL2RenderingContext.prototype[name];
        WebGL2RenderingContext.prototype[name] = function (...given) { drawn = true; return draw.apply(this, given); };
    }
    (function next() { window.pictures += drawn; drawn = false; requestAnimationFrame(next); })();
})()"""
FIRST = """() => new Promise(done => {
    const small = new OffscreenCanvas(160, 120).getContext("2d", {willReadFrequently: true});
    (function look() {
        const seen = document.querySelector("canvas[data-engine]");
        if (window.pictures && seen) {
            small.drawImage(seen, 0, 0, 160, 120);
            const values = small.getImageData(0, 0, 160, 120).data;
            for (let at = 0; at < values.length; at += 4)
                if (Math.abs(values[at + 2] - values[at]) > 60) return done(performance.now() / 1000);
        }
        requestAnimationFrame(look);
    })();
})"""
RATE = """seconds => new Promise(done => {
    const start = performance.now(), before = window.pictures;
    setTimeout(() => done((window.pictures - before) / (performance.now() - start) * 1000), 1000 * seconds);
})"""


def main() -> None:
    """The command: a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--persons", type=int, default=4)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=5.0, help="over which drawn frames are counted")
    parser.add_argument("--size", default="640x480", help="of the window, width x height")
    given = parser.parse_args()
    width, height = (int(edge) for edge in given.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        export.save(file, walking(given.persons, given.frames), fps=30)
        first, rate = opened(file, width, height, given.seconds)
        told = {"persons": given.persons, "frames": given.frames, "window": given.size}
        told |= {"megabytes": round(file.stat().st_size / 1e6, 2)}
        print(json.dumps({**told, "first_picture_seconds": round(first, 2), "drawn_per_second": round(rate, 1)}))


def walking(persons: int, frames: int) -> npt.NDArray[np.float64]:
    """People beside each other who go on, (P, T, 22, 3)."""
    pose, moments = at_rest(REST_POSE) + np.array([0.0, 0.95, 0.0]), np.arange(frames)[:, None, None]
    step = np.array([0.0, 0.0, 0.02])
    return np.stack([pose + moments * step + np.array([0.9 * person, 0, 0]) for person in range(persons)])


def new_tab(running: Any, width: int, height: int) -> Any:
    """An empty page in a new chromium, which draws in software, ends with ``running`` and counts its pictures.

    Raises ``FileNotFoundError`` where there is none.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("chromium: expected it to be installed (apt-get install chromium), found none")
    browser = running.chromium.launch(executable_path=chromium, args=list(SOFTWARE))
    tab = browser.new_page(viewport={"width": width, "height": height})
    tab.set_default_timeout(WAIT)
    tab.add_init_script(HOOK)
    return tab


def opened(file: Path, width: int, height: int, seconds: float) -> tuple[float, float]:
    """Seconds to the first picture with figures, and frames drawn a second while it plays.

    Raises:
        WrongResult: no figure is seen, or none moves. FileNotFoundError: no chromium.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        tab = new_tab(running, width, height)
        time.sleep(SETTLE)
        tab.goto(file.as_uri(), wait_until="commit")
        first = float(tab.evaluate(FIRST))
        before = _coloured(tab.screenshot())
        if not before.any():
            raise WrongResult(f"{file}: no figure is seen")
        rate = float(tab.evaluate(RATE, seconds))
        if np.array_equal(before, _coloured(tab.screenshot())):
            raise WrongResult(f"{file}: no figure moves")
    return first, rate


def _coloured(picture: bytes) -> npt.NDArray[np.bool_]:
    """Where a screenshot shows a person's blue or orange, caption and controls apart."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)[60:-60]
    marked: npt.NDArray[np.bool_] = np.abs(pixels[..., 2] - pixels[..., 0]) > 60
    return marked


if __name__ == "__main__":
    main()
