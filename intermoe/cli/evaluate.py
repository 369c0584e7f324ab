"""``intermoe evaluate``: measure a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import (
    DataOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    StepsOption,
    StrictOption,
    check_folder,
    check_sampling,
    load_pipeline,
    parse_seeds,
    print_table,
    progress_bar,
    reported,
)

app = typer.Typer(help="Measure a model.", no_args_is_help=True)


@app.command("kinematics")
def evaluate_kinematics(
    data: DataOption,
    model: ModelOption = "salsa",
    split: Annotated[str, typer.Option(help="Name of a file in the data's split/, without .txt.")] = "val",
    seeds: Annotated[str, typer.Option(help="Seeds of the generated clips, separated by commas.")] = "0,1,2",
    steps: StepsOption = 50,
    guidance: GuidanceOption = 3.5,
    out: Annotated[Path, typer.Option(help="JSON file for the numbers.")] = Path("kinematics.json"),
    strict: StrictOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Ground truth, reconstruction and generation side by side: a table, and all numbers as JSON."""
    with reported():
        chosen = parse_seeds(seeds)
        check_sampling(steps, guidance, min(chosen))
        check_folder(out.parent)
        pipeline = load_pipeline(model, device)
        from intermoe.data import InterHumanDataset
        from intermoe.eval import evaluate_kinematics

        config = pipeline.config
        dataset = InterHumanDataset(
            data, split, min_frames=config.min_frames, max_frames=config.max_frames, training=False, strict=strict
        )
        with progress_bar() as progress:
            task = progress.add_task("generating", total=None)
            report = evaluate_kinematics(
                pipeline,
                dataset,
                seeds=chosen,
                num_inference_steps=steps,
                guidance_scale=guidance,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        report.save(out)
    print_table(report.table())
    typer.echo(out)
