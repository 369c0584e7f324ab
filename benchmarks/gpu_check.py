"""Everything about the Triton kernels that only a GPU can tell, in one command and one JSON file.

    python benchmarks/gpu_check.py [--json FILE] [--rehearse]

Correctness first (every step and gradient in every dtype against float64, reproducibility, no host read in the static
mode, capture in a CUDA graph, overflow), then times and memory beside three baselines; nothing wrong is timed.
``--rehearse`` runs the same script on tiny shapes in Triton's interpreter (TRITON_INTERPRET=1) on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from baselines import Weights, authors_form, dense_ffn, expert_loop
from torch import Tensor

from intermoe.kernels import triton as steps
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import experts_reference
from intermoe.ops.route import route_reference
from intermoe.ops.select import select_reference

PRECISIONS = {
    "float32": (torch.float32, "highest", 1e-5),
    "tf32": (torch.float32, "high", 1e-3),
    "float16": (torch.float16, "highest", 8 * torch.finfo(torch.float16).eps),
    "bfloat16": (torch.bfloat16, "highest", 8 * torch.finfo(torch.bfloat16).eps),
}
"""Dtype, torch's matmul precision, and the relative norm allowed; sums are float32, so half types lose by rounding."""

VALUES = ("hidden", "router_weight", "router_offset", "scale", "shift", "bias", "w_gate_up", "w_down")


@dataclass(frozen=True)
class Case:
    """Inputs of one call, in the order of ``VALUES``."""

    values: tuple[Tensor, ...]

    @classmethod
    def draw(
        cls,
        tokens: int,
        experts: int,
        dim: int,
        expert_dim: int,
        rows: int,
        dtype: torch.dtype,
        device: str,
        bias: float,
    ) -> Case:
        def normal(*shape: int, std: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * std).to(dtype)

        return cls(
            (
                normal(tokens, dim), normal(experts, dim, std=dim**-0.5), torch.randn(rows, experts, device=device),
                normal(rows, dim, std=0.2), normal(rows, dim, std=0.2), torch.full((experts,), bias, device=device),
                normal(experts, 2 * expert_dim, dim, std=dim**-0.5),
                normal(experts, dim, expert_dim, std=expert_dim**-0.5),
            )
        )  # fmt: skip

    @property
    def weights(self) -> Weights:
        return Weights(self.values[6], self.values[7])


def forward(case: Case, max_pairs: int | None = None, save_h: bool = True) -> dict[str, Tensor]:
    """The four steps; every intermediate by name."""
    hidden, router_weight, offset, scale, shift, bias, w_gate_up, w_down = case.values
    tokens, logits, mean, rstd = steps.route_forward(hidden, router_weight, offset, scale, shift)
    token_idx, gates, offsets, slots, counts = steps.select(logits, bias, None, max_pairs)
    expert_out, h = steps.experts_forward(tokens, token_idx, offsets, w_gate_up, w_down, save_h)
    out = steps.combine(expert_out, gates, slots)
    return {
        "tokens": tokens, "logits": logits, "mean": mean, "rstd": rstd, "token_idx": token_idx, "gates": gates,
        "offsets": offsets, "slots": slots, "counts": counts, "expert_out": expert_out, "h": h, "out": out,
    }  # fmt: skip


