"""The goals of the native and of the Triton backend, judged by what a run has measured.

At the published model's widths, one expert per token; a goal whose cases a run left out is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from intermoe.benchmarks.harness.report import Report, Row

T = TypeVar("T")


class Bound(NamedTuple):
    """What a figure is to be: at least ``value``, or at most it."""

    value: float
    most: bool = False

    def holds(self, measured: float) -> bool:
        return measured <= self.value if self.most else measured >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.value:.3g}"


def least(value: float) -> Bound:
    return Bound(value)


def most(value: float) -> Bound:
    return Bound(value, most=True)


class Goal(NamedTuple):
    """What is measured, in ``unit``: times, or a quantity by its own.

    ``measure`` raises ``KeyError`` where the run has not what it needs.
    """

    name: str
    measure: Callable[[Rows], float]
    bound: Bound
    unit: str = "×"


class Judged(NamedTuple):
    """A goal beside what was measured."""

    goal: Goal
    measured: float

    @property
    def reached(self) -> bool:
        return self.goal.bound.holds(self.measured)


class Rows:
    """Rows by case and entry; a ``KeyError`` for what the run has not measured."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row.step, row.call, row.dtype, row.shape.get("S"), row.entry): row for row in rows}

    def moe(self, call: str, dtype: str, tokens: int, entry: str) -> Row:
        """Of the whole operation; a row's ``ratio`` is how many times as long as ours its entry takes."""
        return self._rows["moe", call, dtype, tokens, entry]

    def ours(self, call: str, dtype: str, tokens: int) -> Row:
        """The default backend's row, which ratios refer to."""
        found = (row for key, row in self._rows.items() if key[:4] == ("moe", call, dtype, tokens) and row.ours)
        return _known(next(found, None))

    def denoiser(self, dtype: str) -> float:
        """Our time as a multiple of that with the authors' blocks."""
        return 1 / self._rows["denoiser", "call with guidance", dtype, None, "authors' block"].ratio

    def memory(self, dtype: str, tokens: int) -> float:
        """Our peak with backward as a share of that of the authors' form."""
        rows = self.ours(TRAINING, dtype, tokens), self.moe(TRAINING, dtype, tokens, AUTHORS)
        ours, theirs = (_known(row.peak_bytes) for row in rows)
        return ours / theirs

    def graph(self, tokens: int, call: str = "forward") -> float:
        """Seconds of a captured call in bfloat16."""
        return self.moe(call, HALF, tokens, "triton, graph").median

    def graphs(self, call: str) -> float:
        """The dense network's time in a graph as a multiple of ours."""
        return self.moe(call, HALF, 9600, f"{DENSE}, graph").median / self.graph(9600, call)

    def overhead(self) -> float:
        """Microseconds that the registered operator adds to the kernels behind it."""
        name = self.ours("overhead", SINGLE, 2).entry
        whole, kernels = (self.moe("overhead", SINGLE, 2, f"{name}, {of}") for of in ("operator", "kernels alone"))
        return 1e6 * (whole.median - kernels.median)

    def host_reads(self, call: str) -> float:
        """Of the static mode."""
        return _known(self.moe(call, HALF, 9600, "triton, static").host_reads)

    def worst(self, dtype: str) -> float:
        """Largest difference from the reference of any entry of this package that runs the block's steps."""
        steps = ("route", "select", "experts", "combine", "moe")
        own = (row.difference for row in self._rows.values() if row.ours and row.dtype == dtype and row.step in steps)
        return _known(max((found for found in own if found is not None), default=None))


def _known(value: T | None) -> T:
    if value is None:
        raise KeyError
    return value


FORWARD, TRAINING = "forward", "forward + backward"
SINGLE, HALF = "float32", "bfloat16"
AUTHORS, DENSE, LOOP = "authors' form", "dense network", "expert loop"


def _beside(entry: str, call: str, tokens: int, dtype: str, bound: Bound, spoken: str = "") -> Goal:
    """At least: how many times as long as ours the entry takes; at most: our time as a multiple of the entry's."""
    share = "over a dense network" if bound.most else "share of a dense network"
    told = "forward" if call == FORWARD else "with backward"
    name = f"{told} S={tokens} {spoken or dtype}, {share if entry == DENSE else entry}"
    return Goal(name, lambda rows: rows.moe(call, dtype, tokens, entry).ratio ** (-1 if bound.most else 1), bound)


