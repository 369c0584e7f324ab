"""The scripts that pages tell browsers, run without one: by node, with a window and a clock by hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from intermoe.viz import browser

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
BESIDE = """
const [script, drawer, frames] = JSON.parse(process.argv[1]);
const opened = [], drawn = [], errors = [];
let queue = [];
class HTMLCanvasElement { getContext(kind, options) {
    if (options) opened.push([this.name, kind, options]);
    return {
        getExtension: name => name === "WEBGL_debug_renderer_info" && drawer ? { UNMASKED_RENDERER_WEBGL: 7 } : null,
        getParameter: which => which === 7 ? drawer : "?",
    };
} }
const document = { createElement: kind => Object.assign(new HTMLCanvasElement(), { name: kind }) };
const window = {
    requestAnimationFrame: draw => { queue.push(draw); return -1; }, cancelAnimationFrame: () => { throw "plain"; },
};
const reportError = error => errors.push(error);
new Function("HTMLCanvasElement", "document", "window", "reportError", script)(
    HTMLCanvasElement, document, window, reportError);
const canvas = Object.assign(new HTMLCanvasElement(), { name: "own" });
for (const kind of ["webgl", "webgl2", "2d"]) canvas.getContext(kind, { antialias: true, alpha: 3 });
if (frames) {
    const draw = now => { drawn.push(now); window.requestAnimationFrame(draw); };
    const numbers = [window.requestAnimationFrame(draw)];
    numbers.push(window.requestAnimationFrame(() => { throw "one that fails"; }));
    numbers.push(window.requestAnimationFrame(now => drawn.push(-1 - now)));
    numbers.push(window.requestAnimationFrame(() => drawn.push("called off")));
    if (drawer) window.cancelAnimationFrame(numbers[3]);
    errors.push(numbers);
    for (const now of frames) {
        const due = queue;
        queue = [];
        for (const turn of due) turn(now);
        if (due.length > 1) errors.push("asked more than once");
    }
}
console.log(JSON.stringify({ opened, drawn, errors }));
"""


def told(head: str, drawer: str, frames: list[float] | None = None) -> Any:
    """What becomes of a window whose canvases are drawn by ``drawer`` when pictures are due at ``frames``."""
    if shutil.which("node") is None:
        pytest.skip("node, which runs the scripts, is not installed")
    (script,) = SCRIPT.findall(head)
    run = subprocess.run(
        ["node", "-e", BESIDE, json.dumps([script, drawer, frames])], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_what_draws_by_the_processor() -> None:
    assert browser.SOFTWARE.split("|") == ["swiftshader", "llvmpipe", "softpipe", "basic render"]
    assert browser.LONGEST_PAUSE == 150
    assert "canvas { opacity: 1 !important; }" in browser.file_head()


@pytest.mark.parametrize(
    ("drawer", "smooth"),
    [
        ("ANGLE (Google, Vulkan 1.3.0 (SwiftShader Device (Subzero)), SwiftShader driver)", False),
        ("Microsoft Basic Render Driver", False),
        ("ANGLE (NVIDIA, NVIDIA GeForce RTX 4090, OpenGL 4.5)", True),
        ("", True),  # a browser that does not tell
    ],
    ids=["swiftshader", "windows", "card", "silent"],
)
def test_edges_are_not_smoothed_by_the_processor(drawer: str, smooth: bool) -> None:
    kinds = [["own", kind, {"antialias": smooth or kind == "2d", "alpha": 3}] for kind in ("webgl", "webgl2", "2d")]
    assert told(browser.file_head(), drawer) == {"opened": kinds, "drawn": [], "errors": []}


def test_after_a_picture_a_pause_twice_as_long_as_it_took() -> None:
    """40 ms of drawing and 80 of rest; 100 and the longest, 150; what fails or is called off stops nothing."""
    frames = [10, 50, 100, 129, 130, 230, 379, 380, 381, 382, 383]
    found = told(browser.served_head(), "llvmpipe (LLVM 15.0.7, 256 bits)", frames)
    # 1 ms of drawing at the end, from 380 to 381, and a pause of 2
    assert found["drawn"] == [10, -11, 130, 380, 383]
    assert found["errors"] == [[1, 2, 3, 4], "one that fails"]
    assert [options["antialias"] for _, _, options in found["opened"]] == [False, False, True]


def test_a_graphics_card_draws_without_pauses() -> None:
    found = told(browser.served_head(), "")
    assert found["opened"][0][2]["antialias"] is True
