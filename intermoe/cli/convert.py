"""``intermoe convert``: the authors' checkpoints as folders of this package."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import check_folder, reported

_USED = {"model": ("stats", "tokenizer"), "interclip": ("tokenizer",), "bigru": ("stats", "layout", "words")}
_WHAT = {"model": "the model", "interclip": "InterCLIP", "bigru": "a recurrent evaluator"}


class Layout(str, Enum):
    """Data sets with a recurrent evaluator."""

    interx = "interx"
    humanml3d = "humanml3d"


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Published checkpoint, of the model or of an evaluator.")],
    out: Annotated[Path, typer.Option(help="Folder to write: a model for generate, or an evaluator for evaluate.")],
    stats: Annotated[
        Path | None,
        typer.Option(
            help="Folder with global_mean.npy and global_std.npy; of a recurrent evaluator mean.npy and std.npy."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with CLIP's tokenizer; without it, it is loaded by name when needed.")
    ] = None,
    layout: Annotated[Layout | None, typer.Option(help="Data of a recurrent evaluator (finest.tar).")] = None,
    words: Annotated[Path | None, typer.Option(help="Folder with word vectors, of a recurrent evaluator.")] = None,
) -> None:
    """Read a published checkpoint, strictly and without unpickling objects, and write it as safetensors."""
    with reported():
        check_folder(out)
        if (out / "config.json").exists():
            raise FileExistsError(f"--out: {out} holds a model already")
        if tokenizer is not None and not tokenizer.is_dir():
            raise NotADirectoryError(f"--tokenizer: not a folder: {tokenizer}")
        from intermoe.evaluators.evaluator import save_evaluator
        from intermoe.evaluators.official import load_bigru, load_interclip
        from intermoe.official.checkpoint import checkpoint_kind, load_checkpoint
        from intermoe.text.clip import ClipPrompts

        kind = checkpoint_kind(checkpoint)
        for name, value in {"stats": stats, "tokenizer": tokenizer, "layout": layout, "words": words}.items():
            if value is not None and name not in _USED[kind]:
                raise ValueError(f"--{name}: {checkpoint} has no use for it, it holds {_WHAT[kind]}")
        if kind == "bigru":
            if layout is None or words is None:
                raise ValueError(f"--layout, --words: needed, {checkpoint} holds {_WHAT[kind]}")
            save_evaluator(out, load_bigru(checkpoint, layout.value, words, stats))
        elif kind == "interclip":
            evaluator = load_interclip(checkpoint)
            if tokenizer is not None and isinstance(evaluator.text, ClipPrompts):
                evaluator.text.load_tokenizer(str(tokenizer))
            save_evaluator(out, evaluator)
        else:
            pipeline = load_checkpoint(checkpoint, stats)
            if tokenizer is not None and isinstance(pipeline.text_encoder, ClipPrompts):
                pipeline.text_encoder.load_tokenizer(str(tokenizer))
            pipeline.save_pretrained(out)
    typer.echo(out)
