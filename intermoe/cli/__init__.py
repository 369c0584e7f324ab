"""The ``intermoe`` command: thin wrappers that check everything first, then call the library.

What cannot work is told in one line with exit code 2 before any work starts. Heavy imports happen inside the commands,
so that ``intermoe --help`` is quick. Under a launcher: ``accelerate launch -m intermoe train vae ...``.
One file per group of commands; each command is registered here. What is done to the process itself is in ``__main__``.
"""

from __future__ import annotations

from typing import Annotated

try:
    import typer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the intermoe command needs typer: pip install 'intermoe[all]'") from error

from intermoe.cli import (
    ablate,
    backends,
    bench,
    compare,
    convert,
    data,
    evaluate,
    export,
    generate,
    live,
    routing,
    train,
    tune,
    view,
)

app = typer.Typer(
    help="Text to the motion of two people.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
app.command()(generate.generate)
app.command()(export.export)
app.command()(view.view)
app.command()(live.live)
app.command()(routing.routing)
app.command()(bench.bench)
app.command()(convert.convert)
app.command()(data.prepare)
app.command()(data.stats)
app.command()(tune.tune)
app.command()(backends.backends)
app.command()(ablate.ablate)
app.add_typer(data.app, name="data")
app.command()(compare.compare)
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from intermoe import __version__

        typer.echo(__version__)
        raise typer.Exit
