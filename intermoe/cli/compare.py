"""``intermoe compare``: several systems trained and measured alike, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import DataOption, check_folder, file_or_shipped, print_table, reported


def compare(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the table and of each system's runs.")],
    matrix: Annotated[Path, typer.Argument(help="Comparison file, or the name of a shipped one.")] = Path("small"),
    budget: Annotated[int, typer.Option(help="Training steps of each system, all its stages together.")] = 1000,
    load: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER: load that system's model in place of training it; several times for several."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a system to do; several times for several.")] = None,
    evaluator: Annotated[
        Path | None, typer.Option(help="Folder of an evaluator, in place of the one that the comparison trains.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of training and generation.")] = 0,
    captions: Annotated[int, typer.Option(help="Captions of each item to generate from.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps of all systems; each one's published number by default.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance of all systems; each one's published number by default.")
    ] = None,
) -> None:
    """Train or load systems with one data set, seed and budget, measure them, and print one table.

    Run the same command again to go on: finished systems are not done twice.
    """
    with reported():
        path = file_or_shipped(matrix, "matrix", "comparisons", "comparison")
        check_folder(out)
        if not data.is_dir():
            raise NotADirectoryError(f"--data: not a folder: {data}")
        from intermoe.eval.compare import ComparisonSettings
        from intermoe.train.compare import Comparison

        comparison = Comparison(
            path,
            out,
            data=data,
            budget=budget,
            settings=ComparisonSettings(seed, steps, guidance, captions),
            models=dict(_named(each) for each in load or ()),
            evaluator=evaluator,
        )
        report = comparison.run(
            only=only or (), progress=lambda name, done, total: typer.echo(f"{done + 1}/{total} {name}", err=True)
        )
    print_table(report.table())
    for note in report.notes:
        typer.echo(note)
    typer.echo(out / "comparison.md")


def _named(option: str) -> tuple[str, str]:
    name, equals, folder = option.partition("=")
    if not (name and equals and folder):
        raise ValueError(f"--load: expected NAME=FOLDER, got {option!r}")
    return name, folder
