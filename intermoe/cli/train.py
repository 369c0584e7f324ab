"""``intermoe train``: the trainers, from a configuration file, which names the one that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from intermoe.cli.common import check_folder, file_or_shipped, reported

BY_RECIPE = "recipe"


class _Trainers(TyperGroup):
    """A group whose first argument may also be a recipe: ``intermoe train my.yaml --out runs/mine``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = [BY_RECIPE, *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Trainers,
    help="Train a model from a configuration file (YAML or JSON), or from a shipped one by its name: "
    "intermoe train CONFIG --out FOLDER.",
    no_args_is_help=True,
)

ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint in --out.")]
ConfigArgument = Annotated[Path, typer.Argument(help="Configuration file, or the name of a shipped one.")]
RunOption = Annotated[Path, typer.Option(help="Folder of the run: configuration, checkpoints, logs and model.")]
TrainDataOption = Annotated[
    Path | None, typer.Option(help="Folder of the data or its cache, in place of the configured one.")
]


@app.command(BY_RECIPE)
def train_recipe(
    config: ConfigArgument,
    out: RunOption,
    start: Annotated[
        Path | None, typer.Option(help="Model folder of the run before this one, for a recipe that is trained on one.")
    ] = None,
    data: TrainDataOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train what the recipe says by its trainer key; the word itself can be left out: intermoe train CONFIG."""
    with reported():
        path = _recipe(config, out)
        from intermoe.train.trainers import train

        typer.echo(train(path, out, start=start, resume=resume, data=data))


@app.command("vae")
def train_vae(
    config: ConfigArgument,
    out: RunOption,
    data: TrainDataOption = None,
    init: Annotated[Path | None, typer.Option(help="Model folder of a trained autoencoder to start from.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Train the autoencoder; the folder's model/ is what the denoiser's training needs."""
    with reported():
        path = _recipe(config, out)
        from intermoe.train import run_vae

        typer.echo(run_vae(path, out, resume=resume, data=data, init=init))


@app.command("denoiser")
def train_denoiser(
    config: ConfigArgument,
    out: RunOption,
    vae: Annotated[
        Path | None, typer.Option(help="Model folder of a trained autoencoder; not needed to resume.")
    ] = None,
    data: TrainDataOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train denoiser and text encoder; the folder's model/ is what generate --model takes."""
    with reported():
        path = _recipe(config, out)
        from intermoe.train import run_denoiser

        typer.echo(run_denoiser(path, out, vae=vae, resume=resume, data=data))


@app.command("evaluator")
def train_evaluator(
    config: ConfigArgument, out: RunOption, data: TrainDataOption = None, resume: ResumeOption = False
) -> None:
    """Train an evaluator on one's own data; the folder's model/ is what evaluate --evaluator takes."""
    with reported():
        path = _recipe(config, out)
        from intermoe.train import run_evaluator

        typer.echo(run_evaluator(path, out, resume=resume, data=data))


def _recipe(config: Path, out: Path) -> Path:
    path = file_or_shipped(config, "config", "", "configuration")
    check_folder(out)
    return path
