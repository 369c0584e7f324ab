"""``intermoe live``: motion in a browser while it is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    CameraOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    PortOption,
    SchedulerOption,
    check_folder,
    check_sampling,
    load_pipeline,
    own_sampling,
    reported,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def live(
    prompt: Annotated[str, typer.Argument(help="What the two people do at first.")] = "Two people walk side by side.",
    seed: Annotated[int, typer.Option(help="Of the first frames.")] = 0,
    steps: Annotated[int, typer.Option(help="Sampling steps of every chunk.")] = 4,
    chunk: Annotated[int, typer.Option(help="Frames that are made together.")] = 20,
    guidance: GuidanceOption = None,
    scheduler: SchedulerOption = None,
    out: Annotated[Path, typer.Option(help="Folder for what is saved on the page; made when it is.")] = Path("results"),
    model: ModelOption = DEFAULT_MODEL,
    camera: CameraOption = "side",
    port: PortOption = 8080,
    device: DeviceOption = "auto",
) -> None:
    """Open a page on which the motion goes on, and the words change while it does; until Ctrl+C."""
    with reported():
        from intermoe.export import FORMATS, Take, View, free_stem, save_take, written
        from intermoe.viz.live import LivePage
        from intermoe.viz.scene import check_port, serving

        FORMATS["html"].check()
        look = View(camera)  # refuses an unknown one
        check_port(port)
        check_sampling(steps, guidance, seed, scene=True)
        check_folder(out)
        pipeline = load_pipeline(model, device, scheduler=scheduler, steps=steps)
        _, scale = own_sampling(pipeline, steps, guidance)
        motion = pipeline.live(
            prompt, seed=seed, num_inference_steps=steps, guidance_scale=scale, scheduler=scheduler, chunk=chunk
        )

        def save(joints: npt.NDArray[np.float32], words: str, format: str) -> list[Path]:
            take = Take(joints, pipeline.config.fps, prompt=words, details={"model": model, "seed": seed}, view=look)
            out.mkdir(parents=True, exist_ok=True)
            with free_stem(out, words) as stem:
                return save_take(f"{stem}{FORMATS[format].suffix}", take)

        with half_the_cores(), serving(port) as server:
            page = LivePage(
                server,
                motion,
                pipeline.config.fps,
                [f"person {number}" for number in range(1, pipeline.representation.persons + 1)],
                save,
                [name for name in written() if _can_be_written(name)],
                unknown=pipeline.unknown_words,
                camera=camera,
            )
            typer.echo(f"http://{server.get_host()}:{server.get_port()} (Ctrl+C ends)")
            try:
                page.run()
            except KeyboardInterrupt:
                typer.echo("")


@contextmanager
def half_the_cores() -> Iterator[None]:
    """Compute on half of the cores, or as many as OMP_NUM_THREADS says: browsers may draw on the others.

    Threads that share a product wait for the last of them; two are slower than one where a browser draws on a core.
    """
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _can_be_written(format: str) -> bool:
    from intermoe.export import FORMATS

    try:
        FORMATS[format].check()
    except ModuleNotFoundError:
        return False
    return True
