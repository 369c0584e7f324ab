"""Experts over processes: bytes and time of the exchange on this machine, and a model of its cost on clusters.

    python -m intermoe.benchmarks.exchange --ranks 2 --tokens 600
    python -m intermoe.benchmarks.exchange --model

The first compares a block spread over processes (gloo) with one that every process holds whole; both compute the same,
which is checked before anything is timed. The second prints the table of docs/distributed.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

FORWARD_EXCHANGES, BACKWARD_EXCHANGES = 2, 2
LATENCY = 20e-6
"""Seconds that a collective takes whatever its size: NCCL's order within a node; between nodes more."""


@dataclass(frozen=True)
class Load:
    """What a rank computes in a step: tokens S, widths D and F, experts E, capacity, bytes of a number."""

    tokens: int = 9600
    dim: int = 768
    width: int = 1024
    experts: int = 8
    capacity: float = 1.0
    item: int = 2

    @property
    def weight_bytes(self) -> int:
        """Of all experts of a block."""
        return self.experts * 3 * self.dim * self.width * self.item


def exchanged_bytes(load: Load, ranks: int) -> float:
    """What a rank sends in forward and backward: every pair's row four times, but those that stay."""
    pairs = load.capacity * load.tokens
    return (FORWARD_EXCHANGES + BACKWARD_EXCHANGES) * pairs * load.dim * load.item * (ranks - 1) / ranks


def reduced_bytes(load: Load, ranks: int) -> float:
    """What a rank sends to average the gradients of whole experts: a ring's reduce-scatter and all-gather."""
    return 2 * load.weight_bytes * (ranks - 1) / ranks


def exchange_seconds(load: Load, ranks: int, bandwidth: float) -> float:
    """bandwidth: bytes a second that a rank sends. One collective more is the counts'."""
    collectives = FORWARD_EXCHANGES + BACKWARD_EXCHANGES + 1
    return exchanged_bytes(load, ranks) / bandwidth + collectives * LATENCY


def reduce_seconds(load: Load, ranks: int, bandwidth: float) -> float:
    """Of whole experts' gradients, which DistributedDataParallel hides behind the backward where it can."""
    return reduced_bytes(load, ranks) / bandwidth + 2 * LATENCY


def model_table() -> str:
    """The table of docs/distributed.md: per block, step and rank."""
    lines = ["| GPUs | GB/s | experts | tokens | exchange | all-reduce | weights, gradients and AdamW of a rank |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for ranks, bandwidth in ((8, 300e9), (64, 40e9), (512, 40e9)):
        for experts in (8, 64, 512):
            for tokens in (2400, 9600, 38400):
                if experts < ranks:  # some would have none
                    continue
                load = Load(tokens=tokens, experts=experts)
                exchange, reduce = (f(load, ranks, bandwidth) * 1e3 for f in (exchange_seconds, reduce_seconds))
                whole = load.weight_bytes / load.item * 16 / 2**20  # float32: weight, gradient and two moments
                lines.append(
                    f"| {ranks} | {bandwidth / 1e9:.0f} | {experts} | {tokens} | {exchange:.2f} ms | {reduce:.2f} ms | "
                    f"{whole / ranks:,.0f} of {whole:,.0f} MiB |"
                )
    return "\n".join(lines)


def measure(call: Callable[[], object], repeats: int = 9) -> float:
    """Median seconds of a call that all ranks begin together."""
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _rank(rank: int, ranks: int, meeting: str, load: Load) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    from intermoe.nn.moe import InterMoEBlock

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": load.dim, "num_experts": load.experts, "expert_dim": load.width, "cond_dim": None}
    whole = InterMoEBlock(**sizes)
    spread = InterMoEBlock(**sizes)
    spread.load_state_dict(whole.state_dict())
    spread.distribute(init_device_mesh("cpu", (ranks,)))
    hidden = torch.randn(1, load.tokens, load.dim, generator=torch.Generator().manual_seed(rank), requires_grad=True)
    torch.testing.assert_close(spread(hidden), whole(hidden), rtol=1e-4, atol=1e-5)
    experts = [whole.w_gate_up, whole.w_down]

    def step(block: InterMoEBlock) -> None:
        block(hidden).sum().backward()
        if block is whole:
            for weight in experts:
                dist.all_reduce(weight.grad)

    pairs = int(whole.expert_counts.sum())
    rows = torch.zeros(load.tokens // ranks * ranks, load.dim)
    single = measure(lambda: dist.all_to_all_single(torch.empty_like(rows), rows))
    seconds = [measure(lambda block=block: step(block)) for block in (whole, spread)]  # type: ignore[misc]
    real = Load(load.tokens, load.dim, load.width, load.experts, pairs / load.tokens, 4)
    if rank == 0:
        print(f"{ranks} processes, {load.tokens} tokens each, {pairs} pairs, {load}")
        print(
            f"bytes of a rank: exchange {exchanged_bytes(real, ranks):,.0f}, reduce {reduced_bytes(real, ranks):,.0f}"
        )
        rate = rows.numel() * 4 * (ranks - 1) / ranks / single
        print(f"one exchange {single * 1e3:.1f} ms, {rate / 1e9:.2f} GB/s")
        print(
            f"forward and backward: whole with all-reduce {seconds[0] * 1e3:.1f} ms, spread {seconds[1] * 1e3:.1f} ms"
        )
        print(
            f"model: the exchanges take {exchanged_bytes(real, ranks) / rate * 1e3:.1f} ms of the spread block's time"
        )
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", action="store_true", help="print the model's table and measure nothing")
    parser.add_argument("--ranks", type=int, default=2)
    for name, value in (("tokens", 600), ("dim", 256), ("width", 512), ("experts", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    if given.model:
        print(model_table())
        return
    load = Load(given.tokens, given.dim, given.width, given.experts, item=4)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/ranks"
        start_processes(_rank, (given.ranks, meeting, load), given.ranks, start_method="fork")


if __name__ == "__main__":
    main()
