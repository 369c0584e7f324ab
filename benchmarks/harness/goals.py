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
    """Rows by case and entry."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row.step, row.call, row.dtype, row.shape.get("S"), row.entry): row for row in rows}

    def of(self, step: str, call: str, dtype: str, tokens: int | None, entry: str) -> Row:
        return self._rows[step, call, dtype, tokens, entry]

    def first(self, step: str, call: str, dtype: str, tokens: int | None) -> Row:
        """The default backend's row, which ratios refer to."""
        for key, row in self._rows.items():
            if key[:4] == (step, call, dtype, tokens) and row.ours:
                return row
        raise KeyError(call)

    def worst(self, dtype: str) -> float:
        """Largest difference from the reference of any entry of this package that runs the block's steps."""
        steps = ("route", "select", "experts", "combine", "moe")
        own = [row for row in self._rows.values() if row.ours and row.dtype == dtype and row.step in steps]
        found = [row.difference for row in own if row.difference is not None]
        return max(found) if found else _absent(dtype)


def _absent(name: str) -> float:
    raise KeyError(name)


FORWARD, TRAINING = "forward", "forward + backward"
AUTHORS, DENSE, LOOP = "authors' form", "dense network", "expert loop"


def _over(entry: str, call: str, dtype: str, tokens: int) -> Measure:
    """How many times as long as ours the entry takes."""
    return lambda rows: rows.of("moe", call, dtype, tokens, entry).ratio


def _under(entry: str, call: str, dtype: str, tokens: int) -> Measure:
    """Our time as a multiple of the entry's."""
    return lambda rows: 1 / rows.of("moe", call, dtype, tokens, entry).ratio


def _memory(dtype: str, tokens: int) -> Measure:
    def measure(rows: Rows) -> float:
        ours = rows.first("moe", TRAINING, dtype, tokens).peak_bytes
        theirs = rows.of("moe", TRAINING, dtype, tokens, AUTHORS).peak_bytes
        return ours / theirs if ours is not None and theirs else _absent("peak_bytes")

    return measure


def _denoiser(dtype: str) -> Measure:
    return lambda rows: 1 / rows.of("denoiser", "call with guidance", dtype, None, "authors' block").ratio


def _overhead(rows: Rows) -> float:
    """What the registered operator adds to the kernels behind it."""
    name = rows.first("moe", "overhead", "float32", 2).entry
    whole = rows.of("moe", "overhead", "float32", 2, f"{name}, operator")
    return 1e6 * (whole.median - rows.of("moe", "overhead", "float32", 2, f"{name}, kernels alone").median)


def _graph(rows: Rows) -> float:
    return 1e6 * rows.of("moe", FORWARD, "bfloat16", 300, "triton, graph").median


def _graphs(call: str) -> Measure:
    """The dense network's time in a graph as a multiple of ours."""

    def measure(rows: Rows) -> float:
        theirs = rows.of("moe", call, "bfloat16", 9600, f"{DENSE}, graph").median
        return theirs / rows.of("moe", call, "bfloat16", 9600, "triton, graph").median

    return measure


def _graph_over_authors(rows: Rows) -> float:
    theirs = rows.of("moe", FORWARD, "bfloat16", 300, AUTHORS).median
    return theirs / rows.of("moe", FORWARD, "bfloat16", 300, "triton, graph").median


def _host_reads(call: str) -> Measure:
    def measure(rows: Rows) -> float:
        found = rows.of("moe", call, "bfloat16", 9600, "triton, static").host_reads
        return float(found) if found is not None else _absent("host_reads")

    return measure


def _worst(dtype: str) -> Measure:
    return lambda rows: rows.worst(dtype)


GOALS: dict[str, tuple[Goal, ...]] = {
    "cpu": (
        Goal("forward S=4800 float32, authors' form", _over(AUTHORS, FORWARD, "float32", 4800), least=2.0),
        Goal("forward S=4800 float32, over a dense network", _under(DENSE, FORWARD, "float32", 4800), most=1.15),
        Goal("forward S=4800 bfloat16, authors' form", _over(AUTHORS, FORWARD, "bfloat16", 4800), least=7.0),
        Goal("forward S=4800 bfloat16, over a dense network", _under(DENSE, FORWARD, "bfloat16", 4800), most=1.5),
        Goal("forward S=300 float32, authors' form", _over(AUTHORS, FORWARD, "float32", 300), least=1.6),
        Goal("forward S=300 bfloat16, authors' form", _over(AUTHORS, FORWARD, "bfloat16", 300), least=3.0),
        Goal("with backward S=4800 float32, authors' form", _over(AUTHORS, TRAINING, "float32", 4800), least=1.7),
        Goal("with backward S=4800 bfloat16, authors' form", _over(AUTHORS, TRAINING, "bfloat16", 4800), least=4.0),
        Goal("peak memory with backward S=4800, over the authors' form", _memory("float32", 4800), most=1 / 3),
        Goal("denoiser call float32, over the authors' block", _denoiser("float32"), most=0.5),
        Goal("denoiser call bfloat16, over the authors' block", _denoiser("bfloat16"), most=0.15),
        Goal("overhead of the registered operator", _overhead, most=10.0, unit="µs"),
        Goal("difference from the reference, float32", _worst("float32"), most=1e-5, unit=""),
        Goal("difference from the reference, bfloat16", _worst("bfloat16"), most=8 * 2**-7, unit=""),
    ),
    "cuda": (
        Goal("forward S=9600 bfloat16, share of a dense network", _over(DENSE, FORWARD, "bfloat16", 9600), least=0.75),
        Goal("forward S=9600 bfloat16, share of a dense network, in graphs", _graphs(FORWARD), least=0.75),
        Goal("with backward S=9600 bfloat16, share of dense, in graphs", _graphs(TRAINING), least=0.7),
        Goal("forward S=9600 bfloat16, authors' form", _over(AUTHORS, FORWARD, "bfloat16", 9600), least=6.0),
        Goal("forward S=9600 bfloat16, expert loop", _over(LOOP, FORWARD, "bfloat16", 9600), least=1.3),
        Goal("with backward S=9600 bfloat16, share of dense", _over(DENSE, TRAINING, "bfloat16", 9600), least=0.7),
        Goal("with backward S=9600 bfloat16, authors' form", _over(AUTHORS, TRAINING, "bfloat16", 9600), least=4.0),
        Goal("forward S=300 bfloat16 in a graph", _graph, most=70.0, unit="µs"),
        Goal("forward S=300 bfloat16 in a graph, authors' form", _graph_over_authors, least=15.0),
        Goal("forward S=9600 TF32, authors' form", _over(AUTHORS, FORWARD, "float32", 9600), least=2.5),
        Goal("with backward S=9600 TF32, authors' form", _over(AUTHORS, TRAINING, "float32", 9600), least=2.5),
        Goal("host reads, static mode, forward", _host_reads(FORWARD), most=0.0, unit=""),
        Goal("host reads, static mode, with backward", _host_reads(TRAINING), most=0.0, unit=""),
        Goal("peak memory with backward S=9600, over the authors' form", _memory("bfloat16", 9600), most=1 / 4),
        Goal("difference from the reference, TF32", _worst("float32"), most=4 * 2**-10, unit=""),
        Goal("difference from the reference, bfloat16", _worst("bfloat16"), most=8 * 2**-7, unit=""),
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
