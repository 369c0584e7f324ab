"""The parts of the published model: autoencoder, Mixture-of-Experts block, denoiser, text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intermoe.checkpoints import StrictReader, require_setting, setting
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.skeleton import FOOT_JOINTS
from intermoe.nn.init import SkipRandomInit
from intermoe.nn.layers import AdaLN
from intermoe.nn.moe import InterMoEBlock
from intermoe.systems.intermoe.config import DenoiserConfig, VAEConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.vae import CausalSkeletalVAE
from intermoe.systems.published import (
    SINUSOID_KEYS,
    check_sinusoids,
    read_adaln,
    read_attention,
    read_parameters,
)
from intermoe.text.clip import ClipTextEncoder
from intermoe.text.protocol import TextConfig

_REPRESENTATIONS = {"interhuman": "interhuman", "interx": "interx", "t2m": "humanml3d"}


def load_vae(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> CausalSkeletalVAE:
    """The autoencoder, in eval mode, from the published one's state dict.

    ``config`` needs ``latent_dim`` and ``dataset_name`` (interhuman, interx or t2m) and may have ``n_extra_layers``,
    ``kernel_size``, ``dropout`` and more; values that this package does not implement raise ``ValueError``. Graphs and
    pooling groups come from the state dict: the published Inter-X graph is not the skeleton's, but its weights were
    trained on it.
    """
    dataset = setting(config, "dataset_name")
    if dataset not in _REPRESENTATIONS:
        raise ValueError(f"config: dataset_name: expected one of {tuple(_REPRESENTATIONS)}, got {dataset!r}")
    contacts = [] if REPRESENTATIONS[_REPRESENTATIONS[dataset]].contacts is None else list(FOOT_JOINTS)
    for key, supported in (("activation", "silu"), ("norm", "none"), ("n_layers", 2), ("contact_joints", contacts)):
        require_setting(config, key, supported, supported)
    vae_config = VAEConfig(
        representation=_REPRESENTATIONS[dataset],
        latent_dim=setting(config, "latent_dim"),
        num_blocks=config.get("n_extra_layers", 1) + 1,
        kernel_size=config.get("kernel_size", 3),
        dropout=config.get("dropout", 0.1),
    )
    with SkipRandomInit():
        vae = CausalSkeletalVAE(vae_config).eval()
    reader = StrictReader(state_dict)
    _read_joint_layers(reader, vae)
    _read_graphs(reader, vae)
    for level in range(2):
        for index in range(vae_config.num_blocks):
            _read_block(reader, f"conv_enc.layers.{level}.{index}", vae.get_submodule(f"encoder.{level}.{index}"))
            _read_block(reader, f"conv_dec.layers.{level}.{index + 1}", vae.get_submodule(f"decoder.{level}.{index}"))
    reader.copy(vae.head.weight, "dist.weight")
    reader.copy(vae.head.bias, "dist.bias")
    reader.finish()
    return vae


def _read_joint_layers(reader: StrictReader, vae: CausalSkeletalVAE) -> None:
    encoder, decoder = vae.joint_encoder, vae.joint_decoder
    start = 0
    for joint, columns in enumerate(vae.representation.features):
        rows = slice(start, start + len(columns))
        start += len(columns)
        reader.copy(encoder.weight[rows].t(), f"motion_enc.layers.{joint}.0.weight")
        reader.copy(encoder.bias[joint], f"motion_enc.layers.{joint}.0.bias")
        reader.copy(encoder.out.weight[joint].t(), f"motion_enc.layers.{joint}.2.weight")
        reader.copy(encoder.out.bias[joint], f"motion_enc.layers.{joint}.2.bias")
        reader.copy(decoder.inner.weight[joint].t(), f"motion_dec.layers.{joint}.0.weight")
        reader.copy(decoder.inner.bias[joint], f"motion_dec.layers.{joint}.0.bias")
        reader.copy(decoder.weight[rows], f"motion_dec.layers.{joint}.2.weight")
        reader.copy(decoder.bias[rows], f"motion_dec.layers.{joint}.2.bias")


def _read_graphs(reader: StrictReader, vae: CausalSkeletalVAE) -> None:
    """One graph per resolution; the state dict repeats it for every convolution, and the copies must agree."""
    blocks = vae.config.num_blocks
    for level, (adjacency, pool) in enumerate(((vae.adjacency_0, vae.pool_0), (vae.adjacency_1, vae.pool_1))):
        keys = [
            f"conv_{side}.layers.{layer}.{index + offset}.layers.{position}.adj_matrix"
            for side, layer, offset in (("enc", level, 0), ("dec", 1 - level, 1))
            for index in range(blocks)
            for position in (2, 5)
        ]
        reader.copy(adjacency, keys[0])
        reader.copy(pool, f"conv_enc.layers.{level}.{blocks}.skeleton_pool")
        for key in keys[1:]:
            if not torch.equal(reader.take(key, tuple(adjacency.shape)).to(adjacency), adjacency):
                raise ValueError(f"state_dict: {key!r}: expected the numbers of {keys[0]!r}, got others")
        key = f"conv_dec.layers.{1 - level}.0.skeleton_unpool"
        members = (pool > 0).to(pool.dtype).t()
        if not torch.equal(reader.take(key, tuple(members.shape)).to(members), members):
            raise ValueError(f"state_dict: {key!r}: expected the groups of the pooling of that level, got others")


def _read_block(reader: StrictReader, prefix: str, block: nn.Module) -> None:
    for position, conv in ((2, "conv1"), (5, "conv2")):
        for theirs, ours in (
            ("graph_conv.linear1", "own"),
            ("graph_conv.linear2", "neighbours"),
            ("temp_conv", "temporal"),
        ):
            for part in ("weight", "bias"):
                key = f"{prefix}.layers.{position}.{theirs}.{part}"
                reader.copy(block.get_parameter(f"{conv}.{ours}.{part}"), key)


def load_moe_block(state_dict: Mapping[str, Tensor], *, num_experts: int, capacity: float) -> InterMoEBlock:
    """The Mixture-of-Experts block, in eval mode, from the published one's state dict.

    Widths are read off the weights; the published block fuses by the plain sum. Its selection bias carries over; the
    published update floors the capacity to whole tokens and counts padding, this package's does neither.
    """
    reader = StrictReader(state_dict)
    dim = reader.peek("gate_weight", 2)[1]
    block = InterMoEBlock(
        dim=dim,
        num_experts=num_experts,
        expert_dim=reader.peek("experts.0.gate_proj.weight", 2)[0],
        cond_dim=reader.peek("text_gate_weight", 2)[1],
        capacity=capacity,
        fusion="sum",
    )
    _read_moe(reader, "", block)
    reader.finish()
    return block.eval()


def load_denoiser(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Denoiser:
    """The denoiser, in eval mode, from the published one's state dict.

    ``config`` needs ``input_feats``, ``latent_dim``, ``ff_size``, ``num_layers``, ``num_heads`` and ``MoE_config`` with
    ``num_experts`` and ``capacity``. Shared experts raise ``ValueError``: the published ones cannot run.
    """
    moe_config = setting(config, "MoE_config")
    require_setting(moe_config, "n_shared_experts", 0, 0)
    reader = StrictReader(state_dict)
    denoiser_config = DenoiserConfig(
        input_dim=setting(config, "input_feats"),
        text_dim=reader.peek("text_embed.weight", 2)[1],
        dim=setting(config, "latent_dim"),
        num_layers=setting(config, "num_layers"),
        num_heads=setting(config, "num_heads"),
        num_experts=setting(moe_config, "num_experts"),
        expert_dim=setting(config, "ff_size"),
        capacity=float(setting(moe_config, "capacity")),
        fusion="sum",
        dropout=config.get("dropout", 0.1),
    )
    with SkipRandomInit():
        denoiser = Denoiser(denoiser_config).eval()
    for key in SINUSOID_KEYS:
        check_sinusoids(reader, key, denoiser_config.dim)
    for name, module in (
        ("motion_embed", denoiser.embed_motion),
        ("text_embed", denoiser.embed_text),
        ("embed_timestep.time_embed.0", denoiser.embed_timestep.inner),
        ("embed_timestep.time_embed.2", denoiser.embed_timestep.out),
        ("out.linear", denoiser.out),
    ):
        read_parameters(reader, name, module)
    for index in range(denoiser_config.num_layers):
        _read_denoiser_layer(reader, f"blocks.{index}", denoiser.get_submodule(f"layers.{index}"))
    reader.finish()
    return denoiser


def _read_denoiser_layer(reader: StrictReader, prefix: str, layer: Any) -> None:
    read_attention(reader, f"{prefix}.sa_block.attention", layer.self_attention.attention)
    read_attention(reader, f"{prefix}.ca_block.attention", layer.cross_attention.attention)
    read_adaln(reader, f"{prefix}.sa_block.norm", layer.self_attention.norm)
    read_adaln(reader, f"{prefix}.ca_block.norm", layer.cross_attention.norm)
    read_adaln(reader, f"{prefix}.ca_block.xf_norm", layer.cross_attention.context_norm)
    _read_moe(reader, f"{prefix}.ffn.", layer.moe)


def _read_moe(reader: StrictReader, prefix: str, block: InterMoEBlock) -> None:
    reader.copy(block.motion_router, f"{prefix}gate_weight")
    if block.text_router is not None:
        reader.copy(block.text_router, f"{prefix}text_gate_weight")
    reader.copy(block.selection_bias[:, None], f"{prefix}aux_bias")
    if isinstance(block.norm, AdaLN):
        read_adaln(reader, f"{prefix}norm", block.norm)
    for expert in range(block.num_experts):
        gate, up = block.w_gate_up[expert].chunk(2)
        for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", block.w_down[expert])):
            reader.copy(weight, f"{prefix}experts.{expert}.{name}.weight")
    # left over from another selection rule in the published code; nothing reads them there either
    reader.take(f"{prefix}expert_threshold", (block.num_experts,))
    reader.take(f"{prefix}ema_decay", (1,))


def load_text_encoder(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> ClipTextEncoder:
    """The CLIP text tower and its adapter, in eval mode, from the published model's text part.

    Widths and the vocabulary are read off the weights. ``config`` may have ``clip_layers`` (12), ``clip_heads`` (12),
    ``adapter_layers`` (2) and ``adapter_heads`` (8), which the published code fixes. The tokenizer is loaded by name
    at the first prompt.
    """
    reader = StrictReader(state_dict)
    vocab_size, width = reader.peek("token_embedding.weight", 2)
    text_config = TextConfig(
        kind="clip",
        output_dim=width,
        width=width,
        num_layers=config.get("adapter_layers", 2),
        num_heads=config.get("adapter_heads", 8),
        feedforward_dim=reader.peek("clipTransEncoder.layers.0.linear1.weight", 2)[0],
        max_tokens=reader.peek("positional_embedding", 2)[0],
        vocab_size=vocab_size,
        clip_layers=config.get("clip_layers", 12),
        clip_heads=config.get("clip_heads", 12),
    )
    with SkipRandomInit():
        encoder = ClipTextEncoder(text_config)
    reader.copy(encoder.token_embedding.weight, "token_embedding.weight")
    reader.copy(encoder.position_embedding, "positional_embedding")
    names = {"norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj", "self_attn": "attn"}
    for name, parameter in encoder.tower.named_parameters():
        _, layer, part, rest = name.split(".", 3)
        reader.copy(parameter, f"clip_transformer.resblocks.{layer}.{names[part]}.{rest}")
    for name, parameter in encoder.adapter.named_parameters():
        reader.copy(parameter, f"clipTransEncoder.{name}")
    for norm, key in ((encoder.tower_norm, "ln_final"), (encoder.adapter_norm, "clip_ln")):
        reader.copy(norm.weight, f"{key}.weight")
        reader.copy(norm.bias, f"{key}.bias")
    reader.finish()
    return encoder.eval()
