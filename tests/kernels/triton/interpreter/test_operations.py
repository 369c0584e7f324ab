"""The operations as torch sees them, and the whole block through them, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from intermoe.ops import operators
from intermoe.ops.moe import Experts, Route, Select, moe


def arguments(dtype=torch.float32, tokens=12, experts=3, dim=16, expert_dim=8, rows=2):
    return (
        torch.randn(tokens, dim, dtype=dtype),
        torch.randn(experts, dim, dtype=dtype),
        torch.randn(rows, experts),
        torch.randn(rows, dim, dtype=dtype),
        torch.randn(rows, dim, dtype=dtype),
        torch.full((experts,), -0.5),
        torch.randn(experts, 2 * expert_dim, dim, dtype=dtype) * dim**-0.5,
        torch.randn(experts, dim, expert_dim, dtype=dtype) * expert_dim**-0.5,
    )


def steps(values, valid=None, max_pairs=None, normalise=True, **options):
    """Arguments of the operation."""
    *route, bias, w_gate_up, w_down = values
    select = Select(None if valid is not None and valid.dim() == 2 else bias, valid, max_pairs=max_pairs)
    return Route(*route, normalise), select, Experts(w_gate_up, w_down, **options)


@pytest.mark.parametrize(("static_pairs", "max_pairs"), [(0, None), (36, 36)], ids=["exact", "static"])
def test_operators(max_pairs, static_pairs, monkeypatch):
    monkeypatch.setattr("intermoe.kernels.triton.registry.STATIC_PAIRS", static_pairs)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    flat = operators.flatten(*steps(arguments(), torch.rand(12, 3) > 0.3, max_pairs), "triton")
    torch.library.opcheck(torch.ops.intermoe.moe_forward.default, flat, test_utils=utils)
    torch.library.opcheck(torch.ops.intermoe.moe_inference.default, flat, test_utils=utils)
    out, _, *saved = torch.ops.intermoe.moe_forward(*flat)
    for needs in ([True] * 7, [False] * 5 + [True] * 2, [True] * 5 + [False] * 2):
        backward = (out, saved[0], *flat[:7], *saved, True, False, needs, "triton")
        torch.library.opcheck(torch.ops.intermoe.moe_backward.default, backward, test_utils=utils)


@pytest.mark.parametrize("masked", ["nothing", "tokens", "pairs"])
@pytest.mark.parametrize("normalise", [False, True])
def test_whole_block_in_static_buffers_equals_the_reference(masked, normalise, relative_error, monkeypatch):
    """In exact ones every backend is compared in ``tests/ops``."""
    monkeypatch.setattr("intermoe.kernels.triton.registry.STATIC_PAIRS", 36)
    values = [None if i in (3, 4) and not normalise else v for i, v in enumerate(arguments())]
    valid = {"nothing": None, "tokens": torch.rand(12) > 0.3, "pairs": torch.rand(12, 3) > 0.3}[masked]
    results = []
    for backend in ("reference", "triton"):
        inputs = [v if v is None else v.clone().requires_grad_(i != 5) for i, v in enumerate(values)]
        out, counts, *_ = moe(*steps(inputs, valid, normalise=normalise), backend=backend)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append((out, counts, [None if v is None else v.grad for v in inputs]))
    (out, counts, grads), (found, found_counts, found_grads) = results
    assert torch.equal(counts, found_counts)
    assert relative_error(found, out) < 1e-5
    for i, (a, b) in enumerate(zip(found_grads, grads, strict=True)):
        assert (a is None) == (b is None), i
        if b is not None:
            assert relative_error(a, b) < 1e-5, i


def test_the_same_call_gives_the_same_bits():
    values = arguments()
    first, second = (moe(*steps(values), backend="triton").out for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("static_pairs", [0, 36], ids=["exact", "static"])
def test_compiled_whole_without_recompiling_when_the_number_of_pairs_changes(static_pairs, relative_error, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    monkeypatch.setattr("intermoe.kernels.triton.registry.STATIC_PAIRS", static_pairs)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    values = arguments()
    inputs = [v.clone().requires_grad_(i != 5) for i, v in enumerate(values)]

    def call(bias):
        return moe(*steps([*inputs[:5], bias, *inputs[6:]]), backend="triton")[:2]

    compiled = torch.compile(call, backend=counter, fullgraph=True)
    for bias in (-0.5, -0.3, -0.7):
        biases = torch.full((3,), bias)
        out, counts = compiled(biases)
        expected, expected_counts = call(biases)
        assert torch.equal(counts, expected_counts)
        assert relative_error(out, expected) < 1e-6
        got = torch.autograd.grad(out.sum(), inputs[0])[0]
        assert relative_error(got, torch.autograd.grad(expected.sum(), inputs[0])[0]) < 1e-6
    assert counter.frame_count == 1


def test_a_limit_of_pairs_changes_nothing_but_the_buffers():
    values = arguments()
    exact, counts, *_ = moe(*steps(values), backend="triton")
    limited = moe(*steps(values, max_pairs=int(counts.sum())), backend="triton")
    assert torch.equal(limited[0], exact)
    assert torch.equal(limited[1], counts)
    needed = int(counts.sum())
    with pytest.raises(RuntimeError, match=f"{needed} .* were selected but only {needed - 1} allocated"):
        moe(*steps(values, max_pairs=needed - 1), backend="triton")


def test_an_overflow_spoils_the_result_until_it_is_raised(monkeypatch):
    """On a GPU the verdict comes late; nothing computed in between passes for a result."""
    from intermoe.kernels.triton.overflow import OverflowFlag
    from intermoe.nn.moe import InterMoEBlock
    from intermoe.ops.moe import raise_on_overflow

    block = InterMoEBlock(dim=16, num_experts=3, expert_dim=8, cond_dim=None, backend="triton", max_pairs=20)
    block.selection_bias.fill_(-0.001)
    with monkeypatch.context() as patch:
        patch.setattr(OverflowFlag, "raise_if_set", lambda self: None)
        out = block(torch.randn(2, 6, 16))
    assert out.isnan().any()
    with pytest.raises(RuntimeError, match=r"max_pairs: 36 .* were selected but only 20 allocated"):
        raise_on_overflow()
    raise_on_overflow()  # raised once


def test_half_sums_are_for_inference_in_float16(relative_error, tolerance):
    values = arguments(torch.float16)
    exact = moe(*steps(values), backend="reference").out
    found = moe(*steps(values, half_sums=True), backend="triton").out
    assert found.dtype == torch.float16
    assert relative_error(found, exact) < 2 * tolerance(torch.float16)
    with pytest.raises(TypeError, match=r"half_sums: expected experts in torch.float16 .* got torch.float32"):
        moe(*steps(arguments(), half_sums=True), backend="triton")
    with pytest.raises(ValueError, match="half_sums: expected a backend that has them, got 'reference'"):
        moe(*steps(values, half_sums=True), backend="reference")
    values[6].requires_grad_()
    with pytest.raises(RuntimeError, match="half_sums: for inference only"):
        moe(*steps(values, half_sums=True), backend="triton")
    with torch.no_grad():
        moe(*steps(values, half_sums=True), backend="triton")


KINDS = [
    ("dynamic", "batch", "sequence"), ("dynamic", "sample", "frame"), ("token_choice", "batch", "frame"),
    ("token_choice", "sample", "sequence"), ("expert_choice", "batch", "frame"), ("expert_choice", "sample", "frame"),
]  # fmt: skip


@pytest.mark.parametrize(("routing", "pool", "unit"), KINDS)
def test_every_routing_kind(routing, pool, unit, relative_error):
    from intermoe.nn.moe import InterMoEBlock

    block = InterMoEBlock(
        dim=16, num_experts=3, expert_dim=8, cond_dim=8,
        routing=routing, pool=pool, unit=unit, top_k=2 if routing == "token_choice" else None,
    )  # fmt: skip
    torch.nn.init.normal_(block.motion_router)
    hidden, condition, mask = torch.randn(2, 7, 16), torch.randn(2, 8), torch.arange(7) < torch.tensor([[7], [4]])
    results = []
    for block.backend in ("reference", "triton"):
        block.zero_grad()
        out = block(hidden, condition, mask)
        out.square().sum().backward()
        counts = block.chosen_pairs(hidden, condition, mask).sum((0, 1))
        results.append((counts, out, *(p.grad.clone() for p in block.parameters())))
    assert torch.equal(block.expert_counts, 2 * counts)
    assert torch.equal(results[0][0], results[1][0])
    for expected, found in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("max_pairs", [None, 36], ids=["exact", "static"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("normalise", [False, True])
def test_memory_that_is_used_again_changes_no_bit(normalise, dtype, max_pairs):
    """A backward that writes over what was saved gives what one of a graph that is kept gives, whichever is first."""
    values = [None if i in (3, 4) and not normalise else v for i, v in enumerate(arguments(dtype))]
    inputs = [v if v is None else v.requires_grad_(i != 5) for i, v in enumerate(values)]
    leaves = [v for i, v in enumerate(inputs) if v is not None and i != 5]
    call = steps(inputs, max_pairs=max_pairs, normalise=normalise)

    def gradients(out, **options):
        return torch.autograd.grad(out, leaves, torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype), **options)

    out = moe(*call, backend="triton").out
    wanted = gradients(out, retain_graph=True)
    for found in (gradients(out, retain_graph=True), gradients(out), gradients(moe(*call, backend="triton").out)):
        for grad, other in zip(wanted, found, strict=True):
            assert torch.equal(grad, other)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(out)


def test_a_gradient_lies_where_the_tokens_were():
    """And nothing of the size of the pre-activations is allocated."""
    inputs = [v.requires_grad_(i != 5) for i, v in enumerate(arguments(tokens=64))]
    saved = []
    out = moe(*steps(inputs), backend="triton").out
    node = out.grad_fn
    saved += [node.others[node.form._fields.index(name) - 1].data_ptr() for name in ("tokens", "h")]
    del node
    hidden, scale = torch.autograd.grad(out, (inputs[0], inputs[3]), torch.ones_like(out))
    assert hidden.data_ptr() == saved[0]
    assert scale.data_ptr() not in saved
