"""What the benchmark of the live page believes of a client."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from intermoe.benchmarks import live
from intermoe.benchmarks.harness.case import WrongResult
from intermoe.benchmarks.live import BALLS, WARM, first_ball, processor_seconds, rate_of

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
