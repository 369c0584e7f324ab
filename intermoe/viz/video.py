"""Frames to video files: H.264 through the ffmpeg of imageio-ffmpeg, GIF through Pillow."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from intermoe.files import replacing

GIF_MAX_FPS = 15
MIN_FPS, MAX_FPS = 0.01, 1000
"""Beyond them a GIF cannot count the pauses, and ffmpeg refuses."""


class Animation(Protocol):
    """What can become a video: ``fps``, ``size`` (width, height; even) and frames (height, width, 3) uint8."""

    size: tuple[int, int]

    @property
    def fps(self) -> float: ...

    def __len__(self) -> int: ...

    def frame(self, index: int) -> npt.NDArray[np.uint8]: ...

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]: ...


def check_rate(fps: float) -> None:
    """Raise ``ValueError`` for a rate that no video here can have."""
    if not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"fps: expected {MIN_FPS:g} to {MAX_FPS:g} frames a second in a video, got {fps:g}")


def save_mp4(path: str | Path, scene: Animation) -> None:
    """Draw ``scene`` into an H.264 file (yuv420p, plays everywhere) at its real speed.

    Raises:
        ModuleNotFoundError: imageio-ffmpeg or Pillow is not installed; says how to install them.
        ValueError: a rate as ``check_rate`` says. OSError: ffmpeg failed, at whatever moment, with its message; no file
            is left.
    """
    check_rate(scene.fps)
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("imageio-ffmpeg is needed for mp4: pip install 'intermoe[viz]'") from error
    width, height = scene.size
    taken = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(scene.fps), "-i", "-"]
    # one thread, since drawing is the slower side and encoding must leave it its core
    made = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-crf", "20", "-threads", "1"]
    with replacing(path) as temporary, TemporaryFile() as messages:
        command = [get_ffmpeg_exe(), "-y", "-v", "error", *taken, *made, "-movflags", "+faststart", str(temporary)]
        # imageio-ffmpeg's own writer does not tell how ffmpeg ended
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        assert process.stdin is not None
        try:
            for frame in scene.frames():
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg has ended, and says why
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
        if status or not temporary.exists():
            messages.seek(0)
            told = messages.read().decode(errors="replace").strip() or "it said nothing"
            raise OSError(f"mp4: expected ffmpeg to end well, got exit code {status}: {told}")


def save_gif(path: str | Path, scene: Animation) -> None:
    """Draw ``scene`` into a looping GIF at its real speed, at most 15 frames a second.

    Raises ``ValueError`` as ``check_rate``.
    """
    check_rate(scene.fps)
    from PIL import Image

    step = math.ceil(scene.fps / GIF_MAX_FPS)
    indices = range(0, len(scene), step)
    # GIF counts in hundredths of a second: rounding the moments, not the pauses, keeps the speed.
    moments = [round(100 * index / scene.fps) for index in [*indices, len(scene)]]
    pauses = [10 * (after - before) for before, after in pairwise(moments)]
    pictures = [Image.fromarray(scene.frame(index)) for index in indices]
    palette = pictures[len(pictures) // 2].quantize(256)
    reduced = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with replacing(path) as temporary:
        reduced[0].save(
            temporary, format="GIF", save_all=True, append_images=reduced[1:], duration=pauses, loop=0, optimize=False
        )
