"""What a pool is kept in balance over: the whole batch, or each sample, of its own length."""

from __future__ import annotations

import pytest
import torch

from intermoe import InterMoEBlock

CONDITION, LENGTHS = None, (7, 4, 6)
MASK = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


def drawn(seed: int = 0, **options: object) -> tuple[InterMoEBlock, torch.Tensor]:
    torch.manual_seed(seed)
    block = InterMoEBlock(8, 4, 6, CONDITION, norm="none", backend="reference", **options)
    torch.nn.init.normal_(block.motion_router)
    return block.train(), torch.randn(3, 7, 8)


@pytest.mark.parametrize("pool", ["batch", "sample"])
@pytest.mark.parametrize("masked", [True, False])
def test_the_balance_of_a_pool_by_hand(pool: str, masked: bool) -> None:
    """E * sum over experts of their share of the pairs times their mean softmax; of samples the mean of each one's."""
    block, hidden = drawn(routing="token_choice", top_k=2, pool=pool)
    mask = MASK if masked else None
    _, balance = block(hidden, mask=mask, balance=True)
    shares = torch.softmax(hidden @ block.motion_router.T, dim=-1)
    rows = [shares[i, : LENGTHS[i] if masked else 7] for i in range(3)]
    pools = rows if pool == "sample" else [torch.cat(rows)]
    expected = []
    for own in pools:
        taken = torch.zeros(4).index_add(0, own.topk(2).indices.flatten(), torch.ones(2 * len(own)))
        expected.append(4 * (taken / taken.sum() * own.mean(dim=0)).sum())
    torch.testing.assert_close(balance, torch.stack(expected).mean())


@pytest.mark.parametrize("pool", ["batch", "sample"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_bias_moves_by_its_pool(pool: str, masked: bool) -> None:
    """By the sign of all counts against their share, or of each sample's vote on its own length."""
    block, hidden = drawn(pool=pool, capacity=2.0)
    before = block.selection_bias.clone()
    block(hidden, mask=MASK if masked else None)
    chosen = torch.sigmoid(hidden @ block.motion_router.T) - 0.5 > 0
    lengths = torch.tensor(LENGTHS if masked else (7, 7, 7))
    counts = (chosen & (MASK if masked else MASK | ~MASK)[..., None]).sum(dim=1)
    excess = counts - 2.0 * lengths[:, None] / 4
    votes = excess.sign().sum(dim=0).sign() if pool == "sample" else excess.sum(dim=0).sign()
    assert votes.unique().numel() > 1
    if masked:  # padding that counted would vote otherwise
        assert not torch.equal(votes, (counts - 2.0 * 7 / 4).sign().sum(dim=0).sign())
    block.update_selection_bias()
    torch.testing.assert_close(block.selection_bias, before - block.bias_rate * votes)
