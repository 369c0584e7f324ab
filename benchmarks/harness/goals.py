"""The goals of the native and of the Triton backend, judged by what a run has measured.

At the published model's widths, one expert per token; a goal whose cases a run left out is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intermoe.benchmarks.harness.report import Report, Row

Measure = Callable[["Rows"], float]
"""The measured value; a ``KeyError`` where the run has not what it needs."""


@dataclass(frozen=True)
class Goal:
    """``measured >= least`` or ``measured <= most``, in ``unit``: times, or a quantity by its own."""

    name: str
    measure: Measure
    least: float | None = None
    most: float | None = None
    unit: str = "×"


@dataclass(frozen=True)
class Judged:
    """A goal beside what was measured."""

    goal: Goal
    measured: float

    @property
    def reached(self) -> bool:
        goal = self.goal
        return self.measured >= goal.least if goal.least is not None else self.measured <= (goal.most or 0.0)


class Rows:
    """Rows by case and entry; a ``KeyError`` for what the run has not measured."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row.step, row.call, row.dtype, row.shape.get("S"), row.entry): row for row in rows}

    def moe(self, call: str, dtype: str, tokens: int, entry: str) -> Row:
        """Of the whole operation; a row's ``ratio`` is how many times as long as ours its entry takes."""
        return self._rows["moe", call, dtype, tokens, entry]

    def ours(self, call: str, dtype: str, tokens: int) -> Row:
        """The default backend's row, which ratios refer to."""
        for key, row in self._rows.items():
            if key[:4] == ("moe", call, dtype, tokens) and row.ours:
                return row
        raise KeyError(call)

    def denoiser(self, dtype: str) -> float:
        """Our time as a multiple of that with the authors' blocks."""
        return 1 / self._rows["denoiser", "call with guidance", dtype, None, "authors' block"].ratio

    def memory(self, dtype: str, tokens: int) -> float:
        """Our peak with backward as a share of that of the authors' form."""
        ours = self.ours(TRAINING, dtype, tokens).peak_bytes
        theirs = self.moe(TRAINING, dtype, tokens, AUTHORS).peak_bytes
        return ours / theirs if ours is not None and theirs else _absent("peak_bytes")

    def graph(self, tokens: int, call: str = "forward") -> Row:
        """A captured call in bfloat16."""
        return self.moe(call, HALF, tokens, "triton, graph")

    def graphs(self, call: str) -> float:
        """The dense network's time in a graph as a multiple of ours."""
        return self.moe(call, HALF, 9600, f"{DENSE}, graph").median / self.graph(9600, call).median

    def graph_over_authors(self) -> float:
        """The authors' time on one prompt as a multiple of ours in a graph."""
        return self.moe(FORWARD, HALF, 300, AUTHORS).median / self.graph(300).median

    def overhead(self) -> float:
        """Microseconds that the registered operator adds to the kernels behind it."""
        name = self.ours("overhead", SINGLE, 2).entry
        whole = self.moe("overhead", SINGLE, 2, f"{name}, operator").median
        return 1e6 * (whole - self.moe("overhead", SINGLE, 2, f"{name}, kernels alone").median)

    def host_reads(self, call: str) -> float:
        """Of the static mode."""
        found = self.moe(call, HALF, 9600, "triton, static").host_reads
        return float(found) if found is not None else _absent("host_reads")

    def worst(self, dtype: str) -> float:
        """Largest difference from the reference of any entry of this package that runs the block's steps."""
        steps = ("route", "select", "experts", "combine", "moe")
        own = [row for row in self._rows.values() if row.ours and row.dtype == dtype and row.step in steps]
        found = [row.difference for row in own if row.difference is not None]
        return max(found) if found else _absent(dtype)


def _absent(name: str) -> float:
    raise KeyError(name)


FORWARD, TRAINING = "forward", "forward + backward"
SINGLE, HALF = "float32", "bfloat16"
AUTHORS, DENSE, LOOP = "authors' form", "dense network", "expert loop"


def _beside(
    entry: str,
    call: str,
    tokens: int,
    dtype: str,
    *,
    least: float | None = None,
    most: float | None = None,
    spoken: str = "",
) -> Goal:
    """``least``: how many times as long as ours the entry takes; ``most``: our time as a multiple of the entry's."""
    share = "over a dense network" if most is not None else "share of a dense network"
    told = "forward" if call == FORWARD else "with backward"
    name = f"{told} S={tokens} {spoken or dtype}, {share if entry == DENSE else entry}"
    power = 1 if most is None else -1
    return Goal(name, lambda rows: rows.moe(call, dtype, tokens, entry).ratio ** power, least, most)


