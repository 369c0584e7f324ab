"""Search for faster tiles of the grouped products on the GPU at hand.

From the shipped tile the search goes to the fastest neighbour, one field doubled, halved or one stage more or less, as
long as that gains more than noise. A tile that does not compile or fit is passed over, and so is one whose results
differ from the shipped tile's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from . import configs
from .configs import Key, Tile
from .experts import Shared, launch_product, launch_up
from .experts_backward import launch_grad_hidden, launch_grad_weight
from .select import select

LEAST_GAIN = 0.02
"""Share of the time that a step of the search must gain."""

Clock = Callable[[Callable[[], object]], float]
"""Microseconds of a call."""


@dataclass(frozen=True)
class Found:
    """The fastest tile for a key, the one it was compared with, and their times in microseconds."""

    key: Key
    tile: Tile
    time: float
    shipped: Tile
    shipped_time: float
    tried: int


def device_clock(call: Callable[[], object]) -> float:
    """Median time on the device, with a cold L2 cache."""
    return 1e3 * triton.testing.do_bench(call, warmup=10, rep=40, return_mode="median")


class Workload:
    """Inputs of every grouped product: a pool of tokens of which each expert takes its share, at random.

    Args:
        tokens, num_experts, dim, expert_dim: S, E, D, F.
        capacity: pairs per token.
    """

    def __init__(
        self,
        tokens: int,
        num_experts: int,
        dim: int,
        expert_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        capacity: float = 1.0,
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(*shape, generator=generator, device=device) * shape[-1] ** -0.5
            return drawn.to(dtype)

        taken = torch.rand(tokens, num_experts, generator=generator, device=device) < capacity / num_experts
        logits = torch.zeros(tokens, num_experts, device=device)
        self.token_idx, self.gates, self.offsets, *_ = select(logits, None, taken)
        pairs = self.token_idx.numel()
        self.tokens, self.grad_out = normal(tokens, dim), normal(tokens, dim)
        self.w_gate_up, self.w_down = normal(num_experts, 2 * expert_dim, dim), normal(num_experts, dim, expert_dim)
        self.h, self.activation = normal(pairs, 2 * expert_dim), normal(pairs, expert_dim)
        self.launch = Shared(self.tokens, pairs, self.w_down)

    def key(self, kernel: str) -> Key:
        return Key(self.launch.architecture, kernel, self.launch.precision, self.launch.size)

    def run(self, kernel: str) -> tuple[Tensor, ...]:
        """One call of a kernel of ``configs.KERNELS`` with the tile in force."""
        launch, offsets = self.launch, self.offsets
        if kernel == "up":
            made = torch.empty_like(self.h), torch.empty_like(self.activation)
            launch_up(launch, self.tokens, self.token_idx, offsets, self.w_gate_up, *made)
            return made
        if kernel == "down":
            out = self.tokens.new_empty(launch.num_pairs, launch.dim)
            launch_product(launch, kernel, self.activation, offsets, self.w_down, out, False)
            return (out,)
        if kernel == "grad_hidden":
            grad_h, weighted = torch.empty_like(self.h), torch.empty_like(self.activation)
            given = (self.grad_out, self.token_idx, offsets, self.gates, self.w_down, self.h)
            return grad_h, weighted, launch_grad_hidden(launch, *given, grad_h, weighted)
        if kernel == "grad_pairs":
            out = self.tokens.new_empty(launch.num_pairs, launch.dim)
            launch_product(launch, kernel, self.h, offsets, self.w_gate_up, out, True)
            return (out,)
        made = torch.empty_like(self.w_down), torch.empty_like(self.w_gate_up)
        launch_grad_weight(launch, self.grad_out, self.activation, self.token_idx, offsets, made[0], True)
        launch_grad_weight(launch, self.h, self.tokens, self.token_idx, offsets, made[1], False)
        return made


def tune(workload: Workload, kernel: str, clock: Clock = device_clock) -> Found:
    """The fastest tile found for this kernel on this workload."""
    key = workload.key(kernel)
    shipped = configs.shipped(key.architecture)[key]
    times: dict[Tile, float] = {}
    with configs.overridden(key, shipped):
        expected = workload.run(kernel)

    def measure(tile: Tile) -> float:
        if tile not in times:
            times[tile] = float("inf")
            with configs.overridden(key, tile):
                if _fits(lambda: workload.run(kernel), expected):
                    times[tile] = clock(lambda: workload.run(kernel))
        return times[tile]

    best, bound = shipped, measure(shipped)
    while True:
        nearest = min(neighbours(best), key=measure)
        if not measure(nearest) < (1 - LEAST_GAIN) * bound:
            return Found(key, best, bound, shipped, times[shipped], len(times))
        best, bound = nearest, measure(nearest)


def neighbours(tile: Tile) -> Iterator[Tile]:
    """Tiles that differ in one field by one step, within what the kernels can compile."""
    for name in ("block_m", "block_n", "block_k"):
        size = getattr(tile, name)
        yield from (replace(tile, **{name: other}) for other in (size // 2, 2 * size) if 16 <= other <= 256)
    yield from (replace(tile, num_warps=n) for n in (tile.num_warps // 2, 2 * tile.num_warps) if 1 <= n <= 16)
    yield from (replace(tile, num_stages=n) for n in (tile.num_stages - 1, tile.num_stages + 1) if 1 <= n <= 7)


def _fits(call: Callable[[], tuple[Tensor, ...]], expected: tuple[Tensor, ...]) -> bool:
    """Whether the tile compiles, fits the device, and computes what the shipped one does."""
    try:
        found = call()
    except triton.errors.TritonError:
        return False
    except RuntimeError as error:
        if "PassManager" not in str(error):  # the compiler's other way of giving up
            raise
        return False
    return all(_close(a, b) for a, b in zip(found, expected, strict=True))


def _close(found: Tensor, expected: Tensor) -> bool:
    allowed = 1e-3 if expected.dtype == torch.float32 else 4 * torch.finfo(expected.dtype).eps
    return bool((found.float() - expected.float()).norm() <= allowed * expected.float().norm())
