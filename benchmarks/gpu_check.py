"""Everything about the Triton and CUDA kernels that only a GPU can tell, in one command and one JSON file.

    python benchmarks/gpu_check.py [correctness] [tests] [timings] [sanitizer] [--out FILE] [--rehearse]

All parts, or those named: correctness (``gpu_correctness.py``); the tests marked ``gpu``, the CUDA kernels of
``native`` among them; times and memory beside the baselines, each compared with ours before it is timed;
compute-sanitizer over small shapes. Parts that an earlier run wrote stay in the file, which goes to the folder of the
environment variable OUT if that is set. ``--rehearse`` runs tiny shapes in Triton's interpreter (TRITON_INTERPRET=1) on
a CPU.
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
from intermoe.kernels.triton.registry import STATIC_PAIRS

SANITIZER_SECONDS = 180
PARTS = ("correctness", "tests", "timings", "sanitizer")


def median_time(call: Callable[[], object], device: str, seconds: float = 1.0) -> float:
    """Median time of a call in microseconds, after a warm-up; on CUDA of calls in a row, by the device's events.

    The calls between two events last a few milliseconds, as in a network that keeps the device's queue filled: what
    the host does then costs only what the device waits for it.
    """
    if device != "cuda":
        began = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - began)

    def timed(calls: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return 1000 * start.elapsed_time(end) / calls

    for _ in range(3):
        call()
    calls = max(1, int(4000 / timed(5)))
    times: list[float] = []
    until = time.monotonic() + seconds
    while len(times) < 5 or (time.monotonic() < until and len(times) < 100):
        times.append(timed(calls))
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


def time_case(name: str, case: Case, device: str) -> dict[str, Any]:
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
    result["ours"] |= captured_times(*captured_calls(case, grad), device)
    result["dense_ffn"] |= captured_times(*dense_calls(case, tokens, grad), device)
    if tokens.dtype == torch.float16:
        result["half_sums"] = {"forward_us": median_time(lambda: forward(case, save_h=False, half_sums=True), device)}
    return result


def captured_calls(case: Case, grad: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Forward, and forward with backward, in the static mode with room for a fifth more pairs than there are."""
    pairs, most = len(forward(case)["token_idx"]), case.values[0].shape[0] * case.values[1].shape[0]
    room = most if most <= STATIC_PAIRS else min(most, pairs + pairs // 5)

    def training() -> Tensor:
        made = forward(case, room)
        return backward(case, made, grad)["hidden"]

    return lambda: forward(case, room, save_h=False)["out"], training


def dense_calls(case: Case, tokens: Tensor, grad: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The same of the dense network."""
    leaves = [value.detach().clone().requires_grad_() for value in (tokens, *case.weights)]

    def training() -> Tensor:
        return torch.autograd.grad(dense_ffn(leaves[0], Weights(*leaves[1:])), leaves, grad)[0]

    def inference() -> Tensor:
        with torch.no_grad():
            return dense_ffn(tokens, case.weights)

    return inference, training


def captured_times(inference: Callable[[], Tensor], training: Callable[[], Tensor], device: str) -> dict[str, float]:
    """Times of both as CUDA graphs, replayed: the device's alone."""
    if device != "cuda":
        return {}
    return {
        f"captured_{name}_us": median_time(capture(call)[0], device)
        for name, call in (("forward", inference), ("training", training))
    }


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
        for what, least in (("forward", 0.75), ("training", 0.7)):
            for how, key in (("in graphs", f"captured_{what}_us"), ("from Python", f"{what}_us")):
                name = f"{what} S=9600 bf16, share of dense rate, {how}"
                row(name, per_flop * times(large, "dense_ffn", key), least)
        row("forward S=9600 bf16, times the authors' form", times(large, "authors_form", "forward_us"), 6.0)
        row("forward S=9600 bf16, times an expert loop", times(large, "expert_loop", "forward_us"), 1.3)
        row("training S=9600 bf16, times the authors' form", times(large, "authors_form", "training_us"), 4.0)
        memory = times(large, "authors_form", "training_bytes")
        row("training S=9600 bf16, memory over the authors'", 1 / memory, None, 0.25)
    if small is not None:
        captured = small["ours"]["captured_forward_us"]
        row("forward S=300 in a graph, us", captured, None, 70.0)
        row("forward S=300 in a graph, times the authors' form", small["authors_form"]["forward_us"] / captured, 15.0)
    if tf32 is not None:
        row("forward S=9600 TF32, times the authors' form", times(tf32, "authors_form", "forward_us"), 2.5)
        row("training S=9600 TF32, times the authors' form", times(tf32, "authors_form", "training_us"), 2.5)
    return rows


def sanitize() -> dict[str, str]:
    """compute-sanitizer's memcheck and racecheck, at once, over the small cases, where the tool is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"compute-sanitizer": "not installed"}
    runs = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, __file__, "--small-only"]
        runs[check] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    results, until = {}, time.monotonic() + SANITIZER_SECONDS
    for check, run in runs.items():
        try:
            said, _ = run.communicate(timeout=max(1.0, until - time.monotonic()))
            results[check] = "passed" if run.returncode == 0 else said[-2000:]
        except subprocess.TimeoutExpired:
            run.kill()
            results[check] = f"not finished in {SANITIZER_SECONDS} s"
    return results


def gpu_tests() -> dict[str, Any]:
    """The repository's tests that need a GPU: their exit code and the end of what they say."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    return {"exit_code": run.returncode, "said": run.stdout[-4000:]}


def check_correctness(device: str, small_only: bool) -> dict[str, Any]:
    """Everything of ``gpu_correctness``; raises for the first that is wrong."""
    found: dict[str, Any] = {"differences": {}}
    # odd everything; the model's width; many experts. tokens, experts, dim, expert_dim, rows
    shapes = [(66, 7, 97, 63, 6), (600, 8, 768, 1024, 4), (256, 64, 128, 64, 1)]
    if device == "cpu":
        shapes = [(18, 3, 20, 9, 2)]
    for label, (dtype, matmul, allowed) in PRECISIONS.items():
        if device == "cpu" and dtype == torch.bfloat16:
            continue
        torch.set_float32_matmul_precision(matmul)
        for shape in shapes[:1] if small_only else shapes:
            for bias in (-0.5, 0.5, -0.999):
                case = Case.draw(*shape, dtype, device, bias)
                found["differences"][f"{label} {shape} bias {bias}"] = check_numbers(case, allowed)
            case = Case.draw(*shape, dtype, device, -0.5)
            check_reproducible(case)
            check_static(case, device)
    torch.set_float32_matmul_precision("highest")
    check_block(device)
    found["routing_kinds"] = check_kinds(device)
    found["half_sums"] = check_half_sums(device)
    found["large_offsets"] = {} if small_only else check_large_offsets(device)
    # check_static and check_block raise at the first host read
    found["host_reads_static_mode"] = None if device == "cpu" else 0
    return found


def time_everything(device: str) -> list[dict[str, Any]]:
    """``time_case`` of the cases that the goals are about."""
    torch.set_float32_matmul_precision("high")
    timed = [("S=9600 bfloat16", 9600, torch.bfloat16), ("S=300 bfloat16", 300, torch.bfloat16),
             ("S=9600 tf32", 9600, torch.float32), ("S=9600 float16", 9600, torch.float16)]  # fmt: skip
    sizes = (8, 768, 1024)
    if device == "cpu":
        timed, sizes = [("rehearsal", 16, torch.float32)], (2, 16, 16)
    results = []
    for name, tokens, dtype in timed:
        case = settled_bias(Case.draw(tokens, *sizes, 4, dtype, device, -0.5))
        results.append(time_case(name, case, device))
        print(name, json.dumps({k: v for k, v in results[-1].items() if isinstance(v, dict)}, indent=1))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(os.environ.get("OUT", "."), "gpu_check.json")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, default=default, help=f"where the results go; {default} by default")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes in Triton's interpreter, on CPU")
    parser.add_argument("--small-only", action="store_true", help="only the small correctness cases, nothing written")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"PART: must be of {', '.join(PARTS)}, got {unknown[0]!r}")
    device = "cpu" if options.rehearse else "cuda"
    reason = steps.unusable_reason(torch.device(device), torch.float32)
    if reason is not None:
        raise SystemExit(f"gpu_check: {reason}")
    torch.manual_seed(0)
    if options.small_only:
        check_correctness(device, small_only=True)
        return
    report: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    report |= {
        "device": platform.processor() if options.rehearse else torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
    }  # fmt: skip

    def keep(part: str, found: Any) -> None:
        report[part] = found
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")

    if "correctness" in parts:
        keep("correctness", check_correctness(device, small_only=False))
        print(f"correct: {len(report['correctness']['differences'])} cases, routing kinds, static mode, large offsets")
    if "tests" in parts and not options.rehearse:
        keep("tests", gpu_tests())
        print(report["tests"]["said"])
    if "timings" in parts:
        keep("timings", time_everything(device))
        keep("goals", goals({timing["case"]: timing for timing in report["timings"]}))
        for line in report["goals"]:
            print(json.dumps(line))
    if "sanitizer" in parts and not options.rehearse:
        keep("sanitizer", sanitize())
        print(report["sanitizer"])
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
