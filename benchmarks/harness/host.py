"""What the host spends on a call: microseconds of its own time, and launches, without a GPU.

    python -m intermoe.benchmarks.harness.host [--out FILE.json]

The Triton rows run on a stand-in for the driver (``standin.py``): they have everything from the public operation down
to the driver's own ``cuLaunchKernel``, or without a C++ compiler down to Triton's launcher. The native rows are a tiny
call on this CPU, whose kernels take next to nothing. A time is the least of many repeats of this process's own CPU
time, in one thread; ``over the backend`` is the public operation's less that of the backend's functions called
directly, taken in turns; ``torch alone`` is a function of autograd's with as many inputs, results and gradients, which
does nothing.

With the stand-in in the model's own size it also tells the memory of forward + backward: what is allocated at most at a
time, results and gradients included, and how much of that is neither.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intermoe import backends
from intermoe.benchmarks.harness import standin
from intermoe.benchmarks.harness.timing import Budget, machine, peak_memory, take_turns
from intermoe.files import write_json
from intermoe.kernels.contract import Experts, Kind, Needs, Route, Select
from intermoe.ops.moe import moe

REPEATS, CALLS, WARM_UPS = 25, 100, 10
ROW = 8
"""Operations one after the other, as many as the default model has."""

# tokens, dim, experts, expert_dim, rows of the condition, max_pairs; narrow, as what the stand-in leaves to torch costs
TINY = (8, 16, 4, 16, 1, None)
PROMPT = (300, 64, 8, 64, 4, None)
TRAINING = (9600, 64, 8, 64, 64, None)
STATIC = (9600, 64, 8, 64, 64, 9600)
MODEL = {"S=9600": (9600, 768, 8, 1024, 64, None), "S=9600, static": (9600, 768, 8, 1024, 64, 9600)}
"""of the default model in training, for its memory"""


IN_A_ROW = f"forward + backward, each of {ROW} in a row"


def least(calls: dict[str, Callable[[], object]], repeats: int = REPEATS, count: int = CALLS) -> dict[str, float]:
    """Least microseconds of CPU time of each call, over repeats that take turns."""
    for call in calls.values():
        for _ in range(WARM_UPS):
            call()
    clocks = {name: partial(_microseconds, call, count) for name, call in calls.items()}
    return {name: min(taken) for name, taken in take_turns(clocks, Budget(0.0, repeats, repeats)).items()}


def _microseconds(call: Callable[[], object], count: int) -> float:
    start = time.process_time_ns()
    for _ in range(count):
        call()
    return (time.process_time_ns() - start) / count / 1e3


def _arguments(shape: tuple[Any, ...], dtype: torch.dtype) -> tuple[Route, Select, Experts]:
    tokens, dim, experts, width, rows, max_pairs = shape
    wide = (torch.randn(size) for size in ((experts, dim), (rows, experts), (rows, dim), (rows, dim)))
    weights = (torch.randn(size, dtype=dtype) for size in ((experts, 2 * width, dim), (experts, dim, width)))
    select = Select(torch.full((experts,), -0.5), None, None, max_pairs)
    return Route(torch.randn(tokens, dim, dtype=dtype), *wide), select, Experts(*weights)


def calls(backend: str, shape: tuple[Any, ...], dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """The public operation and the backend's own functions, for inference and for a training step."""
    route, select, experts = _arguments(shape, dtype)
    package = backends.load(backend)
    rows = [[t.clone().requires_grad_() for t in (*route[:5], *experts[:2]) if t is not None] for _ in range(ROW)]
    leaves = rows[0]
    trained = (Route(*leaves[:5]), select, Experts(*leaves[5:]))
    grad = torch.randn_like(route.hidden)
    needs = Needs(*[True] * len(Needs._fields))
    kind = Kind()  # as the public operation tells the backend

    def inference() -> object:
        with torch.no_grad():
            return moe(route, select, experts, backend=backend)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(moe(*trained, backend=backend).out, leaves, grad)

    def direct_step() -> object:
        with torch.no_grad():
            _, _, saved = package.moe_forward(route, select, experts, kind)
            return package.moe_backward(grad, None, route, experts, saved, needs, kind)

    def direct_inference() -> object:
        with torch.no_grad():
            return package.moe_inference(route, select, experts, kind)

    nothing = _nothing(leaves, grad)

    def both() -> None:
        direct_step()
        nothing()

    def in_a_row() -> tuple[Tensor, ...]:
        hidden = leaves[0]
        for _, *others in rows:
            hidden = moe(Route(hidden, *others[:4]), select, Experts(*others[4:]), backend=backend).out
        return torch.autograd.grad(hidden, [leaves[0], *(leaf for row in rows for leaf in row[1:])], grad)

    return {
        "inference": inference,
        "inference, backend": direct_inference,
        "forward + backward": step,
        "forward + backward, backend": direct_step,
        "forward + backward, torch alone": nothing,
        "forward + backward, backend and torch alone": both,
        IN_A_ROW: in_a_row,
    }


