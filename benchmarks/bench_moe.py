"""The block's operation against its baselines, at the size of the published model (D=768, F=1024, E=8, P about S).

pytest benchmarks/bench_moe.py            timings
python benchmarks/bench_moe.py            table of ratios: the competitors take turns in one process, medians
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe import backends
from intermoe.ops.moe import moe

DIM, WIDTH, EXPERTS = 768, 1024, 8
ROWS = 4


def problem(tokens: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """Arguments of ``moe`` with the selection settled: every expert takes S / E tokens."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, DIM, generator=g).to(dtype)
    router_weight = torch.randn(EXPERTS, DIM, generator=g) * DIM**-0.5
    router_offset = torch.randn(ROWS, EXPERTS, generator=g) * 0.1
    scale, shift = torch.randn(2, ROWS, DIM, generator=g) * 0.1
    logits = hidden.float() @ router_weight.T + router_offset.repeat_interleave(tokens // ROWS, 0)
    bias = -torch.sigmoid(logits).quantile(1 - 1 / EXPERTS, dim=0)
    w_gate_up = (torch.randn(EXPERTS, 2 * WIDTH, DIM, generator=g) * DIM**-0.5).to(dtype)
    w_down = (torch.randn(EXPERTS, DIM, WIDTH, generator=g) * WIDTH**-0.5).to(dtype)
    return hidden, router_weight, router_offset, scale, shift, bias, w_gate_up, w_down


def competitors(arguments: tuple[Tensor, ...]) -> dict[str, Callable[..., Any]]:
    """Every way to compute it; all but the dense network are checked against the reference first."""
    from baselines import dense_network, expert_loop, published_form

    forms = {"published form": published_form, "expert loop": expert_loop}
    if backends.available()["native"].usable:
        forms["native"] = lambda *a: moe(*a, backend="native")
    with torch.no_grad():
        expected = moe(*(a.double() if a.is_floating_point() else a for a in arguments), backend="reference")[0]
        for name, form in forms.items():
            error = (form(*arguments)[0].double() - expected).norm() / expected.norm()
            bound = 1e-5 if arguments[0].dtype == torch.float32 else 4 * torch.finfo(arguments[0].dtype).eps * DIM**0.5
            if not error <= bound:
                raise RuntimeError(f"{name}: relative error {error:.2e} exceeds {bound:.2e}, not timing a wrong result")
    return {**forms, "dense network": lambda *a: (dense_network(a[0], a[6], a[7]), None)}


def call(form: Callable[..., Any], arguments: tuple[Tensor, ...], backward: bool) -> None:
    """One forward, or forward and backward to every argument but the selection's bias."""
    if not backward:
        with torch.no_grad():
            form(*arguments)
        return
    leaves = [a.detach().requires_grad_(i != 5) for i, a in enumerate(arguments)]
    form(*leaves)[0].sum().backward()


CASES = [(300, torch.float32, False), (300, torch.bfloat16, False), (4800, torch.float32, False)]


@pytest.mark.parametrize(("tokens", "dtype", "backward"), CASES, ids=str)
@pytest.mark.parametrize("name", ["published form", "expert loop", "native", "dense network"])
def bench_moe(benchmark: Any, tokens: int, dtype: torch.dtype, backward: bool, name: str) -> None:
    arguments = problem(tokens, dtype)
    forms = competitors(arguments)
    if name not in forms:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    benchmark.pedantic(call, (forms[name], arguments, backward), rounds=5, warmup_rounds=1)


def table(rounds: int, cases: list[tuple[int, torch.dtype, bool]]) -> None:
    """Print the medians, and how many times slower than native each competitor is (median of the ratios per round)."""
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    for tokens, dtype, backward in cases:
        arguments = problem(tokens, dtype)
        forms = competitors(arguments)
        times: dict[str, list[float]] = {name: [] for name in forms}
        for i in range(rounds + 1):
            for name, form in forms.items():
                start = time.perf_counter()
                call(form, arguments, backward)
                if i:
                    times[name].append(time.perf_counter() - start)
        print(f"S={tokens} {dtype} {'forward + backward' if backward else 'forward'}")
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(values, times["native"], strict=True))
            print(f"  {name:<16}{statistics.median(values) * 1e3:9.1f} ms   {ratio:5.2f} x native")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="*", default=[300, 4800])
    options = parser.parse_args()
    types = (torch.float32, torch.bfloat16)
    table(options.rounds, [(s, t, b) for s in options.tokens for b in (False, True) for t in types])
