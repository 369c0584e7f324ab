"""A case: what competes on which inputs. Nothing is timed before its results agree with the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intermoe.benchmarks.harness.report import Row, Skipped, case_name, is_ours
from intermoe.benchmarks.harness.timing import (
    Budget,
    Call,
    Ceilings,
    captured,
    clock_of,
    host_reads,
    name_of,
    peak_memory,
    ratios,
    summarise,
    synchronise,
    take_turns,
)
from intermoe.benchmarks.harness.work import Work

Outputs = tuple[Tensor, ...]
LEVELS = ("quick", "default", "full")
PIECE = 1 << 24
"""Numbers that are compared at a time, in float64."""


@dataclass(frozen=True)
class Scope:
    """What a run covers: ``quick`` proves that everything works on tiny shapes, its times mean nothing."""

    device: torch.device
    level: str = "default"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level: expected one of {LEVELS}, got {self.level!r}")

    @property
    def quick(self) -> bool:
        return self.level == "quick"

    @property
    def full(self) -> bool:
        return self.level == "full"

    @property
    def all_backends(self) -> bool:
        """Whether whole operations run on every backend; a default run on a CPU has no time but for the default one."""
        return self.level != "default" or self.device.type == "cuda"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Storage types; float16 is timed on devices that have units for it."""
        types = (torch.float32, torch.bfloat16)
        return (*types, torch.float16) if self.device.type == "cuda" and self.full else types

    @property
    def budget(self) -> Budget:
        """Time of one case, after its check."""
        if self.quick:
            return Budget(0.05, 2, 3)
        if self.full:
            return Budget(20.0 if self.device.type == "cpu" else 3.0, 5)
        return Budget(2.0 if self.device.type == "cpu" else 0.5)


