"""Video of the figures: .mp4 and .gif."""

from __future__ import annotations

from pathlib import Path

from intermoe.export.format import Format
from intermoe.export.take import Take
from intermoe.viz.figures import PERSON_COLOURS, Scene
from intermoe.viz.video import check_rate, save_gif, save_mp4


def write_mp4(paths: list[Path], take: Take) -> None:
    """H.264."""
    save_mp4(paths[0], scene_of(take))


def write_gif(paths: list[Path], take: Take) -> None:
    """At most 15 frames a second."""
    save_gif(paths[0], scene_of(take))


def scene_of(take: Take) -> Scene:
    """A take as it is drawn."""
    return Scene(take.body, take.prompt, fps=take.fps, size=take.view.size, camera=take.view.camera)


def refuse(take: Take) -> None:
    """Raise ``ValueError`` for more persons than there are colours, and a rate that no video has."""
    if len(take.joints) > len(PERSON_COLOURS):
        raise ValueError(f"persons: expected at most {len(PERSON_COLOURS)} in a video, got {len(take.joints)}")
    check_rate(take.fps)


MP4 = Format(".mp4", write_mp4, needs=("PIL", "imageio_ffmpeg"), refuse=refuse)
GIF = Format(".gif", write_gif, needs=("PIL",), refuse=refuse)
