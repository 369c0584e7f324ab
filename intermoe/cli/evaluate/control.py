"""``intermoe evaluate control``: how well a model can be steered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    ChanceOption,
    DataOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    NumbersOption,
    SplitOption,
    StepsOption,
    StrictOption,
    open_model,
    progress,
    reported,
    save_report,
)


def evaluate_control(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    split: SplitOption = "val",
    limit: Annotated[int, typer.Option(help="Items that are measured.")] = 8,
    best_of: Annotated[int, typer.Option(help="Reactions to each; the best counts.")] = 10,
    seed: ChanceOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    out: NumbersOption = Path("control.json"),
    strict: StrictOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Reactions, gaps, targets, a scene of six prompts and live motion, beside the data and baselines."""
    with reported():
        pipeline, options = open_model(model, device, out, (steps, guidance), seed)
        from intermoe.data import InterHumanDataset
        from intermoe.eval.control import evaluate_control

        config = pipeline.config
        dataset = InterHumanDataset(
            data, split, min_frames=config.min_frames, max_frames=config.max_frames, training=False, strict=strict
        )
        with progress("measuring") as told:
            report = evaluate_control(
                pipeline,
                dataset,
                limit=limit,
                best_of=best_of,
                seed=seed,
                **options | {"guidance_scale": guidance},
                progress=told,
            )
    save_report(report, out, report.table())
