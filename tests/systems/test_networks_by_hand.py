"""The equations of the other systems' networks, written out once more: what their published arrays would notice."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intermoe.nn.attention import Attention
from intermoe.nn.layers import AdaLN
from intermoe.nn.multihead import EncoderLayer, MultiheadAttention
from intermoe.systems.in2in.network import In2INLayer
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intergen.network import AdaLNFeedForward, InterGen, InterGenLayer
from intermoe.systems.intermask.config import InterMaskConfig, TokenizerConfig
from intermoe.systems.intermask.network import InterMask, Modulation, grid_encoding
from intermoe.systems.intermask.tokenizer import ResidualBlock
from intermoe.systems.mdm.config import ComMDMConfig, MDMConfig
from intermoe.systems.mdm.network import ComMDM
from intermoe.systems.timotion.config import TIMotionConfig
from intermoe.systems.timotion.network import TIMotionLayer

MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def drawn(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def standard(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, unbiased=False, keepdim=True) + eps).sqrt()


def adaln(norm: AdaLN, x: Tensor, condition: Tensor) -> Tensor:
    """(T, D) under one condition (C,)."""
    scale, shift = linear(norm.modulation, silu(condition)).chunk(2)
    return standard(x, 1e-6) * (1 + scale) + shift


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of every head, side by side; (T, D) and (K, D)."""
    parts = zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
    return torch.cat([torch.softmax(a @ b.T / math.sqrt(a.shape[-1]), -1) @ c for a, b, c in parts], dim=-1)


def attention(layer: Attention, queries: Tensor, context: Tensor) -> Tensor:
    """With one more key and value of zeros."""
    keys, values = (F.pad(part, (0, 0, 0, 1)) for part in linear(layer.key_value, context).chunk(2, -1))
    return linear(layer.out, attended(linear(layer.query, queries), keys, values, layer.num_heads))


def multihead(layer: MultiheadAttention, queries: Tensor, context: Tensor) -> Tensor:
    (wq, wk, wv), (bq, bk, bv) = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    mixed = attended(queries @ wq.T + bq, context @ wk.T + bk, context @ wv.T + bv, layer.num_heads)
    return linear(layer.out_proj, mixed)  # type: ignore[arg-type]


def encoder_layer(layer: EncoderLayer, x: Tensor) -> Tensor:
    x = standard(x + multihead(layer.self_attn, x, x), 1e-5) * layer.norm1.weight + layer.norm1.bias
    x = x + linear(layer.linear2, gelu(linear(layer.linear1, x)))
    return standard(x, 1e-5) * layer.norm2.weight + layer.norm2.bias


