"""Every other system's network at its published size: equal to a plain transcription of its equations, and as fast.

A transcription takes one person after the other, as the papers write them, under the names of the published file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intermoe import official
from intermoe.nn.init import SkipRandomInit
from intermoe.systems.in2in.network import In2IN
from intermoe.systems.intergen.official import PUBLISHED as INTERGEN
from intermoe.systems.intermask.official import PUBLISHED as INTERMASK
from intermoe.systems.timotion.official import PUBLISHED as TIMOTION

TOLERANCE = 1e-5
ROUNDS, FEWEST_ROUNDS = 20, 5

Error = Callable[[Any, Any], float]
State = dict[str, Tensor]


def sinusoids(positions: int, dim: int) -> Tensor:
    angles = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def named(**parts: nn.Module) -> nn.Module:
    """Something that holds ``parts``, as published files nest their keys."""
    holder = nn.Module()
    for name, part in parts.items():
        holder.add_module(name, part)
    return holder


def embedding_of_time(dim: int) -> nn.Module:
    return named(time_embed=nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)))


# InterGen, TIMotion, in2IN


class PlainAdaLN(nn.Module):
    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 2 * dim))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb_layers(emb)[:, None].chunk(2, dim=-1)
        return F.layer_norm(h, (self.dim,), eps=1e-6) * (1 + scale) + shift


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int, cond_dim: int, *, partner: bool = False) -> None:
        super().__init__()
        self.norm = PlainAdaLN(dim, cond_dim)
        if partner:
            self.xf_norm = PlainAdaLN(dim, cond_dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True, add_zero_attn=True)

    def forward(self, h: Tensor, emb: Tensor, padding: Tensor | None, partner: Tensor | None = None) -> Tensor:
        queries = self.norm(h, emb)
        keys = queries if partner is None else self.xf_norm(partner, emb)
        return self.attention(queries, keys, keys, key_padding_mask=padding, need_weights=False)[0]


class PlainFeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = PlainAdaLN(dim, cond_dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(self.norm(h, emb))))


class PlainInterGenLayer(nn.Module):
    """in2IN's too, whose ``emb`` (B, 3, D) is of the interaction, of a and of b."""

    def __init__(self, config: dict[str, Any], index: int) -> None:
        super().__init__()
        dim, heads = config["latent_dim"], config["num_heads"]
        self.sa_block = PlainAttention(dim, heads, dim)
        self.ca_block = PlainAttention(dim, heads, dim, partner=True)
        self.ffn = PlainFeedForward(dim, config["ff_size"], dim)

    def forward(self, a: Tensor, b: Tensor, emb: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        both, of_a, of_b = emb.unbind(dim=1) if emb.dim() == 3 else [emb] * 3
        out = []
        for own, partner, mine in ((a, b, of_a), (b, a, of_b)):
            h = own + self.sa_block(own, mine, padding)
            h = h + self.ca_block(h, both, padding, partner)
            out.append(h + self.ffn(h, mine))
        return out[0], out[1]


class PlainConvBlock(nn.Module):
    def __init__(self, dim: int, *, first: bool) -> None:
        super().__init__()
        if not first:
            self.norm1 = PlainAdaLN(dim, dim)
        self.norm2 = PlainAdaLN(dim, dim)
        self.conv1, self.conv2 = nn.Conv1d(dim, dim, 3, padding=1), nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm1(x, emb)) if hasattr(self, "norm1") else x
        h = F.silu(self.norm2(self.conv1(h.transpose(1, 2)).transpose(1, 2), emb))
        return x + self.conv2(h.transpose(1, 2)).transpose(1, 2)


class PlainTIMotionLayer(nn.Module):
    def __init__(self, config: dict[str, Any], index: int) -> None:
        super().__init__()
        dim = config["latent_dim"]
        self.sa_block = PlainAttention(2 * dim, config["num_heads"], dim)
        self.ffn = PlainFeedForward(2 * dim, config["ff_size"], dim)
        self.linear = nn.Linear(2 * dim, dim)
        self.conv = nn.Module()
        self.conv.blocks = nn.ModuleList([PlainConvBlock(dim, first=index == 0)])

    def forward(self, a: Tensor, b: Tensor, emb: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        both = None if padding is None else padding.repeat_interleave(2, dim=1)
        rows = interleaved(a, b)
        rows = rows + self.sa_block(rows, emb, both)
        joined = []
        for merged, own in zip(separated(rows), (a, b), strict=True):
            own = own if padding is None else own.masked_fill(padding[..., None], 0)
            joined.append(self.linear(torch.cat([merged, self.conv.blocks[0](own, emb)], dim=-1)))
        rows = interleaved(*joined)
        return separated(rows + self.ffn(rows, emb))


def interleaved(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.cat([a, b], dim=-1), torch.cat([b, a], dim=-1)], dim=2).flatten(1, 2)


