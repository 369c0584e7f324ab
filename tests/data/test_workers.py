"""Processes that read: which of them end when nobody waits any more, and what is told of their errors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from intermoe.data import workers
from intermoe.data.workers import in_order, told_in_one_line


class Child:
    def __init__(self, name: str) -> None:
        self.name, self.killed = name, False

    def kill(self) -> None:
        self.killed = True


class Pool:
    """Does its work when it is handed over, and notes how it was started and left."""

    made: list[Pool]

    def __init__(self, count: int, context: Any, start: Any, given: tuple[Any, Any]) -> None:
        self.count, self.method, self.start, self.given = count, context.get_start_method(), start, given
        self.left: dict[str, bool] | None = None
        Pool.made.append(self)
        CHILDREN.append(Child("own"))

    def submit(self, work: Any, part: int) -> Future[Any]:
        assert work is workers._work
        future: Future[Any] = Future()
        try:
            future.set_result(self.given[0](self.given[1], part))
        except ArithmeticError as error:
            future.set_exception(error)
        return future

    def shutdown(self, **options: bool) -> None:
        self.left = options


CHILDREN: list[Child] = []


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """A child of this process that was there before."""
    Pool.made = []
    CHILDREN[:] = [Child("other")]
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(workers, "active_children", lambda: list(CHILDREN))
    yield CHILDREN[0]
    CHILDREN.clear()


def task(whole: int, part: int) -> float:
    return whole / part


def test_processes_are_spawned_with_task_and_context_and_end_with_their_work(other: Child) -> None:
    assert list(in_order(task, 12, [3, 4, 6, 1], workers=2)) == [4, 3, 2, 12]
    (pool,) = Pool.made
    assert (pool.count, pool.method, pool.start, pool.given) == (2, "spawn", workers._start, (task, 12))
    assert pool.left == {"cancel_futures": True}
    assert [child.killed for child in CHILDREN] == [False, False]


def test_an_error_kills_the_processes_that_were_started_here_and_no_others(other: Child) -> None:
    results = in_order(task, 12, [3, 0, 4], workers=2)
    assert next(results) == 4
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert [(child.name, child.killed) for child in CHILDREN] == [("other", False), ("own", True)]
    assert Pool.made[0].left == {"cancel_futures": True}


@pytest.mark.parametrize("count", [1, 0])
def test_one_process_is_this_one(other: Child, count: int) -> None:
    assert list(in_order(task, 12, iter([3, 6]), workers=count)) == [4, 2]
    assert Pool.made == []


def test_work_is_done_with_what_the_process_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_job", None)
    with pytest.raises(RuntimeError, match="workers: expected a process that in_order started, got another"):
        workers._work(3)
    threads: list[int] = []
    monkeypatch.setattr(workers, "end_with_parent", lambda number: None)
    monkeypatch.setattr(workers.torch, "set_num_threads", threads.append)
    workers._start(task, 12)
    assert workers._work(3) == 4
    assert threads == [1]


def failing(error: Exception) -> Iterator[int]:
    yield 1
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed.\nmore"), ChildProcessError,
         "data.num_workers: DataLoader worker (pid 7) is killed."),
        (KeyError("in DataLoader worker"), KeyError, "'in DataLoader worker'"),
        (ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: a: no frame\n"),
         ValueError, "a: no frame"),
        (OSError("Caught OSError in DataLoader worker process 1.\n  File\nOSError: [Errno 5] a: b"), OSError,
         "[Errno 5] a: b"),
        (RuntimeError("a DataLoader worker"), RuntimeError, "a DataLoader worker"),
    ],
    ids=["killed", "key", "value", "system", "other"],
)  # fmt: skip
def test_an_error_of_a_worker_is_its_last_line(error: Exception, kind: type[Exception], told: str) -> None:
    batches = told_in_one_line(failing(error))
    assert next(batches) == 1
    with pytest.raises(kind) as found:
        next(batches)
    assert type(found.value) is kind
    assert str(found.value) == told
    assert found.value is error or found.value.__cause__ is error


def test_what_ends_with_its_parent_is_killed_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux: a signal at the parent's end, and an end at once where that has ended meanwhile."""
    ignored: list[tuple[Any, Any]] = []
    asked: list[tuple[int, int]] = []
    ended: list[int] = []
    parents = iter([7, 7, 7, 1])

    class Library:
        def __init__(self, name: str | None) -> None:
            assert name is None

        def prctl(self, option: int, signal: int) -> None:
            asked.append((option, int(signal)))

    monkeypatch.setattr(workers.signal, "signal", lambda *given: ignored.append(given))
    monkeypatch.setattr(workers.ctypes, "CDLL", Library)
    monkeypatch.setattr(workers.sys, "platform", "linux")
    monkeypatch.setattr(workers.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(workers.os, "_exit", ended.append)
    workers.end_with_parent(0)
    assert ended == []
    workers.end_with_parent(1)
    assert ended == [1]
    assert asked == [(1, 9), (1, 9)]  # PR_SET_PDEATHSIG, SIGKILL
    assert ignored == [(workers.signal.SIGINT, workers.signal.SIG_IGN)] * 2
