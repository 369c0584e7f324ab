"""``intermoe evaluate interhuman`` and its like: the published protocol of the data set that the command is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    ChanceOption,
    DataOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    SchedulerOption,
    SplitOption,
    StepsOption,
    check_folder,
    check_sampling,
    launched,
    load_pipeline,
    own_sampling,
    print_table,
    progress,
    reported,
)

if TYPE_CHECKING:
    from intermoe.data.dataset import MotionDataset
    from intermoe.eval.estimate import Estimate
    from intermoe.eval.protocol import Protocol
    from intermoe.pipeline import MotionPipeline


def evaluate_protocol(
    context: typer.Context,
    data: DataOption,
    evaluator: Annotated[Path, typer.Option(help="Folder of an evaluator, from convert or train evaluator.")],
    out: Annotated[Path, typer.Option(help="Folder for pieces and numbers; one that was begun is gone on with.")],
    model: ModelOption = DEFAULT_MODEL,
    split: SplitOption = "test",
    seed: ChanceOption = 0,
    replications: Annotated[int, typer.Option(help="How often; the published number is 20.")] = 20,
    batch_size: Annotated[
        int | None, typer.Option(help="Motions that a text is compared with; the published number by default.")
    ] = None,
    mm_captions: Annotated[int, typer.Option(help="Texts for MModality, at most one an item.")] = 100,
    mm_samples: Annotated[int, typer.Option(help="Motions of each of them.")] = 30,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    scheduler: SchedulerOption = None,
    generation_batch: Annotated[int, typer.Option(help="Motions that are generated together.")] = 64,
    texts: Annotated[
        Path | None, typer.Option(help="Folder of captions with their words, for an evaluator that reads words.")
    ] = None,
    keep_motions: Annotated[bool, typer.Option(help="Keep what finished replications generated.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and files, and write nothing.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """The numbers of the data set that the command is called, as they are published."""
    with reported():
        check_folder(out)
        check_sampling(steps, guidance, seed)
        if replications < 1:
            raise ValueError(f"--replications: expected >= 1, got {replications}")
        from intermoe.eval.estimate import estimate
        from intermoe.eval.protocol import PROTOCOLS
        from intermoe.eval.report import EvaluationReport
        from intermoe.eval.runner import Evaluation, EvaluationSettings, digest, evaluate
        from intermoe.evaluators.evaluator import load_evaluator
        from intermoe.evaluators.words import read_texts
        from intermoe.hub import model_folder

        protocol = PROTOCOLS[str(context.info_name)]
        here = launched()
        judge = load_evaluator(evaluator)
        words = read_texts(texts or _texts(data)) if judge.reads_tokens else None
        pipeline = load_pipeline(model, here.device if device == "auto" else device, scheduler=scheduler, steps=steps)
        num_steps, scale = own_sampling(pipeline, steps, guidance)
        judge.to(pipeline.device)
        dataset = _open(protocol, data, split, seed, pipeline)
        compared = protocol.batch_size if batch_size is None else batch_size
        if not 2 <= compared <= len(dataset):
            told = f"split {split!r} of {data} has {len(dataset)} items"
            raise ValueError(f"--batch-size: expected a value in [2, {len(dataset)}], got {compared}; {told}")
        settings = EvaluationSettings(
            data=protocol.data,
            split=split,
            items=len(dataset),
            model=digest(model_folder(model)),
            evaluator=digest(evaluator),
            batch_size=compared,
            seed=seed,
            mm_captions=min(mm_captions, len(dataset)),
            mm_samples=mm_samples,
            num_inference_steps=num_steps,
            guidance_scale=scale,
            scheduler=scheduler or pipeline.schedulers[0],
            generation_batch=generation_batch,
        )
        evaluation = Evaluation(
            pipeline, judge, dataset, protocol, settings, out, texts=words, keep_motions=keep_motions
        )
        if dry_run:
            if here.rank == 0:
                typer.echo(_told(estimate(evaluation, replications, processes=here.ranks), here.ranks))
            return
        evaluation.check()
        with progress("evaluating", shown=here.rank == 0) as moved:
            rows = evaluate(evaluation, replications, rank=here.rank, ranks=here.ranks, wait=here.wait, progress=moved)
        if here.rank != 0:
            return
        own = (evaluator / "training.json").exists()
        report = EvaluationReport(settings, protocol, tuple(rows), pipeline.config.name, judge.kind, own)
        report.save(out / "results.json")
    print_table(report.table())
    for note in report.notes():
        typer.echo(note)
    typer.echo(out / "results.json")


def _open(protocol: Protocol, data: Path, split: str, seed: int, pipeline: MotionPipeline) -> MotionDataset:
    """The split as the protocol draws from it, within the lengths that both data and model have."""
    from intermoe.data.dataset import MotionDataset
    from intermoe.data.sets import DATA_SETS

    data_set = DATA_SETS[protocol.data]
    motion = data_set.representation
    try:
        return MotionDataset(
            data_set,
            data,
            split,
            min_frames=max(motion.min_frames, pipeline.config.min_frames),
            max_frames=min(motion.max_frames, pipeline.config.max_frames),
            swap_persons=protocol.swaps_persons,
            seed=seed,
            training=True,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--split: cannot read {split!r} of {data}: {error}") from error


def _texts(data: Path) -> Path:
    """The folder of captions with their parts of speech: Inter-X has them apart from its plain ones."""
    processed = data / "texts_processed"
    return processed if processed.is_dir() else data / "texts"


def _told(expected: Estimate, ranks: int) -> str:
    hours, minutes = divmod(round(expected.seconds / 60), 60)
    together = f" with {ranks} processes" if ranks > 1 else ""
    return (
        f"{expected.motions} motions to generate: about {hours} h {minutes} min ({expected.seconds:.0f} s){together}, "
        f"{expected.bytes / 2**30:.1f} GB of files"
    )
