from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.train.routing import RouterZ, Routing, _z_loss


@pytest.fixture
def block() -> InterMoEBlock:
    torch.manual_seed(0)
    block = InterMoEBlock(dim=8, num_experts=3, expert_dim=4, cond_dim=None, norm="none", backend="reference")
    with torch.no_grad():
        block.motion_router.normal_()
    return block.train()


def _selected(block: InterMoEBlock, hidden: Tensor) -> Tensor:
    return torch.sigmoid(hidden @ block.motion_router.T) + block.selection_bias > 0


def test_bias_moves_by_the_counts_of_all_micro_steps(block: InterMoEBlock) -> None:
    parts = torch.randn(2, 5, 8).split(1)
    counts = sum(_selected(block, part).sum(dim=(0, 1)) for part in parts)
    expected = block.selection_bias - block.bias_rate * torch.sign(counts - 10 / 3)
    routing = Routing(nn.ModuleDict({"moe": block}))
    routing.start()
    for part in parts:
        block(part)
        routing.count()
    routing.update()
    torch.testing.assert_close(block.selection_bias, expected)


def test_health_counts_experts_and_tokens_without_one(block: InterMoEBlock) -> None:
    hidden, mask = torch.randn(2, 6, 8), torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    selected = _selected(block, hidden)[mask]
    routing = Routing(nn.ModuleDict({"moe": block}))
    routing.start(probe=True)
    block(hidden, mask=mask)
    routing.count()
    health = routing.health(lambda total: 2 * total)  # as if summed over two equal ranks
    none = (~selected.any(dim=1)).float().mean().item()
    assert 0 < none < 1
    assert health["moe/tokens_without_expert"] == pytest.approx(none)
    assert health["moe/experts_per_token"] == pytest.approx(selected.sum().item() / 8)
    assert [health[f"moe/expert{e}"] for e in range(3)] == (2 * selected.sum(dim=0)).tolist()


def test_counting_does_not_touch_a_forward_in_eval_mode(block: InterMoEBlock) -> None:
    routing = Routing(nn.ModuleDict({"moe": block}))
    routing.start(probe=True)
    block.eval()(torch.randn(2, 6, 8))
    assert not any(counter.any() for counter in block.counters)


def test_loads_are_relative_to_a_capacity_of_the_tokens_that_count(block: InterMoEBlock) -> None:
    """Of a single token an expert that takes it has three times its share; without one nothing has any."""
    routing = Routing(nn.ModuleDict({"moe": block}))
    for tokens, loads in ((1, (0.0, 3.0)), (0, (0.0, 0.0))):
        block.expert_counts.copy_(torch.tensor([tokens, 0, 0]))
        block.token_count.fill_(tokens)
        assert routing.balance() == loads


def test_padding_has_no_part_in_the_z_loss(block: InterMoEBlock) -> None:
    """Whatever it holds; and without a mask every token has."""
    hidden, mask = torch.randn(1, 3, 8), torch.tensor([[True, False, True]])
    found = []
    for padding in (0.0, torch.inf):
        hidden[0, 1] = padding
        hidden.grad = None
        own = hidden.clone().requires_grad_()
        loss = _z_loss(block, own, None, mask)
        loss.backward()
        assert own.grad is not None
        assert not own.grad[0, 1].any()
        found.append(loss.item())
    assert found[0] == found[1]
    assert _z_loss(block, hidden[:, ::2]).item() == pytest.approx(found[0])


def test_what_is_told_of_loads_by_hand() -> None:
    """Of 9 tokens a capacity of 2 over 3 experts lets each take 6, of 8 tokens one of 0.5 over 2 experts 2."""
    large, small = InterMoEBlock(4, 3, 4, None, capacity=2.0), InterMoEBlock(4, 2, 4, None, capacity=0.5)
    routing = Routing(nn.ModuleDict({"large": large, "small": small}))
    for block, counts, tokens, idle in ((large, [9, 6, 3], 9, 4), (small, [2, 3], 8, 5)):
        block.expert_counts, block.token_count = torch.tensor(counts), torch.tensor(tokens)
        routing.idle["large" if block is large else "small"] = torch.tensor(idle)
    assert routing.balance() == (0.5, 1.5)
    small.expert_counts[0] = 0
    assert routing.balance() == (0.0, 1.5)
    large.expert_counts[0], small.expert_counts[0] = 6, 2
    small.expert_counts[1] = 5
    assert routing.balance() == (0.5, 2.5)
    assert routing.health(lambda totals: 2 * totals) == {
        "large/expert0": 12.0, "large/expert1": 12.0, "large/expert2": 6.0,
        "large/experts_per_token": 15 / 9, "large/tokens_without_expert": 4 / 9,
        "small/expert0": 4.0, "small/expert1": 10.0,
        "small/experts_per_token": 7 / 8, "small/tokens_without_expert": 5 / 8,
    }  # fmt: skip
    small.token_count.zero_()
    assert routing.health(lambda totals: totals)["small/experts_per_token"] == 7.0  # no division by nothing


def test_z_losses_are_collected_where_they_are_asked_for() -> None:
    """Of each block that is called, in the order of the calls; an error ends the asking as well."""
    torch.manual_seed(0)
    first, second = (InterMoEBlock(4, 3, 4, None, backend="reference") for _ in range(2))
    for block in (first, second):
        torch.nn.init.normal_(block.motion_router)
    router = RouterZ(nn.ModuleList([first, second]))
    hidden, mask = torch.randn(1, 3, 4), torch.tensor([[True, True, False]])
    first(hidden)
    assert router.losses is None
    with router.collecting() as losses:
        second(hidden, mask=mask)
        first(hidden)
    expected = [_z_loss(second, hidden, None, mask), _z_loss(first, hidden)]
    assert [loss.item() for loss in losses] == [loss.item() for loss in expected]
    second(hidden)
    assert router.losses is None
    assert len(losses) == 2
    with router.collecting() as again:
        first(hidden)
    assert len(again) == 1
    with pytest.raises(KeyboardInterrupt), router.collecting():
        raise KeyboardInterrupt
    assert router.losses is None


def test_what_is_asked_of_a_block_is_asked_with_its_condition() -> None:
    """Tokens without an expert and the z-loss are of the logits of tokens and condition, as the forward's are."""
    torch.manual_seed(0)
    block = InterMoEBlock(4, 3, 4, 5, norm="none", backend="reference").train()
    torch.nn.init.normal_(block.motion_router)
    torch.nn.init.normal_(block.text_router)
    hidden, condition, mask = torch.randn(2, 9, 4), 3 * torch.randn(2, 5), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    chosen = block.chosen_pairs(hidden, condition, mask)
    idle = int((~chosen.any(dim=-1))[mask].sum())
    assert idle != int((~block.chosen_pairs(hidden, torch.zeros(2, 5), mask).any(dim=-1))[mask].sum()) > 0
    routing, router = Routing(nn.ModuleDict({"moe": block})), RouterZ(block)
    for given in ({"condition": condition, "mask": mask}, {}):
        routing.start(probe=True)
        with router.collecting() as losses:
            block(hidden, **given) if given else block(hidden, condition, mask)
        routing.count()
        routing.count()  # of a second micro-step whose forward found as many
        assert routing.idle["moe"] == 2 * idle
        logits = block.routing_logits(hidden, condition)[mask]
        torch.testing.assert_close(losses[0], torch.logsumexp(logits, dim=-1).square().mean())
    routing.start()
    block(hidden, condition, mask)
    routing.count()
    assert routing.idle["moe"] == 0, "nothing is counted that is not asked for"