def backward(case: Case, made: dict[str, Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    """Gradients of everything that has one."""
    hidden, router_weight, offset, scale, _, _, w_gate_up, w_down = case.values
    grad_pairs, grad_gates, grad_up, grad_down = steps.experts_backward(
        grad_out, made["tokens"], made["token_idx"], made["offsets"], made["gates"], made["h"], w_gate_up, w_down
    )
    grad_tokens = steps.combine(grad_pairs, None, made["slots"])
    grad_logits = steps.select_backward(grad_gates, made["logits"], made["slots"])
    routed = steps.route_backward(
        grad_tokens, grad_logits, hidden, made["mean"], made["rstd"], router_weight, scale, True, offset.shape[0]
    )
    return dict(zip([name for name in VALUES if name != "bias"], (*routed, grad_up, grad_down), strict=True))


def relative(found: Tensor, expected: Tensor) -> float:
    norm = expected.double().norm().item()
    return (found.double() - expected.double()).norm().item() / (norm or 1.0)


def check_numbers(case: Case, bound: float) -> dict[str, float]:
    """Relative differences from float64 by name. Raises ``RuntimeError`` for the first beyond ``bound``."""
    made = forward(case)
    wide = [value.double().requires_grad_(i != 5) for i, value in enumerate(case.values)]
    tokens, logits = route_reference(*wide[:5])
    pairs = select_reference(made["logits"], case.values[5])
    margin = (torch.sigmoid(made["logits"].double()) + case.values[5]).abs()
    differing = (made["slots"] >= 0) != (pairs.slots >= 0)
    if bool((margin[differing] > 1e-6).any()):
        raise RuntimeError(f"select: {int(differing.sum())} pairs differ from the reference away from the threshold")
    gates = torch.zeros(len(made["token_idx"]), dtype=torch.float64, device=logits.device)
    taken = made["slots"] >= 0
    gates = gates.index_put((made["slots"][taken],), torch.softmax(logits, -1)[taken])
    expert_out = experts_reference(tokens, made["token_idx"], made["offsets"], *wide[6:])
    out = combine_reference(expert_out, gates, made["slots"])
    references = {"tokens": tokens, "logits": logits, "gates": gates, "expert_out": expert_out, "out": out}
    found = {name: relative(made[name], value) for name, value in references.items()}
    grad_out = torch.randn_like(made["out"])
    out.backward(grad_out.double())
    expected = dict(zip(VALUES, wide, strict=True))
    for name, grad in backward(case, made, grad_out).items():
        found[f"grad_{name}"] = relative(grad, expected[name].grad)
    for name, difference in found.items():  # NaN fails too
        if not difference <= bound:
            raise RuntimeError(
                f"{name}: expected a relative difference <= {bound:.1e} from float64, got {difference:.1e}"
            )
    return found


def check_reproducible(case: Case) -> None:
    """The same bits twice, forward and backward."""
    runs = []
    for _ in range(2):
        made = forward(case)
        runs.append({**made, **{f"grad_{k}": v for k, v in backward(case, made, torch.ones_like(made["out"])).items()}})
    for name, value in runs[0].items():
        if not torch.equal(value, runs[1][name]):
            raise RuntimeError(f"{name}: two runs differ")


def check_static(case: Case, device: str) -> None:
    """Static equals exact; without host reads; the same from a graph; an overflow raises."""
    tokens, experts = case.values[0].shape[0], case.values[1].shape[0]
    exact, static = forward(case), forward(case, tokens * experts)
    if not torch.equal(exact["out"], static["out"]):
        raise RuntimeError("out: static and exact mode differ")
    if device == "cuda":
        with no_host_reads():
            made = forward(case, tokens * experts)
            backward(case, made, made["out"])
        replay, captured = capture(lambda: forward(case, tokens * experts)["out"])
        replay()
        if not torch.equal(captured, exact["out"]):
            raise RuntimeError("out: a replayed graph differs from the exact mode")
    needed = int(exact["counts"].sum())
    try:
        forward(case, needed - 1)
        steps.raise_on_overflow()
    except RuntimeError as error:
        if f"{needed} (token, expert) pairs" not in str(error):
            raise
    else:
        raise RuntimeError("max_pairs: an overflow went unnoticed")


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Any host synchronisation within raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The call as a CUDA graph: its replay, and its output."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph.replay, out


def median_time(call: Callable[[], object], device: str, seconds: float = 1.0) -> float:
    """Median of single runs in microseconds, by device events, after a warm-up."""
    for _ in range(3 if device == "cuda" else 1):
        call()
    times: list[float] = []
    until = time.monotonic() + seconds
    while not times or (time.monotonic() < until and len(times) < 200):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(1000 * start.elapsed_time(end))
        else:
            began = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - began))
    return statistics.median(times)


