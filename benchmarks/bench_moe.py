"""The block's operation against its baselines, at the size of the published model (D=768, F=1024, E=8, P about S).

pytest benchmarks/bench_moe.py            timings
python benchmarks/bench_moe.py            table of ratios: the competitors take turns in one process, medians
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe import backends
from intermoe.ops.moe import moe
from intermoe.ops.route import route_reference
from intermoe.ops.select import select_reference

sys.path.insert(0, str(Path(__file__).parent))
import baselines

Form = Callable[..., tuple[Tensor, Any]]

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


def published(*arguments: Tensor) -> tuple[Tensor, None]:
    """The authors' form behind plain routing."""
    tokens, logits, weights = _route(*arguments)
    mask = (torch.sigmoid(logits) + arguments[5] > 0).T
    return baselines.authors_form(tokens, mask, torch.softmax(logits, dim=-1).T, weights), None


def loop(*arguments: Tensor) -> tuple[Tensor, None]:
    """One product per expert on sorted rows, behind plain routing."""
    tokens, logits, weights = _route(*arguments)
    s = select_reference(logits, arguments[5])
    return baselines.expert_loop(tokens, s.token_idx, s.expert_offsets, s.slots, s.gates, weights), None


def dense(*arguments: Tensor) -> tuple[Tensor, None]:
    """One network on every token, without routing."""
    return baselines.dense_ffn(arguments[0], baselines.Weights(*arguments[6:])), None


def native(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    """The block's operation on the native backend."""
    return moe(*arguments, backend="native")


def _route(*arguments: Tensor) -> tuple[Tensor, Tensor, baselines.Weights]:
    tokens, logits = route_reference(*arguments[:5])
    return tokens.to(arguments[0].dtype), logits, baselines.Weights(*arguments[6:])


def competitors(arguments: tuple[Tensor, ...]) -> dict[str, Form]:
    """Every way to compute it; all but the dense network are checked against the reference first."""
    forms: dict[str, Form] = {"authors' form": published, "expert loop": loop}
    if backends.available()["native"].usable:
        forms["native"] = native
    dtype = arguments[0].dtype
    bound = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps * DIM**0.5
    with torch.no_grad():
        # Routed by float32 logits, as every form is: a logit at the threshold must not depend on the precision.
        expected = moe(*arguments, backend="reference")[0].double()
        for name, form in forms.items():
            error = ((form(*arguments)[0].double() - expected).norm() / expected.norm()).item()
            if not error <= bound:
                raise RuntimeError(f"{name}: relative error {error:.2e} exceeds {bound:.2e}, not timing a wrong result")
    return {**forms, "dense network": dense}


def call(form: Form, arguments: tuple[Tensor, ...], backward: bool) -> None:
    """One forward, or forward and backward to every argument but the selection's bias."""
    if not backward:
        with torch.no_grad():
            form(*arguments)
        return
    leaves = [a.detach().requires_grad_(i != 5) for i, a in enumerate(arguments)]
    form(*leaves)[0].sum().backward()


CASES = [(300, torch.float32, False), (300, torch.bfloat16, False), (4800, torch.float32, False)]


@pytest.mark.parametrize(("tokens", "dtype", "backward"), CASES, ids=str)
@pytest.mark.parametrize("name", ["authors' form", "expert loop", "native", "dense network"])
def test_moe(benchmark: Any, tokens: int, dtype: torch.dtype, backward: bool, name: str) -> None:
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