def _nothing(leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    """The gradients of a function with these inputs that computes nothing and has its gradients at hand."""
    found = [torch.zeros_like(leaf) for leaf in leaves]

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(*inputs)
            ctx.set_materialize_grads(False)
            return torch.empty_like(grad), torch.empty_like(grad)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, ...]:
            return tuple(found) if ctx.saved_tensors else ()

    def step() -> object:
        out, _ = Nothing.apply(*leaves)  # type: ignore[no-untyped-call]
        return torch.autograd.grad(out, leaves, grad)

    return step


def memory(shape: tuple[Any, ...]) -> dict[str, int]:
    """Bytes of forward + backward in bfloat16, on the stand-in: at most at a time, and of results and gradients."""
    with standin.stand_in(pairs=shape[0]) as driver:
        driver.recording = False
        route, select, experts = _arguments(shape, torch.bfloat16)
        leaves = [t.requires_grad_() for t in (*route[:5], *experts[:2]) if t is not None]
        grad = torch.zeros_like(route.hidden)
        made: list[Tensor] = []

        def step(_: int) -> None:
            made.clear()
            result = moe(route, select, experts, backend="triton")
            made.extend((result.out, *torch.autograd.grad(result.out, leaves, grad)))

        for _ in range(3):
            step(0)
        made.clear()
        peak = peak_memory(step, torch.device("cpu"))
        return {"peak": peak, "results and gradients": sum(t.nbytes for t in made)}


def _row(name: str, times: dict[str, float]) -> dict[str, Any]:
    rounded = {what: round(value / (ROW if what == IN_A_ROW else 1), 1) for what, value in times.items()}
    over = {what: round(times[what] - times[f"{what}, backend"], 1) for what in ("inference", "forward + backward")}
    return {"case": name, "microseconds": rounded, "over the backend": over}


def measure(repeats: int = REPEATS, count: int = CALLS) -> list[dict[str, Any]]:
    """A row for each case."""
    found = []
    if backends.available()["native"].usable:
        tiny = calls("native", TINY, torch.float32)
        found.append(_row("native, tiny call on this CPU", least(tiny, repeats, count)))
    if isinstance(backends._loaded.get("triton"), ImportError):
        return found
    for name, shape in (
        ("triton, S=300", PROMPT),
        ("triton, S=9600", TRAINING),
        ("triton, S=9600, static", STATIC),
    ):
        with standin.stand_in(pairs=shape[0]) as driver:
            cases = calls("triton", shape, torch.bfloat16)
            launches = {}
            for what in ("inference", "forward + backward"):
                driver.launches.clear()
                cases[what]()
                launches[what] = len(driver.launches)
            driver.recording = False
            found.append(_row(name, least(cases, repeats, count)) | {"launches": launches})
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = {"machine": machine(torch.device("cpu")).label, "torch": torch.__version__, "rows": measure()}
    if not isinstance(backends._loaded.get("triton"), ImportError):
        report["memory"] = {name: memory(shape) for name, shape in MODEL.items()}
    print(json.dumps(report, indent=2))
    if options.out is not None:
        write_json(options.out, report)


if __name__ == "__main__":
    main()
