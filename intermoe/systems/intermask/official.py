"""Reads InterMask's published networks: tokeniser (``vq_model``) and masked transformer (``t2m_transformer``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intermoe.checkpoints import StrictReader, load_tensors, require_setting, setting
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.nn.init import SkipRandomInit
from intermoe.systems.intermask.config import InterMaskConfig, InterMaskModelConfig, TokenizerConfig
from intermoe.systems.intermask.network import InterMask
from intermoe.systems.intermask.pipeline import InterMaskPipeline
from intermoe.systems.intermask.tokenizer import IMAGES, MotionTokenizer, SkeletonConv
from intermoe.systems.published import (
    INTERHUMAN_STATISTICS,
    Files,
    Layout,
    read_parameters,
    statistics_of,
    with_tower,
)
from intermoe.text.clip import TOKENIZER, ClipTextEncoder
from intermoe.text.protocol import TextConfig
from intermoe.text.tower import load_tower, tower_sizes

_JOINTS = {22: "interhuman", 56: "interx"}
_ADAPTER = ("clipTrans.", "clipln.")
PUBLISHED = {"num_heads": 6}
"""What cannot be read off the masked transformer's weights."""


def load_tokenizer(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> MotionTokenizer:
    """The tokeniser, in eval mode. Sizes are read off the weights, the data set off ``config``'s ``joints_num``.

    ``config`` has the keys of the published options, either flat or below ``args``. Its own key ``messages`` overrides
    the graph messages that the checkpoint was trained with (``TokenizerConfig``): by default they depend on a motion's
    place in the batch, as in the published code.
    """
    options = {**config, **config.get("args", {})}
    for key, supported in (("num_quantizers", 1), ("down_t", 2), ("stride_t", 2), ("activation", "relu")):
        require_setting(options, key, supported, supported)
    if options.get("norm") not in (None, "None"):
        raise ValueError(f"config: norm: expected None, got {options['norm']!r}")
    joints = setting(options, "joints_num")
    if joints not in _JOINTS:
        raise ValueError(f"config: joints_num: expected one of {tuple(_JOINTS)}, got {joints!r}")
    reader = StrictReader(state_dict)
    num_codes, code_dim = reader.peek("quantizer.layers.0.codebook", 2)
    tokenizer_config = TokenizerConfig(
        representation=_JOINTS[joints],
        num_codes=num_codes,
        code_dim=code_dim,
        width=reader.peek("decoder.model.0.weight", 4)[0],
        num_blocks=options.get("depth", 2),
        dilation_growth=options.get("dilation_growth_rate", 3),
        messages=options.get("messages", "first_frame_of_batch"),
        codebook_decay=options.get("mu", 0.99),
    )
    with SkipRandomInit():
        tokenizer = MotionTokenizer(tokenizer_config).eval()
    ends = IMAGES[tokenizer_config.representation].graph
    for part, names in (
        ("encoder", _encoder_names(ends, tokenizer_config.num_blocks)),
        ("decoder", _decoder_names(ends, tokenizer_config.num_blocks)),
    ):
        layers = [m for m in tokenizer.get_submodule(part).modules() if isinstance(m, (nn.Conv2d, SkeletonConv))]
        for layer, name in zip(layers, names, strict=True):
            _read(reader, f"{part}.{name}", layer)
    codebook = tokenizer.codebook
    reader.copy(codebook.vectors, "quantizer.layers.0.codebook")
    # how often each code was used is not in the file: one each keeps the vectors where they are
    codebook.sums.copy_(codebook.vectors)
    codebook.counts.fill_(1.0)
    codebook.initialised.fill_(True)
    reader.finish()
    return tokenizer


def load_network(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> InterMask:
    """The masked transformer, in eval mode. Sizes are read off the weights but for ``num_heads`` (6) of ``config``.

    The text adapter's weights (``clipTrans.*``, ``clipln.*``), which a published file also holds, belong to the text
    encoder: ``load_adapter`` reads them.
    """
    reader = StrictReader({key: value for key, value in state_dict.items() if not key.startswith(_ADAPTER)})
    dim, code_dim = reader.peek("input_process.poseEmbedding.weight", 2)
    network_config = InterMaskConfig(
        num_codes=reader.peek("output_process.poseFinal.weight", 2)[0],
        code_dim=code_dim,
        text_dim=reader.peek("cond_emb.weight", 2)[1],
        dim=dim,
        num_layers=len({key.split(".")[2] for key in reader.keys("Transformer.blocks.")}),
        num_heads=config.get("num_heads", 6),
        feedforward_dim=reader.peek("Transformer.blocks.0.ffn_combined.model.0.weight", 2)[0],
        dropout=config.get("dropout", 0.2),
    )
    with SkipRandomInit():
        network = InterMask(network_config).eval()
    _check_frequencies(reader, dim)
    reader.copy(network.embed_codes.weight, "token_emb.weight")
    for module, name in (
        (network.embed, "input_process.poseEmbedding"),
        (network.embed_text, "cond_emb"),
        (network.head, "output_process.dense"),
        (network.head_modulation.linear, "output_process.adaLN_mod.model.1"),
        (network.out, "output_process.poseFinal"),
    ):
        _read(reader, name, module)
    for index in range(network_config.num_layers):
        layer = network.get_submodule(f"layers.{index}")
        for ours, theirs in _LAYER_NAMES.items():
            _read(reader, f"Transformer.blocks.{index}.{theirs}", layer.get_submodule(ours))
    reader.finish()
    return network


_LAYER_NAMES = {
    "together.linear": "adaLN_mod_combined.model.1",
    "attention": "self_attn.attention",
    "feed_forward.inner": "ffn_combined.model.0",
    "feed_forward.out": "ffn_combined.model.3",
    "apart.linear": "adaLN_mod_split.model.1",
    "spatial_attention": "spa_temp_attn.spatial_attention",
    "temporal_attention": "spa_temp_attn.temporal_attention",
    "cross_attention": "local_inter_attn.interaction_attention",
    "apart_feed_forward.inner": "ffn_split.model.0",
    "apart_feed_forward.out": "ffn_split.model.3",
}


def _check_frequencies(reader: StrictReader, dim: int) -> None:
    """The file's table of frequencies must be the one that ``grid_encoding`` computes."""
    key = "position_enc.positional_encoding.inv_freq"
    width = 2 * math.ceil(dim / 4)
    expected = 10000.0 ** (-torch.arange(0, width, 2) / width)
    if not torch.allclose(reader.take(key, tuple(expected.shape)).to(expected), expected, rtol=1e-4):
        raise ValueError(f"state_dict: {key!r}: expected the frequencies that the model is defined with, got others")


def load_adapter(state_dict: Mapping[str, Tensor], encoder: ClipTextEncoder) -> None:
    """Fill the adapter of ``encoder`` with the text adapter of a published transformer's state dict.

    Raises:
        ValueError: a key is missing, unexpected or of another shape than the encoder's adapter has.
    """
    reader = StrictReader({key: value for key, value in state_dict.items() if key.startswith(_ADAPTER)})
    for prefix, module in (("clipTrans", encoder.adapter), ("clipln", encoder.adapter_norm)):
        read_parameters(reader, prefix, module)
    reader.finish()


def _encoder_names(graph: bool, num_blocks: int) -> list[str]:
    """Their names of our layers that have weights, in our order."""
    names, first = (["gcn_layer1", "gcn_layer2"], 0) if graph else (["model.0"], 2)
    for stage in (first, first + 1):
        names += [f"model.{stage}.0", *_block_names(f"model.{stage}.1", num_blocks)]
    return [*names, f"model.{first + 2}"]


def _decoder_names(graph: bool, num_blocks: int) -> list[str]:
    names = ["model.0"]
    for stage in (2, 3):
        names += [*_block_names(f"model.{stage}.0", num_blocks), f"model.{stage}.2"]
    return [*names, "model.4", *(["gcn_layer1", "gcn_layer2"] if graph else ["model.6"])]


def _block_names(prefix: str, num_blocks: int) -> list[str]:
    return [f"{prefix}.model.{block}.{conv}" for block in range(num_blocks) for conv in ("conv1", "conv2")]


def _read(reader: StrictReader, name: str, module: nn.Module) -> None:
    """Fill ``module``: a layer with weight and bias, an attention, or a graph layer of three."""
    if isinstance(module, SkeletonConv):
        reader.copy(module.own.weight, f"{name}.lin_r.weight")
        _read(reader, f"{name}.lin", module.message)
        _read(reader, f"{name}.lin_l", module.neighbours)
        return
    read_parameters(reader, name, module)


def _parts(*paths: Path) -> dict[str, dict[str, Tensor]]:
    """The two networks of one or two files, in which they have one of two names each."""
    names = {"vq_model": "tokenizer", "net": "tokenizer", "t2m_transformer": "network", "trans": "network"}
    found: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        for key, value in load_tensors(path).items():
            if key in names and isinstance(value, dict):
                found[names[key]] = value
    return found


def _read_model(path: Path, files: Files) -> InterMaskPipeline:
    """A model whose motions all hear of their neighbours in their first frame, as each would in a batch of its own."""
    parts = _parts(path, *([] if files.part is None else [files.part]))
    for part, key in (("tokenizer", "vq_model"), ("network", "t2m_transformer")):
        if part not in parts:
            raise ValueError(f"--part: expected the file of {key}, got none and none in {path}")
    if not any(key.startswith("encoder.gcn_layer1.") for key in parts["tokenizer"]):
        raise ValueError("vq_model: expected the tokeniser of InterHuman, got one without graph layers, as of Inter-X")
    tokenizer = load_tokenizer(parts["tokenizer"], {"joints_num": 22, "messages": "first_frame"})
    network = load_network(parts["network"], PUBLISHED)
    text = _text(parts["network"], files)
    representation = REPRESENTATIONS[tokenizer.config.representation]
    statistics = statistics_of(path, files, INTERHUMAN_STATISTICS, representation.frame_size)
    config = InterMaskModelConfig(
        name=f"intermask-{representation.name}",
        fps=representation.fps,
        min_frames=representation.min_frames,
        max_frames=representation.max_frames,
        network=network.config,
        tokenizer=tokenizer.config,
        text=text.config,
    )
    return InterMaskPipeline(config, network, tokenizer, text, statistics)


def _text(state: Mapping[str, Tensor], files: Files) -> ClipTextEncoder:
    """The tower that the file leaves out, and its adapter."""
    source, reader = files.text or TOKENIZER, StrictReader(state)
    sizes: dict[str, Any] = tower_sizes(source)
    config = TextConfig(
        kind="clip",
        output_dim=sizes["width"],
        num_layers=len({key.split(".")[2] for key in reader.keys("clipTrans.layers.")}) or 1,
        feedforward_dim=reader.peek("clipTrans.layers.0.linear1.weight", 2)[0],
        name_or_path=source,
        **sizes,
    )
    text = ClipTextEncoder(config).eval()
    load_tower(text)
    load_adapter(state, text)
    with_tower(text, files)
    return text


_MARKS = ("vq_model/", "t2m_transformer/", "net/quantizer.", "trans/token_emb.")
LAYOUT = Layout(
    "InterMask",
    lambda keys: any(key.startswith(_MARKS) for key in keys),
    ("stats", "tokenizer", "part", "text"),
    _read_model,
)
