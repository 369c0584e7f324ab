"""Video of the figures: .mp4 and .gif."""

from __future__ import annotations

from pathlib import Path

from intermoe.export.format import Format
from intermoe.export.take import Take
from intermoe.viz.figures import Scene
from intermoe.viz.video import save_gif, save_mp4


def write_mp4(paths: list[Path], take: Take) -> None:
    """H.264."""
    save_mp4(paths[0], scene_of(take))


def write_gif(paths: list[Path], take: Take) -> None:
    """At most 15 frames a second."""
    save_gif(paths[0], scene_of(take))


def scene_of(take: Take) -> Scene:
    """A take as it is drawn."""
    return Scene(take.body, take.prompt, fps=take.fps, size=take.view.size, camera=take.view.camera)


MP4 = Format(".mp4", write_mp4, needs=("PIL", "imageio_ffmpeg"))
GIF = Format(".gif", write_gif, needs=("PIL",))
