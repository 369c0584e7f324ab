"""``intermoe evaluate``: measure a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intermoe.cli.common import (
    DataOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    StepsOption,
    StrictOption,
    check_folder,
    check_new_file,
    check_sampling,
    load_pipeline,
    parse_seeds,
    print_table,
    progress_bar,
    reported,
)

if TYPE_CHECKING:
    from intermoe.data.dataset import MotionDataset
    from intermoe.eval.estimate import Estimate
    from intermoe.eval.protocol import Protocol
    from intermoe.pipeline import MotionPipeline

DATA_SETS = ("interhuman", "interx", "humanml3d")

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
        check_new_file(out)
        pipeline = load_pipeline(model, device, steps=steps)
        from intermoe.data import InterHumanDataset
        from intermoe.eval import evaluate_kinematics
        from intermoe.eval.kinematics import check_generation

        config = pipeline.config
        dataset = InterHumanDataset(
            data, split, min_frames=config.min_frames, max_frames=config.max_frames, training=False, strict=strict
        )
        check_generation(pipeline, dataset, chosen)
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


def _register(kind: str) -> None:
    """``intermoe evaluate <kind>``; the data sets differ in their protocol alone."""

    def command(
        data: Annotated[Path, typer.Option(help="Folder of the data as published, or its cache from prepare.")],
        evaluator: Annotated[Path, typer.Option(help="Folder of an evaluator, from convert or train evaluator.")],
        out: Annotated[Path, typer.Option(help="Folder for pieces and numbers; one that was begun is gone on with.")],
        model: ModelOption = "salsa",
        split: Annotated[str, typer.Option(help="Split of the data.")] = "test",
        seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
        replications: Annotated[int, typer.Option(help="How often; the published number is 20.")] = 20,
        batch_size: Annotated[
            int | None, typer.Option(help="Motions that a text is compared with; the published number by default.")
        ] = None,
        mm_captions: Annotated[int, typer.Option(help="Texts for MModality, at most one an item.")] = 100,
        mm_samples: Annotated[int, typer.Option(help="Motions of each of them.")] = 30,
        steps: StepsOption = 50,
        guidance: GuidanceOption = 3.5,
        scheduler: Annotated[str | None, typer.Option(help="Sampler of the model, by default its first.")] = None,
        generation_batch: Annotated[int, typer.Option(help="Motions that are generated together.")] = 64,
        texts: Annotated[
            Path | None, typer.Option(help="Folder of captions with their words, for an evaluator that reads words.")
        ] = None,
        keep_motions: Annotated[bool, typer.Option(help="Keep what finished replications generated.")] = True,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and files, and write nothing.")] = False,
        device: DeviceOption = "auto",
    ) -> None:
        with reported():
            check_folder(out)
            check_sampling(steps, guidance, seed)
            if replications < 1:
                raise ValueError(f"--replications: must be >= 1, got {replications}")
            from intermoe.eval.estimate import estimate
            from intermoe.eval.protocol import PROTOCOLS
            from intermoe.eval.report import EvaluationReport
            from intermoe.eval.runner import Evaluation, EvaluationSettings, digest, evaluate
            from intermoe.evaluators.evaluator import load_evaluator
            from intermoe.evaluators.words import read_texts
            from intermoe.pipeline import model_folder

            protocol = PROTOCOLS[kind]
            processes = _processes()
            chosen = str(processes.device) if processes is not None and device == "auto" else device
            judge = load_evaluator(evaluator)
            words = read_texts(texts or _texts(data)) if judge.reads_tokens else None
            pipeline = load_pipeline(model, chosen, scheduler=scheduler, steps=steps)
            judge.to(pipeline.device)
            dataset = _open(protocol, data, split, seed, pipeline)
            compared = protocol.batch_size if batch_size is None else batch_size
            if not 2 <= compared <= len(dataset):
                told = f"split {split!r} of {data} has {len(dataset)} items"
                raise ValueError(f"--batch-size: must be in [2, {len(dataset)}], got {compared}; {told}")
            settings = EvaluationSettings(
                data=kind,
                split=split,
                items=len(dataset),
                model=digest(model_folder(model)),
                evaluator=digest(evaluator),
                batch_size=compared,
                seed=seed,
                mm_captions=min(mm_captions, len(dataset)),
                mm_samples=mm_samples,
                num_inference_steps=steps,
                guidance_scale=guidance,
                scheduler=scheduler or pipeline.schedulers[0],
                generation_batch=generation_batch,
            )
            evaluation = Evaluation(
                pipeline, judge, dataset, protocol, settings, out, texts=words, keep_motions=keep_motions
            )
            ranks = 1 if processes is None else processes.num_processes
            rank = 0 if processes is None else processes.process_index
            if dry_run:
                if rank == 0:
                    typer.echo(_told(estimate(evaluation, replications, processes=ranks), ranks))
                return
            evaluation.check()
            with progress_bar() as progress:
                progress.disable = rank != 0
                task = progress.add_task("evaluating", total=None)
                rows = evaluate(
                    evaluation,
                    replications,
                    rank=rank,
                    ranks=ranks,
                    wait=_nothing if processes is None else processes.wait_for_everyone,
                    progress=lambda done, total: progress.update(task, completed=done, total=total),
                )
            if rank != 0:
                return
            own = (evaluator / "training.json").exists()
            report = EvaluationReport(settings, protocol, tuple(rows), pipeline.config.name, judge.kind, own)
            report.save(out / "results.json")
        print_table(report.table())
        for note in report.notes():
            typer.echo(note)
        typer.echo(out / "results.json")

    app.command(kind, help=f"FID, R-Precision, MM-Dist, Diversity and MModality by the published protocol of {kind}.")(
        command
    )


for _kind in DATA_SETS:
    _register(_kind)


def _nothing() -> None:
    """One process waits for nobody."""


def _processes() -> Any:
    """The launcher's processes, or ``None`` without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    # a process may wait for the others' last pieces, and those may be long
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))


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
