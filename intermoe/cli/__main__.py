"""The process of the ``intermoe`` command: how it ends, and what it does with signals and warnings."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import warnings

import typer

from intermoe import cli

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of what Ctrl+C ended, typer's too."""


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
        cli.app()
        status = 0
    except KeyboardInterrupt:  # before there is a command
        status = INTERRUPTED
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status != INTERRUPTED:
            raise
    if status == INTERRUPTED:
        typer.echo(f"error: stopped by {signal.SIGINT.name}", err=True)
        raise SystemExit(status)


if __name__ == "__main__":
    main()
