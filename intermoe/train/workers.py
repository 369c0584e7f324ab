"""Processes that load data: they end with their parent, and their errors are told as its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1


def end_with_parent(_: int) -> None:
    """In a worker: be killed when the parent ends, however it ends.

    A worker that waits to hand over a batch to a parent that was killed would wait for ever. This is for Linux; torch's
    workers look after their parent elsewhere too, but only while they wait for work.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    if sys.platform == "linux":
        parent = os.getppid()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)


def told_in_one_line(batches: Iterator[T]) -> Iterator[T]:
    """``batches``; what goes wrong in a worker is raised without the worker's traceback in the message.

    Raises:
        ChildProcessError: a worker was killed. Otherwise the type of error that the worker met.
    """
    try:
        yield from batches
    except Exception as error:
        text = str(error)
        if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
            raise ChildProcessError(f"data.num_workers: {text.splitlines()[0]}") from error
        if "in DataLoader worker process" in text:
            last = text.rstrip().splitlines()[-1]
            raise type(error)(last.removeprefix(f"{type(error).__name__}: ")) from error
        raise