GOALS: dict[str, tuple[Goal, ...]] = {
    "cpu": (
        _beside(AUTHORS, FORWARD, 4800, SINGLE, least(2.0)),
        _beside(DENSE, FORWARD, 4800, SINGLE, most(1.15)),
        _beside(AUTHORS, FORWARD, 4800, HALF, least(7.0)),
        _beside(DENSE, FORWARD, 4800, HALF, most(1.5)),
        _beside(AUTHORS, FORWARD, 300, SINGLE, least(1.6)),
        _beside(AUTHORS, FORWARD, 300, HALF, least(3.0)),
        _beside(AUTHORS, TRAINING, 4800, SINGLE, least(1.7)),
        _beside(AUTHORS, TRAINING, 4800, HALF, least(4.0)),
        Goal("peak memory with backward S=4800, over the authors' form", lambda r: r.memory(SINGLE, 4800), most(1 / 3)),
        Goal("denoiser call float32, over the authors' block", lambda r: r.denoiser(SINGLE), most(0.5)),
        Goal("denoiser call bfloat16, over the authors' block", lambda r: r.denoiser(HALF), most(0.15)),
        Goal("overhead of the registered operator", Rows.overhead, most(10.0), "µs"),
        Goal("difference from the reference, float32", lambda r: r.worst(SINGLE), most(1e-5), ""),
        Goal("difference from the reference, bfloat16", lambda r: r.worst(HALF), most(8 * 2**-7), ""),
    ),
    "cuda": (
        _beside(DENSE, FORWARD, 9600, HALF, least(0.75)),
        Goal("forward S=9600 bfloat16, share of a dense network, in graphs", lambda r: r.graphs(FORWARD), least(0.75)),
        Goal("with backward S=9600 bfloat16, share of dense, in graphs", lambda r: r.graphs(TRAINING), least(0.7)),
        _beside(AUTHORS, FORWARD, 9600, HALF, least(6.0)),
        _beside(LOOP, FORWARD, 9600, HALF, least(1.3)),
        _beside(DENSE, TRAINING, 9600, HALF, least(0.7)),
        _beside(AUTHORS, TRAINING, 9600, HALF, least(4.0)),
        Goal("forward S=300 bfloat16 in a graph", lambda r: 1e6 * r.graph(300), most(70.0), "µs"),
        Goal(
            "forward S=300 bfloat16 in a graph, authors' form",
            lambda r: r.moe(FORWARD, HALF, 300, AUTHORS).median / r.graph(300),
            least(15.0),
        ),
        _beside(AUTHORS, FORWARD, 9600, SINGLE, least(2.5), "TF32"),
        _beside(AUTHORS, TRAINING, 9600, SINGLE, least(2.5), "TF32"),
        Goal("host reads, static mode, forward", lambda r: r.host_reads(FORWARD), most(0.0), ""),
        Goal("host reads, static mode, with backward", lambda r: r.host_reads(TRAINING), most(0.0), ""),
        Goal("peak memory with backward S=9600, over the authors' form", lambda r: r.memory(HALF, 9600), most(1 / 4)),
        Goal("difference from the reference, TF32", lambda r: r.worst(SINGLE), most(4 * 2**-10), ""),
        Goal("difference from the reference, bfloat16", lambda r: r.worst(HALF), most(8 * 2**-7), ""),
    ),
}
"""By the kind of device."""


def judge(report: Report) -> list[Judged]:
    """Every goal of the report's kind of device whose cases were run; none of a quick run, whose times mean nothing."""
    found = Rows(report.rows)
    judged: list[Judged] = []
    for goal in GOALS.get(report.machine.kind, ()) if report.level != "quick" else ():
        with suppress(KeyError):
            judged.append(Judged(goal, goal.measure(found)))
    return judged


def table(judged: Iterable[Judged]) -> list[str]:
    """A Markdown table."""
    lines = ["| what | goal | measured | reached |", "|---|---|---|---|"]
    for found in judged:
        unit = f" {found.goal.unit}" if found.goal.unit else ""
        reached = "yes" if found.reached else "no"
        lines.append(f"| {found.goal.name} | {found.goal.bound}{unit} | {found.measured:.3g}{unit} | {reached} |")
    return lines
