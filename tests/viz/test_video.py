"""Video files: codec, speed, number of frames, and nothing left behind after a failure."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

from intermoe.viz import Scene, save_gif, save_mp4

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def scene() -> Scene:
    joints = np.random.default_rng(0).normal(size=(2, 1, 22, 3)) * 0.3 + (0, 1, 0)
    return Scene(joints.repeat(13, axis=1) + 0.05 * np.arange(13)[:, None, None], "a caption", size=(160, 128))


def test_mp4_is_h264_at_real_speed(scene: Scene, tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    save_mp4(tmp_path / "motion.mp4", scene)
    assert [path.name for path in tmp_path.iterdir()] == ["motion.mp4"]
    reader = ffmpeg.read_frames(str(tmp_path / "motion.mp4"))
    meta = next(reader)
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 30
    assert meta["size"] == (160, 128)
    frames = [np.frombuffer(frame, np.uint8).reshape(128, 160, 3).astype(float) for frame in reader]
    assert len(frames) == 13
    assert np.abs(frames[5] - scene.frame(5)).mean() < 6


def test_gif_keeps_the_speed(scene: Scene, tmp_path: Path) -> None:
    save_gif(tmp_path / "motion.gif", scene)
    with Image.open(tmp_path / "motion.gif") as picture:
        pauses = []
        for index in range(picture.n_frames):
            picture.seek(index)
            pauses.append(picture.info["duration"])
    assert len(pauses) == 7
    assert sum(pauses) == pytest.approx(1000 * 13 / 30, abs=10)


class Clock:
    """An animation at any rate: in frame i column i is white."""

    size = (32, 16)

    def __init__(self, fps: float, frames: int) -> None:
        self.fps, self._frames = fps, frames

    def __len__(self) -> int:
        return self._frames

    def frame(self, index: int) -> np.ndarray:
        picture = np.zeros((16, 32, 3), np.uint8)
        picture[:, index] = 255
        return picture

    def frames(self) -> Iterator[np.ndarray]:
        return map(self.frame, range(len(self)))


@pytest.mark.parametrize(
    ("fps", "shown"),
    [(5, range(11)), (15, range(11)), (20, range(0, 11, 2)), (30, range(0, 11, 2)), (60, range(0, 11, 4))],
)
def test_gif_shows_every_moment_at_any_rate(tmp_path: Path, fps: int, shown: range) -> None:
    """At most 15 frames a second, each until the moment of the next, and the last until the end."""
    save_gif(tmp_path / "motion.gif", Clock(fps, 11))
    with Image.open(tmp_path / "motion.gif") as picture:
        assert (picture.n_frames, picture.size, picture.info["loop"]) == (len(shown), (32, 16), 0)
        moment = 0
        for index, number in enumerate(shown):
            picture.seek(index)
            assert np.argmax(np.asarray(picture.convert("L"))[8]) == number
            assert moment == pytest.approx(1000 * number / fps, abs=5)
            moment += picture.info["duration"]
        assert moment == pytest.approx(1000 * 11 / fps, abs=5)


@pytest.mark.parametrize("fps", [12, 50])
def test_mp4_has_the_rate_of_its_motion(tmp_path: Path, fps: int) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    save_mp4(tmp_path / "motion.mp4", Clock(fps, 5))
    meta = next(ffmpeg.read_frames(str(tmp_path / "motion.mp4")))
    assert (meta["fps"], meta["size"]) == (fps, (32, 16))


def test_a_failure_leaves_no_file(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg")

    def fail(self: Scene, index: int) -> None:
        raise RuntimeError("drawing failed")

    monkeypatch.setattr(Scene, "frame", fail)
    # an ffmpeg that is not ended waits for more, and would be waited for
    monkeypatch.setattr(subprocess.Popen, "wait", partialmethod(subprocess.Popen.wait, timeout=20))
    for save, name in ((save_mp4, "motion.mp4"), (save_gif, "motion.gif")):
        with pytest.raises(RuntimeError, match="drawing failed"):
            save(tmp_path / name, scene)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["at once", "at the end"])
def test_an_ffmpeg_that_fails_is_an_error(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A full disk: what is written so far looks like a file, and plays until it ends."""
    pytest.importorskip("imageio_ffmpeg")
    fake = tmp_path / "ffmpeg"
    takes = "cat > /dev/null" if when == "at the end" else "exec < /dev/null"
    fake.write_text(
        f'#!/bin/sh\nfor last in "$@"; do :; done\n{takes}\nprintf partial > "$last"\necho disk full >&2\nexit 1\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="mp4: expected ffmpeg to end well, got exit code 1: disk full"):
        save_mp4(tmp_path / "out" / "motion.mp4", scene)
    assert list((tmp_path / "out").iterdir()) == []
