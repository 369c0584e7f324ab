"""Experts over processes: 2 and 4 on gloo compute and train what one does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.tensor

from intermoe import backends
from intermoe.kernels.contract import Experts
from intermoe.nn.distributed import clip_grad_norm_
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops import exchange
from intermoe.ops.combine import combine_reference
from intermoe.ops.exchange import plan_exchange
from intermoe.ops.experts import experts_reference

RANKS = Path(__file__).parent / "exchange_ranks.py"


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_compute_train_and_save_as_one_process(size: int, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    run_ranks(RANKS, size, "0", str(tmp_path), limit=240)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_random_runs_do_not_hang(size: int, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    assert f"100 random runs on {size} ranks" in run_ranks(RANKS, size, "100", str(tmp_path), limit=400)


def test_a_plan_by_hand() -> None:
    """Three tokens, three experts on two ranks: the first has experts 0 and 1, the second expert 2."""
    chosen = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    counts = torch.tensor([[2, 1], [0, 2]])  # this rank's own pairs, and two of the other rank for expert 1
    plan = plan_exchange(chosen, counts, 2, 2, None)
    assert (plan.sent, plan.received) == ([3, 2], [3, 2])
    assert plan.slots.tolist() == [[0, -1, 3], [-1, -1, -1], [1, 2, 4]]
    assert plan.token_idx.tolist() == [0, 2, 2, 0, 2]
    assert plan.expert_idx.tolist() == [0, 0, 1, 2, 2]
    assert plan.filled.all()
    assert (plan.order.tolist(), plan.offsets.tolist()) == ([0, 1, 2, 3, 4], [0, 2, 5])
    static = plan_exchange(chosen, counts, 2, 2, 4)
    assert (static.sent, static.received) == ([4, 4], [4, 4])
    assert static.slots.tolist() == [[0, -1, 4], [-1, -1, -1], [1, 2, 5]]
    assert static.filled.tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 2
    assert static.order.tolist()[:5] == [0, 1, 2, 4, 5]
    assert static.offsets.tolist() == [0, 2, 5]
    full = plan_exchange(chosen, counts, 2, 2, 2)  # one pair more than there is room for is nobody's
    assert full.slots.tolist() == [[0, -1, 2], [-1, -1, -1], [1, -1, 3]]
    assert full.filled.all()
    assert full.offsets.tolist() == [0, 2, 4], "of the rows that there are"


def test_a_weights_gradient_is_the_mean_over_ranks_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.dist, "all_reduce", lambda grad, group: grad.mul_(10 if group == "both" else 0))
    for replicas, expected in ((None, 0.75), ("both", 7.5)):
        weight = torch.ones(2, requires_grad=True)
        (3 * exchange.Mean.apply(weight, 4, replicas)).sum().backward()
        assert weight.grad is not None
        assert weight.grad.tolist() == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_gates_are_sums_of_float32(dtype: torch.dtype) -> None:
    """Of rows in a half type, which holds no sum of the first and the others of a row."""
    large = 2 / torch.finfo(dtype).eps
    rows = torch.tensor([[large, 1, 1, 1], [large, 0, 0, 1]], dtype=dtype, requires_grad=True)
    gates = torch.tensor([0.5, 0.25], requires_grad=True)
    plan: Any = SimpleNamespace(slots=torch.tensor([[0, 1]]), token_idx=torch.tensor([0, 0]))
    exchange._Combine.apply(rows, gates, plan, combine_reference).sum().backward()
    assert gates.grad is not None
    assert gates.grad.tolist() == [large + 3, large + 1]
    assert rows.grad is not None
    assert rows.grad.tolist() == [[0.5] * 4, [0.25] * 4]


@pytest.mark.parametrize("asked", [bits for bits in itertools.product((False, True), repeat=3) if any(bits)], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_what_asks_for_a_gradient_alone_gets_it(
    asked: tuple[bool, ...], recompute: bool, relative_error: Callable[..., float]
) -> None:
    """Rows, first and second weights of a rank's experts, each combination, as by the reference; no more."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    torch.manual_seed(0)
    given = [torch.randn(size) for size in ((7, 6), (2, 10, 6), (2, 6, 5))]
    order, offsets, grad = torch.tensor([3, 0, 5, 1, 6, 2, 4]), torch.tensor([0, 3, 7]), torch.randn(7, 6)
    native, told = backends.load("native"), []

    def forward(*given: Any) -> Any:
        told.append(given[-1])
        return native.experts_forward(*given)

    def backward(*given: Any) -> Any:
        told.append((given[5] is not None, given[-1]))
        return native.experts_backward(*given)

    package = SimpleNamespace(experts_forward=forward, experts_backward=backward)
    found = []
    for own in (True, False):
        rows, up, down = (t.clone().requires_grad_(need) for t, need in zip(given, asked, strict=True))
        if own:
            out = exchange._Experts.apply(rows, order, offsets, up, down, recompute, package)
        else:
            out = torch.zeros(7, 6).index_copy(0, order, experts_reference(rows, order, offsets, up, down))
        out.backward(grad)
        found.append([rows.grad, up.grad, down.grad])
    assert told == [not recompute, (not recompute, asked)], "h is kept or computed again"
    for one, other, need in zip(*found, asked, strict=True):
        assert (one is not None) == (other is not None) == need
        assert not need or relative_error(one, other) < 1e-5


