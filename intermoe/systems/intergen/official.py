"""Reads InterGen's published state dict, and what TIMotion's has in common with it. Strict about every key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intermoe.checkpoints import StrictReader, require_setting, setting
from intermoe.nn.attention import Attention
from intermoe.nn.init import SkipRandomInit
from intermoe.nn.layers import AdaLN, sinusoid
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intergen.network import AdaLNFeedForward, InterGen, InterGenLayer, MotionNetwork

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
            ``num_heads`` and, if they are there, ``dropout`` and ``activation``; ``PUBLISHED`` has the published values.

    Raises:
        ValueError: a key that is missing, unexpected or of the wrong shape, or a setting that is not implemented; named.
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
    """The arguments of ``InterGenConfig`` in the published ones."""
    require_setting(config, "activation", "gelu", "gelu")
    return {
        "input_dim": setting(config, "input_feats"),
        "text_dim": reader.peek("text_embed.weight", 2)[1],
        "dim": setting(config, "latent_dim"),
        "num_layers": setting(config, "num_layers"),
        "num_heads": setting(config, "num_heads"),
        "feedforward_dim": setting(config, "ff_size"),
        "dropout": config.get("dropout", 0.1),
    }


def read_frame(reader: StrictReader, network: MotionNetwork) -> None:
    """Everything but the layers."""
    for key in ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe"):
        if reader.keys(key):
            table = reader.take(key, (reader.peek(key, 2)[0], network.config.dim))
            if not torch.allclose(table, sinusoid(torch.arange(len(table)), network.config.dim), atol=1e-4):
                raise ValueError(f"state_dict: {key!r} is not the sinusoidal table that the network is defined with")
    read_linear(reader, "motion_embed", network.embed_motion)
    read_linear(reader, "text_embed", network.embed_text)
    read_linear(reader, "embed_timestep.time_embed.0", network.embed_timestep.inner)
    read_linear(reader, "embed_timestep.time_embed.2", network.embed_timestep.out)
    read_linear(reader, "out.linear", network.out)


def _read_layer(reader: StrictReader, prefix: str, layer: Any) -> None:
    if not isinstance(layer, InterGenLayer):
        raise TypeError(f"layer: expected InterGenLayer, got {type(layer).__name__}")
    read_adaln(reader, f"{prefix}.sa_block.norm", layer.self_attention.norm)
    read_attention(reader, f"{prefix}.sa_block.attention", layer.self_attention.attention)
    read_adaln(reader, f"{prefix}.ca_block.norm", layer.cross_attention.norm)
    read_adaln(reader, f"{prefix}.ca_block.xf_norm", layer.cross_attention.context_norm)
    read_attention(reader, f"{prefix}.ca_block.attention", layer.cross_attention.attention)
    read_feed_forward(reader, f"{prefix}.ffn", layer.feed_forward)


def read_linear(reader: StrictReader, prefix: str, layer: nn.Linear | nn.Conv1d) -> None:
    """Weight and bias."""
    for name, parameter in layer.named_parameters():
        reader.copy(parameter, f"{prefix}.{name}")


def read_adaln(reader: StrictReader, prefix: str, norm: AdaLN) -> None:
    """The linear layer that gives scale and shift."""
    read_linear(reader, f"{prefix}.emb_layers.1", norm.modulation)


def read_attention(reader: StrictReader, prefix: str, attention: Attention) -> None:
    """Query, key and value lie in one matrix, as torch's ``nn.MultiheadAttention`` has them."""
    dim = attention.out.in_features
    for kind, shape in (("weight", (3 * dim, dim)), ("bias", (3 * dim,))):
        query, key_value = reader.take(f"{prefix}.in_proj_{kind}", shape).split([dim, 2 * dim])
        with torch.no_grad():
            getattr(attention.query, kind).copy_(query)
            getattr(attention.key_value, kind).copy_(key_value)
    read_linear(reader, f"{prefix}.out_proj", attention.out)


def read_feed_forward(reader: StrictReader, prefix: str, feed_forward: AdaLNFeedForward) -> None:
    """AdaLN and both linear layers."""
    read_adaln(reader, f"{prefix}.norm", feed_forward.norm)
    read_linear(reader, f"{prefix}.linear1", feed_forward.network[0])
    read_linear(reader, f"{prefix}.linear2", feed_forward.network[-1])
