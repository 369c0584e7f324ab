"""The chained operation: every backend against the reference, torch.compile, threads, memory."""

from __future__ import annotations

import threading

import pytest
import torch

from intermoe import backends
from intermoe.benchmarks.forms import draw
from intermoe.benchmarks.measure import peak_memory
from intermoe.benchmarks.work import Shape
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops.moe import moe


@pytest.fixture
def native() -> str:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    return "native"


def gradients(case, backend: str, dtype: torch.dtype, **options):
    """Output, counts and all gradients."""
    low = ("hidden", "w_gate_up", "w_down")
    names = ("hidden", "router_weight", "router_offset", "scale", "shift", "selection_bias", "w_gate_up", "w_down")
    values = [getattr(case, name).to(dtype if name in low else torch.float32).detach() for name in names]
    leaves = [value.requires_grad_() for name, value in zip(names, values, strict=True) if name != "selection_bias"]
    out, counts = moe(*values, valid=case.valid, backend=backend, **options)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out, counts, *torch.autograd.grad(out, leaves, grad_out)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("recompute", [False, True])
def test_moe(backend, case, dtype, recompute: bool, relative_error, tolerance) -> None:
    terms = max(case.hidden.shape[0], *case.w_down.shape[1:])
    found = gradients(case, backend, dtype, recompute=recompute)
    for actual, expected in zip(found, gradients(case, "reference", dtype), strict=True):
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) <= tolerance(dtype, terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_nothing(native, case, dtype, relative_error, tolerance, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradients(case, native, dtype)
    monkeypatch.setattr("intermoe.kernels.native.moe.CHUNK_BYTES", 1000)
    monkeypatch.setattr("intermoe.kernels.native.moe.BACKWARD_CHUNK_BYTES", 1000)
    for actual, expected in zip(gradients(case, native, dtype), whole, strict=True):
        assert relative_error(actual, expected) <= tolerance(dtype, case.hidden.shape[0])


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["steps", "one call"])
def test_inference(
    backend, case, dtype, limit: int, relative_error, tolerance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients: what training computes, whatever mask there is and whether tokens are normalised."""
    monkeypatch.setattr("intermoe.kernels.native.moe.FEW_ELEMENTS", limit)
    low = ("hidden", "w_gate_up", "w_down")
    names = ("hidden", "router_weight", "router_offset", "scale", "shift", "selection_bias", "w_gate_up", "w_down")
    values = [getattr(case, name).to(dtype if name in low else torch.float32) for name in names]
    allowed = case.valid[:, None] & (torch.arange(len(case.selection_bias)) != 1)
    terms = max(case.w_down.shape[1:])
    for valid in (None, case.valid, allowed):
        for normalise in (True, False):
            arguments = values if normalise else [*values[:2], values[2], None, None, *values[5:]]
            out, counts = moe(*arguments, valid=valid, normalise=normalise, backend=backend)
            expected, wanted = moe(*arguments, valid=valid, normalise=normalise, backend="reference")
            assert torch.equal(counts, wanted)
            assert out.dtype == expected.dtype
            assert relative_error(out, expected) <= tolerance(dtype, terms)


def test_inference_of_what_one_call_does_not_take(native, case, relative_error) -> None:
    """Strided and narrow inputs are served by the steps; what fits nothing is refused by name."""
    x = case.arguments()
    expected, _ = moe(*x, backend="reference")
    strided = [value.T.contiguous().T if value.dim() == 2 else value for value in x[:6]]
    assert relative_error(moe(*strided, *x[6:], backend=native)[0], expected) <= 1e-5
    router = [value.bfloat16() for value in x[1:5]]
    expected, _ = moe(x[0], *(value.float() for value in router), *x[5:], backend="reference")
    assert relative_error(moe(x[0], *router, *x[5:], backend=native)[0], expected) <= 1e-5
    inference = torch.ops.intermoe.moe_inference
    with pytest.raises(ValueError, match="scale: scale and shift must be given together"):
        inference(*x[:4], None, *x[5:], None, True, None, False, native)
    with pytest.raises(ValueError, match="w_gate_up: expected shape"):
        inference(*x[:6], x[6][:, 1:], x[7], None, True, None, False, native)


def workspace(backend: str, tokens: int, recompute: bool) -> int:
    """Bytes that a forward with backward takes at its peak beyond results and what the forward saves."""
    dim, experts, width = 32, 4, 64
    drawn = draw(Shape(tokens, dim, experts, width, rows=1), torch.float32, torch.device("cpu"))
    x = [value.requires_grad_(name != "selection_bias") for name, value in drawn._asdict().items()]
    grad_out = torch.ones(tokens, dim)
    sizes: list[int] = []

    def call(_: int) -> None:
        out, counts = moe(*x, backend=backend, recompute=recompute)
        grads = torch.autograd.grad(out, [leaf for leaf in x if leaf.requires_grad], grad_out)
        sizes[:] = int(counts.sum()), sum(tensor.nbytes for tensor in (out, counts, *grads))

    call(0)
    peak = peak_memory(call, torch.device("cpu"))
    pairs, results = sizes
    # tokens, logits and their gradient, mean, rstd, slots; of each pair its index, gate, the gate's gradient, and h
    saved = tokens * 4 * (dim + 2 * experts + 2 + 2 * experts) + pairs * 4 * (2 + 1 + 1)
    saved += 0 if recompute else pairs * 4 * 2 * width
    return peak - results - saved


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_of_a_large_pool_is_bounded(native, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond results and what is saved, a pool takes the same workspace whatever its size."""
    for name in ("CHUNK_BYTES", "BACKWARD_CHUNK_BYTES"):
        monkeypatch.setattr(f"intermoe.kernels.native.moe.{name}", 1 << 18)
    monkeypatch.setattr("intermoe.kernels.native.experts.SEGMENT_ROWS", 256)
    small, large = (workspace(native, tokens, recompute) for tokens in (8000, 32000))
    assert max(small, large) < 1 << 20
    assert abs(large - small) < 1 << 18


def test_recompute_of_the_reference(case, relative_error) -> None:
    found = gradients(case, "reference", torch.float32, recompute=True)
    for actual, expected in zip(found, gradients(case, "reference", torch.float32), strict=True):
        assert relative_error(actual, expected) <= 1e-6


def test_two_threads_at_once(native, relative_error) -> None:
    block = InterMoEBlock(dim=24, num_experts=4, expert_dim=32, cond_dim=None)
    torch.nn.init.normal_(block.motion_router)
    inputs = [torch.randn(2, 50, 24) for _ in range(2)]
    with torch.no_grad():
        expected = [block(x) for x in inputs]
        wrong: list[int] = []

        def work(i: int) -> None:
            with torch.no_grad():
                for _ in range(20):
                    if not torch.equal(block(inputs[i]), expected[i]):
                        wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_compile_fullgraph(native, relative_error) -> None:
    torch._dynamo.reset()
    block = InterMoEBlock(dim=16, num_experts=3, expert_dim=24, cond_dim=8)
    torch.nn.init.normal_(block.motion_router)
    # Capture and differentiation are what the operators must allow; compiling the rest to C++ would take a minute.
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for batch, frames in ((2, 9), (3, 5)):
        hidden = torch.randn(batch, frames, 16, requires_grad=True)
        condition = torch.randn(batch, 8)
        results = []
        for run in (block, compiled):
            block.zero_grad()
            hidden.grad = None
            out = run(hidden, condition)
            out.square().sum().backward()
            results.append([out, hidden.grad, *(p.grad.clone() for p in block.parameters())])
        for actual, expected in zip(*reversed(results), strict=True):
            assert relative_error(actual, expected) < 1e-5
        with torch.no_grad():
            assert relative_error(compiled(hidden, condition), block(hidden, condition)) < 1e-5


def test_operators(native, case) -> None:
    """Schema, fake implementation and autograd registration of every native operator agree with what it does."""
    ops = torch.ops.intermoe_native
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    tokens, logits, mean, rstd = ops.route_forward(
        case.hidden, case.router_weight, case.router_offset, case.scale, case.shift, 1e-6, True
    )
    idx, gates, offsets, slots, _ = ops.select(logits, case.selection_bias, case.valid)
    out, h = ops.experts_forward(tokens, idx, offsets, case.w_gate_up, case.w_down, True)
    rows = len(case.scale)
    calls = [
        (ops.route_forward, (*case.arguments()[:5], 1e-6, True)),
        (ops.route_backward, (tokens, logits, case.hidden, mean, rstd, case.router_weight, case.scale, True, rows)),
        (ops.select, (logits, case.selection_bias, case.valid)),
        (ops.select_backward, (gates, logits, slots)),
        (ops.experts_forward, (tokens, idx, offsets, case.w_gate_up, case.w_down, True)),
        (ops.experts_backward, (tokens, tokens, idx, offsets, gates, h, case.w_gate_up, case.w_down)),
        (ops.combine, (out, gates, slots)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments, test_utils=checks)
    forward = (*case.arguments(), case.valid, True, True, None, False, native)
    torch.library.opcheck(torch.ops.intermoe.moe_forward.default, forward, test_utils=checks)
    inference = (*case.arguments(), case.valid, True, None, False, native)
    torch.library.opcheck(torch.ops.intermoe.moe_inference.default, inference, test_utils=checks)
    saved = list(torch.ops.intermoe.moe_forward(*forward)[2:])
    backward = (case.hidden, case.hidden, case.router_weight, case.scale, case.w_gate_up, case.w_down, saved)
    torch.library.opcheck(
        torch.ops.intermoe.moe_backward.default, (*backward, True, rows, True, native), test_utils=checks
    )


def test_autocast(native, case, relative_error) -> None:
    """Experts in the autocast type, routing and output as without it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, counts = moe(*case.arguments(), valid=case.valid, backend=native)
    expected, expected_counts = moe(*case.arguments(), valid=case.valid, backend="reference")
    assert out.dtype == torch.float32
    assert torch.equal(counts, expected_counts)
    assert relative_error(out, expected) < 0.1


@pytest.mark.parametrize("name", ["reference", "native"])
def test_a_limit_of_pairs_is_kept(name: str, case) -> None:
    if not backends.available()[name].usable:
        pytest.skip(f"{name} backend: {backends.available()[name].reason}")
    out, counts = moe(*case.arguments(), valid=case.valid, backend=name)
    needed = int(counts.sum())
    if needed == 0:
        return
    assert torch.equal(moe(*case.arguments(), valid=case.valid, max_pairs=needed, backend=name)[0], out)
    if needed > 1:
        message = f"max_pairs: {needed} .* were selected, more than max_pairs={needed - 1}"
        with pytest.raises(RuntimeError, match=message):
            moe(*case.arguments(), valid=case.valid, max_pairs=needed - 1, backend=name)
    with pytest.raises(ValueError, match="max_pairs: must be >= 1 or None, got 0"):
        moe(*case.arguments(), max_pairs=0, backend=name)


def test_half_sums_are_refused_where_there_are_none(case) -> None:
    with pytest.raises(ValueError, match="half_sums: only the backend 'triton' has them"):
        moe(*case.arguments(), half_sums=True, backend="reference")
