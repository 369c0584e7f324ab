"""Predicted times of the Triton kernels on cards that are not at hand, beside the bounds no kernel can beat.

    python -m intermoe.benchmarks.harness.roofline [--json FILE]

Registers and shared memory come from compiling each kernel for the card's architecture (no GPU needed); FLOPs and bytes
are counted. For each kernel

    bound     = max(FLOPs / peak, bytes / bandwidth): every input read once, every output written once
    predicted = max(waves of tiles at the sustained rate that the resident warps allow, bytes / bandwidth, L2 bytes / L2
                bandwidth) + a launch in a captured graph

A prediction, not a measurement: ``Card.sustained``, ``Card.l2_bandwidth``, ``WARPS_TO_SATURATE`` and ``LAUNCH`` are
assumptions.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from intermoe.files import write_json
from intermoe.kernels.triton import aot, configs
from intermoe.kernels.triton.aot import DIM, EXPERT_DIM, NUM_EXPERTS, Resources, Specimen

LAUNCH = 1.5e-6
"""Seconds between two kernels of a captured graph."""
WARPS_TO_SATURATE = 8
"""Resident warps per multiprocessor from which its matrix units stay busy: two for each of the four."""


@dataclass(frozen=True)
class Card:
    """Peak rates in FLOP/s and bytes/s. ``sustained`` is the share of the matrix peak that such loops reach."""

    name: str
    architecture: int
    multiprocessors: int
    half_peak: float
    tf32_peak: float
    bandwidth: float
    l2_bandwidth: float
    shared: int
    threads: int
    sustained: float

    def peak(self, precision: str) -> float:
        return self.half_peak if precision == "half" else self.tf32_peak


CARDS = (
    Card("RTX 3090", 86, 82, 71e12, 35.6e12, 936e9, 2.0e12, 102_400, 1536, 0.85),
    Card("RTX 4090", 89, 128, 165e12, 82.6e12, 1008e9, 5.0e12, 102_400, 1536, 0.85),
    Card("A100", 80, 108, 312e12, 156e12, 2039e9, 4.5e12, 167_936, 2048, 0.70),
    Card("H100", 90, 132, 989e12, 494e12, 3350e9, 5.5e12, 233_472, 2048, 0.55),
)


@dataclass(frozen=True)
class Work:
    """One launch: FLOPs useful and done on padded tiles, device-memory bytes, L2 bytes, and its programs."""

    name: str
    flops: float
    padded_flops: float
    bytes: float
    l2_bytes: float
    programs: int
    specimen: Specimen | None


@dataclass(frozen=True)
class Row:
    """One line of the report; times in microseconds."""

    card: str
    tokens: int
    precision: str
    direction: str
    kernel: str
    registers: int | None
    shared: int | None
    blocks: int | None
    bound: float
    predicted: float


def grouped(kernel: str, name: str, architecture: int, precision: str, tokens: int) -> Work:
    """A grouped product with as many pairs as tokens, spread evenly over the experts."""
    size = configs.size_class(tokens, NUM_EXPERTS)
    tile = configs.tile(architecture, kernel, precision, size)
    specimen = next(s for s in aot.grouped_specimens(kernel, precision, tile) if s.name == name)
    element = 2 if precision == "half" else 4
    pairs, rows = tokens, tokens / NUM_EXPERTS
    weights = NUM_EXPERTS * DIM * EXPERT_DIM * element
    if kernel == "grad_weight":
        height, width = (2 * EXPERT_DIM, DIM) if name.endswith("up") else (DIM, EXPERT_DIM)
        steps = math.ceil(rows / tile.block_k) * tile.block_k
        programs = NUM_EXPERTS * math.ceil(height / tile.block_m) * math.ceil(width / tile.block_n)
        moved = (pairs * (height + width) + NUM_EXPERTS * height * width) * element
        loaded = programs * steps * (tile.block_m + tile.block_n) * element
        flops = 2 * pairs * height * width
        return Work(name, flops, flops * steps / rows, moved, loaded, programs, specimen)
    inner, outer, products = {
        "up": (DIM, EXPERT_DIM, 2),
        "down": (EXPERT_DIM, DIM, 1),
        "grad_hidden": (DIM, EXPERT_DIM, 1),
        "grad_pairs": (2 * EXPERT_DIM, DIM, 1),
    }[kernel]
    row_tiles = NUM_EXPERTS * math.ceil(rows / tile.block_m)
    programs = row_tiles * math.ceil(outer / tile.block_n)
    flops = 2 * pairs * inner * outer * products
    extra = {  # activations beside the product's own input: written and read in the epilogue
        "up": pairs * EXPERT_DIM * (1 if "inference" in name else 3),
        "down": pairs * DIM,
        "grad_hidden": pairs * EXPERT_DIM,
        "grad_pairs": pairs * DIM,
    }[kernel]
    moved = (pairs * inner + extra) * element + weights * (2 if kernel in ("up", "grad_pairs") else 1)
    loaded = programs * inner * (tile.block_m + products * tile.block_n) * element
    return Work(name, flops, flops * row_tiles * tile.block_m / pairs, moved, loaded, programs, specimen)


def streaming(name: str, tensors: float, precision: str, tokens: int, width: int = DIM) -> Work:
    """A pass over ``tensors`` arrays of tokens x width."""
    moved = tensors * tokens * width * (2 if precision == "half" else 4)
    return Work(name, 0.0, 0.0, moved, moved, 0, None)


def steps(direction: str, architecture: int, precision: str, tokens: int) -> list[Work]:
    """The launches of one call, in order."""
    work = {kernel: (kernel, kernel, architecture, precision, tokens) for kernel in configs.KERNELS}
    weights_read = 3 * NUM_EXPERTS * EXPERT_DIM
    rounded = (
        [
            streaming("round tokens", 2, precision, tokens),
            streaming("round weights", 2, precision, weights_read),
        ]
        if precision == "tf32"
        else []
    )
    selection = Work("select", 0.0, 0.0, tokens * NUM_EXPERTS * 20.0, 0.0, 0, None)
    if direction == "backward":
        weights = [
            grouped("grad_weight", f"grad_weight {part}", architecture, precision, tokens) for part in ("up", "down")
        ]
        return [
            *rounded,
            *rounded[:1],
            grouped(*work["grad_hidden"]),
            streaming("swiglu_backward", 6, precision, tokens, EXPERT_DIM),
            grouped(*work["grad_pairs"]),
            *weights,
            streaming("combine", 2, precision, tokens),
            selection,
            streaming("route grad_input", 3, precision, tokens),
            streaming("route grad_router", 1, precision, tokens),
        ]
    up = "up" if direction == "forward" else "up inference"
    return [
        streaming("route", 2, precision, tokens),
        selection,
        selection,
        *rounded,
        grouped("up", up, architecture, precision, tokens),
        grouped(*work["down"]),
        streaming("combine", 2, precision, tokens),
    ]


def predict(work: Work, card: Card, precision: str, resources: Resources | None) -> Row:
    """Bound and prediction of one launch."""
    peak = card.peak(precision)
    memory = work.bytes / card.bandwidth
    seconds = max(memory, work.l2_bytes / card.l2_bandwidth)
    blocks = None
    if resources is not None:
        blocks = resources.blocks_per_multiprocessor(card.shared, card.threads)
        if blocks == 0:
            raise RuntimeError(f"{work.name}: does not fit a multiprocessor of the {card.name}: {resources}")
        seconds = max(seconds, _waves(work, card, peak, blocks, resources.threads // 32))
    return Row(
        card.name, 0, precision, "", work.name,
        resources.registers if resources else None, resources.shared if resources else None, blocks,
        1e6 * max(work.flops / peak, memory), 1e6 * (seconds + LAUNCH),
    )  # fmt: skip


def _waves(work: Work, card: Card, peak: float, blocks: int, warps: int) -> float:
    """Time of the tiles: full waves of all resident blocks, then the rest, which may leave matrix units idle."""
    per_tile = work.padded_flops / work.programs / (peak / card.multiprocessors * card.sustained)

    def wave(resident: int) -> float:
        return resident * per_tile / min(1.0, resident * warps / WARPS_TO_SATURATE)

    full, rest = divmod(work.programs, card.multiprocessors * blocks)
    return full * wave(blocks) + (wave(math.ceil(rest / card.multiprocessors)) if rest else 0.0)


def _compile(job: tuple[str, str, str, int, int]) -> Resources:
    kernel, name, precision, architecture, tokens = job
    specimen = grouped(kernel, name, architecture, precision, tokens).specimen
    if specimen is None:
        raise RuntimeError(f"{name}: nothing to compile")
    return aot.compile_specimen(specimen, architecture)


def report(cards: tuple[Card, ...] = CARDS) -> list[Row]:
    """Every launch of every case on every card, and the sums (kernel "total")."""
    cases = [
        (card, tokens, precision, direction)
        for card in cards
        for precision, tokens in (("half", 9600), ("half", 300), ("tf32", 9600))
        for direction in ("forward", "backward", "inference")
    ]
    launches = [(case, work) for case in cases for work in steps(case[3], case[0].architecture, case[2], case[1])]
    jobs = {
        (work.name.split()[0], work.name, case[2], case[0].architecture, case[1])
        for case, work in launches
        if work.specimen
    }
    ordered = sorted(jobs)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        compiled = dict(zip(ordered, pool.map(_compile, ordered, chunksize=4), strict=True))
    rows: list[Row] = []
    for case in cases:
        card, tokens, precision, direction = case
        mine = []
        for work in steps(direction, card.architecture, precision, tokens):
            job = (work.name.split()[0], work.name, precision, card.architecture, tokens)
            row = predict(work, card, precision, compiled.get(job))
            mine.append(Row(**{**asdict(row), "tokens": tokens, "direction": direction}))
        sums = [sum(getattr(row, name) for row in mine) for name in ("bound", "predicted")]
        rows += [*mine, Row(card.name, tokens, precision, direction, "total", None, None, None, *sums)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write every line to this file")
    chosen = parser.parse_args()
    rows = report()
    print("Predicted, not measured. D=768, F=1024, E=8, one expert per token. Times in microseconds.")
    print(f"{'card':9} {'S':>5} {'type':5} {'call':9} {'kernel':17} {'regs':>5} {'shared':>7} {'blocks':>6}"
          f" {'bound':>8} {'predicted':>9} {'reached':>7}")  # fmt: skip
    for row in rows:
        resources = "".join(f" {'' if v is None else v:>{w}}" for v, w in
                            ((row.registers, 5), (row.shared, 7), (row.blocks, 6)))  # fmt: skip
        print(f"{row.card:9} {row.tokens:5} {row.precision:5} {row.direction:9} {row.kernel:17}{resources}"
              f" {row.bound:8.1f} {row.predicted:9.1f} {row.bound / row.predicted:7.0%}")  # fmt: skip
    if chosen.json:
        write_json(chosen.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
