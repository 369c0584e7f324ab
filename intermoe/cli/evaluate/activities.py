"""``intermoe evaluate activities``: whether a model does what it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    NumbersOption,
    SeedsOption,
    StepsOption,
    StrictOption,
    captions_by_activity,
    open_model,
    parse_seeds,
    progress,
    reported,
    save_report,
)


def evaluate_activities(
    data: Annotated[
        list[Path],
        typer.Option(help="Folder of the data; give it several times. Clips are of the activity that items.json says."),
    ],
    model: ModelOption = DEFAULT_MODEL,
    paraphrases: Annotated[
        str | None,
        typer.Option(help="File of an activity, a tabulator and a caption a line; duets for those of the duets data."),
    ] = None,
    captions: Annotated[int, typer.Option(help="Captions of each activity that are generated.")] = 2,
    frames: Annotated[
        int | None, typer.Option(help="Length of each motion. Default: 90, or what the model can.")
    ] = None,
    seeds: SeedsOption = "0",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    judge_steps: Annotated[int, typer.Option(help="Training steps of the judge.")] = 900,
    out: NumbersOption = Path("activities.json"),
    strict: StrictOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Activities that a judge recognises in what a model makes of captions and paraphrases, and in real motion.

    The judge is trained on the split train of the data, and asked of val; every number of kinematics is beside.
    """
    with reported():
        chosen = parse_seeds(seeds)
        from intermoe.data import InterHumanDataset
        from intermoe.eval.activities import Asked, evaluate_activities
        from intermoe.pipeline import model_config

        words = captions_by_activity("--paraphrases", paraphrases)
        longest = model_config(model).max_frames
        asked = Asked(captions, words, min(90, longest) if frames is None else frames)
        pipeline, options = open_model(model, device, out, (steps, guidance), min(chosen), frames)
        train, val = (
            [InterHumanDataset(folder, split, max_frames=longest, training=False, strict=strict) for folder in data]
            for split in ("train", "val")
        )
        with progress("generating") as told:
            report = evaluate_activities(
                pipeline,
                train,
                val,
                asked,
                seeds=chosen,
                **options,
                judge_steps=judge_steps,
                progress=told,
            )
    save_report(report, out, report.table(), report.activity_table())
