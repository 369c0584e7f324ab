"""The authors' names and what stands under them, written out once more: read without any reference arrays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intermoe import official
from intermoe.nn.layers import sinusoid

DIM, COND, WIDTH, EXPERTS, HEADS = 8, 6, 5, 3, 2


def draw(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.5


def block_state(prefix: str = "", cond: int = COND) -> dict[str, Tensor]:
    state = {
        "gate_weight": draw(EXPERTS, DIM),
        "text_gate_weight": draw(EXPERTS, cond),
        "aux_bias": -torch.rand(EXPERTS, 1).clamp(0.1, 0.9),
        "norm.emb_layers.1.weight": draw(2 * DIM, cond),
        "norm.emb_layers.1.bias": draw(2 * DIM),
        "expert_threshold": torch.zeros(EXPERTS),
        "ema_decay": torch.zeros(1),
    }
    for expert in range(EXPERTS):
        state[f"experts.{expert}.gate_proj.weight"] = draw(WIDTH, DIM)
        state[f"experts.{expert}.up_proj.weight"] = draw(WIDTH, DIM)
        state[f"experts.{expert}.down_proj.weight"] = draw(DIM, WIDTH)
    return {prefix + key: value for key, value in state.items()}


def adaln(state: dict[str, Tensor], prefix: str, hidden: Tensor, condition: Tensor) -> Tensor:
    """LN(h) (1 + scale) + shift, of one Linear of silu(c) whose first half is the scale."""
    modulation = F.silu(condition) @ state[f"{prefix}.emb_layers.1.weight"].T + state[f"{prefix}.emb_layers.1.bias"]
    scale, shift = modulation.chunk(2, dim=-1)
    return F.layer_norm(hidden, (DIM,), eps=1e-6) * (1 + scale) + shift


def moe(state: dict[str, Tensor], prefix: str, hidden: Tensor, condition: Tensor) -> Tensor:
    """Of one sample, (T, D) and (C,), token by token and expert by expert."""
    logits = hidden @ state[f"{prefix}gate_weight"].T + condition @ state[f"{prefix}text_gate_weight"].T
    gates, tokens = logits.softmax(dim=-1), adaln(state, f"{prefix}norm", hidden, condition)
    rows = []
    for token, logit, gate in zip(tokens, logits, gates, strict=True):
        row = torch.zeros(DIM)
        for expert in range(EXPERTS):
            if torch.sigmoid(logit[expert]) + state[f"{prefix}aux_bias"][expert, 0] > 0:
                gated, linear, down = (
                    state[f"{prefix}experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down")
                )
                row = row + gate[expert] * (down @ (F.silu(gated @ token) * (linear @ token)))
        rows.append(row)
    return torch.stack(rows)


def test_the_block_is_its_published_formula() -> None:
    torch.manual_seed(0)
    state, hidden, condition = block_state(), torch.randn(2, 6, DIM), torch.randn(2, COND)
    block = official.load_moe_block(state, num_experts=EXPERTS, capacity=2.5)
    assert (block.capacity, block.fusion, block.training) == (2.5, "sum", False)
    expected = torch.stack([moe(state, "", h, c) for h, c in zip(hidden, condition, strict=True)])
    assert (expected.abs().sum(dim=-1) > 0).any()
    torch.testing.assert_close(block(hidden, condition), expected, rtol=1e-4, atol=1e-5)


def attend(state: dict[str, Tensor], prefix: str, queries: Tensor, context: Tensor) -> Tensor:
    attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True, add_zero_attn=True)
    attention.load_state_dict(
        {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
    )
    return attention(queries, context, context, need_weights=False)[0]


def test_a_layer_of_the_denoiser_is_its_published_formula() -> None:
    """Self-attention, cross-attention to the partner as they came in, one pool of both persons for the experts."""
    torch.manual_seed(1)
    state = {
        "motion_embed.weight": draw(DIM, 4), "motion_embed.bias": draw(DIM), "text_embed.weight": draw(DIM, COND),
        "text_embed.bias": draw(DIM), "out.linear.weight": draw(4, DIM), "out.linear.bias": draw(4),
        "sequence_pos_encoder.pe": sinusoid(torch.arange(20), DIM),
        "embed_timestep.sequence_pos_encoder.pe": sinusoid(torch.arange(20), DIM),
    }  # fmt: skip
    for number in (0, 2):
        state[f"embed_timestep.time_embed.{number}.weight"] = draw(DIM, DIM)
        state[f"embed_timestep.time_embed.{number}.bias"] = draw(DIM)
    for name, norms in (("sa_block", ("norm",)), ("ca_block", ("norm", "xf_norm"))):
        state[f"blocks.0.{name}.attention.in_proj_weight"] = draw(3 * DIM, DIM)
        state[f"blocks.0.{name}.attention.in_proj_bias"] = draw(3 * DIM)
        state[f"blocks.0.{name}.attention.out_proj.weight"] = draw(DIM, DIM)
        state[f"blocks.0.{name}.attention.out_proj.bias"] = draw(DIM)
        for norm in norms:
            state[f"blocks.0.{name}.{norm}.emb_layers.1.weight"] = draw(2 * DIM, DIM)
            state[f"blocks.0.{name}.{norm}.emb_layers.1.bias"] = draw(2 * DIM)
    state |= block_state("blocks.0.ffn.", cond=DIM)
    config = {
        "input_feats": 4, "latent_dim": DIM, "ff_size": WIDTH, "num_layers": 1, "num_heads": HEADS,
        "MoE_config": {"num_experts": EXPERTS, "capacity": 2},
    }  # fmt: skip
    denoiser = official.load_denoiser(state, config)
    assert [(block.capacity, block.fusion) for block in denoiser.moe_blocks()] == [(2.0, "sum")]
    assert (denoiser.training, denoiser.config.dropout) == (False, 0.1)
    assert official.load_denoiser(state, {**config, "dropout": 0.3}).config.dropout == 0.3
    x, timesteps, text = torch.randn(1, 2, 5, 4), torch.tensor([7]), torch.randn(1, COND)

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    time = linear(
        "embed_timestep.time_embed.2", F.silu(linear("embed_timestep.time_embed.0", sinusoid(timesteps, DIM)))
    )
    condition = time + linear("text_embed", text)
    came_in = [linear("motion_embed", x[:, person]) + sinusoid(torch.arange(5), DIM) for person in (0, 1)]
    persons = []
    for person in (0, 1):
        hidden, partner = came_in[person], came_in[1 - person]
        normed = adaln(state, "blocks.0.sa_block.norm", hidden, condition)
        hidden = hidden + attend(state, "blocks.0.sa_block.attention", normed, normed)
        normed = adaln(state, "blocks.0.ca_block.norm", hidden, condition)
        context = adaln(state, "blocks.0.ca_block.xf_norm", partner, condition)
        persons.append(hidden + attend(state, "blocks.0.ca_block.attention", normed, context))
    pool = torch.cat(persons, dim=1)[0]
    pool = pool + moe(state, "blocks.0.ffn.", pool, condition[0])
    expected = linear("out.linear", pool).view(1, 2, 5, 4)
    torch.testing.assert_close(denoiser(x, timesteps, text), expected, rtol=1e-4, atol=1e-4)
