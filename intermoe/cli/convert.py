"""``intermoe convert``: published checkpoints as folders of this package."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import check_folder, reported


class EvaluatorData(str, Enum):
    """Data sets with a recurrent evaluator."""

    interx = "interx"
    humanml3d = "humanml3d"


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Published checkpoint, of a model or of an evaluator.")],
    out: Annotated[Path, typer.Option(help="Folder to write: a model for generate, or an evaluator for evaluate.")],
    stats: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the published statistics: global_mean.npy and global_std.npy of InterHuman, Mean.npy and "
            "Std.npy of HumanML3D; of a recurrent evaluator mean.npy and std.npy."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with CLIP's tokenizer; without it, it is loaded by name when needed.")
    ] = None,
    part: Annotated[Path | None, typer.Option(help="Second file of a model that is published in two.")] = None,
    text: Annotated[
        str | None,
        typer.Option(help="CLIP model, a folder or a Hugging Face name, whose text tower the checkpoint leaves out."),
    ] = None,
    layout: Annotated[EvaluatorData | None, typer.Option(help="Data of a recurrent evaluator (finest.tar).")] = None,
    words: Annotated[Path | None, typer.Option(help="Folder with word vectors, of a recurrent evaluator.")] = None,
) -> None:
    """Read a published checkpoint, strictly and without unpickling objects, and write it as safetensors.

    Which system or evaluator it is of is found by its keys, and told.
    """
    with reported():
        check_folder(out)
        _refuse_model(out)
        if tokenizer is not None and not tokenizer.is_dir():
            raise NotADirectoryError(f"--tokenizer: not a folder: {tokenizer}")
        from intermoe.files import locked
        from intermoe.official.layouts import layout_of
        from intermoe.systems.published import Files

        files = Files(stats, tokenizer, part, text, None if layout is None else layout.value, words)
        found = layout_of(checkpoint)
        for name, value in dataclasses.asdict(files).items():
            if value is not None and name not in found.uses:
                raise ValueError(
                    f"--{name}: expected a checkpoint that has a use for it, got {found.title} in {checkpoint}"
                )
        made = found.read(checkpoint, files)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock", f"--out: another process is writing to {out}"):
            _refuse_model(out)  # one that has come since
            found.save(made, out)
        typer.echo(f"{checkpoint}: {found.title}", err=True)
    typer.echo(out)


def _refuse_model(out: Path) -> None:
    if (out / "config.json").exists():
        raise FileExistsError(f"--out: {out} holds a model already")
