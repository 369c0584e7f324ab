"""Matrix products on this CPU: what each way of computing them reaches, and the table that chooses between them.

    python -m intermoe.benchmarks.harness.products [--threads N] [--write] [--out FILE]

The entries take turns; the least time of each counts, and with one thread it is the thread's own time, which others on
the machine do not lengthen. ``--write`` puts the fastest of each form into ``kernels/native/fastest.py``, in place of
this machine's rows there. To measure another instruction set than the best one, hide it from the libraries:
``ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2`` and ``--instruction-set avx2``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from intermoe.benchmarks.harness.timing import Budget, machine, name_of, take_turns, thread_seconds
from intermoe.files import write_text
from intermoe.kernels.native import fastest, library, products
from intermoe.kernels.native.registry import CODES, call

ROWS = (2, 8, 38, 300, 600)
"""Rows of left factors: a condition, a few tokens, an expert of one prompt, a prompt, an expert of S = 4800."""

WEIGHTS = ((2048, 768), (768, 1024))
"""(N, K) of an expert's two; attention's lie between."""

WEIGHTS_IN_TURN = 5
"""Weights that take turns, as those of a network's layers do: one alone would stay in a cache near the core."""

GAIN = 1.03
"""How much faster another choice must be to take the place of torch, or of what serves fewer rows."""

Entry = Callable[[], object]


def entries(form: str, dtype: torch.dtype, rows: int, weight: tuple[int, int]) -> Iterator[tuple[str, Entry]]:
    """Each way of computing one product of ``form``; MKL's packed one only shows a ceiling."""
    weights = [torch.randn(weight).to(dtype) for _ in range(1 if form == "sums" else WEIGHTS_IN_TURN)]
    of_each = [dict(_entries_of(form, dtype, rows, w)) for w in weights]
    for name in of_each[0]:
        yield name, _in_turn([found[name] for found in of_each])


def _in_turn(found: list[Entry]) -> Entry:
    turns = itertools.cycle(found)
    return lambda: next(turns)()


def _entries_of(form: str, dtype: torch.dtype, rows: int, w: Tensor) -> Iterator[tuple[str, Entry]]:
    outputs, depth = w.shape
    if form == "sums":
        left, right = torch.randn(rows, outputs).to(dtype).T, torch.randn(rows, depth).to(dtype)
    elif form == "columns":
        left, right = torch.randn(rows, outputs).to(dtype), w
    else:
        left, right = torch.randn(rows, depth).to(dtype), w.T
    out = torch.empty(len(left), right.shape[1], dtype=dtype)
    names = ["torch", "own"] if dtype == torch.float32 else ["torch", "float32", "own"]
    if not products.has_units(dtype):  # what torch does then takes up to a hundred times as long
        names.remove("torch")
    elif form in ("packed", "rows") and dtype != torch.float16:
        names.append("onednn")
    for name in names:
        if (form, name) == ("packed", "own"):
            yield name, _own(left, products._pack(w, paired=False), out)
        else:
            yield name, partial(products.run, name, left, right, out)
    if form == "packed" and dtype != torch.float16 and products.has_units(dtype):
        yield products.ORDERED, partial(products.ordered_product, left, products._in_onednn_order(w)[0], out)
    if form == "packed" and dtype == torch.float32 and torch.backends.mkl.is_available():
        reordered = torch.ops.mkl._mkl_reorder_linear_weight(w, rows)
        yield "mkl, packed", lambda: torch.ops.mkl._mkl_linear(left, reordered, w, None, rows)


def _own(left: Tensor, packed: Tensor, out: Tensor) -> Entry:
    (rows, depth), outputs = left.shape, out.shape[1]
    arguments = (depth, 1, packed, 0, 0, 1, None, out, outputs, rows, outputs, depth, 0, 0, CODES[left.dtype])
    return lambda: call("product", left, *arguments)


def rates(form: str, dtype: torch.dtype, rows: int, weight: tuple[int, int], seconds: float) -> dict[str, float]:
    """FLOP/s of each entry."""
    return timed(dict(entries(form, dtype, rows, weight)), rows, weight, seconds)


