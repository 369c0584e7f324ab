"""The chained operation: every backend against the reference, torch.compile, threads, memory."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe import backends
from intermoe.benchmarks.forms import draw
from intermoe.benchmarks.harness.timing import peak_memory
from intermoe.benchmarks.harness.work import Shape
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops import moe as operation
from intermoe.ops import operators
from intermoe.ops.moe import Experts, Route, Select, moe
from intermoe.ops.routing import Rule


@pytest.fixture
def native() -> str:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    return "native"


@pytest.fixture
def gradients(steps_of):
    return lambda *arguments, **options: _gradients(steps_of, *arguments, **options)


def place_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


def stored(case, dtype: torch.dtype) -> list[Tensor]:
    """The case's values with tokens and experts in ``dtype``; the sixth, the bias, has no gradient."""
    return [value.to(dtype if i in (0, 6, 7) else torch.float32).detach() for i, value in enumerate(case.values())]


def _gradients(steps_of, case, backend: str, dtype: torch.dtype, **options):
    """Output, counts and all gradients."""
    values = stored(case.to(place_of(backend)), dtype)
    leaves = [value.requires_grad_() for i, value in enumerate(values) if i != 5]
    out, counts, *_ = moe(*steps_of(values, case.valid, **options), backend=backend)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [found.cpu() for found in (out, counts, *torch.autograd.grad(out, leaves, grad_out))]


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("recompute", [False, True])
def test_moe(gradients, backend, case, dtype, recompute: bool, relative_error, tolerance) -> None:
    found = gradients(case, backend, dtype, recompute=recompute)
    for actual, expected in zip(found, gradients(case, "reference", dtype), strict=True):
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) <= tolerance(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_nothing(
    gradients, native, case, dtype, relative_error, tolerance, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(case, native, dtype)
    monkeypatch.setattr("intermoe.kernels.native.moe.CHUNK_BYTES", 1000)
    monkeypatch.setattr("intermoe.kernels.native.moe.BACKWARD_CHUNK_BYTES", 1000)
    for actual, expected in zip(gradients(case, native, dtype), whole, strict=True):
        assert relative_error(actual, expected) <= tolerance(dtype)


@pytest.fixture
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements up to which the native backend makes one call of a pool: none are so few, or all."""
    monkeypatch.setattr("intermoe.kernels.native.moe.FEW_ELEMENTS", request.param)


@pytest.mark.usefixtures("nan_filled_memory", "limit")
def test_inference(steps_of, backend, case, dtype, relative_error, tolerance) -> None:
    """Without gradients: what training computes, of a bias or a choice and whether or not tokens are normalised."""
    values = stored(case.to(place_of(backend)), dtype)
    chosen = case.valid[:, None] & (torch.arange(len(case.selection_bias)) != 1).to(case.valid.device)
    for valid in (None, case.valid, chosen):
        for normalise in (True, False):
            steps = steps_of(values, valid, normalise=normalise)
            out, counts, *_ = moe(*steps, backend=backend)
            expected, wanted, *_ = moe(*steps, backend="reference")
            assert torch.equal(counts, wanted)
            assert out.dtype == expected.dtype
            assert relative_error(out, expected) <= tolerance(dtype)


def test_inference_of_what_one_call_does_not_take(native, steps_of, case, relative_error) -> None:
    """Strided and narrow inputs are served by the steps; what fits nothing is refused by name."""
    x = case.values()

    def out(values: list[Tensor | None], backend: str = native) -> Tensor:
        return moe(*steps_of(values), backend=backend).out

    strided = [value.T.contiguous().T if value.dim() == 2 else value for value in x[:6]]
    assert relative_error(out([*strided, *x[6:]]), out(x, "reference")) <= 1e-5
    narrow = [x[0], *(value.bfloat16() for value in x[1:5]), *x[5:]]
    wide = [x[0], *(value.float() for value in narrow[1:5]), *x[5:]]
    assert relative_error(out(narrow), out(wide, "reference")) <= 1e-5
    with pytest.raises(ValueError, match="scale: expected scale and shift together"):
        out([*x[:4], None, *x[5:]])
    with pytest.raises(ValueError, match="w_gate_up: expected shape"):
        out([*x[:6], x[6][:, 1:], x[7]])


def workspace(backend: str, tokens: int, recompute: bool) -> int:
    """Bytes that a forward with backward takes at its peak beyond results and what the forward saves."""
    dim, experts, width = 32, 4, 64
    drawn = draw(Shape(tokens, dim, experts, width, rows=1), torch.float32, torch.device("cpu"))
    x = type(drawn)(*(value.requires_grad_(name != "selection_bias") for name, value in drawn._asdict().items()))
    grad_out = torch.ones(tokens, dim)
    sizes: list[int] = []

    def call(_: int) -> None:
        out, counts, *_ = moe(*x.steps(recompute=recompute), backend=backend)
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


def test_recompute_of_the_reference(gradients, case) -> None:
    found = gradients(case, "reference", torch.float32, recompute=True)
    for actual, expected in zip(found, gradients(case, "reference", torch.float32), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["reference", "native"])
def test_recompute_holds_the_activations_of_one_expert(name: str) -> None:
    """Of eight of one size: with what its gradients take it is far less than half of what all of them hold."""
    if not backends.available()[name].usable:
        pytest.skip(f"{name}: {backends.available()[name].reason}")
    drawn = draw(Shape(4096, dim=8, experts=8, width=512, rows=1), torch.float32, torch.device("cpu"))
    x = type(drawn)(*(value.requires_grad_(field != "selection_bias") for field, value in drawn._asdict().items()))
    wanted = [leaf for leaf in x if leaf.requires_grad]

    def peak(recompute: bool) -> int:
        def call(_: int) -> None:
            torch.autograd.grad(moe(*x.steps(recompute=recompute), backend=name).out.sum(), wanted)

        call(0)
        return peak_memory(call, torch.device("cpu"))

    assert peak(False) > 4096 * 2 * 512 * 4
    assert peak(True) < 0.4 * peak(False)


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

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
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


RULE = Rule("expert_choice", 1.5, None, "batch", "frame", 1)


@pytest.mark.parametrize("kind", ["bias", "choice", "rule", "no norm", "recompute"])
def test_operators(native, steps_of, kind: str) -> None:
    """Schema, fake implementation and autograd registration of the operators agree with what they do.

    They are the same operators whatever the shape and the backend; ``tests/kernels/triton/interpreter`` checks
    what its backend adds, the limit of pairs.
    """
    ops = torch.ops.intermoe
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    drawn = draw(Shape(23, 16, 3, 8, rows=23), torch.float32, torch.device("cpu"))
    route, select, experts = steps_of(list(drawn), normalise=kind != "no norm", recompute=kind == "recompute")
    if kind == "choice":
        select = Select(None, torch.rand(23, 3) > 0.5)
    if kind == "rule":
        select = select._replace(rule=RULE)
    flat = operators.flatten(route, select, experts, native)
    torch.library.opcheck(ops.moe_forward.default, flat, test_utils=checks)
    torch.library.opcheck(ops.moe_inference.default, flat, test_utils=checks)
    out, _, *saved = ops.moe_forward(*flat)
    for needs in ([True] * 7, [True, False, True, True, True, False, False], [False] * 5 + [True] * 2):
        backward = (out, saved[0], *flat[:7], *saved, route.normalise, experts.recompute, needs, native)
        torch.library.opcheck(ops.moe_backward.default, backward, test_utils=checks)


def test_only_the_whole_operation_is_registered() -> None:
    namespaces = {name.partition("::")[0] for name in torch._C._dispatch_get_all_op_names() if "intermoe" in name}
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("intermoe::")}
    assert namespaces == {"intermoe"}
    assert names == {"intermoe::moe_forward", "intermoe::moe_inference", "intermoe::moe_backward"}


def test_autocast(native, case, relative_error) -> None:
    """Experts and output in the autocast type, routing as without it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, counts, *_ = moe(*case.steps(), backend=native)
    expected, expected_counts, *_ = moe(*case.steps(), backend="reference")
    assert out.dtype == torch.bfloat16
    assert torch.equal(counts, expected_counts)
    assert relative_error(out, expected) < 0.1


@pytest.mark.parametrize("name", ["reference", "native"])
def test_a_limit_of_pairs_is_kept(name: str, case) -> None:
    if not backends.available()[name].usable:
        pytest.skip(f"{name} backend: {backends.available()[name].reason}")
    route, select, experts = case.steps()
    out, counts, *_ = moe(route, select, experts, backend=name)
    needed = int(counts.sum())
    if needed == 0:
        return
    assert torch.equal(moe(route, select._replace(max_pairs=needed), experts, backend=name).out, out)
    if needed > 1:
        with pytest.raises(RuntimeError, match=f"max_pairs: expected at most {needed - 1} .*, got {needed}"):
            moe(route, select._replace(max_pairs=needed - 1), experts, backend=name)
    with pytest.raises(ValueError, match="max_pairs: expected >= 1 or None, got 0"):
        moe(route, select._replace(max_pairs=0), experts, backend=name)


@pytest.mark.parametrize("num_tokens", [0, 6])
def test_room_for_all_pairs_is_for_calls_within_that_have_no_limit(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this thread alone; an empty pool has room for one, as no limit is less."""
    steps = draw(Shape(6, dim=8, experts=4, width=4, rows=1), torch.float32, torch.device("cpu")).steps()
    route, select, experts = steps[0]._replace(hidden=steps[0].hidden[:num_tokens]), *steps[1:]
    asked: list[int | None] = []
    run = operation._run
    monkeypatch.setattr(operation, "_run", lambda *given: (asked.append(given[1].max_pairs), run(*given))[1])

    def call(limit: int | None = None) -> None:
        with torch.no_grad():
            moe(route, select._replace(max_pairs=limit), experts, backend="reference")

    call()
    with pytest.raises(KeyError), operation.room_for_all_pairs():  # noqa: PT012
        call()
        call(23)
        with operation.room_for_all_pairs():
            call()
        call()
        other = threading.Thread(target=call)
        other.start()
        other.join(60)
        raise KeyError
    call()
    every = max(1, num_tokens * 4)
    assert asked == [None, every, 23, every, every, None, None]


def test_half_sums_are_refused_where_there_are_none(case) -> None:
    with pytest.raises(ValueError, match="half_sums: expected a backend that has them, got 'reference'"):
        moe(*case.steps(half_sums=True), backend="reference")


def test_what_fitted_once_is_checked_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks are remembered by shapes, dtypes, devices and layouts, and by nothing less."""
    g = torch.Generator().manual_seed(0)
    hidden, router = torch.randn(6, 4, generator=g), torch.randn(3, 4, generator=g)
    weights = torch.randn(3, 12, 4, generator=g), torch.randn(3, 4, 6, generator=g)
    bias = torch.full((3,), -0.5)
    checked: list[Any] = []
    check = operation._check
    monkeypatch.setattr(operation, "_kinds", {})
    monkeypatch.setattr(operation, "_check", lambda *arguments: (checked.append(arguments), check(*arguments)))
    for _ in range(2):
        assert moe(Route(hidden, router), Select(bias), Experts(*weights)).out.shape == (6, 4)
    assert len(checked) == 1
    for route, select in (
        (Route(hidden, router[:, :3]), Select(bias)),
        (Route(hidden, router), Select(bias[:2])),
        (Route(hidden, router), Select(bias, torch.ones(6))),
        (Route(hidden, router), Select(bias, max_pairs=0)),
    ):
        before = len(checked)
        for _ in range(2):  # what does not fit is not remembered
            with pytest.raises((ValueError, TypeError), match="expected"):
                moe(route, select, Experts(*weights))
        assert len(checked) == before + 2


@pytest.mark.parametrize("name", ["reference", "native"])
def test_conditions_of_other_numbers_of_rows_are_refused_by_every_backend(name: str) -> None:
    if not backends.available()[name].usable:
        pytest.skip(f"{name} backend: {backends.available()[name].reason}")
    hidden, weight = torch.randn(6, 4), torch.randn(3, 4)
    select, experts = Select(torch.full((3,), -0.5)), Experts(torch.randn(3, 10, 4), torch.randn(3, 4, 5))

    def of(*rows: int) -> Route:
        return Route(hidden, weight, torch.randn(rows[0], 3), torch.randn(rows[1], 4), torch.randn(rows[2], 4))

    assert moe(of(2, 2, 2), select, experts, backend=name).out.shape == (6, 4)
    for rows, words in (
        ((3, 2, 2), "scale: expected as many rows as router_offset has, 3, got 2"),
        ((2, 2, 6), "shift: expected as many rows as scale has, 2, got 6"),
    ):
        with pytest.raises(ValueError, match=f"^{words}$"):
            moe(of(*rows), select, experts, backend=name)


RULES = {
    "token choice": Rule("token_choice", 1.0, 2, "batch", "frame", 2),
    "expert choice": Rule("expert_choice", 1.0, None, "batch", "frame", 2),
    "expert choice of each sample": Rule("expert_choice", 2.0, None, "sample", "frame", 2),
    "whole sequences": Rule("dynamic", 1.0, None, "batch", "sequence", 2),
}


@pytest.mark.parametrize("kind", ["bias", "choice", *RULES])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["reference", "native"])
def test_pairs_are_those_of_the_rule_token_by_token(name: str, training: bool, kind: str, relative_error) -> None:
    """Whatever decides, each token gets the sum of what its experts make of it, by their shares of the softmax."""
    if not backends.available()[name].usable:
        pytest.skip(f"{name} is not usable here")
    torch.manual_seed(0)
    hidden, router, up, down = (torch.randn(size) for size in ((12, 6), (4, 6), (4, 10, 6), (4, 6, 5)))
    bias, valid = torch.tensor([-0.3, -0.5, -0.6, -0.7]), torch.arange(12) % 5 != 3
    logits = hidden @ router.T
    if kind == "bias":
        chosen, select = (torch.sigmoid(logits) + bias > 0) & valid[:, None], Select(bias, valid)
    elif kind == "choice":
        chosen = torch.rand(12, 4) < 0.4
        select = Select(None, chosen)
    else:
        chosen, select = RULES[kind](logits, valid, bias), Select(bias, valid, RULES[kind])
        assert not torch.equal(chosen, (torch.sigmoid(logits) + bias > 0) & valid[:, None])
    gates, expected = torch.softmax(logits, dim=1), torch.zeros(12, 6)
    for token, expert in chosen.nonzero().tolist():
        gate, linear = (up[expert] @ hidden[token]).chunk(2)
        made = down[expert] @ (torch.nn.functional.silu(gate) * linear)
        expected[token] += gates[token, expert] * made
    route = Route(hidden.requires_grad_(training), router, normalise=False)
    with torch.set_grad_enabled(training):
        found = moe(route, select, Experts(up, down), backend=name)
    assert relative_error(found.out, expected) < 1e-5
    assert torch.equal(found.counts, chosen.sum(dim=0))
    assert found.slots is None or torch.equal(found.slots >= 0, chosen)
