"""``intermoe evaluate identity``: whether each person stays who they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import (
    DataOption,
    DeviceOption,
    GuidanceOption,
    NumbersOption,
    SeedsOption,
    SplitOption,
    StepsOption,
    StrictOption,
    check_new_file,
    check_sampling,
    load_pipeline,
    own_sampling,
    parse_seeds,
    progress,
    reported,
    save_report,
)

MAX_FRAMES = 3000


def evaluate_identity(
    data: DataOption,
    model: Annotated[
        str | None, typer.Option(help="Name of a shipped model, or a model folder; without it the data alone.")
    ] = None,
    split: SplitOption = "val",
    seeds: SeedsOption = "0",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    out: NumbersOption = Path("identity.json"),
    strict: StrictOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Identity of the data, of a model's motion and of broken copies, and how often a metric tells a copy is broken."""
    with reported():
        chosen = parse_seeds(seeds)
        check_sampling(steps, guidance, min(chosen))
        check_new_file(out)
        pipeline = None if model is None else load_pipeline(model, device, steps=steps)
        num_steps, scale = (1, 1.0) if pipeline is None else own_sampling(pipeline, steps, guidance)
        from intermoe.data import InterHumanDataset
        from intermoe.eval import evaluate_identity
        from intermoe.eval.kinematics import check_generation
        from intermoe.metrics.identity import min_frames

        longest = MAX_FRAMES if pipeline is None else pipeline.config.max_frames
        if longest < min_frames():
            raise ValueError(
                f"--model: expected {min_frames()} frames, which the metrics need, got {longest} at most of {model!r}"
            )
        dataset = InterHumanDataset(
            data, split, min_frames=min_frames(), max_frames=longest, training=False, strict=strict
        )
        if pipeline is not None:
            check_generation(pipeline, dataset, chosen)
        with progress("generating" if pipeline else "measuring") as told:
            report = evaluate_identity(
                dataset,
                pipeline,
                seeds=chosen,
                num_inference_steps=num_steps,
                guidance_scale=scale,
                progress=told,
            )
    save_report(report, out, report.table(), report.ranking_table())
