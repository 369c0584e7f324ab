"""Everything about the Triton and CUDA kernels that only a GPU can tell, in one command and one JSON file.

    python benchmarks/gpu_check.py [--out FILE] [--rehearse]

Correctness first (``gpu_correctness.py`` and the tests marked ``gpu``, the CUDA kernels of ``native`` too), then times
and memory beside the baselines; nothing wrong is timed. The file goes to the folder of the environment variable OUT if
that is set. ``--rehearse`` runs the same script on tiny shapes in Triton's interpreter (TRITON_INTERPRET=1) on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from baselines import HAS_GROUPED_MM, Weights, authors_form, dense_ffn, expert_loop, grouped_mm
from gpu_correctness import (
    PRECISIONS,
    Case,
    backward,
    capture,
    check_block,
    check_half_sums,
    check_kinds,
    check_large_offsets,
    check_numbers,
    check_reproducible,
    check_static,
    forward,
    relative,
)
from torch import Tensor

from intermoe.files import replacing
from intermoe.kernels import triton as steps


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

    same: dict[str, Callable[[Tensor, Weights], Tensor]] = {
        "authors_form": per_person,
        "expert_loop": lambda x, w: expert_loop(x, *routing, gates, w),
    }
    if HAS_GROUPED_MM and tokens.dtype == torch.bfloat16:
        same["grouped_mm"] = lambda x, w: grouped_mm(x, *routing[:2], gates, w)
    contestants = {label: baseline(call) for label, call in {**same, "dense_ffn": dense_ffn}.items()}
    for other, call in same.items():
        difference = relative(call(tokens, case.weights), made["out"])
        allowed = 8 * torch.finfo(tokens.dtype).eps + 2e-3  # products may be TF32
        if not difference < allowed:
            raise RuntimeError(f"{other}: differs from ours by {difference:.1e} in relative norm, not timed")
    result: dict[str, Any] = {"case": name, "pairs": len(made["token_idx"]), "tokens": tokens.shape[0]}
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
    if tokens.dtype == torch.float16:
        result["half_sums"] = {"forward_us": median_time(lambda: forward(case, save_h=False, half_sums=True), device)}
    return result


def goals(timings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals as rows: name, measured, goal, reached. ``dense_rate`` is ours over the dense network's, per FLOP."""
    rows: list[dict[str, Any]] = []

    def row(name: str, measured: float, at_least: float | None = None, at_most: float | None = None) -> None:
        reached = measured >= at_least if at_least is not None else measured <= (at_most or 0)
        goal = f">= {at_least}" if at_least is not None else f"<= {at_most}"
        rows.append({"row": name, "measured": round(measured, 3), "goal": goal, "reached": reached})

    def times(case: dict[str, Any], other: str, what: str) -> float:
        return case[other][what] / case["ours"][what]

    large, small, tf32 = (timings.get(name) for name in ("S=9600 bfloat16", "S=300 bfloat16", "S=9600 tf32"))
    if large is not None:
        per_flop = large["pairs"] / large["tokens"]
        row("forward S=9600 bf16, share of dense rate", per_flop * times(large, "dense_ffn", "forward_us"), 0.75)
        row("forward S=9600 bf16, times the authors' form", times(large, "authors_form", "forward_us"), 6.0)
        row("forward S=9600 bf16, times an expert loop", times(large, "expert_loop", "forward_us"), 1.3)
        row("training S=9600 bf16, share of dense rate", per_flop * times(large, "dense_ffn", "training_us"), 0.7)
        row("training S=9600 bf16, times the authors' form", times(large, "authors_form", "training_us"), 4.0)
        row(
            "training S=9600 bf16, memory over the authors'",
            1 / times(large, "authors_form", "training_bytes"),
            None,
            0.25,
        )
    if small is not None:
        captured = small["ours"]["captured_forward_us"]
        row("forward S=300 in a graph, us", captured, None, 70.0)
        row("forward S=300 in a graph, times the authors' form", small["authors_form"]["forward_us"] / captured, 15.0)
    if tf32 is not None:
        row("forward S=9600 TF32, times the authors' form", times(tf32, "authors_form", "forward_us"), 2.5)
        row("training S=9600 TF32, times the authors' form", times(tf32, "authors_form", "training_us"), 2.5)
    return rows


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


def gpu_tests() -> dict[str, Any]:
    """The repository's tests that need a GPU: their exit code and the end of what they say."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    return {"exit_code": run.returncode, "said": run.stdout[-4000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(os.environ.get("OUT", "."), "gpu_check.json")
    parser.add_argument("--out", type=Path, default=default, help=f"where the results go; {default} by default")
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
    torch.set_float32_matmul_precision("highest")
    check_block(device)
    report["routing_kinds"] = check_kinds(device)
    report["half_sums"] = check_half_sums(device)
    report["large_offsets"] = {} if options.small_only else check_large_offsets(device)
    # check_static and check_block raise at the first host read
    report["host_reads_static_mode"] = None if options.rehearse else 0
    print(f"correct: {len(report['correctness'])} cases, routing kinds, static mode; {report['large_offsets']}")
    if options.small_only:
        return

    report["gpu_tests"] = {} if options.rehearse else gpu_tests()
    print(report["gpu_tests"].get("said", "tests that need a GPU: left out of the rehearsal"))
    torch.set_float32_matmul_precision("high")
    timed = [("S=9600 bfloat16", 9600, torch.bfloat16), ("S=300 bfloat16", 300, torch.bfloat16),
             ("S=9600 tf32", 9600, torch.float32), ("S=9600 float16", 9600, torch.float16)]  # fmt: skip
    sizes = (8, 768, 1024)
    if options.rehearse:
        timed, sizes = [("rehearsal", 16, torch.float32)], (2, 16, 16)
    for name, tokens, dtype in timed:
        case = settled_bias(Case.draw(tokens, *sizes, 4, dtype, device, -0.5))
        result = time_case(name, case, device, graph=True)
        report["timings"].append(result)
        print(name, json.dumps({k: v for k, v in result.items() if isinstance(v, dict)}, indent=1))
    report["goals"] = goals({timing["case"]: timing for timing in report["timings"]})
    for line in report["goals"]:
        print(json.dumps(line))
    report["sanitizer"] = sanitize() if device == "cuda" else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.out) as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
