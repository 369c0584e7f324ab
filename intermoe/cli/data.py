"""``intermoe stats``: what training needs to know about a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import DataOption, StrictOption, check_folder, reported


def stats(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="File to write, .json or .npz.")],
    split: Annotated[str, typer.Option(help="Name of a file in the data's split/, without .txt.")] = "train",
    augment: Annotated[bool, typer.Option(help="Mirror items and exchange persons at random, as in training.")] = True,
    strict: StrictOption = False,
) -> None:
    """Mean and standard deviation of the motion representation over a data set."""
    with reported():
        if out.suffix not in (".json", ".npz"):
            raise ValueError(f"--out: expected a .json or .npz file, got {out}")
        check_folder(out.parent)
        from intermoe.data import InterHumanDataset, compute_statistics

        dataset = InterHumanDataset(data, split, mirror=augment, swap_persons=augment, training=False, strict=strict)
        out.parent.mkdir(parents=True, exist_ok=True)
        compute_statistics(dataset, passes=4 if augment else 1).save(out)
    typer.echo(out)
