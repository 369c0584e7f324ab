"""Frames to video files: H.264 through the ffmpeg of imageio-ffmpeg, GIF through Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from intermoe.files import replacing

GIF_MAX_FPS = 15


class Animation(Protocol):
    """What can become a video: ``fps``, ``size`` (width, height; even) and frames (height, width, 3) uint8."""

    fps: int
    size: tuple[int, int]

    def __len__(self) -> int: ...

    def frame(self, index: int) -> npt.NDArray[np.uint8]: ...

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]: ...


def save_mp4(path: str | Path, scene: Animation) -> None:
    """Draw ``scene`` into an H.264 file (yuv420p, plays everywhere) at its real speed.

    Raises:
        ModuleNotFoundError: imageio-ffmpeg or Pillow is not installed; says how to install them.
        OSError: ffmpeg failed, with its message.
    """
    try:
        from imageio_ffmpeg import write_frames
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("imageio-ffmpeg is needed for mp4: pip install 'intermoe[viz]'") from error
    with replacing(path) as temporary:
        writer = write_frames(
            str(temporary),
            scene.size,
            fps=scene.fps,
            codec="libx264",
            macro_block_size=2,
            # one thread, since drawing is the slower side and encoding must leave it its core
            output_params=["-preset", "veryfast", "-crf", "20", "-threads", "1", "-movflags", "+faststart"],
        )
        writer.send(None)
        try:
            for frame in scene.frames():
                writer.send(frame)
        finally:
            writer.close()


def save_gif(path: str | Path, scene: Animation) -> None:
    """Draw ``scene`` into a looping GIF at its real speed, with at most 15 frames a second."""
    from PIL import Image

    step = -(-scene.fps // GIF_MAX_FPS)
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
