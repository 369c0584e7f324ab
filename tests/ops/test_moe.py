"""The chained operation: every backend against the reference, torch.compile, threads, memory."""

from __future__ import annotations

import threading

import pytest
import torch

from intermoe import backends
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
    for actual, expected in zip(gradients(case, native, dtype), whole, strict=True):
        assert relative_error(actual, expected) <= tolerance(dtype, case.hidden.shape[0])


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
