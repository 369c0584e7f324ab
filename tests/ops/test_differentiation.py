"""Differentiation of the block on every backend: what it costs, what transforms it, what is refused, what is redone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from intermoe import InterMoEBlock, backends
from intermoe.kernels.contract import Needs
from intermoe.ops.moe import Experts, Route, Select, moe
from intermoe.ops.routing import share


def small(backend: str | None = None, **changes: Any) -> InterMoEBlock:
    torch.manual_seed(0)
    options = {"dim": 16, "num_experts": 4, "expert_dim": 24, "cond_dim": 8, "backend": backend} | changes
    block = InterMoEBlock(**options)
    torch.nn.init.normal_(block.motion_router)
    if block.norm is not None:
        torch.nn.init.normal_(block.norm.modulation.weight, std=0.1)
    return block


def inputs() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 16, generator=g), torch.randn(2, 8, generator=g)


NAMES = ("reference", "native", "triton")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Every backend that serves a CPU here."""
    status = backends.available()[request.param]
    if not {"cpu", "any"} & set(status.devices):
        pytest.skip(f"{request.param} backend does not serve the CPU here: {status.reason}")
    return request.param


@pytest.mark.parametrize("batch_frames", [(0, 5), (2, 0)])
@pytest.mark.parametrize("options", [{}, {"cond_dim": None}, {"recompute": True}, {"norm": "none"}])
def test_an_empty_batch_trains(name: str, batch_frames: tuple[int, int], options: dict[str, Any]) -> None:
    block = small(name, **({"norm": "none"} | options if options.get("cond_dim", 8) is None else options))
    batch, frames = batch_frames
    hidden = torch.zeros(batch, frames, 16, requires_grad=True)
    condition = None if block.cond_dim is None else torch.zeros(batch, 8)
    block(hidden, condition).sum().backward()
    assert hidden.grad.shape == hidden.shape
    assert all((p.grad == 0).all() for p in block.parameters() if p.grad is not None)
    block.update_selection_bias()
    assert (block.selection_bias == -0.5).all()


def backward_allocations(block: InterMoEBlock, hidden: Tensor, condition: Tensor) -> list[int]:
    """Sizes of the memory that a backward asks for, largest first."""
    out = block(hidden, condition)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        out.sum().backward()
    memory = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sorted((size for size in memory if size > 0), reverse=True)


@pytest.mark.parametrize("frozen", ["w_gate_up", "w_down"])
def test_frozen_experts_cost_no_gradient(name: str, frozen: str) -> None:
    """No memory of a weight's size, and fewer products."""
    block = small(name, dim=32, expert_dim=48)
    weights = {"w_gate_up": block.w_gate_up, "w_down": block.w_down}
    hidden = torch.randn(1, 12, 32, requires_grad=True)
    condition = torch.randn(1, 8)
    size = weights[frozen].nbytes
    assert size in backward_allocations(block, hidden, condition)
    weights[frozen].requires_grad_(False)
    assert size not in backward_allocations(block, hidden, condition)
    assert weights[frozen].grad is not None  # of the first time


def test_frozen_parameters_change_no_other_gradient(name: str, relative_error: Callable[..., float]) -> None:
    hidden, condition = inputs()
    values = {key: value.detach() for key, value in small(name).named_parameters()}
    wanted: dict[str, Tensor] = {}
    for frozen in ((), ("w_gate_up", "w_down"), ("motion_router", "text_router"), tuple(values)[:-1], tuple(values)):
        block = small(name)
        for key in frozen:
            block.get_parameter(key).requires_grad_(False)
        x, c = hidden.clone().requires_grad_(), condition.clone().requires_grad_()
        block(x, c).square().sum().backward()
        found = {key: p.grad for key, p in (*block.named_parameters(), ("x", x), ("c", c))}
        wanted = wanted or found
        for key, value in found.items():
            assert (value is None) == (key in frozen), key
            assert value is None or relative_error(value, wanted[key]) < 1e-6, key