def separated(rows: Tensor) -> tuple[Tensor, Tensor]:
    (a1, b1), (b2, a2) = (rows[:, start::2].chunk(2, dim=-1) for start in (0, 1))
    return a1 + a2, b1 + b2


class PlainNetwork(nn.Module):
    def __init__(self, layer: Callable[[dict[str, Any], int], nn.Module], config: dict[str, Any]) -> None:
        super().__init__()
        dim = config["latent_dim"]
        self.motion_embed, self.text_embed = nn.Linear(config["input_feats"], dim), nn.Linear(768, dim)
        self.embed_timestep = embedding_of_time(dim)
        self.blocks = nn.ModuleList(layer(config, index) for index in range(config["num_layers"]))
        self.out = named(linear=nn.Linear(dim, config["input_feats"]))
        self.register_buffer("table", sinusoids(1000, dim), persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        emb = self.embed_timestep.time_embed(self.table[timesteps])
        emb = (emb[:, None] if text.dim() == 3 else emb) + self.text_embed(text)
        a, b = (self.motion_embed(x[:, person]) + self.table[: x.shape[2]] for person in range(2))
        for block in self.blocks:
            a, b = block(a, b, emb, None if mask is None else ~mask)
        return torch.stack([self.out.linear(a), self.out.linear(b)], dim=1)


# MDM, ComMDM, InterMask


class PlainMultihead(nn.Module):
    """softmax(q k^T / sqrt(d)) v of every head, by torch's fused kernel: the fastest that plain PyTorch has."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight, self.in_proj_bias = (
            nn.Parameter(torch.empty(3 * dim, dim)),
            nn.Parameter(torch.empty(3 * dim)),
        )
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, context: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, queries.shape[-1]
        if context is None:
            q, k, v = F.linear(queries, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(queries, weight[:dim], bias[:dim])
            k, v = F.linear(context, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mask = None if padding is None else ~padding[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class PlainEncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = PlainMultihead(512, 4)
        self.linear1, self.linear2 = nn.Linear(512, 1024), nn.Linear(1024, 512)
        self.norm1, self.norm2 = nn.LayerNorm(512), nn.LayerNorm(512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


def encoder_layers(count: int) -> nn.Module:
    return named(layers=nn.ModuleList(PlainEncoderLayer() for _ in range(count)))


def through(encoder: nn.Module, x: Tensor) -> Tensor:
    for layer in encoder.layers:  # type: ignore[union-attr]
        x = layer(x)
    return x


class PlainMDM(nn.Module):
    """Padded frames are seen like others, as the published network sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.input_process = named(poseEmbedding=nn.Linear(263, 512))
        self.embed_timestep, self.embed_text = embedding_of_time(512), nn.Linear(512, 512)
        self.output_process = named(poseFinal=nn.Linear(512, 263))
        self.seqTransEncoder = encoder_layers(8)
        self.register_buffer("table", sinusoids(1000, 512), persistent=False)

    def embed(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        token = self.embed_timestep.time_embed(self.table[timesteps]) + self.embed_text(text)
        return torch.cat([token[:, None], self.input_process.poseEmbedding(x)], dim=1) + self.table[: x.shape[1] + 1]

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        hidden = through(self.seqTransEncoder, self.embed(x[:, 0], timesteps, text))
        return self.output_process.poseFinal(hidden[:, 1:])[:, None]


class PlainComMDM(PlainMDM):
    """The published split: the block speaks behind the last of the backbone's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.seqTransEncoder_start = self.seqTransEncoder
        del self.seqTransEncoder
        self.multi_person = named(
            canon_agg=nn.Linear(8, 512), canon_out=nn.Linear(512, 4), aggregation=nn.Linear(1024, 512),
            model=encoder_layers(2),
        )  # fmt: skip

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        block = self.multi_person
        entries = [x[:, person, :1, :4] for person in range(2)]
        states = [
            through(self.seqTransEncoder_start, self.embed(x[:, person, 1:], timesteps, text)) for person in range(2)
        ]
        out = []
        for own, other in ((0, 1), (1, 0)):
            token = block.canon_agg(torch.cat([entries[own], entries[other]], dim=-1))
            said = torch.cat([token, block.aggregation(torch.cat([states[own], states[other]], dim=-1))], dim=1)
            said = through(block.model, said)
            frames = self.output_process.poseFinal((states[own] + said[:, 1:])[:, 1:])
            out.append(torch.cat([F.pad(block.canon_out(said[:, :1]), (0, 259)), frames], dim=1))
        return torch.stack(out, dim=1)


class PlainModulation(nn.Module):
    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.model = nn.Sequential(nn.SiLU(), nn.Linear(384, chunks * 384))

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.model(condition)[:, None].chunk(self.chunks, dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, (384,), eps=1e-6) * (1 + scale) + shift


def two_linears() -> nn.Module:
    return named(model=nn.Sequential(nn.Linear(384, 1024), nn.GELU(), nn.Identity(), nn.Linear(1024, 384)))


class PlainMaskLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adaLN_mod_combined, self.adaLN_mod_split = PlainModulation(6), PlainModulation(14)
        self.self_attn = named(attention=PlainMultihead(384, 6))
        spatial, temporal = PlainMultihead(384, 6), PlainMultihead(384, 6)
        self.spa_temp_attn = named(spatial_attention=spatial, temporal_attention=temporal)
        self.local_inter_attn = named(interaction_attention=PlainMultihead(384, 6))
        self.ffn_combined, self.ffn_split = two_linears(), two_linears()

    def forward(self, x: Tensor, condition: Tensor, padding: Tensor) -> Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.adaLN_mod_combined(condition)
        both = torch.cat([padding, padding.new_zeros(len(padding), 1), padding], dim=1)
        x = x + gate * self.self_attn.attention(modulated(x, shift, scale), None, both)
        x = x + ff_gate * self.ffn_combined.model(modulated(x, ff_shift, ff_scale))
        tokens = padding.shape[1]
        a, separator, b = x.split([tokens, 1, tokens], dim=1)
        chunks = self.adaLN_mod_split(condition)
        return torch.cat([self.apart(a, b, chunks, padding), separator, self.apart(b, a, chunks, padding)], dim=1)

    def apart(self, own: Tensor, partner: Tensor, chunks: tuple[Tensor, ...], padding: Tensor) -> Tensor:
        step, part, cross, seen, fed = chunks[:3], chunks[3:6], (*chunks[6:8], chunks[10]), chunks[8:10], chunks[11:]
        grid = modulated(own, *step[:2]).unflatten(1, (5, -1)).transpose(1, 2)
        spatial = self.spa_temp_attn.spatial_attention(grid.flatten(0, 1))
        within_step = own + step[2] * spatial.view(grid.shape).transpose(1, 2).flatten(1, 2)
        rows = modulated(own, *part[:2]).unflatten(1, (5, -1)).flatten(0, 1)
        temporal = self.spa_temp_attn.temporal_attention(rows, None, padding.unflatten(1, (5, -1)).flatten(0, 1))
        x = within_step + own + part[2] * temporal.view(own.shape)
        query, context = modulated(x, *cross[:2]), modulated(partner, *seen)
        x = x + cross[2] * self.local_inter_attn.interaction_attention(query, context, padding)
        return x + fed[2] * self.ffn_split.model(modulated(x, *fed[:2]))


class PlainInterMask(nn.Module):
    """1,024 codes, then the ids of a masked one, of padding and of the separator."""

    def __init__(self) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(1027, 512)
        self.input_process, self.cond_emb = named(poseEmbedding=nn.Linear(512, 384)), nn.Linear(768, 384)
        self.Transformer = named(blocks=nn.ModuleList(PlainMaskLayer() for _ in range(6)))
        self.output_process = named(
            dense=nn.Linear(384, 384), adaLN_mod=PlainModulation(2), poseFinal=nn.Linear(384, 1024)
        )
        self.register_buffer("table", sinusoids(100, 192), persistent=False)

    def forward(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        batch, _, parts, steps = codes.shape
        padding, condition = ~mask.repeat(1, parts), self.cond_emb(text)
        a, b = codes.flatten(2).masked_fill(padding[:, None], 1025).unbind(dim=1)
        x = self.input_process.poseEmbedding(self.token_emb(torch.cat([a, a.new_full((batch, 1), 1026), b], dim=1)))
        rows, columns = self.table[:parts, None].expand(-1, steps, -1), self.table[None, :steps].expand(parts, -1, -1)
        places = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        x = x + torch.cat([places, torch.zeros(1, 384), places])
        for block in self.Transformer.blocks:
            x = block(x, condition, padding)
        x = torch.cat([x[:, : parts * steps], x[:, parts * steps + 1 :]], dim=1)
        x = modulated(F.gelu(self.output_process.dense(x)), *self.output_process.adaLN_mod(condition))
        return self.output_process.poseFinal(x).view(batch, 2, parts, steps, -1)


def in2in_of(state: State) -> nn.Module:
    """in2IN has InterGen's weights, and no published names."""
    intergen: Any = official.load_network("intergen", state, INTERGEN)
    with torch.device("meta"):
        network = In2IN(intergen.config).eval()
    network.load_state_dict(intergen.state_dict(), assign=True)
    return network


def intermask_of(state: State) -> nn.Module:
    frequencies = {"position_enc.positional_encoding.inv_freq": 10000.0 ** (-torch.arange(0, 192, 2) / 192)}
    return official.load_network("intermask", {**state, **frequencies}, INTERMASK)


FULL_SIZE: dict[str, tuple[Callable[[], nn.Module], Callable[[State], nn.Module], tuple[str, str], float]] = {
    "intergen": (
        lambda: PlainNetwork(PlainInterGenLayer, INTERGEN),
        lambda state: official.load_network("intergen", state, INTERGEN),
        ("intergen", "keys"),
        171.35,
    ),
    "timotion": (
        lambda: PlainNetwork(PlainTIMotionLayer, TIMOTION),
        lambda state: official.load_network("timotion", state, TIMOTION),
        ("timotion", "keys"),
        66.27,
    ),
    "in2in": (lambda: PlainNetwork(PlainInterGenLayer, INTERGEN), in2in_of, ("intergen", "keys"), 171.35),
    "mdm": (
        PlainMDM,
        lambda state: official.load_network("mdm", state, {}),
        ("commdm", "keys_mdm_backbone"),
        17.88,
    ),
    "commdm": (PlainComMDM, lambda state: official.load_network("commdm", state, {}), ("commdm", "keys"), 22.62),
    "intermask": (PlainInterMask, intermask_of, ("intermask", "keys_transformer"), 43.2),
}
"""The transcription, ours of its weights, the published list of keys, and the published millions of weights."""


def drawn(shapes: dict[str, tuple[int, ...]]) -> State:
    """Random weights; every one is a piece of the same noise, because drawing this many takes seconds."""
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    noise = 0.04 * torch.randn(largest + len(shapes), generator=torch.Generator().manual_seed(0))
    pieces = {
        key: noise[start : start + torch.Size(shape).numel()].view(shape)
        for start, (key, shape) in enumerate(shapes.items())
    }
    scales = {key: 1 + piece for key, piece in pieces.items() if key.endswith("weight") and piece.dim() == 1}
    return {**pieces, **scales}


def call_of(system: str) -> tuple[Tensor, ...]:
    """A motion of 64 frames of which the last four are padding."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask, timesteps = torch.arange(64)[None] < 60, torch.tensor([480])
    if system == "intermask":
        return torch.randint(1025, (1, 2, 5, 16), generator=generator), normal(1, 768), mask[:, ::4]
    if system in ("mdm", "commdm"):
        return normal(1, 1 if system == "mdm" else 2, 64, 263), timesteps, normal(1, 512), mask
    return normal(1, 2, 64, 262), timesteps, normal(1, *([3] if system == "in2in" else []), 768), mask


def published_shapes(listed: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Of a network's weights: without the prefix that some have, text encoder and tables."""
    prefix = "decoder.net." if any(key.startswith("decoder.net.") for key in listed) else ""
    others = ("clipTrans.", "clipln.")
    return {
        key.removeprefix(prefix): tuple(shape)
        for key, shape in listed.items()
        if key.startswith(prefix) and not key.startswith(others) and not key.endswith((".pe", "inv_freq"))
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take processor time, the more of it the busier the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("system", FULL_SIZE)
@torch.no_grad()
def test_full_size_equals_a_plain_transcription_and_is_as_fast(
    system: str, golden: Callable[[str], Any], relative_error: Error
) -> None:
    build, load, (file, keys), millions = FULL_SIZE[system]
    with SkipRandomInit():
        plain = build().eval()
    shapes = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    assert published_shapes(golden(f"peers/keys_{file}.json")[keys]) == shapes
    state = drawn(shapes)
    plain.load_state_dict(state)  # into memory of its own, as ours: the pieces of the noise overlap
    network = load(state)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)

    arguments = call_of(system)
    seen = arguments[-1][:, None, None] if system == "intermask" else arguments[-1][:, None]
    found, expected = network(*arguments), plain(*arguments)
    seen = seen.expand(found.shape[:-1])
    assert relative_error(found[seen], expected[seen]) < TOLERANCE

    seconds: dict[nn.Module, list[float]] = {network: [], plain: []}
    for done in range(1, ROUNDS + 1):  # the best of each, of processor time: what else the machine does is not counted
        for which, taken in seconds.items():
            start = time.process_time()
            which(*arguments)
            taken.append(time.process_time() - start)
        if done >= FEWEST_ROUNDS and min(seconds[network]) <= min(seconds[plain]):
            break
    print(f"{system}: {min(seconds[network]) / min(seconds[plain]):.2f}")  # docs/systems.md
    assert min(seconds[network]) <= min(seconds[plain])
