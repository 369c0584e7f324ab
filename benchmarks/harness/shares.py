"""What the block and the denoiser reach on this CPU, as shares of the best product found, and beside other forms.

    python -m intermoe.benchmarks.harness.shares [--threads N] [--rounds N] [--match WORDS ...] [--out FILE.md]

At the published model's widths, one expert per token, with weights that do not change. The entries of a case take turns
with the fastest product of this machine (of any library, in float32 or the case's dtype), and a figure is the median of
the rounds' ratios, so that what disturbs the machine disturbs both sides. With one thread a time is the thread's own,
which others on the machine do not lengthen. Nothing is timed before it agrees with the reference.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.forms import Inputs, draw, published
from intermoe.benchmarks.harness import products, work
from intermoe.benchmarks.harness.case import WrongResult, relative, tolerance
from intermoe.benchmarks.harness.goals import AUTHORS
from intermoe.benchmarks.harness.timing import (
    Summary,
    largest_allocation,
    machine,
    name_of,
    peak_memory,
    ratios,
    summarise,
    thread_clock,
)
from intermoe.files import write_text
from intermoe.kernels.native import products as native
from intermoe.ops.moe import moe

CPU = torch.device("cpu")
PRODUCT = "best product"
PRODUCT_ROWS, PRODUCT_WEIGHT = 600, (2048, 768)
TORCH = "every product through torch"

Call = Callable[[], tuple[Tensor, ...]]


class Goal(NamedTuple):
    """What a ratio is to be: at least ``bound``, or at most it."""

    bound: float
    most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:g}"


@dataclass(frozen=True)
class Case:
    """Entries that take turns; the first is ours, of ``flop`` operations in products."""

    name: str
    entries: dict[str, Call]
    dtype: torch.dtype = torch.float32
    flop: float = 0.0
    share: Goal | None = None
    """of the best product's rate"""
    times: Mapping[str, Goal | None] = field(default_factory=dict)
    """by entry: how many times as long as ours it takes"""
    bytes: Mapping[str, tuple[float, Goal | None]] = field(default_factory=dict)
    """ratios of memory, which are counted"""


class Figure(NamedTuple):
    """A line of the report: a ratio, the range of its middle 80 %, and what it is to be."""

    case: str
    what: str
    value: float
    low: float
    high: float
    goal: Goal | None

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value <= self.goal.bound if self.goal.most else self.value >= self.goal.bound


def block(shape: work.Shape, dtype: torch.dtype, training: bool, share: Goal, authors: Goal | None) -> Case:
    """The operation forward, or with the gradients of everything that has one, beside the authors' form."""
    x, grad = _inputs(shape, dtype), torch.randn(shape.tokens, shape.dim).to(dtype)
    forms: dict[str, Callable[[Inputs], Tensor]] = {"ours": lambda x: moe(*x.steps()).out}
    if authors is not None:
        forms[AUTHORS] = published
    step = partial(_trained, x, grad) if training else partial(_inferred, x)
    entries: dict[str, Call] = {name: partial(step, form) for name, form in forms.items()}
    _agree(entries["ours"], partial(step, lambda x: moe(*x.steps(), backend="reference").out), dtype)
    flop = sum(step.flop for step in work.moe(shape, dtype.itemsize, training))
    name = f"{'forward + backward' if training else 'forward'} S={shape.tokens} {name_of(dtype)}"
    return Case(name, entries, dtype, flop, share, {} if authors is None else {AUTHORS: authors})


def denoiser(dtype: torch.dtype, share: Goal, faster: Goal, config: models.DenoiserConfig = models.PUBLISHED) -> Case:
    """A call of the denoiser with guidance, of two persons and 10 seconds."""
    network = models.build_denoiser(config, dtype, CPU).requires_grad_(False)
    inputs = models.denoiser_inputs(config, 2, 2, models.FRAMES, dtype, CPU)
    (counted,) = models.counted(lambda: network(*inputs), network)

    def through_torch() -> tuple[Tensor, ...]:
        with mock.patch.object(native, "choice", return_value="torch"):
            return (network(*inputs),)

    entries = {"ours": lambda: (network(*inputs),), TORCH: through_torch}
    with backends.use("reference"):
        expected = network(*inputs)
    _agree(entries["ours"], lambda: (expected,), dtype, 10 if dtype == torch.float32 else 2)
    return Case(f"denoiser with guidance {name_of(dtype)}", entries, dtype, counted.flop, share, {TORCH: faster})


