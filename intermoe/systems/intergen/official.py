"""Reads InterGen's published state dict, and what TIMotion's has in common with it. Strict about every key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from intermoe.checkpoints import StrictReader, read_checkpoint, require_setting, setting
from intermoe.motion.interhuman import MOTION_WIDTH
from intermoe.motion.statistics import Statistics
from intermoe.nn.init import SkipRandomInit
from intermoe.systems.intergen.config import InterGenConfig, InterGenModelConfig
from intermoe.systems.intergen.network import AdaLNFeedForward, InterGen, MotionNetwork
from intermoe.systems.intergen.pipeline import InterGenPipeline
from intermoe.systems.intermoe.official import load_text_encoder
from intermoe.systems.published import (
    INTERHUMAN_STATISTICS,
    SINUSOID_KEYS,
    Files,
    Layout,
    check_sinusoids,
    read_adaln,
    read_attention,
    read_parameters,
    statistics_of,
    with_tower,
)
from intermoe.text.clip import ClipTextEncoder

NetworkT = TypeVar("NetworkT", bound=MotionNetwork)
Reader = Callable[[Mapping[str, Tensor]], NetworkT]

PUBLISHED: dict[str, Any] = {
    "input_feats": 262,
    "latent_dim": 1024,
    "ff_size": 2048,
    "num_layers": 8,
    "num_heads": 8,
    "dropout": 0.1,
    "activation": "gelu",
}
"""The published network's arguments; its checkpoint does not hold them."""

NETWORK_PREFIX = "decoder.net."
"""Of the network's keys in a checkpoint, behind Lightning's ``model.``; the text encoder's have none."""


def load_network(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> InterGen:
    """The denoiser, in eval mode, from the published one's state dict.

    Args:
        state_dict: keys as the published module has them. Its two tables of sinusoids are checked where they are there.
        config: the published module's arguments ``input_feats``, ``latent_dim``, ``ff_size``, ``num_layers``,
            ``num_heads`` and, if they are there, ``dropout`` and ``activation``; ``PUBLISHED`` holds those published.

    Raises:
        ValueError: a key that is missing, unexpected or of the wrong shape, a setting that is not implemented; named.
    """
    reader = StrictReader(state_dict)
    with SkipRandomInit():
        network = InterGen(InterGenConfig(**sizes(reader, config))).eval()
    read_frame(reader, network)
    for index, layer in enumerate(network.layers):
        _read_layer(reader, f"blocks.{index}", layer)
    reader.finish()
    return network


def split_state(state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state dicts of ``network`` and ``text`` of a whole checkpoint, each with the keys of its own module.

    Raises:
        ValueError: a key that does not begin with ``model.``.
    """
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "text": {}}
    for key, value in state_dict.items():
        name = key.removeprefix("model.")
        if name == key:
            raise ValueError(f"state_dict: expected keys that begin with 'model.', got {key!r}")
        part = "network" if name.startswith(NETWORK_PREFIX) else "text"
        parts[part][name.removeprefix(NETWORK_PREFIX)] = value
    return parts


def sizes(reader: StrictReader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``InterGenConfig`` for the published ones, padding as there."""
    require_setting(config, "activation", "gelu", "gelu")
    return {
        "input_dim": setting(config, "input_feats"),
        "text_dim": reader.peek("text_embed.weight", 2)[1],
        "dim": setting(config, "latent_dim"),
        "num_layers": setting(config, "num_layers"),
        "num_heads": setting(config, "num_heads"),
        "feedforward_dim": setting(config, "ff_size"),
        "dropout": config.get("dropout", 0.1),
        "mask_padding": False,
    }


def read_frame(reader: StrictReader, network: MotionNetwork) -> None:
    """Everything but the layers."""
    for key in SINUSOID_KEYS:
        if reader.keys(key):
            check_sinusoids(reader, key, network.config.dim)
    read_parameters(reader, "motion_embed", network.embed_motion)
    read_parameters(reader, "text_embed", network.embed_text)
    read_parameters(reader, "embed_timestep.time_embed.0", network.embed_timestep.inner)
    read_parameters(reader, "embed_timestep.time_embed.2", network.embed_timestep.out)
    read_parameters(reader, "out.linear", network.out)


def _read_layer(reader: StrictReader, prefix: str, layer: Any) -> None:
    read_adaln(reader, f"{prefix}.sa_block.norm", layer.self_attention.norm)
    read_attention(reader, f"{prefix}.sa_block.attention", layer.self_attention.attention)
    read_adaln(reader, f"{prefix}.ca_block.norm", layer.cross_attention.norm)
    read_adaln(reader, f"{prefix}.ca_block.xf_norm", layer.cross_attention.context_norm)
    read_attention(reader, f"{prefix}.ca_block.attention", layer.cross_attention.attention)
    read_feed_forward(reader, f"{prefix}.ffn", layer.feed_forward)


def read_feed_forward(reader: StrictReader, prefix: str, feed_forward: AdaLNFeedForward) -> None:
    """AdaLN and both linear layers."""
    read_adaln(reader, f"{prefix}.norm", feed_forward.norm)
    linear1, _, _, linear2 = feed_forward.network.children()
    read_parameters(reader, f"{prefix}.linear1", linear1)
    read_parameters(reader, f"{prefix}.linear2", linear2)


def read_parts(path: Path, files: Files, read: Reader[NetworkT]) -> tuple[NetworkT, ClipTextEncoder, Statistics]:
    """Network, text encoder and statistics of a checkpoint built like InterGen's."""
    statistics = statistics_of(path, files, INTERHUMAN_STATISTICS, MOTION_WIDTH)
    state, _ = read_checkpoint(path)
    parts = split_state(state)
    network = read(parts["network"])
    layers = {key.split(".")[2] for key in parts["text"] if key.startswith("clip_transformer.resblocks.")}
    text = load_text_encoder(parts["text"], {"clip_layers": len(layers)})
    with_tower(text, files)
    return network, text, statistics


def _read(path: Path, files: Files) -> InterGenPipeline:
    network, text, statistics = read_parts(path, files, lambda state: load_network(state, PUBLISHED))
    config = InterGenModelConfig(name="intergen-interhuman", network=network.config, text=text.config, min_frames=15)
    return InterGenPipeline(config, network, text, statistics)


LAYOUT = Layout(
    "InterGen",
    lambda keys: any(key.startswith(f"model.{NETWORK_PREFIX}") and ".ca_block." in key for key in keys),
    ("stats", "tokenizer"),
    _read,
)
