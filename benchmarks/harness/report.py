"""What a run writes down: rows, a JSON file, a Markdown table; and the comparison of two runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from intermoe.benchmarks.harness import goals
from intermoe.benchmarks.harness.timing import Ceilings, Machine
from intermoe.config import Config
from intermoe.files import write_json, write_text

SCHEMA = 1
OURS = ("native", "triton", "reference")
"""Entries that are this package's backends, whatever follows their name."""


def case_name(step: str, call: str, dtype: str, shape: Mapping[str, float]) -> str:
    """``moe forward float32 S=300``; whole numbers in full, so that ``--match S=1000000`` finds what it says."""
    sizes = (f"{n}={int(v) if float(v).is_integer() else format(v, 'g')}" for n, v in shape.items())
    return " ".join([step, call, dtype, *sizes])


def is_ours(entry: str) -> bool:
    """Whether an entry is one of this package's backends."""
    return entry.split(",")[0] in OURS


@dataclass(frozen=True)
class Row(Config):
    """One entry of one case. Times are seconds of one call, with the range of the middle 80 % of the rounds."""

    step: str
    call: str
    entry: str
    dtype: str
    shape: dict[str, float]
    median: float
    low: float
    high: float
    rounds: int
    ratio: float
    """Time as a multiple of the case's first entry: the median of the ratios of each round."""
    ratio_low: float
    ratio_high: float
    tokens_per_second: float | None = None
    flop_per_second: float | None = None
    intensity: float | None = None
    """Counted FLOP per byte that must be moved."""
    bound_share: float | None = None
    """Bound (each step at the slower of the two measured ceilings) over the median."""
    peak_bytes: int | None = None
    host_reads: int | None = None
    seconds_per_second: float | None = None
    """Seconds that one generated second of motion takes."""
    difference: float | None = None
    """Largest relative norm of an output's difference from the reference, gradients included."""
    note: str = ""

    @property
    def case(self) -> str:
        """The case, the same for all entries that took turns."""
        return case_name(self.step, self.call, self.dtype, self.shape)

    @property
    def key(self) -> str:
        return f"{self.case}: {self.entry}"

    @property
    def ours(self) -> bool:
        return is_ours(self.entry)


@dataclass(frozen=True)
class Skipped(Config):
    """What was not timed, and why: this machine cannot do it, or it ``failed``."""

    case: str
    entry: str
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Report(Config):
    """A whole run."""

    schema: int
    date: str
    level: str
    machine: Machine
    ceilings: Ceilings
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = field(default_factory=tuple)
    to_do: int = 0
    """Cases of the run that were not reached."""

    @property
    def failed(self) -> list[Skipped]:
        return [skipped for skipped in self.skipped if skipped.failed]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {self.schema}")

    def save(self, folder: str | Path) -> Path:
        """Write ``<folder>/<device>/<date>.json`` and the table beside it. Returns the JSON file."""
        path = Path(folder, self.machine.label, f"{self.date.replace(':', '')}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict())
        write_text(path.with_suffix(".md"), markdown(self))
        return path


def si(value: float | None, unit: str) -> str:
    """``value`` with a prefix: 0.00123 s is 1.23 ms."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    prefixes = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}
    power = min(max(math.floor(math.log10(abs(value)) / 3), -3), 4)
    return f"{value / 1000.0**power:.3g} {prefixes[power]}{unit}"


def conditions(report: Report) -> list[str]:
    """Where and how the numbers were taken, as sentences."""
    machine, ceilings = report.machine, report.ceilings
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    products = ", ".join(f"{si(rate, 'FLOP/s')} {name}" for name, rate in ceilings.product.items())
    lines = [
        f"{machine.device}, {machine.system}, {machine.threads} threads, {machine.instructions}; {versions}.",
        f"Ceilings measured in the same run: copy {si(ceilings.copy, 'B/s')}; large product {products}.",
        f"Date {report.date}, level {report.level}, float32 products {machine.float32_products}.",
    ]
    if machine.clocks:
        driver = f"driver {machine.driver}, " if machine.driver else ""
        lines.append(f"As found: {driver}{machine.clocks}.")
    if machine.kind == "cpu" and not machine.amx:
        lines.append("No AMX on this machine: bfloat16 products run without matrix units.")
    if report.to_do:
        lines.append(f"The run ended early: {report.to_do} cases were not reached.")
    return lines


def markdown(report: Report) -> str:
    """Conditions, the goals that the run can judge, and one table per step."""
    lines = [f"# Benchmarks on {report.machine.device}", "", *[f"- {line}" for line in conditions(report)], ""]
    if report.failed:
        lines += ["## Failed", "", "| case | entry | what |", "|---|---|---|"]
        lines += [f"| {s.case} | {s.entry} | {' '.join(s.reason.split())} |" for s in report.failed] + [""]
    if judged := goals.judge(report):
        lines += ["## Goals", "", *goals.table(judged), ""]
    for step in dict.fromkeys(row.step for row in report.rows):
        lines += [f"## {step}", "", *table([row for row in report.rows if row.step == step]), ""]
    if skipped := [s for s in report.skipped if not s.failed]:
        lines += ["## Skipped", "", "| entry | cases | reason |", "|---|---|---|"]
        reasons = Counter((s.entry, " ".join(s.reason.split())) for s in skipped)
        lines += [f"| {entry} | {count} | {reason} |" for (entry, reason), count in reasons.items()]
        lines.append("")
    return "\n".join(lines)


def line(report: Report, case: str) -> str:
    """One case as a line: its entries' times and ratios, or why there are none."""
    found = [f"{row.entry} {si(row.median, 's')} ({row.ratio:.2f})" for row in report.rows if row.case == case]
    failed = [f"{s.entry} FAILED: {s.reason}" for s in report.failed if s.case == case]
    whole = [s.reason for s in report.skipped if s.case == case and s.entry == "all" and not s.failed]
    return f"{case}: {', '.join([*found, *failed, *whole])}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "case": lambda row: row.case,
    "entry": lambda row: row.entry + (f" ({row.note})" if row.note else ""),
    "median": lambda row: si(row.median, "s"),
    "middle 80 %": lambda row: f"{si(row.low, 's')} – {si(row.high, 's')}",
    "ratio": lambda row: f"{row.ratio:.2f}",
    "tokens/s": lambda row: si(row.tokens_per_second, ""),
    "FLOP/s": lambda row: si(row.flop_per_second, ""),
    "of bound": lambda row: "" if row.bound_share is None else f"{row.bound_share:.0%}",
    "peak memory": lambda row: si(row.peak_bytes, "B"),
    "host reads": lambda row: "" if row.host_reads is None else str(row.host_reads),
    "s per s": lambda row: "" if row.seconds_per_second is None else f"{row.seconds_per_second:.3g}",
    "difference": lambda row: "" if row.difference is None else f"{row.difference:.1e}",
}