def sinusoids(positions: int, dim: int) -> Tensor:
    rows = [[position / 10000 ** (2 * k / dim) for k in range(dim // 2)] for position in range(positions)]
    return torch.tensor([[f(angle) for angle in row for f in (math.sin, math.cos)] for row in rows])


@torch.no_grad()
def test_attention_to_others_has_the_weights_of_both() -> None:
    layer, queries, context = drawn(MultiheadAttention(8, 2)), normal(4, 8), normal(6, 8, seed=2)
    torch.testing.assert_close(layer(queries[None], context[None])[0], multihead(layer, queries, context))


@torch.no_grad()
def test_commdm() -> None:
    """Each person's states before the split, what [own | partner] says of them, and on; entries go their own way."""
    backbone = MDMConfig(7, text_dim=5, dim=8, num_layers=2, num_heads=2, feedforward_dim=12)
    network = drawn(ComMDM(ComMDMConfig(backbone, split=1, num_layers=1, num_heads=4, feedforward_dim=6)))
    single, block = network.backbone, network.communication
    x, timesteps, text = normal(2, 2, 6, 7), torch.tensor([3, 700]), normal(2, 5, seed=2)
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    found = network(x, timesteps, text, mask)
    for row, length in enumerate((6, 4)):
        embedding = single.embed_timestep
        time = linear(embedding.out, silu(linear(embedding.inner, sinusoids(701, 8)[timesteps[row]])))
        states, entries = [], [x[row, person, 0, :4] for person in range(2)]
        for person in range(2):
            frames = linear(single.embed_motion, x[row, person, 1:length])
            tokens = torch.cat([(time + linear(single.embed_text, text[row]))[None], frames])
            states.append(encoder_layer(single.layers[0], tokens + sinusoids(length, 8)))
        for own, partner in ((0, 1), (1, 0)):
            first = linear(block.embed_canonical, torch.cat([entries[own], entries[partner]]))[None]
            others = linear(block.embed, torch.cat([states[own], states[partner]], dim=-1))
            said = encoder_layer(block.layers[0], torch.cat([first, others]))
            torch.testing.assert_close(found[row, own, 0], F.pad(linear(block.out_canonical, said[0]), (0, 3)))
            after = encoder_layer(single.layers[1], states[own] + said[1:])
            torch.testing.assert_close(found[row, own, 1:length], linear(single.out, after[1:]), rtol=1e-4, atol=1e-4)


def feed_forward(layer: AdaLNFeedForward, x: Tensor, condition: Tensor) -> Tensor:
    first, _, _, last = layer.network
    return linear(last, gelu(linear(first, adaln(layer.norm, x, condition))))


@torch.no_grad()
def test_a_layer_of_intergen_and_of_in2in() -> None:
    """Partners are as they entered; in2IN's persons have conditions of their own but for what they see of the other."""
    config = InterGenConfig(6, 5, dim=8, num_layers=1, num_heads=2, feedforward_dim=12)
    hidden, conditions = normal(2, 2, 5, 8), normal(2, 3, 8, seed=2)
    for layer, given in (
        (drawn(InterGenLayer(config)), conditions[:, 0]),
        (drawn(In2INLayer(config)), conditions),
    ):
        found = layer(hidden, given, MASK)
        for row, length in enumerate((5, 3)):
            for own, partner in ((0, 1), (1, 0)):
                shared = conditions[row, 0]
                mine = shared if given.dim() == 2 else conditions[row, 1 + own]
                x, other = hidden[row, own, :length], hidden[row, partner, :length]
                normed = adaln(layer.self_attention.norm, x, mine)
                x = x + attention(layer.self_attention.attention, normed, normed)
                cross = layer.cross_attention
                seen = adaln(cross.context_norm, other, shared)
                x = x + attention(cross.attention, adaln(cross.norm, x, shared), seen)
                x = x + feed_forward(layer.feed_forward, x, mine)
                torch.testing.assert_close(found[row, own, :length], x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_frame_around_the_layers() -> None:
    network = drawn(InterGen(InterGenConfig(6, 5, dim=8, num_layers=1, num_heads=2, feedforward_dim=12)))
    x, timesteps, text = normal(1, 2, 5, 6), torch.tensor([9]), normal(1, 5, seed=2)
    embedding = network.embed_timestep
    time = linear(embedding.out, silu(linear(embedding.inner, sinusoids(10, 8)[9])))
    hidden = linear(network.embed_motion, x) + sinusoids(5, 8)
    hidden = network.layers[0](hidden, (time + linear(network.embed_text, text[0]))[None])
    torch.testing.assert_close(network(x, timesteps, text), linear(network.out, hidden), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_layer_of_timotion() -> None:
    """Rows [a | b] and [b | a]; convolutions run over the persons as they entered, then both are joined."""
    config = TIMotionConfig(6, 5, dim=8, num_layers=2, num_heads=2, feedforward_dim=12, conv_blocks=2, dilation_rate=2)
    layer, hidden, condition = drawn(TIMotionLayer(config, 1)), normal(1, 2, 5, 8), normal(8, seed=2)
    a, b = hidden[0]
    rows = torch.cat([torch.cat([a, b], dim=-1), torch.cat([b, a], dim=-1)])
    normed = adaln(layer.norm, rows, condition)
    rows = rows + attention(layer.attention, normed, normed)
    merged = [rows[:5, :8] + rows[5:, 8:], rows[5:, :8] + rows[:5, 8:]]
    for person, entered in enumerate((a, b)):
        local = entered
        for number, block in enumerate(layer.local_patterns.blocks):
            inner, reach = silu(adaln(block.norm1, local, condition)), 2**number
            padded = F.pad(inner, (0, 0, reach, reach))
            taps = [padded[tap * reach : tap * reach + 5] @ block.conv1.weight[:, :, tap].T for tap in range(3)]
            inner = silu(adaln(block.norm2, torch.stack(taps).sum(0) + block.conv1.bias, condition))
            local = local + inner @ block.conv2.weight[:, :, 0].T + block.conv2.bias
        merged[person] = linear(layer.join, torch.cat([merged[person], local], dim=-1))
    a, b = merged
    rows = torch.cat([torch.cat([a, b], dim=-1), torch.cat([b, a], dim=-1)])
    rows = rows + feed_forward(layer.feed_forward, rows, condition)
    expected = torch.stack([rows[:5, :8] + rows[5:, 8:], rows[5:, :8] + rows[:5, 8:]])
    torch.testing.assert_close(layer(hidden, condition[None])[0], expected, rtol=1e-4, atol=1e-4)


def modulations(module: Modulation, condition: Tensor) -> list[Tensor]:
    return list(linear(module.linear, silu(condition)).chunk(module.chunks))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return standard(x, 1e-6) * (1 + scale) + shift


@torch.no_grad()
def test_intermask() -> None:
    """One layer of both persons with a separator between them, then each apart; and the head."""
    network = drawn(InterMask(InterMaskConfig(9, 6, 5, 8, 1, 2, 12, num_parts=3)))
    layer, generator = network.layers[0], torch.Generator().manual_seed(3)
    codes, text = torch.randint(9, (1, 2, 3, 4), generator=generator), normal(1, 5)
    condition = linear(network.embed_text, text[0])
    places = grid_encoding(3, 4, 8).flatten(0, 1)
    persons = [linear(network.embed, network.embed_codes.weight[codes[0, p].flatten()]) + places for p in range(2)]
    separator = linear(network.embed, network.embed_codes.weight[9 + 2])[None]
    x = torch.cat([persons[0], separator, persons[1]])
    shift, scale, gate, ff_shift, ff_scale, ff_gate = modulations(layer.together, condition)
    normed = modulate(x, shift, scale)
    x = x + gate * multihead(layer.attention, normed, normed)
    inner = gelu(linear(layer.feed_forward.inner, modulate(x, ff_shift, ff_scale)))
    x = x + ff_gate * linear(layer.feed_forward.out, inner)

    step, part, rest = (modulations(layer.apart, condition)[a:b] for a, b in ((0, 3), (3, 6), (6, 14)))
    done = []
    for own, partner in ((x[:12], x[13:]), (x[13:], x[:12])):
        steps = modulate(own, *step[:2]).unflatten(0, (3, 4))
        within_step = torch.stack([multihead(layer.spatial_attention, steps[:, t], steps[:, t]) for t in range(4)], 1)
        parts = modulate(own, *part[:2]).unflatten(0, (3, 4))
        within_part = torch.stack([multihead(layer.temporal_attention, parts[p], parts[p]) for p in range(3)])
        hidden = 2 * own + step[2] * within_step.flatten(0, 1) + part[2] * within_part.flatten(0, 1)
        query, context = modulate(hidden, rest[0], rest[1]), modulate(partner, rest[2], rest[3])
        hidden = hidden + rest[4] * multihead(layer.cross_attention, query, context)
        inner = gelu(linear(layer.apart_feed_forward.inner, modulate(hidden, rest[5], rest[6])))
        done.append(hidden + rest[7] * linear(layer.apart_feed_forward.out, inner))
    head = modulations(network.head_modulation, condition)
    expected = [linear(network.out, modulate(gelu(linear(network.head, each)), *head)) for each in done]
    found = network(codes, text)[0].flatten(1, 2)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_residual_block_of_the_tokenizer() -> None:
    block, x = drawn(ResidualBlock(TokenizerConfig(width=4).width, 3, 0.0)), normal(1, 4, 7, 8)
    inner = F.conv2d(x.clamp(min=0), block.conv1.weight, block.conv1.bias, padding=3, dilation=3).clamp(min=0)
    torch.testing.assert_close(block(x), x + F.conv2d(inner, block.conv2.weight, block.conv2.bias))
