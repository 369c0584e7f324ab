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
from torch import nn

from intermoe.benchmarks import models
from intermoe.benchmarks.forms import Form, Inputs, draw, forward, ours, published, training
from intermoe.benchmarks.harness import products, work
from intermoe.benchmarks.harness.case import Contest, Outputs, WrongResult, checked, tolerance
from intermoe.benchmarks.harness.goals import AUTHORS, Bound, least, most
from intermoe.benchmarks.harness.timing import (
    Budget,
    Call,
    Summary,
    largest_allocation,
    machine,
    name_of,
    peak_memory,
    ratios,
    summarise,
    take_turns,
    thread_seconds,
)
from intermoe.files import write_text
from intermoe.kernels.native import products as native
from intermoe.ops.moe import moe

CPU = torch.device("cpu")
PRODUCT = "best product"
PRODUCT_ROWS, PRODUCT_WEIGHT = 600, (2048, 768)
TORCH = "every product through torch"


@dataclass(frozen=True)
class RatioGoals:
    """A contest whose first entry is ours, and what its ratios are to be."""

    name: str
    contest: Contest
    dtype: torch.dtype = torch.float32
    share: Bound | None = None
    """of the best product's rate"""
    times: Mapping[str, Bound | None] = field(default_factory=dict)
    """by entry: how many times as long as ours it takes"""
    bytes: Mapping[str, tuple[float, Bound | None]] = field(default_factory=dict)
    """ratios of memory, which are counted"""

    @property
    def flop(self) -> float:
        return work.total(self.contest.work or ()).flop


class Figure(NamedTuple):
    """A line of the report: a ratio, and what it is to be."""

    goals: str
    what: str
    found: Summary
    bound: Bound | None


def block(
    shape: work.Shape, dtype: torch.dtype, with_backward: bool, share: Bound, authors: Bound | None
) -> RatioGoals:
    """The operation forward, or with the gradients of everything that has one, beside the authors' form."""
    x, grad = _inputs(shape, dtype), torch.randn(shape.tokens, shape.dim).to(dtype)

    def entry(form: Form) -> Call:
        return training(form, [x], [grad]) if with_backward else forward(form, [x])

    entries = {"ours": entry(ours())} | ({} if authors is None else {AUTHORS: entry(Form(published))})
    counted = work.moe(shape, dtype.itemsize, with_backward)
    contest = Contest(entries, partial(entry(ours("reference")), 0), tolerance(dtype), counted)
    name = f"{'forward + backward' if with_backward else 'forward'} S={shape.tokens} {name_of(dtype)}"
    return RatioGoals(name, contest, dtype, share, {} if authors is None else {AUTHORS: authors})


def denoiser(
    dtype: torch.dtype, share: Bound, faster: Bound, config: models.DenoiserConfig = models.PUBLISHED
) -> RatioGoals:
    """A call of the denoiser with guidance, of two persons and 10 seconds."""
    network = models.build_denoiser(config, dtype, CPU).requires_grad_(False)
    inputs = models.denoiser_inputs(config, 2, 2, models.FRAMES, dtype, CPU)

    @torch.no_grad()
    def call(_: int) -> Outputs:
        return (network(*inputs),)

    def through_torch(_: int) -> Outputs:
        with mock.patch.object(native, "choice", return_value="torch"):
            return call(0)

    expected = models.on("reference", partial(call, 0))
    allowed = (10 if dtype == torch.float32 else 2) * tolerance(dtype)
    counted = models.counted(lambda: network(*inputs), network)
    contest = Contest({"ours": call, TORCH: through_torch}, lambda: expected(0), allowed, counted)
    return RatioGoals(f"denoiser with guidance {name_of(dtype)}", contest, dtype, share, {TORCH: faster})


def frozen(shape: work.Shape) -> RatioGoals:
    """The backward alone where the experts' weights need no gradient, beside the trained one."""
    x, grad = _inputs(shape, torch.float32), torch.randn(shape.tokens, shape.dim)

    def backward(*without: str) -> Call:
        leaves = x.leaves(*without)
        out, wanted = moe(*leaves.steps()).out, [leaf for leaf in leaves if leaf.requires_grad]
        return lambda _: torch.autograd.grad(out, wanted, grad, retain_graph=True)

    entries = {"frozen": backward("w_gate_up", "w_down"), "trained": backward()}
    contest = Contest(
        entries,
        lambda: entries["trained"](0)[:5],
        tolerance(torch.float32),
        others={"trained": "gradients of the weights too"},
    )
    largest = largest_allocation(entries["frozen"]) / min(x.w_gate_up.nbytes, x.w_down.nbytes)
    return RatioGoals(
        f"backward of frozen experts S={shape.tokens} float32",
        contest,
        times={"trained": least(1 / 0.6)},
        bytes={"largest allocation, of the smallest weight": (largest, most(0.99))},
    )


def recomputed(shape: work.Shape) -> RatioGoals:
    """Forward and backward where the activations are computed again, expert by expert."""
    x, grad = _inputs(shape, torch.float32), torch.randn(shape.tokens, shape.dim)
    kept = "activations kept"
    forms = {"ours": ours(recompute=True), kept: ours(), AUTHORS: Form(published)}
    entries = {name: training(form, [x], [grad]) for name, form in forms.items()}
    peaks = {name: (entry(0), peak_memory(entry, CPU))[1] for name, entry in entries.items()}
    del entries[AUTHORS]  # of which only the memory counts
    return RatioGoals(
        f"recompute, forward + backward S={shape.tokens} float32",
        Contest(entries, partial(entries[kept], 0), tolerance(torch.float32)),
        times={kept: None},
        bytes={f"peak memory, of {name}": (peaks["ours"] / peaks[name], None) for name in (kept, AUTHORS)},
    )