@pytest.mark.parametrize(
    ("name", "training"), [*((name, True) for name in NAMES), *((name, False) for name in NAMES[:2])], indirect=["name"]
)
def test_functional_transforms(name: str, training: bool, relative_error: Callable[..., float]) -> None:
    block = small(name).train(training)
    hidden, condition = inputs()
    parameters = dict(block.named_parameters())
    block(hidden, condition).square().sum().backward()
    counts = block.expert_counts.clone()
    found = grad(lambda p: functional_call(block, p, (hidden, condition)).square().sum())(parameters)
    assert torch.equal(block.expert_counts, 2 * counts)
    for key, parameter in parameters.items():
        assert relative_error(found[key], parameter.grad) < 1e-6, key
    out, pull = vjp(lambda x: block(x, condition), hidden)
    x = hidden.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(block(x, condition), x, hidden)
    assert relative_error(pull(hidden)[0], wanted) < 1e-6
    assert relative_error(out, block(hidden, condition)) < 1e-6


def test_derivatives_that_there_are_none_of_are_refused(backend: str) -> None:
    hidden, condition = inputs()
    block = small(backend).eval()
    forward_mode, second = "got forward-mode differentiation", "got a second derivative"
    with pytest.raises(RuntimeError, match=forward_mode):
        jvp(lambda x: block(x, condition), (hidden,), (hidden,))
    with pytest.raises(RuntimeError, match=second):
        grad(lambda x: grad(lambda x: block(x, condition).square().sum())(x).sum())(hidden)
    with pytest.raises(RuntimeError, match="got vmap"):
        torch.func.jacrev(lambda x: block(x, condition).sum((0, 1)))(hidden)
    for leaf in (hidden.clone().requires_grad_(), condition.clone().requires_grad_(), block.w_down):
        given = [leaf if leaf.shape == value.shape else value for value in (hidden, condition)]
        (first,) = torch.autograd.grad(block(*given).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=second):
            first.sum().backward()
    block.requires_grad_(False)  # no reverse mode at all: forward mode must not be zero in silence
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=forward_mode):
        block(torch.autograd.forward_ad.make_dual(hidden, hidden), condition)


def test_vmap_is_refused(name: str) -> None:
    hidden, condition = inputs()
    block = small(name).eval()
    with pytest.raises(RuntimeError, match="hidden: expected the tokens of one pool, got a tensor under vmap"):
        vmap(lambda x: block(x, condition))(hidden[None])
    with pytest.raises(RuntimeError, match="under vmap"):
        grad(lambda x: vmap(lambda x: block(x, condition))(x).sum())(hidden[None])


def test_every_backend_counts_the_same_operations(backend: str) -> None:
    hidden, condition = inputs()
    hidden.requires_grad_()
    counted = []
    for name in ("reference", backend):
        block = small(name)
        with FlopCounterMode(display=False) as forward:
            out = block(hidden, condition)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        with FlopCounterMode(display=False) as inference, torch.no_grad():
            block(hidden, condition)
        block.requires_grad_(False)
        out = block(hidden, condition)
        with FlopCounterMode(display=False) as frozen:
            out.sum().backward()
        counted.append([mode.get_total_flops() for mode in (forward, backward, inference, frozen)])
    pairs = int(block.chosen_pairs(hidden, condition).sum())
    assert counted[0] == counted[1]
    assert counted[0][0] >= 6 * pairs * 16 * 24 > 0


@pytest.mark.parametrize("first", ["reference", "native"])
def test_a_recomputation_runs_on_the_backend_of_its_forward(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not backends.available()["native"].usable:
        pytest.skip(f"native backend: {backends.available()['native'].reason}")
    hidden, condition = inputs()
    block, calls = small(), []
    native = backends.load("native").moe_forward
    monkeypatch.setattr(backends.load("native"), "moe_forward", lambda *a: (calls.append("native"), native(*a))[1])
    with backends.use(first):
        out = checkpoint(block, hidden.requires_grad_(), condition, use_reentrant=False)
    with backends.use("native" if first == "reference" else "reference"):
        out.sum().backward()
    assert calls == (["native"] * 2 if first == "native" else [])


class Twice(torch.nn.Module):
    """Two blocks and what is between them, with a shift of the input that differs from run to run.

    Every token's logits are at the threshold and alike, so the shift decides which pairs are selected.
    """

    def __init__(self, backend: str, routing: str) -> None:
        super().__init__()
        top_k = 1 if routing == "token_choice" else None
        options = {"cond_dim": None, "norm": "none", "routing": routing, "top_k": top_k}
        self.blocks = torch.nn.ModuleList(small(backend, **options) for _ in range(2))
        self.between = torch.nn.Linear(16, 16)
        self.shifts = iter(())
        with torch.no_grad():
            self.between.weight[0] = 0
            self.between.bias[0] = 0
            for block in self.blocks:
                block.motion_router.zero_()
                block.motion_router[:, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])

    def part(self, index: int, x: Tensor) -> Tensor:
        shift = torch.zeros(x.shape[1], 16)
        shift[:, 0] = next(self.shifts) * torch.linspace(1, 2, x.shape[1])
        return self.blocks[index](x + shift, balance=True)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.part(1, torch.tanh(self.between(self.part(0, x))))

    def nested(self, x: Tensor) -> Tensor:
        inner = checkpoint(self.part, 0, x, use_reentrant=False)
        return checkpoint(self.part, 1, torch.tanh(self.between(inner)), use_reentrant=False)