def frozen(shape: work.Shape) -> Case:
    """The backward alone where the experts' weights need no gradient, beside the trained one."""
    x, grad = _inputs(shape, torch.float32), torch.randn(shape.tokens, shape.dim)

    def backward(trained: bool) -> Call:
        names = ("selection_bias", *(() if trained else ("w_gate_up", "w_down")))
        leaves = _leaves(x, names)
        out, wanted = moe(*leaves.steps()).out, [leaf for leaf in leaves if leaf.requires_grad]
        return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)

    entries = {"frozen": backward(False), "trained": backward(True)}
    _agree(entries["frozen"], lambda: entries["trained"]()[:5], torch.float32)
    weight = min(w.numel() * w.element_size() for w in (x.w_gate_up, x.w_down))
    largest = largest_allocation(lambda _: entries["frozen"]()) / weight
    return Case(
        f"backward of frozen experts S={shape.tokens} float32",
        entries,
        times={"trained": Goal(1 / 0.6)},
        bytes={"largest allocation, of the smallest weight": (largest, Goal(0.99, most=True))},
    )


def recomputed(shape: work.Shape) -> Case:
    """Forward and backward where the activations are computed again, expert by expert."""
    x, grad = _inputs(shape, torch.float32), torch.randn(shape.tokens, shape.dim)
    forms = {
        "ours": lambda x: moe(*x.steps(recompute=True)).out,
        "activations kept": lambda x: moe(*x.steps()).out,
        AUTHORS: published,
    }
    entries = {name: partial(_trained, x, grad, form) for name, form in forms.items()}
    _agree(entries["ours"], entries["activations kept"], torch.float32)
    peaks = {name: peak_memory(lambda _, entry=entry: entry(), CPU) for name, entry in entries.items()}
    held = {f"peak memory, of {name}": (peaks["ours"] / peaks[name], None) for name in list(forms)[1:]}
    return Case(
        f"recompute, forward + backward S={shape.tokens} float32",
        dict(list(entries.items())[:2]),
        times={"activations kept": None},
        bytes=held,
    )


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """By name, each to be prepared when its turn comes."""
    for tokens in (300, 4800):
        for dtype in (torch.float32, torch.bfloat16):
            single = dtype == torch.float32
            forward = Goal(0.65 if tokens == 300 else 0.85)
            # without units for bfloat16 the authors' products take minutes
            authors = Goal(3.0) if single or native.has_units(dtype) else None
            shape = work.Shape(tokens)
            yield f"forward S={tokens} {name_of(dtype)}", partial(block, shape, dtype, False, forward, authors)
            if tokens == 4800:
                both = Goal(0.75 if single else 0.8)
                yield (
                    f"forward + backward S={tokens} {name_of(dtype)}",
                    partial(block, shape, dtype, True, both, authors),
                )
    yield "denoiser with guidance float32", partial(denoiser, torch.float32, Goal(0.6), Goal(2.2))
    yield "denoiser with guidance bfloat16", partial(denoiser, torch.bfloat16, Goal(0.55), Goal(2.0))
    yield "frozen experts", partial(frozen, work.Shape(4800))
    yield "recompute", partial(recomputed, work.Shape(4800))


def best_product(dtype: torch.dtype) -> tuple[str, Call, float]:
    """Name, call and operations of the fastest product with a weight that does not change, of all libraries."""
    found: dict[str, tuple[float, Call]] = {}
    for kind in {torch.float32, dtype} if native.has_units(dtype) else {torch.float32}:
        entries = dict(products.entries("packed", kind, PRODUCT_ROWS, PRODUCT_WEIGHT))
        rates = products.timed(entries, PRODUCT_ROWS, PRODUCT_WEIGHT, seconds=0.5)
        found |= {f"{name}, {name_of(kind)}": (rates[name], call) for name, call in entries.items()}
    name = max(found, key=lambda name: found[name][0])
    return name, found[name][1], 2.0 * PRODUCT_ROWS * PRODUCT_WEIGHT[0] * PRODUCT_WEIGHT[1]