def test_a_rank_without_experts_meets_the_others_in_the_backward() -> None:
    """Nothing is sent there; without a gradient of its weights it would leave the others waiting for it."""
    up, down = torch.empty(0, 6, 4, requires_grad=True), torch.empty(0, 4, 3, requires_grad=True)
    rows = torch.empty(0, 4, requires_grad=True)
    out = exchange._run_experts(rows, Any, Experts(up, down), None, None)  # type: ignore[arg-type]
    assert out.shape == (0, 4)
    out.sum().backward()
    assert [tensor.grad is not None for tensor in (rows, up, down)] == [True, True, True]


@pytest.mark.parametrize(("room", "fits"), [(4, False), (5, True), (6, True)])
def test_as_many_pairs_as_there_is_room_for_are_not_too_many(
    room: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange.dist, "all_reduce", lambda most, op, group: most)
    monkeypatch.setattr(exchange, "_limits", {})
    chosen = torch.tensor([[True, True, False], [True, True, False], [True, False, True]])  # 5 to the first of two
    peers = exchange.Peers(None, 2)  # type: ignore[arg-type]
    if fits:
        assert exchange._check_static(chosen, peers, room).tolist() == [False]
        exchange.raise_on_overflow(None, wait=True)
    else:
        with pytest.raises(RuntimeError, match=r"expected at most 4 .* got 5"):
            exchange._check_static(chosen, peers, room)


def test_gradients_within_the_norm_stay_and_longer_ones_are_cut_to_it() -> None:
    for limit, expected in ((10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        for parameter, grad in zip(parameters, (3.0, 4.0), strict=True):
            parameter.grad = torch.full((1,), grad)
        assert clip_grad_norm_([*parameters, torch.nn.Parameter(torch.zeros(1))], limit).item() == pytest.approx(5.0)
        assert [p.grad.item() for p in parameters if p.grad is not None] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("frozen", [(), ("w_down",), ("w_gate_up", "w_down")], ids=str)
def test_weights_that_are_frozen_stay_so_when_they_are_spread(
    frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed.tensor, "distribute_tensor", lambda weight, mesh, placements: weight.clone())
    block = InterMoEBlock(8, 2, 4, None)
    for name in frozen:
        block.get_parameter(name).requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in block.named_parameters()}
    block.distribute(SimpleNamespace(ndim=1, get_group=None))  # type: ignore[arg-type]
    after = dict(block.named_parameters())
    assert {name for name, p in after.items() if not p.requires_grad} == set(frozen)
    assert after.keys() == before.keys()
    for name, (value, trained) in before.items():
        assert torch.equal(after[name].detach(), value)
        assert after[name].requires_grad == trained


def test_a_mesh_of_three_dimensions_is_refused() -> None:
    from intermoe.nn.distributed import check_mesh

    class Mesh:
        ndim = 3

        def get_group(self) -> None: ...

    with pytest.raises(ValueError, match=r"mesh: expected one dimension, or two \(replicas, experts\), got 3"):
        check_mesh(Mesh())  # type: ignore[arg-type]