def peak_memory(call: Callable[[], object], device: str) -> int | None:
    """Bytes allocated on top of what is there."""
    if device != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def settled_bias(case: Case) -> Case:
    """The case with biases at which as many pairs as tokens are selected, evenly over the experts."""
    logits = forward(case)["logits"]
    tokens, experts = logits.shape
    threshold = torch.sigmoid(logits).sort(dim=0, descending=True).values[max(tokens // experts, 1) - 1]
    return Case((*case.values[:5], 1e-7 - threshold, *case.values[6:]))


def time_case(name: str, case: Case, device: str, graph: bool) -> dict[str, Any]:
    """Times in microseconds and memory in bytes, ours and each baseline's, forward and with backward."""
    made = forward(case)
    tokens, routing, gates = made["tokens"], (made["token_idx"], made["offsets"], made["slots"]), made["gates"]
    mask = made["slots"].T >= 0
    probabilities = torch.softmax(made["logits"], -1).T
    persons = case.values[0].shape[0] // 2
    grad = torch.randn_like(made["out"])

    def ours(with_backward: bool) -> None:
        result = forward(case, save_h=with_backward)
        if with_backward:
            backward(case, result, grad)

    def baseline(call: Callable[[Tensor, Weights], Tensor]) -> Callable[[bool], None]:
        def run(with_backward: bool) -> None:
            with torch.set_grad_enabled(with_backward):
                weights = Weights(*(w.detach().requires_grad_(with_backward) for w in case.weights))
                out = call(tokens.detach().requires_grad_(with_backward), weights)
            if with_backward:
                out.backward(grad)

        return run

    def per_person(x: Tensor, w: Weights) -> Tensor:
        halves = (slice(0, persons), slice(persons, None))
        return torch.cat([authors_form(x[h], mask[:, h], probabilities[:, h], w) for h in halves])

    contestants = {
        "authors_form": baseline(per_person),
        "expert_loop": baseline(lambda x, w: expert_loop(x, *routing, gates, w)),
        "dense_ffn": baseline(dense_ffn),
    }
    for other in ("authors_form", "expert_loop"):
        call = per_person if other == "authors_form" else (lambda x, w: expert_loop(x, *routing, gates, w))
        difference = relative(call(tokens, case.weights), made["out"])
        allowed = 8 * torch.finfo(tokens.dtype).eps + 2e-3  # products may be TF32
        if not difference < allowed:
            raise RuntimeError(f"{other}: differs from ours by {difference:.1e} in relative norm, not timed")
    result: dict[str, Any] = {"case": name, "pairs": len(made["token_idx"])}
    for label, run in {"ours": ours, **contestants}.items():
        result[label] = {
            "forward_us": median_time(lambda run=run: run(False), device),
            "training_us": median_time(lambda run=run: run(True), device),
            "training_bytes": peak_memory(lambda run=run: run(True), device),
        }
    if graph and device == "cuda":
        room = case.values[0].shape[0] * case.values[1].shape[0]
        replay, _ = capture(lambda: forward(case, room, save_h=False)["out"])
        result["ours"]["captured_forward_us"] = median_time(replay, device)
    return result


def sanitize() -> dict[str, str]:
    """compute-sanitizer over the small cases of this script, where the tool is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"compute-sanitizer": "not installed"}
    results = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, __file__, "--small-only"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            results[check] = "passed" if run.returncode == 0 else run.stdout[-2000:]
        except subprocess.TimeoutExpired:
            results[check] = "not finished in 120 s"
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where the results go")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes in Triton's interpreter, on CPU")
    parser.add_argument("--small-only", action="store_true", help="only the small correctness cases")
    options = parser.parse_args()
    device = "cpu" if options.rehearse else "cuda"
    reason = steps.unusable_reason(torch.device(device), torch.float32)
    if reason is not None:
        raise SystemExit(f"gpu_check: {reason}")
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "device": platform.processor() if options.rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__, "triton": triton.__version__, "correctness": {}, "timings": [],
    }  # fmt: skip

    # odd everything; the model's width; many experts. tokens, experts, dim, expert_dim, rows
    shapes = [(66, 7, 97, 63, 6), (600, 8, 768, 1024, 4), (256, 64, 128, 64, 1)]
    if options.rehearse:
        shapes = [(18, 3, 20, 9, 2)]
    for label, (dtype, matmul, allowed) in PRECISIONS.items():
        if options.rehearse and dtype == torch.bfloat16:
            continue
        torch.set_float32_matmul_precision(matmul)
        for shape in shapes[:1] if options.small_only else shapes:
            for bias in (-0.5, 0.5, -0.999):
                case = Case.draw(*shape, dtype, device, bias)
                report["correctness"][f"{label} {shape} bias {bias}"] = check_numbers(case, allowed)
            case = Case.draw(*shape, dtype, device, -0.5)
            check_reproducible(case)
            check_static(case, device)
    print(f"correct: {len(report['correctness'])} cases")
    if options.small_only:
        return

    torch.set_float32_matmul_precision("high")
    timed = [("S=9600 bfloat16", 9600, torch.bfloat16), ("S=300 bfloat16", 300, torch.bfloat16),
             ("S=9600 tf32", 9600, torch.float32)]  # fmt: skip
    sizes = (8, 768, 1024)
    if options.rehearse:
        timed, sizes = [("rehearsal", 16, torch.float32)], (2, 16, 16)
    for name, tokens, dtype in timed:
        case = settled_bias(Case.draw(tokens, *sizes, 4, dtype, device, -0.5))
        result = time_case(name, case, device, graph=True)
        report["timings"].append(result)
        print(name, json.dumps({k: v for k, v in result.items() if isinstance(v, dict)}, indent=1))
    report["sanitizer"] = sanitize() if device == "cuda" else {}
    partial = options.json.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1), encoding="utf-8")
    partial.replace(options.json)
    print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
