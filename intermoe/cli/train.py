"""``intermoe train``: the trainers, from a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import check_folder, reported

app = typer.Typer(help="Train a model from a configuration file (YAML or JSON).", no_args_is_help=True)

ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint in --out.")]
ConfigArgument = Annotated[Path, typer.Argument(help="Configuration file, or the name of a shipped one.")]
RunOption = Annotated[Path, typer.Option(help="Folder of the run: configuration, checkpoints, logs and model.")]
TrainDataOption = Annotated[
    Path | None, typer.Option(help="Folder of the data or its cache, in place of the configured one.")
]


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
        path = config_path(config)
        check_folder(out)
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
        path = config_path(config)
        check_folder(out)
        from intermoe.train import run_denoiser

        typer.echo(run_denoiser(path, out, vae=vae, resume=resume, data=data))


@app.command("evaluator")
def train_evaluator(
    config: ConfigArgument, out: RunOption, data: TrainDataOption = None, resume: ResumeOption = False
) -> None:
    """Train an evaluator on one's own data; the folder's model/ is what evaluate --evaluator takes."""
    with reported():
        path = config_path(config)
        check_folder(out)
        from intermoe.train import run_evaluator

        typer.echo(run_evaluator(path, out, resume=resume, data=data))


def config_path(config: Path) -> Path:
    shipped = Path(__file__).parents[1] / "train" / "configs"
    if config.is_file():
        return config
    by_name = shipped / f"{config}.yaml"
    if config.parent == Path() and by_name.is_file():
        return by_name
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise FileNotFoundError(f"config: {str(config)!r} is neither a file nor a shipped configuration ({names})")
