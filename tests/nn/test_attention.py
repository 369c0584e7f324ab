"""The extra key of zero, and what attention is without it."""

from __future__ import annotations

import pytest
import torch

from intermoe.nn.attention import Attention, CrossAttention
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import Denoiser


@pytest.mark.parametrize("zero_key", [True, False])
def test_attention_by_hand(zero_key: bool) -> None:
    """softmax(q k^T / sqrt(d)) v over the keys that there are, and one of zero where asked for."""
    torch.manual_seed(0)
    attention = Attention(8, 2, zero_key=zero_key)
    queries, context = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    found = attention(queries, context, mask)
    for row, valid in enumerate(mask.sum(dim=1).tolist()):
        key, value = attention.key_value(context[row, :valid]).chunk(2, dim=-1)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            k, v, q = key[:, head], value[:, head], attention.query(queries[row])[:, head]
            if zero_key:
                k, v = (torch.cat([torch.zeros(1, 4), each]) for each in (k, v))
            heads.append((q @ k.T / 2).softmax(dim=1) @ v)
        torch.testing.assert_close(found[row], attention.out(torch.cat(heads, dim=1)), rtol=1e-4, atol=1e-5)


def test_keys_that_repel_every_query_are_attended_to_where_there_is_no_other() -> None:
    """What happens to a network that learned to attend to the zero alone: without it persons see each other."""
    torch.manual_seed(0)
    changes = {}
    for zero_key in (True, False):
        attention = Attention(8, 2, zero_key=zero_key)
        with torch.no_grad():
            attention.query.weight.zero_(), attention.query.bias.fill_(-30.0)
            attention.key_value.bias[:8] = 30.0
        queries = torch.randn(1, 3, 8)
        first, second = (attention(queries, torch.randn(1, 4, 8)) for _ in range(2))
        changes[zero_key] = (first - second).abs().max().item()
    assert changes[True] < 1e-6
    assert changes[False] > 1e-2


@pytest.mark.parametrize("zero_key", [True, False])
def test_nobody_to_attend_to(zero_key: bool) -> None:
    attention = CrossAttention(8, 2, zero_key=zero_key)
    torch.nn.init.normal_(attention.attention.out.bias)
    alone = torch.randn(2, 1, 3, 8)
    found = attention(alone, alone, torch.randn(2, 8))
    torch.testing.assert_close(found, attention.attention.out.bias.expand(2, 1, 3, 8))


@pytest.mark.parametrize("zero_key", [True, False])
def test_the_configuration_reaches_every_attention(zero_key: bool) -> None:
    config = DenoiserConfig(
        input_dim=6, text_dim=4, dim=8, num_layers=2, num_heads=2, num_experts=2, expert_dim=8, zero_key=zero_key
    )
    found = [module.zero_key for module in Denoiser(config).modules() if isinstance(module, Attention)]
    assert found == [int(zero_key)] * 4
    assert DenoiserConfig().zero_key
