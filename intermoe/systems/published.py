"""Reads the layers that several published state dicts write in the same way."""

from __future__ import annotations

import torch
from torch import nn

from intermoe.checkpoints import StrictReader
from intermoe.nn.attention import Attention
from intermoe.nn.layers import AdaLN, sinusoid

SINUSOID_KEYS = ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe")
"""Tables of positions and of timesteps that published denoisers store; here they are computed."""


def read_parameters(reader: StrictReader, prefix: str, layer: nn.Module) -> None:
    """Every parameter of a layer whose names are torch's: linear, convolution, normalisation."""
    for name, parameter in layer.named_parameters():
        reader.copy(parameter, f"{prefix}.{name}")


def read_adaln(reader: StrictReader, prefix: str, norm: AdaLN) -> None:
    """The linear layer that gives scale and shift."""
    read_parameters(reader, f"{prefix}.emb_layers.1", norm.modulation)


def read_attention(reader: StrictReader, prefix: str, attention: Attention) -> None:
    """Query, key and value lie in one matrix, as torch's ``nn.MultiheadAttention`` has them."""
    dim = attention.out.in_features
    for kind, shape in (("weight", (3 * dim, dim)), ("bias", (3 * dim,))):
        query, key_value = reader.take(f"{prefix}.in_proj_{kind}", shape).split([dim, 2 * dim])
        with torch.no_grad():
            attention.query.get_parameter(kind).copy_(query)
            attention.key_value.get_parameter(kind).copy_(key_value)
    read_parameters(reader, f"{prefix}.out_proj", attention.out)


def check_sinusoids(reader: StrictReader, key: str, dim: int) -> None:
    """Raise ``ValueError`` unless the table ``key`` holds the sinusoids (positions, dim) of ``intermoe.nn.layers``."""
    table = reader.take(key, (reader.peek(key, 2)[0], dim))
    if not torch.allclose(table, sinusoid(torch.arange(len(table)), dim), atol=1e-4):
        raise ValueError(f"state_dict: {key!r} is not the sinusoidal table that the model is defined with")
