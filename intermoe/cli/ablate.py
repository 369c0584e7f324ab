"""``intermoe ablate``: the paper's ablations, trained and measured alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import (
    DEFAULT_MODEL,
    DataOption,
    SeedsOption,
    check_folder,
    check_sampling,
    file_or_shipped,
    parse_seeds,
    print_table,
    reported,
)


def ablate(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the table and of each variant's run.")],
    matrix: Annotated[Path, typer.Argument(help="Matrix file, or the name of a shipped one.")] = Path("salsa"),
    vae: Annotated[
        Path | None, typer.Option(help="Model folder of a trained autoencoder. Default: that of the default model.")
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(help="Training steps of each variant in place of the recipe's; 20 prove the switches.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a variant to do; several times for several.")] = None,
    evaluator: Annotated[
        Path | None, typer.Option(help="Folder of a trained evaluator, for FID and R-Precision.")
    ] = None,
    seeds: SeedsOption = "0",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 turns guidance off.")] = 3.5,
) -> None:
    """Train variants of one recipe with the same seed and data, measure them, and print one table.

    Run the same command again to go on: finished variants are not done twice.
    """
    with reported():
        path = file_or_shipped(matrix, "matrix", "ablations", "matrix")
        chosen = parse_seeds(seeds)
        check_sampling(steps, guidance, min(chosen))
        check_folder(out)
        if not data.is_dir():
            raise NotADirectoryError(f"--data: not a folder: {data}")
        from intermoe.evaluators.evaluator import load_evaluator
        from intermoe.train.ablate import (
            AblationSettings,
            check_names,
            run_ablation,
            variant_configs,
        )

        settings = AblationSettings(train_steps, tuple(chosen), steps, guidance)
        check_names(variant_configs(path, steps=train_steps), only or ())
        ruler = None if evaluator is None else load_evaluator(evaluator)
        report = run_ablation(
            path,
            out,
            data=data,
            vae=vae or out / "vae",
            model=DEFAULT_MODEL if vae is None else None,
            settings=settings,
            only=only or (),
            evaluator=ruler,
            progress=lambda name, done, total: typer.echo(f"{done + 1}/{total} {name}", err=True),
        )
    print_table(report.table())
    typer.echo(out / "ablation.md")
