"""Correctness of the Triton kernels on a GPU: numbers, reproducibility, the static mode, large offsets, the block.

Every check raises ``RuntimeError`` with what was expected and what came; ``gpu_check.py`` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from baselines import Weights
from torch import Tensor

from intermoe import InterMoEBlock
from intermoe.kernels import triton as steps
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import experts_reference
from intermoe.ops.moe import Experts, Route, Select, moe, raise_on_overflow
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


def steps_of(values: Sequence[Tensor], half_sums: bool = False) -> tuple[Route, Select, Experts]:
    """Arguments of the whole operation, from values in the order of ``VALUES``."""
    return Route(*values[:5]), Select(values[5]), Experts(values[6], values[7], half_sums=half_sums)


def forward(
    case: Case, max_pairs: int | None = None, save_h: bool = True, half_sums: bool = False
) -> dict[str, Tensor]:
    """The four steps; every intermediate by name."""
    hidden, router_weight, offset, scale, shift, bias, w_gate_up, w_down = case.values
    tokens, logits, mean, rstd = steps.route_forward(hidden, router_weight, offset, scale, shift)
    token_idx, gates, offsets, slots, counts = steps.select(logits, bias, None, max_pairs)
    expert_out, h = steps.experts_forward(tokens, token_idx, offsets, w_gate_up, w_down, save_h, half_sums)
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


KINDS = (
    ("dynamic", "batch", "frame"), ("dynamic", "sample", "sequence"), ("token_choice", "batch", "frame"),
    ("expert_choice", "batch", "frame"), ("expert_choice", "sample", "frame"),
)  # fmt: skip


def draw_block(device: str, routing: str = "dynamic", pool: str = "batch", unit: str = "frame") -> InterMoEBlock:
    top_k = 2 if routing == "token_choice" else None
    sizes = (16, 3, 8, 8) if device == "cpu" else (64, 8, 48, 32)
    block = InterMoEBlock(*sizes, routing=routing, pool=pool, unit=unit, top_k=top_k).to(device)
    with torch.no_grad():
        block.motion_router.normal_(std=block.dim**-0.5)
    return block


def draw_inputs(block: InterMoEBlock, batch: int, frames: int) -> tuple[Tensor, Tensor]:
    device = block.w_down.device
    return torch.randn(batch, frames, block.dim, device=device), torch.randn(batch, block.cond_dim, device=device)


def check_kinds(device: str) -> dict[str, float]:
    """Every routing kind: the same pairs as the reference, outputs and gradients within 1e-5 in float32."""
    found: dict[str, float] = {}
    frames = 5 if device == "cpu" else 40
    for kind in KINDS:
        block = draw_block(device, *kind)
        hidden, condition = draw_inputs(block, 3, frames)
        mask = torch.arange(frames, device=device) < torch.tensor([[frames], [frames - 3], [2]], device=device)
        results = []
        for block.backend in ("reference", "triton"):
            block.zero_grad()
            out = block(hidden, condition, mask)
            out.square().sum().backward()
            results.append((block.expert_counts.clone(), out, *(p.grad.clone() for p in block.parameters())))
        if not torch.equal(results[0][0], results[1][0]):
            raise RuntimeError(f"{kind}: expected counts {results[0][0].tolist()}, got {results[1][0].tolist()}")
        found[" ".join(kind)] = max(relative(b, a) for a, b in zip(*results, strict=True))
        if not found[" ".join(kind)] <= 1e-5:
            raise RuntimeError(f"{kind}: differs from the reference by {found[' '.join(kind)]:.1e}")
    return found


def check_block(device: str) -> None:
    """The block in the static mode: no host read in a training step, a graph of its inference, a late overflow."""
    block = draw_block(device)
    block.backend = "triton"
    frames = 5 if device == "cpu" else 30
    hidden, condition = draw_inputs(block, 4, frames)
    mask = (torch.arange(frames, device=device) < frames - 2).expand(4, frames)

    def step() -> None:
        block(hidden, condition, mask).square().sum().backward()
        block.update_selection_bias()

    valid_pairs = 4 * (frames - 2) * block.num_experts
    for limit in (None, valid_pairs):  # None: the pool is small enough for room for all pairs
        block.max_pairs = limit
        step()
        with no_host_reads():
            step()
    with torch.no_grad():
        expected = block.eval()(hidden, condition)
        replay, out = capture(lambda: block(hidden, condition))
        kept = hidden.clone()
        hidden.zero_()
        replay()
        hidden.copy_(kept)
        replay()
    if not torch.equal(out, expected):
        raise RuntimeError("out: a replayed graph of the block differs")
    block.max_pairs = 1
    try:
        spoilt = block(hidden, condition)  # raises here in a rehearsal, which has nothing to wait for
        if not bool(spoilt.isnan().any()):
            raise RuntimeError("out: expected NaN after an overflow, got none")
        raise_on_overflow()
    except RuntimeError as error:
        if "only 1 allocated" not in str(error):
            raise
    else:
        raise RuntimeError("max_pairs: an overflow of the block went unnoticed")


def check_half_sums(device: str) -> float:
    """Difference of an inference call with float16 sums from float64."""
    tokens, dim = (12, 32) if device == "cpu" else (2000, 256)
    case = Case.draw(tokens, 4, dim, dim, 4, torch.float16, device, -0.5)
    wide = [value.double() for value in case.values]
    with torch.no_grad():
        found = moe(*steps_of(case.values, half_sums=True), backend="triton").out
        expected = moe(*steps_of(wide), backend="reference").out
    difference, allowed = relative(found, expected), 4 * torch.finfo(torch.float16).eps * 64**0.5
    if not difference <= allowed:
        raise RuntimeError(f"half_sums: expected a relative difference <= {allowed:.1e}, got {difference:.1e}")
    return difference


def check_large_offsets(device: str) -> dict[str, str]:
    """Tensors of more than 2^31 elements: the last tokens get what they get in a pool of their own."""
    last, results = 64, {}
    most = 32 if device == "cpu" else 1024
    for name, dim, expert_dim in (("hidden", most, 16), ("h", 16, most)):
        width = max(dim, 2 * expert_dim)
        tokens = 70 if device == "cpu" else 5 * 2**29 // width
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else 2**40
        if free < 10 * tokens * width:
            results[name] = f"not run: needs {10 * tokens * width / 2**30:.0f} GiB"
            continue
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        case = Case.draw(tokens, 2, dim, expert_dim, 1, dtype, device, -0.5)
        alone = Case((case.values[0][-last:].clone(), *case.values[1:]))
        made, small = forward(case), forward(alone)
        pairs = {"out": (made["out"][-last:], small["out"])}
        if differentiated := free > 20 * tokens * width:
            grad_out = torch.zeros_like(case.values[0])
            grad_out[-last:].normal_()
            grads, expected = backward(case, made, grad_out), backward(alone, small, grad_out[-last:].clone())
            grads["hidden"] = grads["hidden"][-last:]
            pairs |= {f"grad_{key}": (grads[key], expected[key]) for key in grads}
            del grad_out, grads
        for key, (value, wanted) in pairs.items():
            if not (difference := relative(value, wanted)) <= 16 * torch.finfo(dtype).eps:
                raise RuntimeError(
                    f"{name} of {tokens} x {width}: {key} of the last tokens differs by {difference:.1e}"
                )
        del case, made, pairs
        results[name] = f"{tokens * width} elements agree, {'with' if differentiated else 'without'} gradients"
    return results


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Any host synchronisation within raises."""
    if not torch.cuda.is_available():  # a rehearsal
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """The call as a CUDA graph: its replay, and its output. In a rehearsal the call itself."""
    if not torch.cuda.is_available():
        kept = call()
        return lambda: kept.copy_(call()), kept
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
