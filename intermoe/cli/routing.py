"""``intermoe routing``: which experts took which frames of a motion."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    DeviceOption,
    FilesOption,
    GuidanceOption,
    ModelOption,
    NoiseOption,
    StepsOption,
    check_drawing,
    check_folder,
    check_sampling,
    load_pipeline,
    own_sampling,
    progress,
    reported,
)

if TYPE_CHECKING:
    from intermoe.data import InterHumanDataset
    from intermoe.routing.trace import RoutingTrace


class Output(str, Enum):
    """What ``routing`` can write."""

    png = "png"
    svg = "svg"
    npz = "npz"
    mp4 = "mp4"
    gif = "gif"


def routing(
    prompt: Annotated[str, typer.Argument(help="What the two people do; with --item, the text to noised motion.")] = "",
    frames: Annotated[int | None, typer.Option(help="Length in frames. Default: 120, or what the model can.")] = None,
    seed: NoiseOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    data: Annotated[Path | None, typer.Option(help="Folder of motion in InterHuman's layout, for --item.")] = None,
    split: Annotated[str, typer.Option(help="Split of --item.")] = "val",
    item: Annotated[str | None, typer.Option(help="Route this item of the data instead of generating.")] = None,
    level: Annotated[float, typer.Option(help="Noise added to the item, in [0, 1).")] = 0.5,
    out: FilesOption = Path("results"),
    model: ModelOption = DEFAULT_MODEL,
    format: Annotated[
        list[Output] | None,
        typer.Option(help="What to write; several times for several. Default: png, svg and npz."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw which experts took which frames, how many a frame took in each denoising step, and each expert's load.

    Either of the generation of PROMPT or, with --data and --item, of one recorded motion noised to --level.
    """
    formats = list(dict.fromkeys(format or [Output.png, Output.svg, Output.npz]))
    with reported():
        if (data is None) != (item is None):
            raise ValueError("--item: expected --data and --item together, got only one of them")
        if item is None and not prompt.strip():
            raise ValueError("prompt: expected a description, or --data and --item, got neither")
        if not 0 <= level < 1:
            raise ValueError(f"--level: expected a value in [0, 1), got {level}")
        check_drawing(each.value for each in formats)
        check_sampling(steps, guidance, seed)
        check_folder(out)
        dataset = None if data is None else _open(data, split, str(item))
        pipeline = load_pipeline(model, device, frames=frames, steps=steps)
        from intermoe.routing.trace import trace_generation, trace_motion

        if dataset is not None:
            motion = dataset[dataset.names.index(str(item))]["motion"]
            trace = trace_motion(pipeline, motion[:, :frames], level=level, prompt=prompt, seed=seed)
        else:
            num_frames = frames or min(120, pipeline.config.max_frames)
            pipeline.check([prompt], num_frames)
            num_steps, scale = own_sampling(pipeline, steps, guidance)
            with progress("sampling") as told:
                trace = trace_generation(
                    pipeline,
                    prompt,
                    num_frames=num_frames,
                    num_inference_steps=num_steps,
                    guidance_scale=scale,
                    seed=seed,
                    progress=told,
                )
        out.mkdir(parents=True, exist_ok=True)
        written = _write(trace, out, f"routing {item or prompt}", formats)
    for path in written:
        typer.echo(path)


def _open(data: Path, split: str, item: str) -> InterHumanDataset:
    from intermoe.data import InterHumanDataset

    dataset = InterHumanDataset(data, split, training=False)
    if item not in dataset.names:
        raise ValueError(
            f"--item: expected one of split {split!r} ({', '.join(dataset.names[:10])}, ...), got {item!r}"
        )
    return dataset


def _write(trace: RoutingTrace, folder: Path, title: str, formats: Sequence[Output]) -> list[Path]:
    from intermoe.export.naming import output_stem
    from intermoe.routing.picture import RoutingScene, draw_routing
    from intermoe.viz import save_gif, save_mp4

    written = []
    with output_stem(folder, title, [f".{each.value}" for each in Output]) as stem:
        for chosen in formats:
            path = stem.with_name(f"{stem.name}.{chosen.value}")
            if chosen is Output.npz:
                trace.save_npz(path)
            elif chosen is Output.mp4:
                save_mp4(path, RoutingScene(trace))
            elif chosen is Output.gif:
                save_gif(path, RoutingScene(trace))
            else:
                draw_routing(trace).save(path)
            written.append(path)
    return written
