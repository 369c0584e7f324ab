"""What a published file's settings make of its network, without any file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from intermoe import official


@pytest.mark.parametrize(
    ("settings", "blocks", "rate"),
    [({}, 1, 1), ({"conv_layers": 2}, 2, 1), ({"conv_layers": 3, "dilation_rate": 2}, 3, 2)],
)
def test_convolutions_of_timotion_are_as_many_as_its_settings_say(
    settings: dict[str, int], blocks: int, rate: int, published_file: Callable[..., dict[str, Tensor]]
) -> None:
    config: dict[str, Any] = {
        "input_feats": 6, "latent_dim": 8, "ff_size": 12, "num_layers": 1, "num_heads": 2, "dropout": 0.1,
        "activation": "gelu", "cfg": {"LPA": True, **settings},
    }  # fmt: skip
    state = published_file(
        lambda state: official.load_network("timotion", state, config), {"text_embed.weight": (8, 5)}
    )
    network = official.load_network("timotion", state, config)
    assert (network.config.conv_blocks, network.config.dilation_rate) == (blocks, rate)
    (layer,) = network.layers
    assert len(layer.local_patterns.blocks) == blocks
    with pytest.raises(ValueError, match=r"unexpected keys|missing key"):
        official.load_network("timotion", state, {**config, "cfg": {"LPA": True, "conv_layers": blocks + 1}})
