"""Systems with experts in place of their feed-forward networks: the same network but for the block, and kept whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intermoe.integrations import replace_feed_forward
from intermoe.nn.moe import InterMoEBlock
from intermoe.pipeline import SYSTEMS

SIZES = {"text_dim": 8, "dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 24, "dropout": 0.0}
EXPERTS = {"num_experts": 3, "expert_dim": 6, "capacity": 1.5, "bias_rate": 0.25}


def built(system: str, **changes: Any) -> Any:
    made: Any = SYSTEMS[system]
    kind = type(made.config_type().network)
    torch.manual_seed(0)
    return made.build_network(kind.from_dict({**SIZES, **changes}))


@pytest.mark.parametrize("host", ["intergen", "timotion"])
def test_experts_are_as_configured(host: str) -> None:
    network = built(f"{host}-experts", **EXPERTS)
    blocks = [module for module in network.modules() if isinstance(module, InterMoEBlock)]
    assert len(blocks) == 2
    for block in blocks:
        assert (block.num_experts, block.expert_dim, block.capacity, block.bias_rate) == (3, 6, 1.5, 0.25)
    for name, message in (
        ("num_experts", ">= 1"),
        ("expert_dim", ">= 1"),
        ("capacity", "a value in "),
        ("bias_rate", ">= 0"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected {message}|^config.{name}: expected {message}"):
            built(f"{host}-experts", **{name: -1})


@pytest.mark.parametrize("host", ["intergen", "timotion"])
def test_the_block_alone_differs(host: str) -> None:
    """The host's own network, replaced by hand, with the same weights computes the same."""
    network, by_hand = built(f"{host}-experts", **EXPERTS), built(host)
    replace_feed_forward(by_hand, **EXPERTS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    by_hand.load_state_dict(network.state_dict())
    x, t, text = torch.randn(2, 2, 9, 262), torch.tensor([3, 800]), torch.randn(2, 8)
    mask = torch.arange(9) < torch.tensor([9, 6])[:, None]
    with torch.no_grad():
        made = network.eval()(x, t, text, mask)
        assert torch.equal(made, by_hand.eval()(x, t, text, mask))
        assert not torch.allclose(made, network(x, t + 100, text, mask), atol=1e-3)
