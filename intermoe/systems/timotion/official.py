"""Reads TIMotion's published state dict. Strict about every key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from intermoe.checkpoints import StrictReader, require_setting, setting
from intermoe.nn.init import SkipRandomInit
from intermoe.systems.intergen.official import read_feed_forward, read_frame, sizes
from intermoe.systems.published import read_adaln, read_attention, read_parameters
from intermoe.systems.timotion.config import TIMotionConfig
from intermoe.systems.timotion.network import TIMotion

PUBLISHED: dict[str, Any] = {
    "input_feats": 262,
    "latent_dim": 512,
    "ff_size": 2048,
    "num_layers": 5,
    "num_heads": 16,
    "dropout": 0.1,
    "activation": "gelu",
    "cfg": {"LPA": True, "conv_layers": 1, "dilation_rate": 1, "norm": "AdaLN"},
}
"""The published network's arguments, which are the command line's; the file of settings beside it says otherwise."""


def load_network(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> TIMotion:
    """The denoiser, in eval mode, from the published one's state dict.

    Convolutions see what normalisation makes of padding, as in training of the published network
    (``TIMotionConfig.mask_padding``); without padding that makes no difference.

    Args:
        state_dict: keys as the published module has them. Its two tables of sinusoids are checked where they are there.
        config: the published module's arguments; those of InterGen (``intermoe.systems.intergen.official``) and
            ``cfg`` with ``LPA`` and, if they are there, ``conv_layers``, ``dilation_rate`` and ``norm``.

    Raises:
        ValueError: a key that is missing, unexpected or of the wrong shape, a setting that is not implemented; named.
    """
    reader = StrictReader(state_dict)
    layer_config = setting(config, "cfg")
    require_setting(layer_config, "norm", "AdaLN", "AdaLN")
    network_config = TIMotionConfig(
        **sizes(reader, config),
        local_patterns=setting(layer_config, "LPA"),
        conv_blocks=layer_config.get("conv_layers", 1),
        dilation_rate=layer_config.get("dilation_rate", 1),
    )
    with SkipRandomInit():
        network = TIMotion(network_config).eval()
    read_frame(reader, network)
    for index, layer in enumerate(network.layers):
        _read_layer(reader, f"blocks.{index}", layer)
    reader.finish()
    return network


def _read_layer(reader: StrictReader, prefix: str, layer: Any) -> None:
    read_adaln(reader, f"{prefix}.sa_block.norm", layer.norm)
    read_attention(reader, f"{prefix}.sa_block.attention", layer.attention)
    read_feed_forward(reader, f"{prefix}.ffn", layer.feed_forward)
    if layer.local_patterns is None:
        return
    read_parameters(reader, f"{prefix}.linear", layer.join)
    for index, block in enumerate(layer.local_patterns.blocks):
        key = f"{prefix}.conv.blocks.{index}"
        if block.norm1 is not None:
            read_adaln(reader, f"{key}.norm1", block.norm1)
        read_adaln(reader, f"{key}.norm2", block.norm2)
        read_parameters(reader, f"{key}.conv1", block.conv1)
        read_parameters(reader, f"{key}.conv2", block.conv2)
