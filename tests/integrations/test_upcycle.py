"""Experts that start as the dense network: when the function is preserved, and when it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.integrations import (
    BlockAdapter,
    Condition,
    MoEFeedForward,
    calibrated_selection,
    replace_feed_forward,
    restore_feed_forward,
)
from intermoe.integrations.dense import is_swiglu
from intermoe.nn.layers import SwiGLU


class LlamaNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 24, bias=False), nn.Linear(16, 24, bias=False)
        self.down_proj = nn.Linear(24, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class LuminaNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(*shape, bias=False) for shape in ((16, 24), (24, 16), (16, 24)))

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class GeGLUNetwork(LlamaNetwork):
    """Named as a SwiGLU, but none."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.gelu(self.gate_proj(x)) * self.up_proj(x))


def diffusers_network(bias: bool) -> nn.Module:
    attention = pytest.importorskip("diffusers.models.attention")
    return attention.FeedForward(16, inner_dim=24, activation_fn="swiglu", bias=bias)


class Block(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.network(x)


ADAPTER = BlockAdapter(Block, ("network",), condition={"embedding": Condition("emb", 6)})
NETWORKS = {
    "intermoe": lambda: SwiGLU(16, 24),
    "llama": LlamaNetwork,
    "lumina": LuminaNetwork,
    "diffusers": lambda: diffusers_network(bias=False),
}


def draw(name: str) -> tuple[Block, Tensor, Tensor]:
    torch.manual_seed(0)
    return Block(NETWORKS[name]()).eval(), torch.randn(3, 40, 16), torch.randn(3, 6)


def replace(block: Block, **options: Any) -> MoEFeedForward:
    values = {"num_experts": 4, "expert_dim": 24, "capacity": 1.0, "adapters": [ADAPTER]}
    replace_feed_forward(block, **{**values, **options})
    assert isinstance(block.network, MoEFeedForward)
    return block.network


@pytest.mark.parametrize("name", NETWORKS)
def test_upcycled_model_computes_what_it_did(name: str, relative_error: Any) -> None:
    block, x, emb = draw(name)
    expected = block(x, emb)
    network = replace(block, init="upcycle")
    network.train()
    assert relative_error(block(x, emb), expected) <= 1e-5
    # because every token is at every expert, where the gates sum to one
    assert network.moe.expert_counts.tolist() == [120] * 4


def test_upcycling_a_host_with_padding_preserves_the_valid_tokens(own_host: Any, relative_error: Any) -> None:
    expected, model = own_host.call(own_host.build()), own_host.build()
    replace_feed_forward(model, num_experts=4, expert_dim=24, init="upcycle", adapters=own_host.adapters)
    valid = torch.arange(6) < torch.tensor([[4], [6]])  # as its call has it
    assert relative_error(own_host.call(model)[valid], expected[valid]) <= 1e-5


@pytest.mark.parametrize("init", ["upcycle", "residual"])
def test_shared_experts_add_nothing_at_first(init: str, relative_error: Any) -> None:
    block, x, emb = draw("intermoe")
    expected = block(x, emb)
    replace(block, init=init, num_shared_experts=1)
    assert relative_error(block(x, emb), expected) <= 1e-5


def test_sparse_upcycling_is_exact_where_gates_sum_to_the_share_of_the_experts(relative_error: Any) -> None:
    block, x, emb = draw("intermoe")
    expected = block(x, emb)
    network = replace(block, init="upcycle_sparse", routing="token_choice", top_k=2)
    for router in (network.moe.motion_router, network.moe.text_router):
        nn.init.zeros_(router)  # gates of 1/4 each, two of them
    assert relative_error(block(x, emb), expected) <= 1e-5


def test_sparse_upcycling_preserves_the_function_times_each_tokens_gates() -> None:
    block, x, emb = draw("intermoe")
    expected = block(x, emb)
    moe = replace(block, init="upcycle_sparse", capacity=2.0).moe
    nn.init.normal_(moe.motion_router, std=0.5)
    with calibrated_selection(block), torch.no_grad():
        out = block(x, emb)
    gates = torch.softmax(moe.routing_logits(x, emb), dim=-1) * moe.chosen_pairs(x, emb)
    torch.testing.assert_close(out, expected * gates.sum(dim=-1, keepdim=True) * 4 / 2, rtol=1e-4, atol=1e-5)
    assert (gates.sum(dim=-1) == 0).any()  # dynamic routing may leave a token out


@pytest.mark.parametrize("network", [GeGLUNetwork, lambda: diffusers_network(bias=True), lambda: nn.Linear(16, 16)])
def test_other_networks_are_refused_with_the_way_out(network: Any) -> None:
    torch.manual_seed(0)
    block = Block(network())
    with pytest.raises(ValueError, match=r"expected SwiGLU networks without biases .* init='residual'"):
        replace(block, init="upcycle")


class Dropping(nn.Module):
    """Llama's network, with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(16, 24, bias=False) for _ in range(2))
        self.down_proj, self.drop = nn.Linear(24, 16, bias=False), nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.drop(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)))


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_judged_as_it_is_in_evaluation(training: bool) -> None:
    """Dropout is none of what it computes; and it is left in the mode that it was in."""
    network = Dropping().train(training)
    weights = [parameter.clone() for parameter in network.parameters()]
    assert is_swiglu(network)
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), weights, strict=True))


def test_biases_too_small_to_be_heard_are_refused_too() -> None:
    """They would be lost all the same, and with them what a host learns of them later; biases of 0 are none."""
    torch.manual_seed(0)
    block = Block(diffusers_network(bias=True))
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    expected = block(torch.ones(1, 2, 16), torch.ones(1, 6))
    with torch.no_grad():
        block.network.net[2].bias[3] = 1e-9
    with pytest.raises(ValueError, match="without biases"):
        replace(block, init="upcycle")
    nn.init.zeros_(block.network.net[2].bias)
    replace(block, init="upcycle")
    torch.testing.assert_close(block(torch.ones(1, 2, 16), torch.ones(1, 6)), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_expert_becomes_the_dense_network_again(name: str, relative_error: Any) -> None:
    block, x, emb = draw(name)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    expected = block(x, emb)
    moe = replace(block, init="upcycle", num_experts=1).moe
    restore_feed_forward(block)
    after = block.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    # and trained weights come back as what they compute
    moe = replace(block, init="upcycle", num_experts=1).moe
    with torch.no_grad():
        moe.w_gate_up.mul_(1.5)
        moe.w_down.add_(0.1)
    expected = block(x, emb)
    restore_feed_forward(block)
    assert relative_error(block(x, emb), expected) <= 1e-5


def test_what_cannot_be_dense_again_is_refused() -> None:
    block, _, _ = draw("intermoe")
    network = replace(block)
    with pytest.raises(ValueError, match=r"expected a single expert .* got num_experts=4"):
        restore_feed_forward(block)
    assert block.network is network
    block, _, _ = draw("intermoe")
    nn.init.ones_(replace(block, init="residual").moe.w_down)
    with pytest.raises(ValueError, match="expected experts that add nothing to the dense network yet"):
        restore_feed_forward(block)
    block, _, _ = draw("intermoe")
    replace(block, num_experts=1, expert_dim=8)
    with pytest.raises(ValueError, match="got expert_dim=8"):
        restore_feed_forward(block)
    with pytest.raises(ValueError, match="expected replaced feed-forward networks, got none"):
        restore_feed_forward(draw("intermoe")[0])


def test_restoring_is_possible_after_loading(own_host: Any) -> None:
    from intermoe.integrations import reapply_replacement, replacement_config

    model = own_host.build()
    replace_feed_forward(model, num_experts=1, expert_dim=24, init="upcycle", adapters=own_host.adapters)
    loaded = own_host.build()
    reapply_replacement(loaded, replacement_config(model), adapters=own_host.adapters)
    loaded.load_state_dict(model.state_dict())
    restore_feed_forward(loaded)
    torch.testing.assert_close(own_host.call(loaded), own_host.call(own_host.build()))


def test_upcycled_flops_are_reported(own_host: Any) -> None:
    model = own_host.build()
    values = {"num_experts": 4, "expert_dim": 24, "capacity": 1.0, "init": "upcycle", "adapters": own_host.adapters}
    layer = replace_feed_forward(model, **values).layers[0]
    assert layer.dense_flops == 2 * 3 * 16 * 24
    assert layer.moe_flops == layer.dense_flops + 2 * 4 * 16  # the router
    assert layer.dense_parameters == 3 * 16 * 24
    block = next(m for m in model.modules() if isinstance(m, InterMoEBlock))
    assert layer.moe_parameters == sum(p.numel() for p in block.parameters())
