"""The process of the ``intermoe`` command: how it ends, and what it does with signals and warnings."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress

import typer

from intermoe import cli

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of what Ctrl+C ended, typer's too."""


def main() -> None:
    """Entry point of the ``intermoe`` command."""
    status = 1  # also of an exception that nobody catches
    stopped: set[int] = set()

    def leave() -> None:
        """End here: freeing torch module by module would take long, for nothing."""
        whole = flushed()
        os._exit(status or int(not whole))

    def stop(number: int, _: object) -> None:
        """What is half written is removed on the way out, as after an error."""
        if number not in stopped:
            tell(f"error: stopped by {signal.Signals(number).name}")
        stopped.add(number)
        raise SystemExit(128 + number)

    prepare_streams()
    sys.unraisablehook = stop_all_the_same

    for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(ending) is signal.SIG_DFL:
            signal.signal(ending, stop)
    gc.set_threshold(10_000)  # torch and diffusers are too many objects to be searched for garbage all the time
    atexit.register(leave)  # as the first it runs last, when what others have registered is done
    warnings.showwarning = lambda message, *_: tell(f"warning: {message}")
    try:
        cli.app()
        status = 0
    except KeyboardInterrupt:  # before there is a command
        status = INTERRUPTED
    except OSError as error:  # what was to be told could not be written, as on a full disk
        complain(error)
        raise SystemExit(status) from None
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status != INTERRUPTED:
            raise
    if status == INTERRUPTED:
        tell(f"error: stopped by {signal.SIGINT.name}")
        raise SystemExit(status)


def stop_all_the_same(lost: sys.UnraisableHookArgs) -> None:
    """A signal that came while an object was freed, where Python drops what its handler raises, comes once more."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        number = int(signal.SIGINT)
    elif isinstance(lost.exc_value, SystemExit) and isinstance(code := lost.exc_value.code, int) and code > 128:
        number = code - 128
    else:
        sys.__unraisablehook__(lost)
        return
    again = threading.Timer(0.05, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def prepare_streams() -> None:
    """Streams that are closed swallow all, and no file that is opened later takes their place; words that a stream's
    encoding does not have are escaped.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lasts
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def tell(message: str) -> None:
    """A line to standard error, where it can be written to."""
    with suppress(OSError):
        typer.echo(message, err=True)


def complain(error: OSError) -> None:
    """Tell of a stream that could not be written to, unless nobody listens to it any more."""
    if not isinstance(error, BrokenPipeError):
        tell(f"error: {error}")


def flushed() -> bool:
    """Whether all that was told could be written."""
    whole = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            whole = False
            complain(error)
    return whole


if __name__ == "__main__":
    main()
