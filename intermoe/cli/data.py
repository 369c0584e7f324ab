"""``intermoe prepare`` and ``intermoe stats``: check and cache a data set, measure what training needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import DataOption, SplitOption, StrictOption, check_folder, check_new_file, progress, reported

if TYPE_CHECKING:
    from intermoe.data import DatasetReport

KindArgument = Annotated[str, typer.Argument(help="interhuman, interx or humanml3d.")]


def prepare(
    kind: KindArgument,
    root: Annotated[Path, typer.Argument(help="Folder of the data as published.")],
    out: Annotated[Path, typer.Option(help="Folder of the cache; training and evaluation take it as --data.")],
    skeleton: Annotated[
        Path | None,
        typer.Option(help="Raw Inter-X: rest joints (55, 3) as .npy, or SMPL-X's model file SMPLX_NEUTRAL.npz."),
    ] = None,
    source_fps: Annotated[
        int | None, typer.Option(help="Raw Inter-X: frames a second of the files, 30 (default) or 120.")
    ] = None,
    strict: StrictOption = False,
) -> None:
    """Check every sequence of a data set, cache it memory-mapped and compute its statistics.

    Files that are missing in everybody's copy are told, but no problem.
    """
    with reported():
        check_folder(out.parent)
        from intermoe.data import DATA_SETS
        from intermoe.data import prepare as prepare_cache

        chosen = DATA_SETS[kind]
        with progress("reading") as told:
            cache = prepare_cache(
                chosen,
                root,
                out,
                skeleton=skeleton,
                source_fps=source_fps,
                progress=told,
            )
        for split, report in cache.reports.items():
            typer.echo(_describe(split, report), err=True)
        for split, files in cache.absent.items():
            typer.echo(f"{split}: none, there is no {' and no '.join(files)}", err=True)
        if not cache.written:
            typer.echo(f"{out} is up to date", err=True)
        broken = sum(report.count for report in cache.reports.values())
        if strict and broken:
            raise ValueError(f"{root}: {broken} items cannot be used (--strict)")
    typer.echo(out)


def _describe(split: str, report: DatasetReport) -> str:
    notes = [f"{report.total - report.count - len(report.known_missing)} of {report.total} sequences"]
    if report.ignored:
        notes.append(f"{report.ignored} on the ignore list")
    if report.known_missing:
        notes.append(f"{len(report.known_missing)} known to be missing ({', '.join(report.known_missing)})")
    lines = [f"{split}: {', '.join(notes)}"]
    return "\n".join(lines + (report.summary(names=20).splitlines() if report.count else []))


def stats(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="New file to write, .json or .npz.")],
    kind: Annotated[str, typer.Option(help="interhuman, interx or humanml3d.")] = "interhuman",
    split: SplitOption = "train",
    augment: Annotated[bool, typer.Option(help="Mirror items and exchange persons at random, as in training.")] = True,
    strict: StrictOption = False,
) -> None:
    """Mean and standard deviation of the motion representation over a data set."""
    with reported():
        if out.suffix not in (".json", ".npz"):
            raise ValueError(f"--out: expected a .json or .npz file, got {out}")
        check_new_file(out)
        from intermoe.data import DATA_SETS, MotionDataset
        from intermoe.data.statistics import compute_statistics

        chosen = DATA_SETS[kind]
        mirror, swap = augment and chosen.mirror is not None, augment and chosen.swappable
        dataset = MotionDataset(chosen, data, split, mirror=mirror, swap_persons=swap, training=False, strict=strict)
        out.parent.mkdir(parents=True, exist_ok=True)
        compute_statistics(dataset, passes=4 if mirror or swap else 1).save(out)
    typer.echo(out)
