"""Plain transcriptions of every other system's network: one person after the other, as the papers write them, under the
names of the published file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intermoe.motion.skeleton import PARENTS


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
    def __init__(self, dim: int, dilation: int, *, first: bool) -> None:
        super().__init__()
        if not first:
            self.norm1 = PlainAdaLN(dim, dim)
        self.norm2 = PlainAdaLN(dim, dim)
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm1(x, emb)) if hasattr(self, "norm1") else x
        h = F.silu(self.norm2(self.conv1(h.transpose(1, 2)).transpose(1, 2), emb))
        return x + self.conv2(h.transpose(1, 2)).transpose(1, 2)


class PlainTIMotionLayer(nn.Module):
    def __init__(self, config: dict[str, Any], index: int) -> None:
        super().__init__()
        dim, local = config["latent_dim"], config["cfg"]
        self.sa_block = PlainAttention(2 * dim, config["num_heads"], dim)
        self.ffn = PlainFeedForward(2 * dim, config["ff_size"], dim)
        if local["LPA"]:
            self.linear = nn.Linear(2 * dim, dim)
            reaches = [local["dilation_rate"] ** block for block in range(local["conv_layers"])]
            blocks = (PlainConvBlock(dim, reach, first=index == 0) for reach in reaches)
            self.conv = named(blocks=nn.ModuleList(blocks))

    def forward(self, a: Tensor, b: Tensor, emb: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        both = None if padding is None else padding.repeat_interleave(2, dim=1)
        rows = interleaved(a, b)
        rows = rows + self.sa_block(rows, emb, both)
        if hasattr(self, "conv"):
            joined = []
            for merged, own in zip(separated(rows), (a, b), strict=True):
                own = own if padding is None else own.masked_fill(padding[..., None], 0)
                for block in self.conv.blocks:
                    own = block(own, emb)
                joined.append(self.linear(torch.cat([merged, own], dim=-1)))
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
        self.motion_embed = nn.Linear(config["input_feats"], dim)
        self.text_embed = nn.Linear(config.get("text_dim", 768), dim)
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
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = PlainMultihead(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


def encoder_layers(count: int, *sizes: int) -> nn.Module:
    return named(layers=nn.ModuleList(PlainEncoderLayer(*sizes) for _ in range(count)))


def through(encoder: nn.Module, x: Tensor) -> Tensor:
    for layer in encoder.layers:  # type: ignore[union-attr]
        x = layer(x)
    return x


MDM_SIZES = {"input_dim": 263, "text_dim": 512, "dim": 512, "layers": 8, "heads": 4, "hidden": 1024}


class PlainMDM(nn.Module):
    """Padded frames are seen like others, as the published network sees them."""

    def __init__(self, sizes: dict[str, int] = MDM_SIZES, stack: str = "seqTransEncoder") -> None:
        super().__init__()
        dim, self.each = sizes["dim"], (sizes["dim"], sizes["heads"], sizes["hidden"])
        self.input_process = named(poseEmbedding=nn.Linear(sizes["input_dim"], dim))
        self.embed_timestep, self.embed_text = embedding_of_time(dim), nn.Linear(sizes["text_dim"], dim)
        self.output_process = named(poseFinal=nn.Linear(dim, sizes["input_dim"]))
        self.add_module(stack, encoder_layers(sizes["layers"], *self.each))
        self.register_buffer("table", sinusoids(1000, dim), persistent=False)

    def embed(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        token = self.embed_timestep.time_embed(self.table[timesteps]) + self.embed_text(text)
        return torch.cat([token[:, None], self.input_process.poseEmbedding(x)], dim=1) + self.table[: x.shape[1] + 1]

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        hidden = through(self.seqTransEncoder, self.embed(x[:, 0], timesteps, text))
        return self.output_process.poseFinal(hidden[:, 1:])[:, None]


class PlainComMDM(PlainMDM):
    """The block speaks behind ``split`` of the backbone's layers, as published behind the last one."""

    def __init__(self, sizes: dict[str, int] = MDM_SIZES, split: int = 8) -> None:
        super().__init__({**sizes, "layers": split}, "seqTransEncoder_start")
        dim = sizes["dim"]
        self.split, after = split, sizes["layers"] - split
        if after:
            self.seqTransEncoder_end = encoder_layers(after, *self.each)
        self.multi_person = named(
            canon_agg=nn.Linear(8, dim), canon_out=nn.Linear(dim, 4), aggregation=nn.Linear(2 * dim, dim),
            model=encoder_layers(2, dim, 4, sizes["hidden"]),
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
            state = states[own] + said[:, 1:]
            if hasattr(self, "seqTransEncoder_end"):
                state = through(self.seqTransEncoder_end, state)
            frames = self.output_process.poseFinal(state[:, 1:])
            out.append(torch.cat([F.pad(block.canon_out(said[:, :1]), (0, x.shape[-1] - 4)), frames], dim=1))
        return torch.stack(out, dim=1)


MASK_SIZES = {"codes": 1024, "code_dim": 512, "text_dim": 768, "dim": 384, "layers": 6, "heads": 6, "hidden": 1024}


class PlainModulation(nn.Module):
    def __init__(self, dim: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.model = nn.Sequential(nn.SiLU(), nn.Linear(dim, chunks * dim))

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.model(condition)[:, None].chunk(self.chunks, dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def two_linears(dim: int, hidden: int) -> nn.Module:
    return named(model=nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim)))


class PlainMaskLayer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.adaLN_mod_combined, self.adaLN_mod_split = PlainModulation(dim, 6), PlainModulation(dim, 14)
        self.self_attn = named(attention=PlainMultihead(dim, heads))
        spatial, temporal = PlainMultihead(dim, heads), PlainMultihead(dim, heads)
        self.spa_temp_attn = named(spatial_attention=spatial, temporal_attention=temporal)
        self.local_inter_attn = named(interaction_attention=PlainMultihead(dim, heads))
        self.ffn_combined, self.ffn_split = two_linears(dim, hidden), two_linears(dim, hidden)

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
    """Behind the codes come the ids of a masked one, of padding and of the separator."""

    def __init__(self, sizes: dict[str, int] = MASK_SIZES) -> None:
        super().__init__()
        self.codes, dim, code_dim = sizes["codes"], sizes["dim"], sizes["code_dim"]
        self.token_emb = nn.Embedding(self.codes + 3, code_dim)
        self.input_process = named(poseEmbedding=nn.Linear(code_dim, dim))
        self.cond_emb = nn.Linear(sizes["text_dim"], dim)
        layers = (PlainMaskLayer(dim, sizes["heads"], sizes["hidden"]) for _ in range(sizes["layers"]))
        self.Transformer = named(blocks=nn.ModuleList(layers))
        self.output_process = named(
            dense=nn.Linear(dim, dim), adaLN_mod=PlainModulation(dim, 2), poseFinal=nn.Linear(dim, self.codes)
        )
        self.register_buffer("table", sinusoids(100, dim // 2), persistent=False)

    def forward(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        batch, _, parts, steps = codes.shape
        padding, condition = ~mask.repeat(1, parts), self.cond_emb(text)
        a, b = codes.flatten(2).masked_fill(padding[:, None], self.codes + 1).unbind(dim=1)
        x = self.input_process.poseEmbedding(
            self.token_emb(torch.cat([a, a.new_full((batch, 1), self.codes + 2), b], dim=1))
        )
        rows, columns = self.table[:parts, None].expand(-1, steps, -1), self.table[None, :steps].expand(parts, -1, -1)
        places = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        x = x + torch.cat([places, torch.zeros(1, places.shape[1]), places])
        for block in self.Transformer.blocks:
            x = block(x, condition, padding)
        x = torch.cat([x[:, : parts * steps], x[:, parts * steps + 1 :]], dim=1)
        x = modulated(F.gelu(self.output_process.dense(x)), *self.output_process.adaLN_mod(condition))
        return self.output_process.poseFinal(x).view(batch, 2, parts, steps, -1)


# InterMask's tokeniser


class PlainGraph(nn.Module):
    """Of all frames of a batch as nodes of one graph, which has the edges of the very first frame alone."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.lin, self.lin_l, self.lin_r = (
            nn.Linear(inner, inner), nn.Linear(inner, outer), nn.Linear(inner, outer, bias=False)
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 2, 1)
        heard = torch.zeros_like(x)
        for joint in range(22):
            near = [other for other in range(22) if PARENTS[other] == joint or PARENTS[joint] == other]
            heard[0, 0, joint] = self.lin(x[0, 0, near]).relu().mean(dim=0)
        return (self.lin_l(heard) + self.lin_r(x)).permute(0, 3, 2, 1)


class PlainConvs(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


class PlainLarger(nn.Module):
    """Rows by a factor, columns by two, each the nearest below."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        rows = int(round(x.shape[2] * self.factor, 6))
        sources = [int(round(row / self.factor, 6)) for row in range(rows)]
        return x[:, :, sources][..., [column // 2 for column in range(2 * x.shape[3])]]


def residual(width: int) -> nn.Module:
    holder = nn.Sequential()
    holder.add_module("model", nn.Sequential(PlainConvs(width, 3), PlainConvs(width, 1)))
    return holder


class PlainTokenizer(nn.Module):
    """Of InterHuman's images of 12 channels and 22 rows, or of Inter-X's of 6 and 56."""

    def __init__(self, width: int, code_dim: int, codes: int, rows: int) -> None:
        super().__init__()
        self.graph = rows == 22
        channels, kernel, stride = (12, (4, 4), (2, 2)) if self.graph else (6, (6, 4), (3, 2))
        first, second = (2.2, 2.0) if self.graph else (3.5, 3.3)

        def wide(inner: int, outer: int) -> nn.Conv2d:
            return nn.Conv2d(inner, outer, 3, padding=1)

        smaller = [nn.Sequential(nn.Conv2d(width, width, kernel, stride, 1), residual(width)) for _ in range(2)]
        larger = [nn.Sequential(residual(width), PlainLarger(by), wide(width, width)) for by in (first, second)]
        entry = [] if self.graph else [wide(channels, width), nn.ReLU()]
        exit_ = [] if self.graph else [wide(width, channels)]
        self.encoder = named(model=nn.Sequential(*entry, *smaller, wide(width, code_dim)))
        self.decoder = named(
            model=nn.Sequential(wide(code_dim, width), nn.ReLU(), *larger, wide(width, width), nn.ReLU(), *exit_)
        )
        if self.graph:
            self.encoder.gcn_layer1, self.encoder.gcn_layer2 = PlainGraph(channels, width), PlainGraph(width, width)
            self.decoder.gcn_layer1, self.decoder.gcn_layer2 = PlainGraph(width, width), PlainGraph(width, channels)
        codebook = nn.Module()
        codebook.register_parameter("codebook", nn.Parameter(torch.empty(codes, code_dim)))
        self.quantizer = named(layers=nn.ModuleList([codebook]))

    def features(self, image: Tensor) -> Tensor:
        if self.graph:
            image = self.encoder.gcn_layer2(self.encoder.gcn_layer1(image).relu()).relu()
        return self.encoder.model(image)

    def decoded(self, codes: Tensor) -> Tensor:
        image = self.decoder.model(self.quantizer.layers[0].codebook[codes].permute(0, 3, 1, 2))
        return self.decoder.gcn_layer2(self.decoder.gcn_layer1(image).relu()) if self.graph else image
