"""The ``intermoe`` command: thin wrappers that check everything first, then call the library.

What cannot work is told in one line with exit code 2 before any work starts. Heavy imports happen inside the commands,
so that ``intermoe --help`` is quick. Under a launcher: ``accelerate launch -m intermoe.cli train vae ...``.
One file per group of commands; each command is registered here.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import warnings
from typing import Annotated

try:
    import typer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the intermoe command needs typer: pip install 'intermoe[all]'") from error

from intermoe.cli import (
    ablate,
    backends,
    bench,
    convert,
    data,
    evaluate,
    export,
    generate,
    identity,
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
app.command()(routing.routing)
app.command()(bench.bench)
app.command()(convert.convert)
app.command()(data.prepare)
app.command()(data.stats)
app.command()(tune.tune)
app.command()(backends.backends)
app.command()(ablate.ablate)
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")
evaluate.app.command("identity")(identity.evaluate_identity)


def main() -> None:
    """Entry point of the ``intermoe`` command."""
    status = 1  # also of an exception that nobody catches

    def leave() -> None:
        """End here: freeing torch module by module would take long, for nothing."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def stop(number: int, _: object) -> None:
        """What is half written is removed on the way out, as after an error."""
        typer.echo(f"error: stopped by {signal.Signals(number).name}", err=True)
        raise SystemExit(128 + number)

    for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(ending) is signal.SIG_DFL:
            signal.signal(ending, stop)
    gc.set_threshold(10_000)  # torch and diffusers are too many objects to be searched for garbage all the time
    atexit.register(leave)  # as the first it runs last, when what others have registered is done
    warnings.showwarning = lambda message, *_: typer.echo(f"warning: {message}", err=True)
    try:
        app()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from intermoe import __version__

        typer.echo(__version__)
        raise typer.Exit
