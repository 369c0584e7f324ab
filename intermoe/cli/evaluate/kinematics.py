"""``intermoe evaluate kinematics``: how a model's motion moves."""

from __future__ import annotations

from pathlib import Path

from intermoe.cli.common import (
    DEFAULT_MODEL,
    DataOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    NumbersOption,
    SeedsOption,
    SplitOption,
    StepsOption,
    StrictOption,
    open_model,
    parse_seeds,
    progress,
    reported,
    save_report,
)


def evaluate_kinematics(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    split: SplitOption = "val",
    seeds: SeedsOption = "0,1,2",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    out: NumbersOption = Path("kinematics.json"),
    strict: StrictOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Ground truth, reconstruction and generation side by side: a table, and all numbers as JSON."""
    with reported():
        chosen = parse_seeds(seeds)
        pipeline, options = open_model(model, device, out, (steps, guidance), min(chosen))
        from intermoe.data import InterHumanDataset
        from intermoe.eval import kinematics

        config = pipeline.config
        dataset = InterHumanDataset(
            data, split, min_frames=config.min_frames, max_frames=config.max_frames, training=False, strict=strict
        )
        kinematics.check_generation(pipeline, dataset, chosen)
        with progress("generating") as told:
            report = kinematics.evaluate_kinematics(
                pipeline,
                dataset,
                seeds=chosen,
                **options,
                progress=told,
            )
    save_report(report, out, report.table())
