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
from functools import partial
from pathlib import Path

from intermoe.benchmarks.harness import work
from intermoe.files import write_json
from intermoe.kernels.triton import aot, configs
from intermoe.kernels.triton.aot import DIM, EXPERT_DIM, NUM_EXPERTS, Resources

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


Product = tuple[str, int, str, int]
"""What a grouped product is compiled for: its name, the architecture, precision and tokens."""


@dataclass(frozen=True)
class Cost:
    """One launch: FLOPs useful and done on padded tiles, device-memory bytes, L2 bytes, programs, what to compile."""

    name: str
    flops: float
    padded_flops: float
    bytes: float
    l2_bytes: float
    programs: int = 0
    product: Product | None = None


@dataclass(frozen=True)
class Line:
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


PRODUCTS = {
    "up": (DIM, EXPERT_DIM, 2),
    "down": (EXPERT_DIM, DIM, 1),
    "grad_hidden": (DIM, EXPERT_DIM, 1),
    "grad_pairs": (2 * EXPERT_DIM, DIM, 1),
    "grad_weight up": (2 * EXPERT_DIM, DIM, 1),
    "grad_weight down": (DIM, EXPERT_DIM, 1),
}
"""In the order of ``work``: what is summed over, how wide the result is, and products of a tile; of a weight's
gradient, whose sum is over rows, its height and width."""


def grouped(name: str, architecture: int, precision: str, tokens: int) -> Cost:
    """A grouped product, its kernel the first word, with as many pairs as tokens, spread evenly over the experts."""
    product = (name, architecture, precision, tokens)
    kernel, tile = _tile(product)
    element, rows = 2 if precision == "half" else 4, tokens / NUM_EXPERTS
    shape = work.Shape(tokens, DIM, NUM_EXPERTS, EXPERT_DIM)
    steps = work.experts(shape, element, "inference" not in name) + work.experts_backward(shape, element)
    counted = dict(zip(PRODUCTS, steps, strict=True))[name.removesuffix(" inference")]
    moved = counted.bytes
    if kernel == "grad_hidden":  # the activation's gradient is a pass of its own here
        moved -= 4 * tokens * EXPERT_DIM * element
    inner, outer, products = PRODUCTS[name.removesuffix(" inference")]
    if kernel == "grad_weight":
        padded = math.ceil(rows / tile.block_k) * tile.block_k
        programs = NUM_EXPERTS * math.ceil(inner / tile.block_m) * math.ceil(outer / tile.block_n)
        loaded = programs * padded * (tile.block_m + tile.block_n) * element
        return Cost(name, counted.flop, counted.flop * padded / rows, moved, loaded, programs, product)
    row_tiles = NUM_EXPERTS * math.ceil(rows / tile.block_m)
    programs = row_tiles * math.ceil(outer / tile.block_n)
    loaded = programs * inner * (tile.block_m + products * tile.block_n) * element
    padded_flop = counted.flop * row_tiles * tile.block_m / tokens
    return Cost(name, counted.flop, padded_flop, moved, loaded, programs, product)


def streaming(name: str, tensors: float, precision: str, tokens: int, width: int = DIM) -> Cost:
    """A pass over ``tensors`` arrays of tokens x width."""
    moved = tensors * tokens * width * (2 if precision == "half" else 4)
    return Cost(name, 0.0, 0.0, moved, moved)


def launches(direction: str, architecture: int, precision: str, tokens: int) -> list[Cost]:
    """Those of one call, in order."""
    product = partial(grouped, architecture=architecture, precision=precision, tokens=tokens)
    rounded = [
        streaming("round tokens", 2, precision, tokens),
        streaming("round weights", 2, precision, 3 * NUM_EXPERTS * EXPERT_DIM),
    ]
    if precision != "tf32":
        rounded.clear()
    selection = Cost("select", 0.0, 0.0, tokens * NUM_EXPERTS * 20.0, 0.0)
    combine = streaming("combine", 2, precision, tokens)
    if direction == "backward":
        return [
            *rounded,
            *rounded[:1],
            product("grad_hidden"),
            streaming("swiglu_backward", 6, precision, tokens, EXPERT_DIM),
            product("grad_pairs"),
            product("grad_weight up"),
            product("grad_weight down"),
            combine,
            selection,
            streaming("route grad_input", 3, precision, tokens),
            streaming("route grad_router", 1, precision, tokens),
        ]
    up = product("up" if direction == "forward" else "up inference")
    return [
        streaming("route", 2, precision, tokens), selection, selection, *rounded, up, product("down"), combine
    ]  # fmt: skip


