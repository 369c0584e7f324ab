"""How often a live page gives its browsers a frame, while the model makes them and two are connected.

    python -m intermoe.benchmarks.live --seconds 20

The default model goes on as in ``intermoe live``; after half of the time the words change. Each client is a process of
its own that speaks the page's protocol but draws nothing; ``--browsers`` opens pages that do, in software. Every frame
that arrives must be one that was shown, later than the one before, or it is an error. Frames are shown at most 30 times
a second, the data's rate.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import threading
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from intermoe.benchmarks.harness.case import WrongResult
from intermoe.benchmarks.page import SOFTWARE
from intermoe.viz.body import build_body
from intermoe.viz.live import LivePage
from intermoe.viz.scene import ball_places, seen_balls, serving

NAMES = ("person 1", "person 2")
FIRST, THEN = "Two people dance salsa together.", "Two people walk side by side."
WARM = 3.0
"""Seconds before anything counts: models and browsers do much for the first time."""


def main() -> None:
    """The command: a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=2, help="that draw nothing")
    parser.add_argument("--browsers", type=int, default=0, help="that draw, in software")
    given = parser.parse_args()
    from intermoe import InterMoEPipeline  # the clients' processes do not need it

    pipeline = InterMoEPipeline.from_pretrained("duets")
    motion = pipeline.live(FIRST, seed=0, num_inference_steps=4, chunk=20)
    context = multiprocessing.get_context("spawn")
    arrived: Any = context.Queue()
    with serving() as server, ExitStack() as opened:
        page = LivePage(server, motion, pipeline.config.fps, NAMES, lambda *_: [], ("npz",))
        span = WARM + given.seconds
        clients = [
            context.Process(target=listen, args=(server.get_port(), span, arrived)) for _ in range(given.clients)
        ]
        for client in clients:
            client.start()
        browse(opened, server.get_port(), given.browsers)
        for _ in clients:
            arrived.get(timeout=120)  # it is connected
        start = time.monotonic()
        words = threading.Timer(span / 2, page.say, (THEN,))
        words.start()
        page.run(lambda: time.monotonic() - start > span + 3)
        heard = [arrived.get(timeout=120) for _ in clients]
        words.join()
    expected = [
        place.tobytes() for place in ball_places(build_body(page.seen.astype(np.float64)), 0, seen_balls())[:, 0]
    ]
    rates = [rate_of(frames, expected, given.seconds) for frames in heard]
    told = {"clients": len(clients), "browsers": given.browsers, "cores": os.cpu_count(), "prompt": motion.prompt}
    print(json.dumps({**told, "frames_per_second": [round(rate, 1) for rate in rates]}))


def browse(opened: ExitStack, port: int, count: int) -> None:
    """Open ``count`` browsers that show the page until ``opened`` ends."""
    if count == 0:
        return
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("chromium: expected it to be installed (apt-get install chromium), found none")
    running = opened.enter_context(sync_playwright())
    for _ in range(count):
        browser = running.chromium.launch(executable_path=chromium, args=list(SOFTWARE))
        opened.callback(browser.close)
        browser.new_page(viewport={"width": 640, "height": 480}).goto(f"http://127.0.0.1:{port}")


def listen(port: int, seconds: float, arrived: Any) -> None:
    """Connect, say so, and tell when which first ball of the first person came, over ``seconds``."""
    import viser
    from websockets.sync.client import connect

    frames: list[tuple[float, bytes]] = []
    protocol: Any = [f"viser-v{viser.__version__}"]
    with connect(f"ws://127.0.0.1:{port}", subprotocols=protocol, max_size=None) as connection:
        arrived.put("connected")
        start = None
        while start is None or time.monotonic() - start < seconds:
            place = first_ball(connection.recv(timeout=60))
            start = time.monotonic() if start is None and place is not None else start
            if start is not None and place is not None:
                frames.append((time.monotonic() - start, place))
    arrived.put(frames)


def first_ball(data: Any) -> bytes | None:
    """The place of the first ball in a message to a browser, 3 float32, or ``None`` where it does not tell."""
    import msgspec
    import zstandard

    length = int.from_bytes(data[8:16], "little")
    told = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16 : 16 + length]))
    starts, at = [], 16 + length
    for size in told["binaryBufferLengths"]:
        at += -at % 8
        starts.append(at)
        at += size
    for message in told["messages"]:
        if message.get("name") == f"/{NAMES[0]}/balls" and "batched_positions" in message.get("updates", {}):
            start = starts[message["updates"]["batched_positions"]["__binary_index"]]
            return bytes(data[start : start + 12])
    return None


def rate_of(frames: list[tuple[float, bytes]], expected: list[bytes], seconds: float) -> float:
    """Frames a second after the warm-up.

    Raises:
        WrongResult: a frame came that was not shown, or before one that was shown earlier.
    """
    shown = iter(expected)
    if not all(place in shown for _, place in frames):
        raise WrongResult("a client got a frame that was not shown, or too late")
    return sum(WARM <= moment < WARM + seconds for moment, _ in frames) / seconds


if __name__ == "__main__":
    main()
