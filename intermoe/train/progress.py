"""What a run tells while it trains: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_COLUMNS = (
    TextColumn("step"),
    MofNCompleteColumn(),
    BarColumn(),
    TextColumn("loss {task.fields[loss]:.4f}"),
    TextColumn("{task.fields[rate]:.1f} items/s"),
    TextColumn("{task.fields[note]}"),
    TimeRemainingColumn(),
)


class RunProgress:
    """Progress of a run on standard error, used as ``with RunProgress(...) as progress:``.

    Args:
        steps: of the whole run.
        done: those before it was resumed.
        items: that a step takes.
        shown: False on all processes but the main one, which then tell nothing.
    """

    def __init__(self, steps: int, done: int, items: int, *, shown: bool) -> None:
        console = Console(stderr=True)
        self.steps, self.items = steps, items
        self.lines = shown and not console.is_terminal
        self.shown = shown
        self.bar = Progress(*_COLUMNS, console=console, disable=not shown or self.lines)
        self.task = self.bar.add_task("train", total=steps, completed=done, loss=math.nan, rate=0.0, note="")

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A line of its own, on a terminal above the bar."""
        if self.lines:
            print(line, file=sys.stderr, flush=True)
        elif self.shown:
            self.bar.console.print(line, highlight=False, markup=False)

    def note(self, line: str) -> None:
        """A line that only a log gets: a terminal shows as much in its bar."""
        if self.lines:
            self.say(line)

    def advance(self, step: int, loss: float, rate: float, balance: str, *, logged: bool) -> None:
        """``step`` steps are done, ``rate`` is in items a second; a log gets a line of those that are ``logged``."""
        self.bar.update(self.task, completed=step, loss=loss, rate=rate, note=balance)
        if logged:
            left = timedelta(seconds=round((self.steps - step) * self.items / rate))
            parts = [f"step {step}/{self.steps}", f"loss {loss:.4f}", f"{rate:.1f} items/s", balance, f"{left} left"]
            self.note(", ".join(filter(None, parts)))

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """What a validation found."""
        self.note(f"validation at step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
