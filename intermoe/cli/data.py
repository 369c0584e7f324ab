"""``intermoe prepare``, ``stats`` and ``data merge``: check and cache a data set, measure it, make one of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intermoe.cli.common import (
    DataOption,
    SplitOption,
    StrictOption,
    captions_by_activity,
    check_folder,
    check_new_file,
    progress,
    reported,
)

if TYPE_CHECKING:
    from intermoe.data import DatasetReport

app = typer.Typer(help="Folders of motion.", no_args_is_help=True)

DATA_SETS_HELP = "interhuman, interx, humanml3d or solo."


def prepare(
    kind: Annotated[str, typer.Argument(help=DATA_SETS_HELP)],
    root: Annotated[Path, typer.Argument(help="Folder of the data as published.")],
    out: Annotated[Path, typer.Option(help="Folder of the cache; training and evaluation take it as --data.")],
    skeleton: Annotated[
        Path | None,
        typer.Option(help="Raw Inter-X: rest joints (55, 3) as .npy, or SMPL-X's model file SMPLX_NEUTRAL.npz."),
    ] = None,
    source_fps: Annotated[
        int | None, typer.Option(help="Raw Inter-X: frames a second of the files, 30 (default) or 120.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read and compute; by default the cores, for few sequences 1."),
    ] = None,
    strict: StrictOption = False,
) -> None:
    """Check every sequence of a data set, cache it memory-mapped and compute its statistics.

    Files that are missing in everybody's copy are told, but no problem. Interrupted, the same command goes on.
    """
    with reported():
        if workers is not None and workers < 1:
            raise ValueError(f"--workers: expected >= 1, got {workers}")
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
                workers=workers,
            )
        for split, report in cache.reports.items():
            typer.echo(_describe(split, report), err=True)
        for split, files in cache.absent.items():
            typer.echo(f"{split}: none, there is no {' and no '.join(files)}", err=True)
        if not cache.written:
            typer.echo(f"{out} is up to date", err=True)
        broken = sum(report.count for report in cache.reports.values())
        if strict and broken:
            raise ValueError(f"{root}: expected usable items alone (--strict), got {broken} items that cannot be used")
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
    kind: Annotated[str, typer.Option(help=DATA_SETS_HELP)] = "interhuman",
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
        compute_statistics(dataset, passes=4 if mirror or swap else 1).save(out, exclusive=True)
    typer.echo(out)


@app.callback()
def _data() -> None:
    """Keeps the name of a group that has one command."""


@app.command("merge")
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of two persons (InterHuman) or of single persons.")],
    out: Annotated[Path, typer.Option(help="Folder to write, in InterHuman's layout; prepare and train read it.")],
    times: Annotated[
        list[str] | None,
        typer.Option(
            help="FOLDER=NUMBER, may be repeated: how often clips of this folder are listed in the training split, "
            "on average over them; activities alike where items.json names them."
        ),
    ] = None,
    wordings: Annotated[
        str | None,
        typer.Option(
            help="File of an activity, a tabulator and a caption a line; duets for those of the duets data: more "
            "captions for the training clips that items.json tags with the activity, drawn about as often as their own."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of partners, places and chance.")] = 0,
    strict: StrictOption = False,
) -> None:
    """Make one folder of several; clips of single persons become pairs that stand apart, with joined captions."""
    with reported():
        check_folder(out.parent)
        from intermoe.data.merge import merge as merge_folders

        words = captions_by_activity("--wordings", wordings)
        merged = merge_folders(folders, out, times=_times(times or []), wordings=words, seed=seed, strict=strict)
        for reason in merged.left_out:
            typer.echo(f"left out: {reason}", err=True)
        for split, counts in merged.listed.items():
            typer.echo(f"{split}: {', '.join(f'{count} of {name}' for name, count in counts.items())}", err=True)
    typer.echo(out)


def _times(given: list[str]) -> dict[str, float]:
    times = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"--times: expected FOLDER=NUMBER, got {text!r}") from None
        if name in times:
            raise ValueError(f"--times: expected {name!r} once, got it twice")
        times[name] = value
    return times
