"""Frames to video files: H.264 through the ffmpeg of imageio-ffmpeg, GIF through Pillow."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from intermoe.files import replacing
from intermoe.viz.figures import Scene

GIF_MAX_FPS = 15


def save_mp4(path: str | Path, scene: Scene) -> None:
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
            output_params=["-preset", "veryfast", "-crf", "20", "-movflags", "+faststart"],
        )
        writer.send(None)
        try:
            for frame in scene.frames():
                writer.send(frame)
        finally:
            writer.close()


def save_gif(path: str | Path, scene: Scene) -> None:
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
