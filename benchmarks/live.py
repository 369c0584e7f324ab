"""How often a live page gives its browsers a frame, while the model makes them and two are connected.

    python -m intermoe.benchmarks.live --seconds 20               # clients that draw nothing
    python -m intermoe.benchmarks.live --clients 0 --browsers 2   # chromium, which draws in software

The default model goes on as in ``intermoe live``; after half of the time the words change. A client is a process of its
own that speaks the page's protocol; a browser counts what its page has received and decoded, and what it has drawn.
Every frame that arrives must be one that was shown, later than the one before, or it is an error. Frames are shown at
most 30 times a second, the data's rate. Seconds of the processor are those of this process, which makes the motion and
serves it, and of all processes of the browsers, a shown frame each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from intermoe.benchmarks.harness.case import WrongResult
from intermoe.benchmarks.page import new_tab
from intermoe.cli.live import half_the_cores
from intermoe.viz.body import build_body
from intermoe.viz.live import LivePage
from intermoe.viz.scene import ball_places, seen_balls, serving

NAMES = ("person 1", "person 2")
BALLS = f"/stage/{NAMES[0]}/balls"
FIRST, THEN = "Two people dance salsa together.", "Two people walk side by side."
WARM = 3.0
"""Seconds before anything counts: models and browsers do much for the first time."""
ARRIVED = """(() => {
    window.arrived = [];
    const Plain = window.Worker;
    window.Worker = class extends Plain {
        constructor(...given) {
            super(...given);
            this.addEventListener("message", event => {
                for (const told of event.data.messages || [])
                    if (told.name === "BALLS" && told.updates && told.updates.batched_positions)
                        window.arrived.push([performance.now() / 1000, ...told.updates.batched_positions.slice(0, 3)]);
            });
        }
    };
})()""".replace("BALLS", BALLS)
"""The page's connection is a worker of its own, whose messages are what has arrived and been decoded."""

Frames = list[tuple[float, bytes]]
"""When, in seconds since the first one, which first ball of the first person came: a float32 (3,)."""


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
    with half_the_cores(), serving() as server, ExitStack() as opened:
        page = LivePage(server, motion, pipeline.config.fps, NAMES, lambda *_: [], ("npz",))
        span = WARM + given.seconds
        clients = [
            context.Process(target=listen, args=(server.get_port(), span, arrived)) for _ in range(given.clients)
        ]
        for client in clients:
            client.start()
        tabs = browse(opened, server.get_port(), given.browsers)
        for _ in clients:
            arrived.get(timeout=120)  # it is connected
        start = time.monotonic()
        page.run(lambda: time.monotonic() - start > WARM)
        before = processor_seconds(), drawn(tabs), len(page.seen[0]), time.monotonic()
        words = threading.Timer(given.seconds / 2, page.say, (THEN,))
        words.start()
        page.run(lambda: time.monotonic() - start > span)
        after = processor_seconds(), drawn(tabs), len(page.seen[0]), time.monotonic()
        page.run(lambda: time.monotonic() - start > span + 3)  # clients that began late end
        heard = [arrived.get(timeout=120) for _ in clients] + [frames_of(tab) for tab in tabs]
        words.join()
    expected = [
        place.tobytes() for place in ball_places(build_body(page.seen.astype(np.float64)), 0, seen_balls())[:, 0]
    ]
    shown, passed = after[2] - before[2], after[3] - before[3]
    server_seconds, browser_seconds = (late - early for early, late in zip(before[0], after[0], strict=True))
    told = {
        "clients": len(clients),
        "browsers": given.browsers,
        "cores": os.cpu_count(),
        "prompt": motion.prompt,
        "frames_per_second": [round(rate_of(frames, expected, given.seconds), 1) for frames in heard],
        "drawn_per_second": [
            round((late - early) / passed, 1) for early, late in zip(before[1], after[1], strict=True)
        ],
        "shown_per_second": round(shown / passed, 1),
        "server_processor_ms": round(1e3 * server_seconds / shown, 1),
        "browsers_processor_ms": round(1e3 * browser_seconds / shown, 1),
    }
    print(json.dumps(told))


def browse(opened: ExitStack, port: int, count: int) -> list[Any]:
    """Open ``count`` browsers that show the page until ``opened`` ends; their pages."""
    if count == 0:
        return []
    from playwright.sync_api import sync_playwright

    running = opened.enter_context(sync_playwright())
    tabs = []
    for _ in range(count):
        tab = new_tab(running, 640, 480)
        tab.add_init_script(ARRIVED)
        tab.goto(f"http://127.0.0.1:{port}")
        tab.wait_for_selector("canvas[data-engine]")
        tabs.append(tab)
    return tabs


def drawn(tabs: list[Any]) -> list[int]:
    """Pictures that each page has drawn so far."""
    return [tab.evaluate("window.pictures") for tab in tabs]


def frames_of(tab: Any) -> Frames:
    """What has arrived in a browser."""
    arrived = tab.evaluate("window.arrived")
    return [(moment - arrived[0][0], np.array(place, dtype=np.float32).tobytes()) for moment, *place in arrived]


def listen(port: int, seconds: float, arrived: Any) -> None:
    """Connect, say so, and tell the ``Frames`` that come over ``seconds``."""
    import viser
    from websockets.sync.client import connect

    frames: Frames = []
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
        if message.get("name") == BALLS and "batched_positions" in message.get("updates", {}):
            start = starts[message["updates"]["batched_positions"]["__binary_index"]]
            return bytes(data[start : start + 12])
    return None


def rate_of(frames: Frames, expected: list[bytes], seconds: float) -> float:
    """Frames a second after the warm-up.

    Raises:
        WrongResult: a frame came that was not shown, or before one that was shown earlier.
    """
    shown = iter(expected)
    if not all(place in shown for _, place in frames):
        raise WrongResult("a client got a frame that was not shown, or too late")
    return sum(WARM <= moment < WARM + seconds for moment, _ in frames) / seconds


def processor_seconds() -> tuple[float, float]:
    """Of this process, and of the browsers that it has started, which Linux tells; 0 elsewhere."""
    parents, spent = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().partition(" (")[2].rpartition(") ")
        except OSError:  # it has ended meanwhile
            continue
        values, process = rest.split(), int(file.parent.name)
        parents[process] = int(values[1])
        if "chrom" in name:
            spent[process] = (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")

    def is_own(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    own = os.times()
    return own.user + own.system, sum(seconds for process, seconds in spent.items() if is_own(process))


if __name__ == "__main__":
    main()
