"""``intermoe evaluate routing``: how many experts a model's tokens take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    DataOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    NoiseOption,
    NumbersOption,
    SplitOption,
    StepsOption,
    StrictOption,
    open_model,
    progress,
    reported,
    save_report,
)


def evaluate_routing(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    split: SplitOption = "train",
    limit: Annotated[int, typer.Option(help="Items whose first caption is generated.")] = 12,
    frames: Annotated[
        int | None, typer.Option(help="Length of each motion. Default: 96, or what the model can.")
    ] = None,
    seed: NoiseOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    out: NumbersOption = Path("routing.json"),
    strict: StrictOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Experts a token by noise level, layer and person, in frames of contact and fast ones, and selection biases."""
    with reported():
        pipeline, options = open_model(model, device, out, (steps, guidance), seed, frames)
        from intermoe.data import InterHumanDataset
        from intermoe.eval.routing import evaluate_routing

        dataset = InterHumanDataset(data, split, max_frames=pipeline.config.max_frames, training=False, strict=strict)
        with progress("sampling") as told:
            report = evaluate_routing(
                pipeline,
                dataset,
                limit=limit,
                num_frames=frames or min(96, pipeline.config.max_frames),
                seed=seed,
                **options,
                progress=told,
            )
    save_report(report, out, report.table())