# What recalls a choice lies above the backends: for the interpreter, which is slow, one of each suffices.
RECALLED = [
    (name, routing, nested)
    for name in NAMES
    for routing in ("dynamic", "token_choice", "expert_choice")
    for nested in (False, True)
    if name != "triton" or (routing, nested) == ("dynamic", True)
]


@pytest.mark.parametrize(("name", "routing", "nested"), RECALLED, indirect=["name"])
def test_a_recomputation_keeps_the_choice(
    name: str, routing: str, nested: bool, relative_error: Callable[..., float]
) -> None:
    """Gradients of the choice of the forward, though the recomputation would choose otherwise."""
    tiny = 1e-5
    x = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(3))
    x[..., 0] = 0
    results = []
    for shifts, again in (([tiny, tiny], None), ([tiny, tiny] + 20 * [-tiny], "again")):
        model = Twice(name, routing)
        model.shifts = iter(shifts)
        leaf = x.clone().requires_grad_()
        run = model.nested if nested and again else model
        out = checkpoint(run, leaf, use_reentrant=False) if again else model(leaf)
        counts = [block.expert_counts.clone() for block in model.blocks]
        out.square().sum().backward()
        assert all(torch.equal(block.expert_counts, n) for block, n in zip(model.blocks, counts, strict=True))
        results.append([out, leaf.grad, *counts, *(p.grad for p in model.parameters())])
    other = Twice(name, routing)
    other.shifts = iter([-tiny, -tiny])
    assert relative_error(other(x), results[0][0]) > 0.1  # the shift does change the choice
    for plain, again in zip(*results, strict=True):  # the shift moves the values too, by 1e-5 of them
        assert relative_error(again, plain) < 1e-3


def test_every_backward_through_a_kept_graph_recalls_the_choice(
    name: str, relative_error: Callable[..., float]
) -> None:
    model = Twice(name, "dynamic")
    model.shifts = iter(4 * [1e-5] + 20 * [-1e-5])
    x = torch.randn(1, 9, 16)
    x[..., 0] = 0
    (wanted,) = torch.autograd.grad(model(x.requires_grad_()).square().sum(), x)
    out = checkpoint(model, x, use_reentrant=False).square().sum()
    for keep in (True, False):
        assert relative_error(torch.autograd.grad(out, x, retain_graph=keep)[0], wanted) < 1e-3


class NoFloat64(TorchDispatchMode):
    """Stands for a device without float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(value, Tensor) or value.dtype != torch.float64, func
        return out


@pytest.mark.parametrize("unit", ["frame", "sequence"])
@pytest.mark.parametrize("pool", ["batch", "sample"])
@pytest.mark.parametrize("routing", ["dynamic", "token_choice", "expert_choice"])
def test_nothing_needs_float64(routing: str, pool: str, unit: str) -> None:
    if (routing, pool, unit) == ("expert_choice", "sample", "sequence"):
        return  # no such kind
    top_k = 2 if routing == "token_choice" else None
    block = small("reference", routing=routing, pool=pool, unit=unit, top_k=top_k)
    hidden, condition = inputs()
    mask = torch.rand(2, 9) > 0.3
    with NoFloat64():
        out, balance = block(hidden, condition, mask, balance=True)
        (out.sum() + balance).backward()
        block.update_selection_bias()
        block.chosen_pairs(hidden, condition, mask)


@pytest.mark.parametrize(
    ("capacity", "experts", "expected"), [(1.0, 8, (1, 8)), (1.5, 4, (3, 8)), (0.1, 3, (1, 30)), (1.1, 1, (11, 10))]
)
def test_a_share_is_a_fraction_of_integers(capacity: float, experts: int, expected: tuple[int, int]) -> None:
    assert share(capacity, experts) == expected


def test_meta_tensors_have_the_right_shapes() -> None:
    with torch.device("meta"):
        block = InterMoEBlock(16, 4, 24, 8)
    hidden = torch.empty(2, 9, 16, device="meta", requires_grad=True)
    condition = torch.empty(2, 8, device="meta")
    out = block(hidden, condition)
    assert out.shape == hidden.shape
    out.sum().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in (hidden, *block.parameters()))
    assert block.w_down.grad is not None
    with torch.no_grad():
        assert block(hidden, condition).is_meta


def test_a_backward_is_handed_gradients_of_what_a_loss_used_alone(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros for a result that no loss used would be computed with; memory that a second backward reads is not spent."""
    loaded, seen = backends.load(backend), []
    plain = loaded.moe_backward
    monkeypatch.setattr(loaded, "moe_backward", lambda *given: (seen.append((given[1], given[7])), plain(*given))[1])
    hidden = torch.randn(9, 16, requires_grad=True)
    experts = Experts(torch.randn(4, 48, 16), torch.randn(4, 16, 24))
    result = moe(Route(hidden, torch.randn(4, 16)), Select(torch.full((4,), -0.5)), experts, backend=backend)
    result.out.sum().backward(retain_graph=True)
    (result.out.sum() + result.logits.sum()).backward()
    assert [(grad_logits is None, spent) for grad_logits, spent in seen] == [(True, False), (False, True)]


