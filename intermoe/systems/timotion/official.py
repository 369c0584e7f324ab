"""Reads TIMotion's published state dict. Strict about every key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from intermoe.checkpoints import StrictReader, require_setting, setting
from intermoe.nn.init import SkipRandomInit
from intermoe.systems.intergen.official import NETWORK_PREFIX, read_feed_forward, read_frame, read_parts, sizes
from intermoe.systems.published import Files, Layout, read_adaln, read_attention, read_parameters
from intermoe.systems.timotion.config import TIMotionConfig, TIMotionModelConfig
from intermoe.systems.timotion.network import TIMotion
from intermoe.systems.timotion.pipeline import TIMotionPipeline

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


def _read(path: Path, files: Files) -> TIMotionPipeline:
    network, text, statistics = read_parts(path, files, _with_or_without_patterns)
    sizes = network.config
    if not isinstance(sizes, TIMotionConfig):
        raise TypeError(f"network: expected TIMotion's, got one of {type(sizes).__name__}")
    config = TIMotionModelConfig(name="timotion-interhuman", network=sizes, text=text.config, min_frames=15)
    return TIMotionPipeline(config, network, text, statistics)


def _with_or_without_patterns(state: Mapping[str, Tensor]) -> TIMotion:
    """Both forms are published; only one has the convolutions."""
    patterns = any(".conv.blocks." in key for key in state)
    return load_network(state, {**PUBLISHED, "cfg": {**PUBLISHED["cfg"], "LPA": patterns}})


def _fits(keys: Collection[str]) -> bool:
    own = [key for key in keys if key.startswith(f"model.{NETWORK_PREFIX}")]
    return bool(own) and not any(".ca_block." in key for key in own)


LAYOUT = Layout("TIMotion", _fits, ("stats", "tokenizer"), _read)