def take_turns(entries: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of every entry in every round, after two calls of each: in the first, weights are packed."""
    clock = thread_clock()
    times: dict[str, list[float]] = {name: [] for name in entries}
    for count in range(-2, rounds):
        for name, entry in entries.items():
            taken = []
            for _ in range(3 if name == PRODUCT else 1):  # a ceiling has its factors near
                began = clock()
                entry()
                taken.append(clock() - began)
            if count >= 0:
                times[name].append(min(taken))
    return times


def figures(case: Case, times: dict[str, list[float]], product_flop: float) -> list[Figure]:
    """The ratios of a case from the seconds of its entries and of ``PRODUCT``."""
    ours = times[next(iter(case.entries))]
    made = []
    if case.share is not None:
        share = ratios([case.flop / product_flop * seconds for seconds in times[PRODUCT]], ours)
        made.append(_figure(case, f"share of the {PRODUCT}", share, case.share))
    for name, goal in case.times.items():
        made.append(_figure(case, f"time of {name}, in ours", ratios(times[name], ours), goal))
    made += [Figure(case.name, what, value, value, value, goal) for what, (value, goal) in case.bytes.items()]
    return made


def _figure(case: Case, what: str, found: Summary, goal: Goal | None) -> Figure:
    return Figure(case.name, what, found.median, found.low, found.high, goal)


def measure(case: Case, rounds: int) -> tuple[list[Figure], str]:
    """The figures, and a line that says how fast both sides were."""
    name, product, flop = best_product(case.dtype)
    entries = {**case.entries, PRODUCT: product} if case.share is not None else case.entries
    with torch.no_grad() if case.flop and "backward" not in case.name else torch.enable_grad():
        times = take_turns(entries, rounds)
    medians = {entry: summarise(values).median for entry, values in times.items()}
    told = [f"{entry} {1e3 * seconds:.1f} ms" for entry, seconds in medians.items() if entry != PRODUCT]
    if case.share is not None:
        rate = flop / medians[PRODUCT]
        ours = case.flop / medians[next(iter(case.entries))]
        told.append(f"{ours / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s ({name})")
    return figures(case, times, flop), f"{case.name}: {', '.join(told)}; load {os.getloadavg()[0]:.0f}"


def _inputs(shape: work.Shape, dtype: torch.dtype) -> Inputs:
    """Inputs whose weights are parameters, which may be kept packed."""
    x = draw(shape, dtype, CPU)
    return x._replace(w_gate_up=nn.Parameter(x.w_gate_up), w_down=nn.Parameter(x.w_down))


def _inferred(x: Inputs, form: Callable[[Inputs], Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (form(x),)


def _leaves(x: Inputs, without: tuple[str, ...]) -> Inputs:
    return Inputs(*(t.detach().requires_grad_(n not in without) for n, t in zip(x._fields, x, strict=True)))


def _trained(x: Inputs, grad: Tensor, form: Callable[[Inputs], Tensor]) -> tuple[Tensor, ...]:
    leaves = _leaves(x, ("selection_bias",))
    with torch.enable_grad():
        out = form(leaves)
        return (out.detach(), *torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], grad))


def _agree(call: Call, expected: Call, dtype: torch.dtype, slack: float = 1.0) -> None:
    """Raise ``WrongResult`` where results differ by more than the dtype allows."""
    worst = max(relative(a, b) for a, b in zip(call(), expected(), strict=True))
    if not worst <= slack * tolerance(dtype):  # NaN fails too
        raise WrongResult(f"relative difference {worst:.1e} exceeds {slack * tolerance(dtype):.1e}, not timed")


def report(found: list[Figure], notes: list[str]) -> str:
    """Markdown."""
    lines = [
        f"# Shares on {native.machine()}, {torch.get_num_threads()} thread(s)",
        "",
        f"{machine(CPU).device}; torch {torch.__version__}; {datetime.now(timezone.utc):%Y-%m-%d};",
        "`python -m intermoe.benchmarks.harness.shares`.",
        "Median and middle 80 % of the rounds' ratios, in turns in one process.",
        "",
        "| case | what | goal | measured | range | reached |",
        "|---|---|---|---|---|---|",
    ]
    for f in found:
        reached = {True: "yes", False: "no", None: ""}[f.reached]
        lines.append(
            f"| {f.case} | {f.what} | {f.goal or ''} | {f.value:.3g} | {f.low:.3g} to {f.high:.3g} | {reached} |"
        )
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the Markdown where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--match", nargs="+", default=[], help="only cases whose names hold all of these words")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found: list[Figure] = []
    notes: list[str] = []
    for name, prepare in cases():
        if all(word in name for word in options.match):
            made, note = measure(prepare(), options.rounds)
            found, notes = found + made, [*notes, note]
            print(
                note, *(f"  {f.what}: {f.value:.3g} ({f.low:.3g} to {f.high:.3g})" for f in made), sep="\n", flush=True
            )
    text = report(found, notes)
    print(text)
    if options.out is not None:
        write_text(options.out, text)


if __name__ == "__main__":
    main()
