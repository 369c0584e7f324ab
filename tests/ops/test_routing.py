"""Routing kinds: each against a few lines of plain Python, on every backend, and its invariants."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from intermoe import InterMoEBlock, backends
from intermoe.ops.routing import choose_pairs, load_balance_loss, router_z_loss

EXPERTS = 4
KINDS = [
    (routing, pool, unit)
    for routing, pool, unit in itertools.product(
        ("dynamic", "token_choice", "expert_choice"), ("batch", "sample"), ("frame", "sequence")
    )
    if (routing, pool, unit) != ("expert_choice", "sample", "sequence")
]
every_kind = pytest.mark.parametrize(("routing", "pool", "unit"), KINDS)


def options(routing: str, pool: str, unit: str) -> dict[str, object]:
    return {"routing": routing, "pool": pool, "unit": unit, "top_k": 2 if routing == "token_choice" else None}


def small(routing: str, pool: str, unit: str, **changes: object) -> InterMoEBlock:
    torch.manual_seed(0)
    arguments = {"dim": 16, "num_experts": EXPERTS, "expert_dim": 12, "cond_dim": 8, "capacity": 1.5}
    block = InterMoEBlock(**{**arguments, **options(routing, pool, unit), **changes})
    with torch.no_grad():
        block.motion_router.mul_(60)
        block.text_router.mul_(60)
        torch.nn.init.normal_(block.norm.modulation.weight, std=0.1)
    return block


def sample(batch: int = 3, frames: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    mask = torch.arange(frames) < torch.tensor([frames, 4, 2])[:batch, None]
    return torch.randn(batch, frames, 16, generator=g), torch.randn(batch, 8, generator=g), mask


def plainly_chosen(logits: Tensor, mask: Tensor, bias: Tensor, capacity: float, routing, pool, unit, top_k):
    """The rules, unit by unit, in Python: the set of (row, frame, expert)."""
    rows, frames, experts = logits.shape
    units = {(b, t): [(b, t)] for b in range(rows) for t in range(frames) if mask[b, t]}
    if unit == "sequence":
        units = {(b, 0): [(b, t) for t in range(frames) if mask[b, t]] for b in range(rows) if mask[b].any()}
    scores = {u: torch.stack([logits[s] for s in tokens]).mean(0) for u, tokens in units.items()}
    chosen = set()
    if routing == "expert_choice":
        pools = [list(units)] if pool == "batch" else [[u for u in units if u[0] == b] for b in range(rows)]
        for members in pools:
            k = max(1, int(capacity * len(members) / experts))
            for e in range(experts):
                best = sorted(members, key=lambda u: (-torch.softmax(scores[u], -1)[e].item(), u))[:k]
                chosen |= {(u, e) for u in best}
    for u, e in itertools.product(units, range(experts)):
        if routing == "dynamic" and torch.sigmoid(scores[u])[e] + bias[e] > 0:
            chosen.add((u, e))
        better = sum((scores[u][i] > scores[u][e]) or (scores[u][i] == scores[u][e] and i < e) for i in range(experts))
        if routing == "token_choice" and better < top_k:
            chosen.add((u, e))
    return {(b, t, e) for u, e in chosen for b, t in units[u]}


@every_kind
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("capacity", [0.4, 1.0, 4.0])
def test_pairs_equal_the_plain_rules(routing: str, pool: str, unit: str, ties: bool, capacity: float) -> None:
    g = torch.Generator().manual_seed(0)
    for seed_mask in (
        torch.rand(3, 6, generator=g) > 0.4,
        torch.tensor([[True] * 6, [False] * 6, [True] + [False] * 5]),
    ):
        logits = torch.randn(3, 6, EXPERTS, generator=g, dtype=torch.float64)
        if ties:
            logits = logits.round()
        bias = torch.full((EXPERTS,), -0.5, dtype=torch.float64)
        kind = options(routing, pool, unit)
        found = choose_pairs(logits, seed_mask, bias, capacity=capacity, **kind)
        assert set(map(tuple, found.nonzero().tolist())) == plainly_chosen(logits, seed_mask, bias, capacity, **kind)


@every_kind
def test_block_is_the_written_sum_on_every_backend(routing: str, pool: str, unit: str, relative_error) -> None:
    hidden, condition, mask = sample()
    block = small(routing, pool, unit).double()
    block.selection_bias = block.selection_bias.float()
    hidden, condition = hidden.double(), condition.double()
    logits = block.alpha * hidden @ block.motion_router.T
    logits = logits + (1 - block.alpha) * (condition @ block.text_router.T)[:, None]
    chosen = plainly_chosen(logits, mask, block.selection_bias, 1.5, **options(routing, pool, unit))
    tokens = block.norm(hidden, condition)
    expected = torch.zeros_like(hidden)
    for b, t, e in sorted(chosen):
        gate, up = (block.w_gate_up[e] @ tokens[b, t]).chunk(2)
        expected[b, t] += torch.softmax(logits[b, t], -1)[e] * (block.w_down[e] @ (torch.nn.functional.silu(gate) * up))
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, list(block.parameters()), grad)

    for name in ("reference", "native"):
        if not backends.available()[name].usable:
            continue
        single = small(routing, pool, unit, backend=name)
        out = single(hidden.float(), condition.float(), mask)
        assert single.expert_counts.tolist() == [sum(c[2] == e for c in chosen) for e in range(EXPERTS)]
        assert relative_error(out, expected) < 1e-5
        grads = torch.autograd.grad(out, list(single.parameters()), grad.float())
        for (parameter, _), found, right in zip(single.named_parameters(), grads, wanted, strict=True):
            assert relative_error(found, right) < 1e-5, parameter


@every_kind
def test_padding_does_not_matter(routing: str, pool: str, unit: str) -> None:
    block = small(routing, pool, unit).eval()
    hidden, condition, mask = sample()
    out = block(hidden, condition, mask)
    assert (out[~mask] == 0).all()
    garbage = torch.where(mask[..., None], hidden, torch.full_like(hidden, torch.nan))
    torch.testing.assert_close(block(garbage, condition, mask), out)
    longer = torch.cat([hidden, torch.full((3, 2, 16), 1e4)], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(block(longer, condition, longer_mask)[:, :7], out)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(block(hidden[order], condition[order], mask[order]), out[order])


@every_kind
def test_only_expert_choice_in_a_pool_of_the_batch_sees_the_rest_of_the_batch(routing, pool, unit) -> None:
    block = small(routing, pool, unit).eval()
    hidden, condition, mask = sample()
    pairs, alone = (
        block.chosen_pairs(hidden, condition, mask),
        block.chosen_pairs(hidden[1:2], condition[1:2], mask[1:2]),
    )
    same = torch.equal(pairs[1:2], alone)
    assert same or (routing, pool) == ("expert_choice", "batch")


@every_kind
def test_chosen_pairs_are_those_of_forward(routing: str, pool: str, unit: str) -> None:
    block = small(routing, pool, unit)
    hidden, condition, mask = sample()
    block(hidden, condition, mask)
    assert torch.equal(block.chosen_pairs(hidden, condition, mask).sum((0, 1)), block.expert_counts)


def test_token_choice_gives_every_token_its_top_k() -> None:
    block = small("token_choice", "batch", "frame", top_k=3)
    hidden, condition, mask = sample()
    assert (block.chosen_pairs(hidden, condition, mask).sum(-1) == 3 * mask).all()


def test_expert_choice_fills_every_expert_evenly() -> None:
    block = small("expert_choice", "batch", "frame")
    hidden, condition, mask = sample()
    assert block.chosen_pairs(hidden, condition, mask).sum((0, 1)).tolist() == [int(1.5 * 13 / 4)] * 4


@every_kind
@pytest.mark.parametrize("shape", [(2, 0, 16), (0, 3, 16)])
def test_no_tokens(routing: str, pool: str, unit: str, shape: tuple[int, ...]) -> None:
    block = small(routing, pool, unit)
    out = block(torch.zeros(shape), torch.zeros(shape[0], 8))
    assert out.shape == shape
    block.update_selection_bias()
    assert block.expert_counts.tolist() == [0] * EXPERTS


def test_a_nan_selects_nothing() -> None:
    logits = torch.randn(2, 5, EXPERTS)
    logits[0, 1, 2] = torch.nan
    for kind in KINDS:
        chosen = choose_pairs(logits, None, torch.full((EXPERTS,), -0.5), **options(*kind))
        assert not chosen[0, 1].any()
        assert chosen.any()


def test_load_balance_loss_is_the_written_sum() -> None:
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, EXPERTS, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 5, generator=g) > 0.3
    chosen = choose_pairs(logits, mask, torch.zeros(EXPERTS), routing="token_choice", top_k=2)

    def written(rows: list[int]) -> Tensor:
        tokens = [(b, t) for b in rows for t in range(5) if mask[b, t]]
        total = torch.zeros(())
        for e in range(EXPERTS):
            share = sum(chosen[b, t, e].item() for b, t in tokens) / (2 * len(tokens))
            total = total + EXPERTS * share * sum(torch.softmax(logits[b, t], -1)[e] for b, t in tokens) / len(tokens)
        return total

    torch.testing.assert_close(load_balance_loss(logits, chosen, mask), written([0, 1, 2]))
    each = torch.stack([written([b]) for b in range(3)]).mean()
    torch.testing.assert_close(load_balance_loss(logits, chosen, mask, pool="sample"), each)
    even = torch.ones(1, 4, EXPERTS)
    assert load_balance_loss(even, torch.eye(4, dtype=torch.bool)[None], None) == 1
    assert torch.autograd.gradcheck(lambda x: load_balance_loss(x, chosen, mask), (logits,))


def test_training_on_the_loss_alone_evens_out_the_experts() -> None:
    block = small("token_choice", "batch", "frame", top_k=1)
    hidden, condition, mask = sample()
    with torch.no_grad():
        block.motion_router[0] += 3 * hidden.mean((0, 1))
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        _, balance = block(hidden, condition, mask, balance=True)
        losses.append(balance.item())
        optimizer.zero_grad()
        balance.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert losses[-1] < 1.1


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_loss_is_asked_for_and_of_training_by_token_choice_alone(backend: str, relative_error) -> None:
    if not backends.available()[backend].usable:
        pytest.skip(f"{backend}: {backends.available()[backend].reason}")
    hidden, condition, mask = sample()
    for kind in KINDS:
        block = small(*kind, backend=backend)
        out, balance = block(hidden, condition, mask, balance=True)
        assert torch.equal(out, block(hidden, condition, mask))
        assert (balance > 0) == (kind[0] == "token_choice")
        if kind[0] == "token_choice":
            logits = block.routing_logits(hidden, condition)
            chosen = block.chosen_pairs(hidden, condition, mask)
            written = load_balance_loss(logits, chosen, mask, pool=kind[1])
            assert relative_error(balance, written) < 1e-6
            wanted = torch.autograd.grad(written, [block.motion_router, block.text_router])
            found = torch.autograd.grad(balance, [block.motion_router, block.text_router])
            assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-5
        _, balance = block.eval()(hidden, condition, mask, balance=True)
        assert balance == 0


@pytest.mark.parametrize("pool", ["batch", "sample"])
def test_bias_of_dynamic_routing_follows_the_equation(pool: str) -> None:
    block = small("dynamic", pool, "frame", bias_rate=0.01)
    hidden, condition, mask = sample()
    before = block.selection_bias.clone()
    block(hidden, condition, mask)
    counts = block.chosen_pairs(hidden, condition, mask).sum(1)
    block.update_selection_bias()
    tokens = mask.sum(1, keepdim=True)
    if pool == "batch":
        direction = torch.sign(counts.sum(0) - 1.5 * tokens.sum() / EXPERTS)
    else:
        direction = torch.sign(torch.sign(counts - 1.5 * tokens / EXPERTS).sum(0))
    assert torch.equal(block.selection_bias, before - 0.01 * direction)


@pytest.mark.parametrize("routing", ["token_choice", "expert_choice"])
def test_other_kinds_have_no_bias_to_move(routing: str) -> None:
    block = small(routing, "batch", "frame")
    hidden, condition, mask = sample()
    before = block(hidden, condition, mask)
    block.update_selection_bias()
    assert (block.selection_bias == -0.5).all()
    block.selection_bias.fill_(-0.9)
    assert torch.equal(block(hidden, condition, mask), before)


@pytest.mark.parametrize("routing", ["token_choice", "expert_choice"])
def test_recomputation_and_compilation_change_nothing(routing: str, relative_error) -> None:
    torch._dynamo.reset()
    block = small(routing, "batch", "frame")
    hidden, condition, mask = sample()
    results = []
    wrapped = lambda *a, **k: torch.utils.checkpoint.checkpoint(block, *a, use_reentrant=False, **k)  # noqa: E731
    for run in (block, wrapped, torch.compile(block, fullgraph=True, backend="aot_eager")):
        block.zero_grad()
        out, balance = run(hidden, condition, mask, balance=True)
        (out.square().sum() + balance).backward()
        results.append([out, *(p.grad.clone() for p in block.parameters())])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routing": "random"}, r"routing: expected one of .*'random'"),
        ({"pool": "person"}, "pool: expected one of"),
        ({"unit": "second"}, "unit: expected one of"),
        (
            {"routing": "token_choice"},
            r"top_k: expected a value in \[1, num_experts=\d+\] for routing='token_choice', got None",
        ),
        ({"routing": "token_choice", "top_k": 5}, "top_k: .* got 5"),
        ({"top_k": 2}, "top_k: expected None for routing='dynamic', got 2"),
        (
            {"routing": "expert_choice", "pool": "sample", "unit": "sequence"},
            "unit: expected 'frame' with expert_choice",
        ),
        ({"max_pairs": 0}, "max_pairs: expected a value >= 1, got 0"),
    ],
)
def test_bad_choices_are_named(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InterMoEBlock(dim=16, num_experts=EXPERTS, expert_dim=12, cond_dim=8, **changes)


def test_padding_takes_no_place_from_tokens_that_an_expert_hardly_wants() -> None:
    """The chance of expert 1 is 0 in float32, for every token: padding, at its own -1, comes after them still."""
    logits = torch.tensor([200.0, -200.0]).expand(1, 6, 2)
    mask = torch.tensor([[False, False, True, True, False, True]])
    chosen = choose_pairs(logits, mask, torch.zeros(2), routing="expert_choice", capacity=2.0)
    assert torch.equal(chosen, mask[..., None].expand(1, 6, 2))


def test_a_capacity_is_taken_to_a_millionth() -> None:
    """1.37 of 2000 tokens over two experts are 1370 each; 11/8, the nearest of small fractions, would be 1375."""
    logits = torch.randn(1, 2000, 2, generator=torch.Generator().manual_seed(0))
    chosen = choose_pairs(logits, None, torch.zeros(2), routing="expert_choice", capacity=1.37)
    assert chosen.sum(dim=(0, 1)).tolist() == [1370, 1370]


def test_a_row_of_padding_alone_is_no_sample_of_the_balance() -> None:
    g = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(2, 5, 3, generator=g), torch.tensor([[True] * 5, [False] * 5])
    chosen = choose_pairs(logits, mask, torch.zeros(3), routing="token_choice", top_k=1, pool="sample")
    found = load_balance_loss(logits, chosen, mask, pool="sample")
    torch.testing.assert_close(found, load_balance_loss(logits[:1], chosen[:1], None))


def test_router_z_loss_is_the_written_sum() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    written = sum(logits[i, j].exp().sum().log() ** 2 for i, j in ((0, 0), (0, 1), (1, 0))) / 3
    torch.testing.assert_close(router_z_loss(logits, mask), written)
    torch.testing.assert_close(router_z_loss(logits, torch.ones_like(mask)), router_z_loss(logits, None))
    gates = torch.log_softmax(logits, dim=-1)
    assert router_z_loss(gates, mask) < 1e-20, "0 where the logits are the logarithms of the gates"
    assert torch.autograd.gradcheck(lambda x: router_z_loss(x, mask), (logits,))


def test_what_is_not_said_is_dynamic_by_frame_in_a_pool_of_the_batch() -> None:
    g = torch.Generator().manual_seed(3)
    logits, mask, bias = (
        torch.randn(3, 8, EXPERTS, generator=g),
        torch.rand(3, 8, generator=g) > 0.2,
        torch.full((EXPERTS,), -0.5),
    )
    bias[0] = -0.9
    whole = {"capacity": 1.0, "pool": "batch", "unit": "frame"}
    for routing in ("dynamic", "expert_choice"):
        said = choose_pairs(logits, mask, bias, routing=routing, **whole)
        assert torch.equal(choose_pairs(logits, mask, bias, routing=routing), said)
        assert not torch.equal(choose_pairs(logits, mask, bias, routing=routing, unit="sequence"), said)
    assert not torch.equal(choose_pairs(logits, mask, bias, routing="expert_choice", pool="sample"), said)
    assert torch.equal(choose_pairs(logits, mask, bias), choose_pairs(logits, mask, bias, routing="dynamic"))
    alone = choose_pairs(logits, mask, bias, routing="expert_choice", pool="sample", unit="sequence")
    assert torch.equal(alone, mask[..., None].expand_as(alone)), "the only unit of its pool is every expert's best"
    balance = load_balance_loss(logits, said, mask)
    assert torch.equal(balance, load_balance_loss(logits, said, mask, pool="batch"))
    assert not torch.equal(balance, load_balance_loss(logits, said, mask, pool="sample"))


def test_the_loss_of_one_frame_is_its_own_and_of_none_is_0() -> None:
    logits, mask = torch.randn(2, 3, EXPERTS), torch.zeros(2, 3, dtype=torch.bool)
    assert router_z_loss(logits, mask) == 0
    mask[1, 2] = True
    torch.testing.assert_close(router_z_loss(logits, mask), logits[1, 2].logsumexp(0).square())
    assert load_balance_loss(logits, torch.zeros_like(logits) > 0, mask) == 0
    chosen = torch.zeros_like(logits) > 0
    chosen[1, 2, 0] = True
    for pool in ("batch", "sample"):
        expected = EXPERTS * logits[1, 2].softmax(0)[0]
        torch.testing.assert_close(load_balance_loss(logits, chosen, mask, pool=pool), expected)