GOALS: dict[str, tuple[Goal, ...]] = {
    "cpu": (
        _beside(AUTHORS, FORWARD, 4800, SINGLE, least=2.0),
        _beside(DENSE, FORWARD, 4800, SINGLE, most=1.15),
        _beside(AUTHORS, FORWARD, 4800, HALF, least=7.0),
        _beside(DENSE, FORWARD, 4800, HALF, most=1.5),
        _beside(AUTHORS, FORWARD, 300, SINGLE, least=1.6),
        _beside(AUTHORS, FORWARD, 300, HALF, least=3.0),
        _beside(AUTHORS, TRAINING, 4800, SINGLE, least=1.7),
        _beside(AUTHORS, TRAINING, 4800, HALF, least=4.0),
        Goal("peak memory with backward S=4800, over the authors' form", lambda r: r.memory(SINGLE, 4800), most=1 / 3),
        Goal("denoiser call float32, over the authors' block", lambda r: r.denoiser(SINGLE), most=0.5),
        Goal("denoiser call bfloat16, over the authors' block", lambda r: r.denoiser(HALF), most=0.15),
        Goal("overhead of the registered operator", Rows.overhead, most=10.0, unit="µs"),
        Goal("difference from the reference, float32", lambda r: r.worst(SINGLE), most=1e-5, unit=""),
        Goal("difference from the reference, bfloat16", lambda r: r.worst(HALF), most=8 * 2**-7, unit=""),
    ),
    "cuda": (
        _beside(DENSE, FORWARD, 9600, HALF, least=0.75),
        Goal("forward S=9600 bfloat16, share of a dense network, in graphs", lambda r: r.graphs(FORWARD), least=0.75),
        Goal("with backward S=9600 bfloat16, share of dense, in graphs", lambda r: r.graphs(TRAINING), least=0.7),
        _beside(AUTHORS, FORWARD, 9600, HALF, least=6.0),
        _beside(LOOP, FORWARD, 9600, HALF, least=1.3),
        _beside(DENSE, TRAINING, 9600, HALF, least=0.7),
        _beside(AUTHORS, TRAINING, 9600, HALF, least=4.0),
        Goal("forward S=300 bfloat16 in a graph", lambda r: 1e6 * r.graph(300).median, most=70.0, unit="µs"),
        Goal("forward S=300 bfloat16 in a graph, authors' form", Rows.graph_over_authors, least=15.0),
        _beside(AUTHORS, FORWARD, 9600, SINGLE, least=2.5, spoken="TF32"),
        _beside(AUTHORS, TRAINING, 9600, SINGLE, least=2.5, spoken="TF32"),
        Goal("host reads, static mode, forward", lambda r: r.host_reads(FORWARD), most=0.0, unit=""),
        Goal("host reads, static mode, with backward", lambda r: r.host_reads(TRAINING), most=0.0, unit=""),
        Goal("peak memory with backward S=9600, over the authors' form", lambda r: r.memory(HALF, 9600), most=1 / 4),
        Goal("difference from the reference, TF32", lambda r: r.worst(SINGLE), most=4 * 2**-10, unit=""),
        Goal("difference from the reference, bfloat16", lambda r: r.worst(HALF), most=8 * 2**-7, unit=""),
    ),
}
"""By the kind of device."""


def judge(report: Report) -> list[Judged]:
    """Every goal of the report's kind of device whose cases were run; none of a quick run, whose times mean nothing."""
    found = Rows(report.rows)
    judged: list[Judged] = []
    for goal in GOALS.get(report.machine.kind, ()) if report.level != "quick" else ():
        try:
            judged.append(Judged(goal, goal.measure(found)))
        except KeyError:
            continue
    return judged


def table(judged: Iterable[Judged]) -> list[str]:
    """A Markdown table."""
    lines = ["| what | goal | measured | reached |", "|---|---|---|---|"]
    for found in judged:
        goal = found.goal
        bound = f"≥ {goal.least:.3g}" if goal.least is not None else f"≤ {goal.most:.3g}"
        unit = f" {goal.unit}" if goal.unit else ""
        reached = "yes" if found.reached else "no"
        lines.append(f"| {goal.name} | {bound}{unit} | {found.measured:.3g}{unit} | {reached} |")
    return lines
