"""The published names of autoencoder and text encoder, written out once more, and what stands under them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intermoe import official
from intermoe.motion.representation import ABSENT, REPRESENTATIONS

State = dict[str, Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.5


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def drawn_linear(name: str, inner: int, outer: int) -> State:
    return {f"{name}.weight": draw(outer, inner), f"{name}.bias": draw(outer)}


DIM, BLOCKS = 3, 2


def autoencoder_state(dataset: str) -> State:
    representation = REPRESENTATIONS[dataset]
    skeleton, state = representation.skeleton, {}
    graphs = [torch.rand_like(skeleton.adjacency(level)) for level in range(2)]  # the file's, not the skeleton's
    pools = [skeleton.pool(level) * (0.5 + torch.rand_like(skeleton.pool(level))) for level in range(2)]
    for joint, columns in enumerate(representation.features):
        state |= drawn_linear(f"motion_enc.layers.{joint}.0", len(columns), DIM)
        state |= drawn_linear(f"motion_enc.layers.{joint}.2", DIM, DIM)
        state |= drawn_linear(f"motion_dec.layers.{joint}.0", DIM, DIM)
        state |= drawn_linear(f"motion_dec.layers.{joint}.2", DIM, len(columns))
    for side, first in (("enc", 0), ("dec", 1)):
        for layer in range(2):
            level = layer if side == "enc" else 1 - layer
            for index in range(first, first + BLOCKS):
                for position in (2, 5):
                    name = f"conv_{side}.layers.{layer}.{index}.layers.{position}"
                    state |= drawn_linear(f"{name}.graph_conv.linear1", DIM, DIM)
                    state |= drawn_linear(f"{name}.graph_conv.linear2", DIM, DIM)
                    state |= {f"{name}.temp_conv.weight": draw(DIM, DIM, 3, 3), f"{name}.temp_conv.bias": draw(DIM)}
                    state[f"{name}.adj_matrix"] = graphs[level]
            if side == "enc":
                state[f"conv_enc.layers.{layer}.{BLOCKS}.skeleton_pool"] = pools[level]
            else:
                state[f"conv_dec.layers.{layer}.0.skeleton_unpool"] = (pools[level] > 0).float().T
    return state | {"dist.weight": draw(7, DIM, 2 * DIM), "dist.bias": draw(7, 2 * DIM)}


def block(state: State, name: str, x: Tensor) -> Tensor:
    """x + conv(silu(conv(silu(x)))) of (T, J, C); a convolution looks two frames back and one joint to either side."""
    hidden = x
    for position in (2, 5):
        hidden, at = F.silu(hidden), f"{name}.layers.{position}"
        graph = state[f"{at}.adj_matrix"]
        near = graph / graph.sum(dim=1, keepdim=True) @ linear(state, f"{at}.graph_conv.linear2", hidden)
        image = F.pad(hidden.permute(2, 0, 1)[None], (1, 1, 2, 0))
        local = F.conv2d(image, state[f"{at}.temp_conv.weight"], state[f"{at}.temp_conv.bias"])[0].permute(1, 2, 0)
        hidden = linear(state, f"{at}.graph_conv.linear1", hidden) + near + local
    return x + hidden


@torch.no_grad()
@pytest.mark.parametrize(("dataset", "name"), [("interhuman", "interhuman"), ("t2m", "humanml3d")])
def test_the_autoencoder(dataset: str, name: str) -> None:
    torch.manual_seed(0)
    state, representation = autoencoder_state(name), REPRESENTATIONS[name]
    vae = official.load_vae(state, {"latent_dim": DIM, "dataset_name": dataset})
    motion, latents = torch.randn(8, *representation.frame_shape), torch.randn(2, 7, DIM)

    joints = []
    for joint, columns in enumerate(representation.features):
        read = torch.stack([torch.zeros(8) if c == ABSENT else motion[:, c] for c in columns], dim=1)
        at = f"motion_enc.layers.{joint}"
        joints.append(linear(state, f"{at}.2", F.silu(linear(state, f"{at}.0", read))))
    x = torch.stack(joints, dim=1)
    for layer in range(2):
        for index in range(BLOCKS):
            x = block(state, f"conv_enc.layers.{layer}.{index}", x)
        x = state[f"conv_enc.layers.{layer}.{BLOCKS}.skeleton_pool"] @ (x[0::2] + x[1::2]) / 2
    heads = torch.stack([x[:, j] @ state["dist.weight"][j] + state["dist.bias"][j] for j in range(7)], dim=1)
    posterior = vae.encode(motion[None])
    torch.testing.assert_close(posterior.mean[0], heads[..., :DIM], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(posterior.log_var[0], heads[..., DIM:], rtol=1e-3, atol=1e-3)

    x = (state["conv_dec.layers.0.0.skeleton_unpool"] @ latents).repeat_interleave(2, dim=0)
    for index in (1, 2):
        x = block(state, f"conv_dec.layers.0.{index}", x)
    x = state["conv_dec.layers.1.0.skeleton_unpool"] @ x
    x = torch.stack([torch.lerp(x[pair], x[pair + 1], share) for pair in (0, 2) for share in (0.0, 0.25, 0.75, 1.0)])
    for index in (1, 2):
        x = block(state, f"conv_dec.layers.1.{index}", x)
    expected = torch.empty(8, *representation.frame_shape)
    for joint, columns in enumerate(representation.features):
        at = f"motion_dec.layers.{joint}"
        written = linear(state, f"{at}.2", F.silu(linear(state, f"{at}.0", x[:, joint])))
        for position, column in enumerate(columns):
            if column != ABSENT:
                expected[:, column] = written[:, position]
    torch.testing.assert_close(vae.decode(latents[None])[0], expected, rtol=1e-3, atol=1e-3)


WIDTH, HIDDEN, WORDS, TOKENS = 8, 12, 9, 6


def layer_state(prefix: str, names: tuple[str, str, str, str, str], hidden: int) -> State:
    attention, norm1, norm2, first, second = (f"{prefix}.{name}" for name in names)
    state = drawn_linear(first, WIDTH, hidden) | drawn_linear(second, hidden, WIDTH)
    state |= {f"{attention}.in_proj_weight": draw(3 * WIDTH, WIDTH), f"{attention}.in_proj_bias": draw(3 * WIDTH)}
    state |= drawn_linear(f"{attention}.out_proj", WIDTH, WIDTH)
    for norm in (norm1, norm2):
        state |= {f"{norm}.weight": 1 + draw(WIDTH), f"{norm}.bias": draw(WIDTH)}
    return state


@torch.no_grad()
def test_the_text_encoder() -> None:
    """CLIP's tower before its norm, quick GELU and causal; then two layers behind their norms, which see everything."""
    torch.manual_seed(0)
    state = {"token_embedding.weight": draw(WORDS, WIDTH), "positional_embedding": draw(TOKENS, WIDTH)}
    for index in range(2):
        names = ("attn", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
        state |= layer_state(f"clip_transformer.resblocks.{index}", names, 4 * WIDTH)
        names = ("self_attn", "norm1", "norm2", "linear1", "linear2")
        state |= layer_state(f"clipTransEncoder.layers.{index}", names, HIDDEN)
    for norm in ("ln_final", "clip_ln"):
        state |= {f"{norm}.weight": 1 + draw(WIDTH), f"{norm}.bias": draw(WIDTH)}
    encoder = official.load_text_encoder(state, {"clip_layers": 2, "clip_heads": 4, "adapter_heads": 2})
    assert not encoder.training
    tokens = torch.tensor([[7, 1, 2, 8, 0, 0], [7, 3, 5, 4, 2, 8]])  # the largest id ends a text
    at_end = (3, 5)

    def normed(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

    def attended(name: str, heads: int, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (x @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
        mixed = []
        for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            scores = a @ b.T / math.sqrt(WIDTH // heads)
            if causal:
                scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -math.inf)
            mixed.append(scores.softmax(dim=-1) @ c)
        return linear(state, f"{name}.out_proj", torch.cat(mixed, dim=-1))

    expected = []
    for row, end in zip(tokens, at_end, strict=True):
        x = state["token_embedding.weight"][row] + state["positional_embedding"]
        for index in range(2):
            at = f"clip_transformer.resblocks.{index}"
            x = x + attended(f"{at}.attn", 4, normed(f"{at}.ln_1", x), causal=True)
            inner = linear(state, f"{at}.mlp.c_fc", normed(f"{at}.ln_2", x))
            x = x + linear(state, f"{at}.mlp.c_proj", inner * torch.sigmoid(1.702 * inner))
        x = normed("ln_final", x)
        for index in range(2):
            at = f"clipTransEncoder.layers.{index}"
            x = normed(f"{at}.norm1", x + attended(f"{at}.self_attn", 2, x, causal=False))
            x = normed(f"{at}.norm2", x + linear(state, f"{at}.linear2", F.gelu(linear(state, f"{at}.linear1", x))))
        expected.append(normed("clip_ln", x)[end])
    torch.testing.assert_close(encoder.encode_tokens(tokens), torch.stack(expected), rtol=1e-4, atol=1e-4)
    plain: nn.Module = official.load_text_encoder(state, {"clip_layers": 2, "clip_heads": 4})
    assert plain.config.num_heads == 8  # type: ignore[union-attr]
    assert plain.config.num_layers == 2  # type: ignore[union-attr]


def test_a_text_encoder_is_as_published_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Exception):
        pass

    def config(**values: Any) -> None:
        raise Told(values)

    monkeypatch.setattr("intermoe.systems.intermoe.official.TextConfig", config)
    state = {
        "token_embedding.weight": draw(WORDS, WIDTH), "positional_embedding": draw(TOKENS, WIDTH),
        "clipTransEncoder.layers.0.linear1.weight": draw(HIDDEN, WIDTH),
    }  # fmt: skip
    with pytest.raises(Told) as told:
        official.load_text_encoder(state, {})
    assert told.value.args[0] == {
        "kind": "clip", "output_dim": WIDTH, "width": WIDTH, "num_layers": 2, "num_heads": 8,
        "feedforward_dim": HIDDEN, "max_tokens": TOKENS, "vocab_size": WORDS, "clip_layers": 12, "clip_heads": 12,
    }  # fmt: skip
