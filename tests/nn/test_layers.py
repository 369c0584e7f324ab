"""Small layers: what they compute in half types, and what dropout is."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from intermoe.nn.attention import Attention, CrossAttention, SelfAttention
from intermoe.nn.layers import TimestepEmbedding, ZeroLinear, sinusoid
from intermoe.nn.multihead import EncoderLayer, MultiheadAttention


def test_sinusoid_by_hand() -> None:
    """sin and cos of t / 10000^(2i / D), neighbours in the row."""
    angles = [[t / 10000 ** (i / 3) for i in range(3)] for t in (7, 999)]
    wanted = [[f(angle) for angle in row for f in (math.sin, math.cos)] for row in angles]
    torch.testing.assert_close(sinusoid(torch.tensor([7, 999]), 6), torch.tensor(wanted), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_timestep_is_embedded_before_it_is_rounded(dtype: torch.dtype) -> None:
    """bfloat16 has 1000 and 996, but nothing between."""
    embedding = TimestepEmbedding(8).to(dtype)
    for layer in (embedding.inner, embedding.out):
        nn.init.eye_(layer.weight), nn.init.zeros_(layer.bias)
    timesteps = torch.arange(990, 1000)
    with torch.no_grad():
        found = embedding(timesteps)
    assert torch.equal(found, nn.functional.silu(sinusoid(timesteps, 8).to(dtype)))
    assert len(found.unique(dim=0)) == len(timesteps)


X, OTHER, CONDITION = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 8)
WITH_DROPOUT: dict[str, tuple[Callable[[float], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "attention": (lambda p: Attention(8, 2, p), lambda layer: layer(X[0], OTHER[0])),
    "self-attention": (lambda p: SelfAttention(8, 2, p), lambda layer: layer(X, CONDITION)),
    "cross-attention": (lambda p: CrossAttention(8, 2, p), lambda layer: layer(X, OTHER, CONDITION)),
    "torch's weights": (lambda p: MultiheadAttention(8, 2, p), lambda layer: layer(X[0], OTHER[0])),
    "encoder layer": (lambda p: EncoderLayer(8, 2, 12, p), lambda layer: layer(X[0])),
}


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_is_of_training_alone(name: str) -> None:
    """In evaluation a layer with it computes what one without does, each time."""
    build, call = WITH_DROPOUT[name]
    layers = {p: build(p) for p in (0.0, 0.9)}
    layers[0.9].load_state_dict(layers[0.0].state_dict())
    with torch.no_grad():
        plain = call(layers[0.0].train())
        assert torch.equal(call(layers[0.0].eval()), plain)
        assert torch.equal(call(layers[0.9].eval()), plain)
        assert not torch.allclose(call(layers[0.9].train()), plain)


def test_partners_of_padded_samples_are_those_of_their_sample() -> None:
    """Samples of other lengths, three persons: each alone, cut to its own frames, computes the same."""
    torch.manual_seed(0)
    layers = CrossAttention(8, 2), SelfAttention(8, 2)
    for layer in layers:
        nn.init.normal_(layer.norm.modulation.weight)
    lengths = (2, 5)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        cross, own = layers[0](X, OTHER, CONDITION, mask), layers[1](X, CONDITION, mask)
        for i, length in enumerate(lengths):
            x, other, condition = X[i : i + 1, :, :length], OTHER[i : i + 1, :, :length], CONDITION[i : i + 1]
            torch.testing.assert_close(cross[i, :, :length], layers[0](x, other, condition)[0])
            torch.testing.assert_close(own[i, :, :length], layers[1](x, condition)[0])


@pytest.mark.parametrize("later", [False, True], ids=["at once", "on the meta device first"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_starts_at_zero_changes_nothing_at_first(later: bool, bias: bool) -> None:
    """And what is drawn after it does not depend on it: it draws as a Linear does."""
    torch.manual_seed(3)
    nn.Linear(5, 4, bias=bias)
    after = torch.rand(2)
    torch.manual_seed(3)
    if later:
        with torch.device("meta"):
            layer = ZeroLinear(5, 4, bias=bias)
        layer = layer.to_empty(device="cpu")
        for parameter in layer.parameters():
            nn.init.constant_(parameter, torch.nan)  # what new memory may hold
        layer.reset_parameters()
    else:
        layer = ZeroLinear(5, 4, bias=bias)
    assert torch.equal(torch.rand(2), after)
    assert torch.equal(layer(torch.randn(3, 5)), torch.zeros(3, 4))
    assert not any(parameter.any() for parameter in layer.parameters())
