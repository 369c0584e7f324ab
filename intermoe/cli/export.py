"""``intermoe export``: motion from one file into others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import CameraOption, FilesOption, SizeOption, check_folder, check_formats, parse_view, reported


def export(
    files: Annotated[
        list[Path],
        typer.Argument(help="Motion: .npz, .bvh or AMASS's .npz (one per person: name all), or InterHuman's .npy."),
    ],
    format: Annotated[
        list[str], typer.Option(help="npz, bvh, glb, amass, html, mp4 or gif; several times for several.")
    ],
    out: FilesOption = Path("."),
    fps: Annotated[float | None, typer.Option(help="Another rate; joints are interpolated.")] = None,
    camera: CameraOption = "side",
    size: SizeOption = "640x640",
) -> None:
    """Write a motion for other programs, never over an existing file. Several files are the persons of one motion."""
    with reported():
        from intermoe.export import FORMATS, free_stem, load, save_take

        formats = check_formats(format)
        view = parse_view(camera, size)
        check_folder(out)
        take = replace(load(files, fps), view=view)
        for chosen in formats:
            FORMATS[chosen].check(take)
        out.mkdir(parents=True, exist_ok=True)
        with free_stem(out, files[0].name.partition(".")[0], formats) as stem:  # beside its source, too
            for chosen in formats:
                for path in save_take(stem.with_name(stem.name + FORMATS[chosen].suffix), take):
                    typer.echo(path)