def all_goals() -> Iterator[tuple[str, Callable[[], RatioGoals]]]:
    """By name, each to be prepared when its turn comes."""
    for tokens in (300, 4800):
        for dtype in (torch.float32, torch.bfloat16):
            single = dtype == torch.float32
            # without units for bfloat16 the authors' products take minutes
            authors = least(3.0) if single or native.has_units(dtype) else None
            shape, name = work.Shape(tokens), f"S={tokens} {name_of(dtype)}"
            share = least(0.65 if tokens == 300 else 0.85)
            yield f"forward {name}", partial(block, shape, dtype, False, share, authors)
            if tokens == 4800:
                share = least(0.75 if single else 0.8)
                yield f"forward + backward {name}", partial(block, shape, dtype, True, share, authors)
    yield "denoiser with guidance float32", partial(denoiser, torch.float32, least(0.6), least(2.2))
    yield "denoiser with guidance bfloat16", partial(denoiser, torch.bfloat16, least(0.55), least(2.0))
    yield "frozen experts", partial(frozen, work.Shape(4800))
    yield "recompute", partial(recomputed, work.Shape(4800))


def best_product(dtype: torch.dtype) -> tuple[str, Callable[[], object], float]:
    """Name, call and operations of the fastest product with a weight that does not change, of all libraries."""
    found: dict[str, tuple[float, Callable[[], object]]] = {}
    for stored in {torch.float32, dtype} if native.has_units(dtype) else {torch.float32}:
        entries = dict(products.entries("packed", stored, PRODUCT_ROWS, PRODUCT_WEIGHT))
        rates = products.timed(entries, PRODUCT_ROWS, PRODUCT_WEIGHT, seconds=0.5)
        found |= {f"{name}, {name_of(stored)}": (rates[name], call) for name, call in entries.items()}
    name = max(found, key=lambda name: found[name][0])
    return name, found[name][1], 2.0 * PRODUCT_ROWS * PRODUCT_WEIGHT[0] * PRODUCT_WEIGHT[1]


def least_of_three(call: Callable[[], object]) -> float:
    """Seconds of a ceiling, which has its factors near."""
    return min(thread_seconds(call) for _ in range(3))


def figures(goals: RatioGoals, times: Mapping[str, list[float]], product_flop: float) -> list[Figure]:
    """The ratios of a goals from the seconds of its entries and of ``PRODUCT``."""
    made, mine = [], times[next(iter(goals.contest.entries))]
    if goals.share is not None:
        share = ratios([goals.flop / product_flop * seconds for seconds in times[PRODUCT]], mine)
        made.append(Figure(goals.name, f"share of the {PRODUCT}", share, goals.share))
    for name, bound in goals.times.items():
        made.append(Figure(goals.name, f"time of {name}, in ours", ratios(times[name], mine), bound))
    for what, (value, bound) in goals.bytes.items():
        made.append(Figure(goals.name, what, summarise([value]), bound))
    return made


def measure(goals: RatioGoals, rounds: int) -> tuple[list[Figure], str]:
    """The figures, and a line that says how fast both sides were.

    Raises:
        WrongResult: an entry does not run, or does not compute what the reference computes.
    """
    calls, _ = checked(goals.contest)
    for name, reason in {**goals.contest.skipped, **goals.contest.failed}.items():
        raise WrongResult(f"{goals.name}, {name}: {reason}")
    for call in calls.values():  # the second of each call: in the first, weights are packed
        call(0)
    product, ceiling, flop = best_product(goals.dtype)
    clocks = {name: partial(thread_seconds, partial(call, 0)) for name, call in calls.items()}
    if goals.share is not None:
        clocks[PRODUCT] = partial(least_of_three, ceiling)
    times = take_turns(clocks, Budget(0.0, rounds, rounds))
    medians = {entry: summarise(values).median for entry, values in times.items()}
    told = [f"{entry} {1e3 * seconds:.1f} ms" for entry, seconds in medians.items() if entry != PRODUCT]
    if goals.share is not None:
        mine = goals.flop / medians[next(iter(calls))]
        told.append(f"{mine / 1e9:.0f} of {flop / medians[PRODUCT] / 1e9:.0f} GFLOP/s ({product})")
    note = f"{goals.name}: {', '.join(told)}; load {os.getloadavg()[0]:.0f}"
    return figures(goals, times, flop), note


def _inputs(shape: work.Shape, dtype: torch.dtype) -> Inputs:
    """Inputs whose weights are parameters, which may be kept packed."""
    x = draw(shape, dtype, CPU)
    return x._replace(w_gate_up=nn.Parameter(x.w_gate_up), w_down=nn.Parameter(x.w_down))


def report(made: list[Figure], notes: list[str]) -> str:
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
    for name, what, found, bound in made:
        reached = "" if bound is None else "yes" if bound.holds(found.median) else "no"
        cells = name, what, str(bound or ""), f"{found.median:.3g}", f"{found.low:.3g} to {found.high:.3g}", reached
        lines.append(f"| {' | '.join(cells)} |")
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
    made: list[Figure] = []
    notes: list[str] = []
    for name, prepare in all_goals():
        if all(word in name for word in options.match):
            new, note = measure(prepare(), options.rounds)
            made, notes = made + new, [*notes, note]
            print(note, flush=True)
    text = report(made, notes)
    print(text)
    if options.out is not None:
        write_text(options.out, text)


if __name__ == "__main__":
    main()
