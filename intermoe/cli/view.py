"""``intermoe view``: motion in a browser, from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import CameraOption, PortOption, reported

if TYPE_CHECKING:
    from intermoe.viz.panel import Panel

_PANEL_WIDTH = 640


def view(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Motions, side by side: .npz, .bvh, AMASS's .npz, InterHuman's .npy. "
            "The .npz of `intermoe routing` has its experts over time under the figures."
        ),
    ],
    port: PortOption = 8080,
    camera: CameraOption = "side",
) -> None:
    """Open a page with the figures, for this machine alone, until Ctrl+C."""
    with reported():
        from intermoe.export import FORMATS, View, load
        from intermoe.viz.scene import check_port, serving
        from intermoe.viz.viewer import Shown, Viewer

        FORMATS["html"].check()
        View(camera)  # refuses an unknown one
        check_port(port)
        takes = [load(file) for file in files]
        shown = [
            Shown(file.name.partition(".")[0], take.body, take.fps, take.names, _experts(file))
            for file, take in zip(files, takes, strict=True)
        ]
        with serving(port) as server:
            viewer = Viewer(server, shown, camera)
            typer.echo(f"http://{server.get_host()}:{server.get_port()} (Ctrl+C ends)")
            try:
                viewer.run()
            except KeyboardInterrupt:
                typer.echo("")


def _experts(file: Path) -> Panel | None:
    """The experts over time of a file that tells of them."""
    if file.suffix.lower() != ".npz" or not file.is_file():
        return None
    from intermoe.routing import read_trace
    from intermoe.routing.picture import routing_panel

    trace = read_trace(file)
    return None if trace is None else routing_panel(trace, _PANEL_WIDTH, scale=2)
