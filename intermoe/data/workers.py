"""Processes that read data: they end with their parent, and their errors are told as its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Result = TypeVar("Result")
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


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    task: Callable[[Any, T], Result], context: Any, parts: Iterable[T], *, workers: int = 1
) -> Iterator[Result]:
    """``task(context, part)`` for every part, in their order, by ``workers`` processes; 1: by this one.

    Each process gets ``context`` once. No more than a part for each process and one are made ahead of what is taken, so
    memory does not grow with their number. ``task`` and all values are pickled.

    Raises:
        ChildProcessError: a process was killed. Otherwise what ``task`` raises.
    """
    if workers <= 1:
        yield from (task(context, part) for part in parts)
        return
    others = set(active_children())
    # spawned: a fork of a process with threads may stand still for ever
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (task, context))
    ahead: deque[Future[Any]] = deque()
    try:
        for part in parts:
            ahead.append(pool.submit(_work, part))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError("workers: a process that reads data was killed") from error
    except BaseException:  # nobody waits for what is not wanted any more
        for child in set(active_children()) - others:
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_job: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start(task: Callable[[Any, Any], Any], context: Any) -> None:
    global _job
    end_with_parent(0)
    torch.set_num_threads(1)  # as many processes as there are cores do not need threads as well
    _job = task, context


def _work(part: Any) -> Any:
    if _job is None:
        raise RuntimeError("workers: expected a process that in_order started, got another")
    task, context = _job
    return task(context, part)