def table(rows: Iterable[Row]) -> list[str]:
    """A Markdown table of rows; the ratio is to the case's first entry, and above 1 means slower than it."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return lines + [f"| {' | '.join(cell(row) for cell in COLUMNS.values())} |" for row in rows]


@dataclass(frozen=True)
class Change:
    """One entry in two runs: the new time as a multiple of the old."""

    key: str
    old: float
    new: float
    verdict: str
    """"slower" or "faster" beyond the spread, else "same"; see ``compare``."""

    @property
    def ratio(self) -> float:
        return self.new / self.old


def compare(old: Report, new: Report) -> list[Change]:
    """Every row that both runs have, in the order of the new one.

    A row is slower or faster if the ranges of its time do not overlap. On a CPU, where other work may slow a whole run,
    it must also have changed against what took turns with it: the case's first entry, and the first entry itself
    against a baseline, by the ranges of their ratios.

    Raises:
        ValueError: the runs share no row.
    """
    before = {row.key: row for row in old.rows}
    shared = [(before[row.key], row) for row in new.rows if row.key in before]
    if not shared:
        raise ValueError("--compare: expected two runs with a case in common, got none")
    both_cpu = old.machine.kind == new.machine.kind == "cpu"
    changes = []
    for past, row in shared:
        verdict = _verdict(past.low, past.high, row.low, row.high)
        if both_cpu and verdict != "same" and not _stands_out(past, row, shared, verdict):
            verdict = "same"
        changes.append(Change(row.key, past.median, row.median, verdict))
    return changes


def _verdict(old_low: float, old_high: float, new_low: float, new_high: float) -> str:
    return "slower" if new_low > old_high else "faster" if new_high < old_low else "same"


def _stands_out(past: Row, row: Row, shared: list[tuple[Row, Row]], verdict: str) -> bool:
    """Whether the row changed against the entries that took turns with it, where there are any."""
    if row.ratio_low != row.ratio_high or row.ratio != 1.0:  # another than the first, whose ratio is 1 in every round
        return _verdict(past.ratio_low, past.ratio_high, row.ratio_low, row.ratio_high) == verdict
    others = [(p, r) for p, r in shared if r.case == row.case and not r.ours]
    opposite = "faster" if verdict == "slower" else "slower"
    found = [_verdict(p.ratio_low, p.ratio_high, r.ratio_low, r.ratio_high) == opposite for p, r in others]
    return any(found) or not found