def timed(found: dict[str, Entry], rows: int, weight: tuple[int, int], seconds: float) -> dict[str, float]:
    """FLOP/s of entries that compute a product of these sizes, by the least time of each."""
    for entry in found.values():
        entry()
    clocks = {name: partial(thread_seconds, entry) for name, entry in found.items()}
    times = take_turns(clocks, Budget(seconds, max_rounds=1_000_000))
    return {name: 2 * rows * weight[0] * weight[1] / min(taken) for name, taken in times.items()}


def limits(found: dict[int, list[dict[str, float]]]) -> fastest.Limits:
    """The fastest choice for each number of rows, by its least gain over the first one's rate.

    What serves fewer rows goes on until another gains: a weight is kept in one order, not in two for nothing.
    """
    first = next(iter(next(iter(found.values()))[0]))
    chosen: list[tuple[int, str]] = []
    for rows, measured in found.items():
        names = [name for name in measured[0] if name in (*products.CHOICES, products.ORDERED)]
        gains = {name: min(rate[name] / rate[first] for rate in measured) for name in names}
        best = max(gains, key=lambda name: gains[name])
        last = chosen[-1][1] if chosen else first
        stays = last if gains[last] >= 1 else first
        chosen.append((rows, best if gains[best] >= GAIN * gains[stays] else stays))
    merged: list[tuple[int | None, str]] = []
    for rows, name in chosen:
        if merged and merged[-1][1] == name:
            merged.pop()
        merged.append((rows, name))
    merged[-1] = (None, merged[-1][1])
    return tuple(merged)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each product")
    parser.add_argument("--dtypes", nargs="+", default=[name_of(dtype) for dtype in CODES])
    parser.add_argument("--instruction-set", choices=("baseline", "avx2", "avx512"))
    parser.add_argument("--write", action="store_true", help="put the result into kernels/native/fastest.py")
    parser.add_argument("--out", type=Path, help="write the report into this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.instruction_set:
        level = ("baseline", "avx2", "avx512").index(options.instruction_set)
        if library.load().intermoe_use_instruction_set(level) != 0:
            raise SystemExit(library.load().intermoe_last_error().decode())
    lines = [
        f"# Products on {products.machine()}, {options.threads} thread(s), GFLOP/s",
        "",
        f"{machine(torch.device('cpu')).device}; torch {torch.__version__}; {datetime.now(timezone.utc):%Y-%m-%d};",
        "`python -m intermoe.benchmarks.harness.products`.",
        "Least time of each entry. The weight is N x K; rows are those of the left factor, of sums those summed.",
    ]
    table: dict[tuple[str, str], fastest.Limits] = {}
    for dtype in (getattr(torch, name) for name in options.dtypes):
        for form in products.FORMS:
            found: dict[int, list[dict[str, float]]] = {}
            for rows in ROWS:
                for weight in WEIGHTS:
                    rate = rates(form, dtype, rows, weight, options.seconds)
                    if not found:
                        head = [f"{form}, {name_of(dtype)}", "rows", *rate]
                        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
                    found.setdefault(rows, []).append(rate)
                    cells = [f"{weight[0]} x {weight[1]}", str(rows), *(f"{r / 1e9:.0f}" for r in rate.values())]
                    lines.append(f"| {' | '.join(cells)} |")
                    print(lines[-1], flush=True)
            table[name_of(dtype), form] = limits(found)
    if options.out:
        write_text(options.out, "\n".join([*lines, ""]))
    if options.write:
        write_table(products.machine(), table)


def write_table(machine: str, rows: dict[tuple[str, str], fastest.Limits]) -> None:
    """Replace what was measured of one machine in the source of ``fastest``."""
    path = Path(fastest.__file__)
    head = path.read_text().partition("FASTEST: ")[0]
    whole = {**fastest.FASTEST, machine: {**fastest.FASTEST.get(machine, {}), **rows}}
    body = ["FASTEST: dict[str, dict[tuple[str, str], Limits]] = {"]
    for name, entry in sorted(whole.items()):
        body.append(f'    "{name}": {{')
        for (dtype, form), limit in entry.items():
            pairs = ", ".join(f'({bound}, "{choice}")' for bound, choice in limit)
            body.append(f'        ("{dtype}", "{form}"): ({pairs},),')
        body.append("    },")
    write_text(path, head + "\n".join([*body, "}", ""]))


if __name__ == "__main__":
    main()