@dataclass
class Contest:
    """Entries on the same inputs; the first is the one that ratios refer to.

    Attributes:
        entries: by name, calls that take the number of an input set and return what they compute.
        expected: the reference's outputs on input set 0; ``None`` where the entries say themselves what is right.
        tolerance: of the relative norm of each output's difference.
        others: entries that compute something else (no routing, a fixed number of experts), by what they compute.
        graphs: entries to be captured in a CUDA graph.
        skipped: what cannot run here, by its reason. failed: what ran and is wrong, or should have run.
        work: operations and traffic of the reference's function. other_work: those of other entries.
    """

    entries: dict[str, Callable[[int], Outputs]]
    expected: Callable[[], Outputs] | None
    tolerance: float
    work: list[Work] | None = None
    tokens: int | None = None
    seconds_of_motion: float | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    other_work: Mapping[str, list[Work]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    graphs: frozenset[str] = frozenset()
    sets: int = 1


@dataclass(frozen=True)
class Case:
    """A contest to be prepared when its turn comes, so that only one case's tensors exist at a time."""

    step: str
    call: str
    dtype: torch.dtype
    shape: dict[str, float]
    prepare: Callable[[], Contest]

    @property
    def name(self) -> str:
        return case_name(self.step, self.call, name_of(self.dtype), self.shape)


class WrongResult(RuntimeError):
    """An entry does not compute what the reference computes; it is not timed."""


class DeviceLost(RuntimeError):
    """The device answers no more, so nothing else can be measured in this process."""


def tolerance(dtype: torch.dtype) -> float:
    """Bound of the relative norm between two computations on values stored in ``dtype``, summed in float32."""
    if dtype == torch.float32:
        return 4 * 2**-10 if torch.get_float32_matmul_precision() != "highest" else 1e-5  # TF32 has 10 bits
    return 8 * torch.finfo(dtype).eps


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative norm of the difference in float64, a piece at a time."""
    pieces = zip(found.reshape(-1).split(PIECE), expected.reshape(-1).split(PIECE), strict=True)
    difference, norm = 0.0, 0.0
    for a, b in pieces:
        difference += (a.double() - b.double()).square().sum().item()
        norm += b.double().square().sum().item()
    return math.sqrt(difference / (norm or 1.0))


def checked(contest: Contest) -> tuple[dict[str, Call], dict[str, float]]:
    """The entries as they are timed, each after one run whose results were compared, and how far they were off.

    What does not run, or computes something else, leaves the contest with its reason: to ``skipped`` where memory is
    short or a baseline does not serve here, else to ``failed``. The others go on.
    """
    expected = None if contest.expected is None else contest.expected()
    calls: dict[str, Call] = {}
    differences: dict[str, float] = {}
    first = next(iter(contest.entries), None)  # none where nothing can run
    for name, entry in list(contest.entries.items()):
        try:
            call = captured(entry, contest.sets) if name in contest.graphs else entry
            difference = _difference(contest, name, call(0), expected)
        except Exception as error:  # an entry may fail in any way, and is then left out with its reason
            ours = is_ours(name) or name == first
            wrong = isinstance(error, WrongResult) or (ours and reason_to_skip(error) is None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            (contest.failed if wrong else contest.skipped)[name] = reason
            del contest.entries[name]
            continue
        calls[name] = call
        if difference is not None:
            differences[name] = difference
    return calls, differences


def _difference(contest: Contest, name: str, found: Outputs, expected: Outputs | None) -> float | None:
    """Largest relative difference from the reference, ``None`` for an entry that has none.

    Raises:
        WrongResult: it exceeds the tolerance, or a value is not finite; says which and by how much.
    """
    if name in contest.others or expected is None:
        broken = [i for i, tensor in enumerate(found) if not bool(torch.isfinite(tensor).all())]
        if broken:
            raise WrongResult(f"output {broken[0]} is not finite, not timed")
        return None
    if [t.shape for t in found] != [t.shape for t in expected]:
        raise WrongResult(f"shapes {[tuple(t.shape) for t in found]} are not the reference's, not timed")
    worst = max((relative(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    if not worst <= contest.tolerance:  # NaN fails too
        raise WrongResult(f"relative difference {worst:.1e} exceeds {contest.tolerance:.1e}, not timed")
    return worst


def timed(
    case: Case,
    contest: Contest,
    calls: Mapping[str, Call],
    differences: Mapping[str, float],
    ceilings: Ceilings,
    scope: Scope,
) -> list[Row]:
    """Times of what was checked, with memory and host reads of one more call each."""
    if not calls:
        return []
    device, first = scope.device, next(iter(contest.entries))
    times = take_turns({name: clock_of(call, device, contest.sets) for name, call in calls.items()}, scope.budget)
    # Half types can be computed with in float32: where products of theirs are slower, those of float32 are the bound.
    rate = max(ceilings.product[name] for name in {name_of(case.dtype), "float32"})
    made = []
    for name, entry in contest.entries.items():
        time, ratio = summarise(times[name]), ratios(times[name], times[first])
        counted = contest.other_work.get(name) if name in contest.others else contest.work
        flop = sum(work.flop for work in counted) if counted else 0.0
        bound = sum(work.seconds(rate, ceilings.copy) for work in counted) if counted else None
        captured_entry = name in contest.graphs
        made.append(
            Row(
                step=case.step,
                call=case.call,
                entry=name,
                dtype=name_of(case.dtype),
                shape=case.shape,
                median=time.median,
                low=time.low,
                high=time.high,
                rounds=len(times[name]),
                ratio=ratio.median,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                tokens_per_second=contest.tokens / time.median if contest.tokens else None,
                flop_per_second=flop / time.median if flop else None,
                intensity=flop / sum(work.bytes for work in counted) if counted and flop else None,
                bound_share=bound / time.median if bound else None,
                peak_bytes=None if captured_entry else peak_memory(entry, device),
                host_reads=0 if captured_entry else host_reads(entry, device),
                seconds_per_second=time.median / contest.seconds_of_motion if contest.seconds_of_motion else None,
                difference=differences.get(name),
                note=contest.others.get(name, ""),
            )
        )
    return made


def left_out(case: Case, contest: Contest) -> list[Skipped]:
    """What of a contest was not timed, failures marked as such."""
    skipped = [Skipped(case.name, name, reason) for name, reason in contest.skipped.items()]
    return skipped + [Skipped(case.name, name, reason, failed=True) for name, reason in contest.failed.items()]


def reason_to_skip(error: Exception) -> str | None:
    """Why this machine cannot run a case: memory or a package is missing. ``None`` for an error that is one."""
    lacking = isinstance(error, (torch.OutOfMemoryError, ModuleNotFoundError)) or "allocate memory" in str(error)
    return str(error).splitlines()[0] if lacking else None


def run(case: Case, scope: Scope, ceilings: Ceilings) -> tuple[list[Row], list[Skipped]]:
    """Check, then measure one case; or say why this machine cannot, or what failed.

    Raises:
        DeviceLost: an error that every later call on this device would meet too.
    """
    try:
        contest = case.prepare()
        calls, differences = checked(contest)
        found = timed(case, contest, calls, differences, ceilings, scope), left_out(case, contest)
    except Exception as error:  # whatever a case meets is no reason to lose the others
        reason = reason_to_skip(error)
        said = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found = [], [Skipped(case.name, "all", said, failed=reason is None)]
    if problem := lost(scope.device):
        raise DeviceLost(f"{case.name}: {found[1][-1].reason if found[1] else problem}")
    return found


def test_case(case: Case, measured: Callable[[Case], None]) -> None:
    """What pytest collects in every file of cases."""
    measured(case)


def lost(device: torch.device) -> str | None:
    """The error that a device answers everything with since a kernel has failed on it."""
    try:
        synchronise(device)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