def predict(launch: Cost, resources: Resources | None, card: Card, tokens: int, precision: str, direction: str) -> Line:
    """Bound and prediction of one launch of a call."""
    memory = launch.bytes / card.bandwidth
    seconds, used = max(memory, launch.l2_bytes / card.l2_bandwidth), (None, None, None)
    if resources is not None:
        blocks = resources.blocks_per_multiprocessor(card.shared, card.threads)
        if blocks == 0:
            raise RuntimeError(f"{launch.name}: does not fit a multiprocessor of the {card.name}: {resources}")
        seconds = max(seconds, _waves(launch, card, card.peak(precision), blocks, resources.threads // 32))
        used = resources.registers, resources.shared, blocks
    bound = max(launch.flops / card.peak(precision), memory)
    return Line(card.name, tokens, precision, direction, launch.name, *used, 1e6 * bound, 1e6 * (seconds + LAUNCH))


def _waves(launch: Cost, card: Card, peak: float, blocks: int, warps: int) -> float:
    """Time of the tiles: full waves of all resident blocks, then the rest, which may leave matrix units idle."""
    per_tile = launch.padded_flops / launch.programs / (peak / card.multiprocessors * card.sustained)

    def wave(resident: int) -> float:
        return resident * per_tile / min(1.0, resident * warps / WARPS_TO_SATURATE)

    full, rest = divmod(launch.programs, card.multiprocessors * blocks)
    return full * wave(blocks) + (wave(math.ceil(rest / card.multiprocessors)) if rest else 0.0)


def _tile(product: Product) -> tuple[str, configs.Tile]:
    name, architecture, precision, tokens = product
    kernel = name.split()[0]
    return kernel, configs.tile(architecture, kernel, precision, configs.size_class(tokens, NUM_EXPERTS))


def _compile(product: Product) -> Resources:
    (kernel, tile), (name, architecture, precision, _) = _tile(product), product
    specimens = {specimen.name: specimen for specimen in aot.grouped_specimens(kernel, precision, tile)}
    return aot.compile_specimen(specimens[name], architecture)


def report(cards: tuple[Card, ...] = CARDS) -> list[Line]:
    """Every launch of every call on every card, and the sums (kernel "total")."""
    calls = [
        (card, tokens, precision, direction)
        for card in cards
        for precision, tokens in (("half", 9600), ("half", 300), ("tf32", 9600))
        for direction in ("forward", "backward", "inference")
    ]
    chains = [launches(direction, card.architecture, precision, tokens) for card, tokens, precision, direction in calls]
    products = sorted({launch.product for chain in chains for launch in chain if launch.product})
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        compiled = dict(zip(products, pool.map(_compile, products, chunksize=4), strict=True))
    lines: list[Line] = []
    for (card, tokens, precision, direction), chain in zip(calls, chains, strict=True):
        used = [compiled[each.product] if each.product else None for each in chain]
        found = [predict(*pair, card, tokens, precision, direction) for pair in zip(chain, used, strict=True)]
        bound, predicted = sum(line.bound for line in found), sum(line.predicted for line in found)
        lines += [*found, Line(card.name, tokens, precision, direction, "total", None, None, None, bound, predicted)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write every line to this file")
    chosen = parser.parse_args()
    lines = report()
    print("Predicted, not measured. D=768, F=1024, E=8, one expert per token. Times in microseconds.")
    print(f"{'card':9} {'S':>5} {'type':5} {'call':9} {'kernel':17} {'regs':>5} {'shared':>7} {'blocks':>6}"
          f" {'bound':>8} {'predicted':>9} {'reached':>7}")  # fmt: skip
    for line in lines:
        resources = "".join(f" {'' if v is None else v:>{w}}" for v, w in
                            ((line.registers, 5), (line.shared, 7), (line.blocks, 6)))  # fmt: skip
        print(f"{line.card:9} {line.tokens:5} {line.precision:5} {line.direction:9} {line.kernel:17}{resources}"
              f" {line.bound:8.1f} {line.predicted:9.1f} {line.bound / line.predicted:7.0%}")  # fmt: skip
    if chosen.json:
        write_json(chosen.json, [asdict(line) for line in lines])


if __name__ == "__main__":
    main()