def test_tangents_of_a_gradient_are_refused(backend: str) -> None:
    """Also where no graph of the backward is asked for."""
    hidden, condition = inputs()
    out = small(backend)(hidden.requires_grad_(), condition)
    dual, ones = torch.autograd.forward_ad, torch.ones_like(out)
    with dual.dual_level(), pytest.raises(RuntimeError, match="got forward-mode differentiation"):
        torch.autograd.grad(out, hidden, dual.make_dual(ones, ones))


def test_a_transform_that_ended_is_pulled_back_without_gradients_too(
    backend: str, relative_error: Callable[..., float]
) -> None:
    block = small(backend).eval()
    hidden, condition = inputs()
    _, pull = vjp(lambda x: block(x, condition), hidden)
    wanted = pull(hidden)[0]
    with torch.no_grad():
        assert relative_error(pull(hidden)[0], wanted) < 1e-6


def test_a_backward_lets_go_of_what_was_saved_for_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that live on, as losses in a list do, hold no activations."""
    loaded, saved_ones = backends.load(backend), []
    plain = loaded.moe_forward

    def watched(*given: Any) -> Any:
        out, counts, kept = plain(*given)
        held = [each for each in (*kept, *kept.saved()) if isinstance(each, Tensor) and each.numel()]
        saved_ones.extend(weakref.ref(each) for each in held)
        return out, counts, kept

    monkeypatch.setattr(loaded, "moe_forward", watched)
    hidden, condition = inputs()
    out = small(backend)(hidden.requires_grad_(), condition)
    assert any(one() is not None for one in saved_ones)
    out.sum().backward()
    hidden.grad = None  # which may lie where something was saved
    gc.collect()
    assert [one() for one in saved_ones if one() is not None] == []


@pytest.mark.parametrize("asked", Needs._fields)
def test_each_gradient_can_be_asked_for_alone(name: str, asked: str, relative_error: Callable[..., float]) -> None:
    """And is then that of all together, whatever others it is computed from."""
    g = torch.Generator().manual_seed(0)
    sizes = {"hidden": (12, 16), "router_weight": (4, 16), "router_offset": (3, 4), "scale": (3, 16), "shift": (3, 16)}
    sizes |= {"w_gate_up": (4, 48, 16), "w_down": (4, 16, 24)}
    values = [torch.randn(sizes[key], generator=g) for key in Needs._fields]

    def gradients(wanted: tuple[str, ...], backend: str) -> dict[str, Tensor | None]:
        leaves = [value.clone().requires_grad_(key in wanted) for key, value in zip(sizes, values, strict=True)]
        bias = torch.full((4,), -0.5)
        moe(Route(*leaves[:5]), Select(bias), Experts(*leaves[5:]), backend=backend).out.square().sum().backward()
        return {key: leaf.grad for key, leaf in zip(sizes, leaves, strict=True)}

    found, expected = gradients((asked,), name), gradients(Needs._fields, "reference")
    assert [key for key, grad in found.items() if grad is not None] == [asked]
    assert relative_error(found[asked], expected[asked]) < 1e-5
