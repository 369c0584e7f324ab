"""What was asked of a replacement is what every block gets, and what its report says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.integrations import (
    BlockAdapter,
    Condition,
    Mask,
    balance_losses,
    replace_feed_forward,
    restore_feed_forward,
)

VALUES: dict[str, Any] = {
    "num_experts": 5, "expert_dim": 7, "capacity": 2.5, "fusion": "weighted", "alpha": 0.3, "bias_rate": 0.02,
    "bias_init": -0.25, "num_shared_experts": 2, "recompute": True, "pool": "sample", "unit": "frame",
}  # fmt: skip


def blocks(model: nn.Module) -> list[InterMoEBlock]:
    return [module for module in model.modules() if isinstance(module, InterMoEBlock)]


def test_every_value_reaches_every_block(own_host: Any) -> None:
    model = own_host.build()
    replace_feed_forward(model, adapters=own_host.adapters, **VALUES)
    assert len(blocks(model)) == 2
    for block in blocks(model):
        assert {name: getattr(block, name) for name in VALUES} == VALUES
        assert (block.dim, block.cond_dim) == (16, 6)
        assert block.selection_bias.tolist() == [-0.25] * 5
    model = own_host.build()
    values = {"num_experts": 4, "expert_dim": 8, "routing": "token_choice", "top_k": 3}
    replace_feed_forward(model, adapters=own_host.adapters, condition=None, **values)
    assert [(block.routing, block.top_k, block.cond_dim) for block in blocks(model)] == [("token_choice", 3, None)] * 2


def test_an_upcycled_bias_starts_where_it_was_asked_to(own_host: Any) -> None:
    model = own_host.build()
    replace_feed_forward(
        model, num_experts=4, expert_dim=24, init="upcycle", bias_init=-0.25, adapters=own_host.adapters
    )
    assert all(block.selection_bias.tolist() == [-0.25] * 4 for block in blocks(model))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_is_as_its_network_was(own_host: Any, training: bool, dtype: torch.dtype) -> None:
    model = own_host.build().to(dtype).train(training)
    replace_feed_forward(model, num_experts=4, expert_dim=8, adapters=own_host.adapters)
    for block in blocks(model):
        assert block.training is training
        assert {parameter.dtype for parameter in block.parameters()} == {dtype}


@pytest.mark.parametrize("init", ["random", "residual"])
@pytest.mark.parametrize("routing", [{"capacity": 1.5}, {"routing": "token_choice", "top_k": 3}])
def test_the_report_counts_weights_and_products(own_host: Any, init: str, routing: dict[str, Any]) -> None:
    """2 (E D + 3 D F (experts per token + shared)) and, where it is kept, the dense 2 * 3 * 16 * 24."""
    model = own_host.build()
    layers = replace_feed_forward(
        model, num_experts=4, expert_dim=8, num_shared_experts=2, init=init, adapters=own_host.adapters, **routing
    ).layers
    dense, per_token = 3 * 16 * 24, routing.get("top_k") or routing["capacity"]
    kept = dense if init == "residual" else 0
    for layer in layers:
        assert layer.condition == "embedding"
        assert (layer.dense_parameters, layer.dense_flops) == (dense, 2 * dense)
        assert layer.moe_parameters == 4 * (16 + 6) + 4 * 3 * 8 * 16 + 3 * 16 * 16 + kept
        assert layer.moe_flops == pytest.approx(2 * (4 * 16 + 3 * 16 * 8 * (per_token + 2) + kept))


def test_losses_are_collected_within_alone(own_host: Any) -> None:
    model = own_host.build().train()
    replace_feed_forward(
        model, num_experts=4, expert_dim=8, routing="token_choice", top_k=1, adapters=own_host.adapters
    )
    with balance_losses(model) as losses:
        own_host.call(model)
        assert len(losses) == 2
    own_host.call(model)
    assert len(losses) == 2


@pytest.mark.parametrize(
    ("means", "mask"),
    [
        ("valid", torch.tensor([[1, 1, 0], [1, 1, 1]])),
        ("padding", torch.tensor([[0, 0, 1], [0, 0, 0]])),
        ("padding", torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])),
        ("additive", torch.tensor([[0.0, 0.0, -10000.0], [0.0, 0.0, 0.0]])),
        ("additive", torch.tensor([[[0.0, 0.0, -10000.0]], [[0.0, 0.0, 0.0]]])),
    ],
)
def test_masks_of_all_meanings_and_means_over_what_they_keep(means: str, mask: Tensor) -> None:
    found = Mask("mask", means).valid({"mask": mask}, (2, 3))
    assert found is not None
    assert found.tolist() == [[True, True, False], [True, True, True]]
    text = torch.tensor([[1.0, 3.0, 50.0], [1.0, 2.0, 6.0]])[..., None]
    condition = Condition("text", 1, sequence=True, mean_over=Mask("mask", means))
    mean = condition.read({"text": text, "mask": mask})
    assert mean is not None
    assert mean.tolist() == [[2.0], [3.0]]
    whole = condition.read({"text": text})
    assert whole is not None
    assert whole.tolist() == [[18.0], [3.0]]


def test_time_first_hosts_are_turned_and_turned_back() -> None:
    """The same encoder answers the same, whichever axis its tokens come on."""
    answers = []
    for batch_first in (True, False):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=batch_first)
        replace_feed_forward(layer, num_experts=4, expert_dim=8)
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
        padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        out = layer(x if batch_first else x.transpose(0, 1), src_key_padding_mask=padding)
        answers.append((out if batch_first else out.transpose(0, 1))[~padding])
        assert layer.linear1.moe.token_count == 8, "padding is found on either axis"
    torch.testing.assert_close(*answers)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_a_kept_network_is_added_as_it_is() -> None:
    torch.manual_seed(0)
    block, x = Plain(), torch.randn(2, 3, 4)
    dense = block.network
    replace_feed_forward(
        block, num_experts=2, expert_dim=4, init="residual", adapters=[BlockAdapter(Plain, ("network",))]
    )
    network: Any = block.network
    nn.init.normal_(network.moe.w_down)
    torch.testing.assert_close(block(x), dense(x) + network.moe(x))


def test_a_restored_host_is_watched_no_more(own_host: Any) -> None:
    model = own_host.build()
    replace_feed_forward(model, num_experts=4, expert_dim=8, init="residual", adapters=own_host.adapters)
    assert any(module._forward_pre_hooks for module in model.modules())
    restore_feed_forward(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
