"""Reads the published networks of MDM and ComMDM (``model<step>.pt``, without the CLIP tower)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from intermoe.checkpoints import StrictReader, read_checkpoint, require_setting
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.nn.init import SkipRandomInit
from intermoe.reading import read_json
from intermoe.systems.mdm.config import ComMDMConfig, ComMDMModelConfig, MDMConfig, MDMModelConfig
from intermoe.systems.mdm.network import MDM, ComMDM
from intermoe.systems.mdm.pipeline import ComMDMPipeline, MDMPipeline
from intermoe.systems.published import (
    SINUSOID_KEYS,
    Files,
    Layout,
    check_sinusoids,
    read_parameters,
    statistics_of,
    with_tower,
)
from intermoe.text.clip import ClipPooledEncoder
from intermoe.text.protocol import TextConfig
from intermoe.text.tower import load_tower, projection_dim, tower_sizes


def load_mdm(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> MDM:
    """MDM, in eval mode, attending to padding as published. Sizes are read off the weights but for ``num_heads`` (4).

    The tables of sinusoids may be absent.
    """
    reader = StrictReader(state_dict)
    with SkipRandomInit():
        network = MDM(_backbone_config(reader, config, ("seqTransEncoder",))).eval()
    _read_backbone(reader, network, [f"seqTransEncoder.layers.{i}" for i in range(network.config.num_layers)])
    reader.finish()
    return network


def load_commdm(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> ComMDM:
    """ComMDM, in eval mode, attending to padding as published. Sizes and the split are read off the weights.

    ``config`` has the keys of the published options, either flat or below ``args``; of the variants only the one that
    reads both persons and corrects the own states, with a canonical entry, is implemented.
    """
    options = {**config, **config.get("args", {})}
    for key, supported in (("multi_arch", "trans_enc"), ("multi_func", "in_both_out_cur"), ("predict_6dof", True)):
        require_setting(options, key, supported, supported)
    reader = StrictReader(state_dict)
    split = _count(reader, "seqTransEncoder_start.layers.")
    require_setting(options, "multi_backbone_split", split, split)
    block = "multi_person.model.layers"
    network_config = ComMDMConfig(
        backbone=_backbone_config(reader, options, ("seqTransEncoder_start", "seqTransEncoder_end")),
        split=split,
        num_layers=_count(reader, f"{block}."),
        feedforward_dim=reader.peek(f"{block}.0.linear1.weight", 2)[0],
    )
    with SkipRandomInit():
        network = ComMDM(network_config).eval()
    names = [f"seqTransEncoder_start.layers.{index}" for index in range(split)]
    names += [f"seqTransEncoder_end.layers.{index}" for index in range(network_config.backbone.num_layers - split)]
    _read_backbone(reader, network.backbone, names)
    communication = network.communication
    for module, name in (
        (communication.embed_canonical, "multi_person.canon_agg"),
        (communication.out_canonical, "multi_person.canon_out"),
        (communication.embed, "multi_person.aggregation"),
        *((layer, f"{block}.{index}") for index, layer in enumerate(communication.layers)),
    ):
        read_parameters(reader, name, module)
    reader.finish()
    return network


def _count(reader: StrictReader, prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in reader.keys(prefix)})


def _backbone_config(reader: StrictReader, config: Mapping[str, Any], stacks: tuple[str, ...]) -> MDMConfig:
    require_setting(config, "arch", "trans_enc", "trans_enc")
    dim, input_dim = reader.peek("input_process.poseEmbedding.weight", 2)
    first = next((name for name in stacks if reader.keys(f"{name}.layers.0.")), stacks[0])
    return MDMConfig(
        input_dim=input_dim,
        text_dim=reader.peek("embed_text.weight", 2)[1],
        dim=dim,
        num_layers=sum(_count(reader, f"{name}.layers.") for name in stacks),
        num_heads=config.get("num_heads", 4),
        feedforward_dim=reader.peek(f"{first}.layers.0.linear1.weight", 2)[0],
        mask_padding=False,
    )


def _read_backbone(reader: StrictReader, network: MDM, layer_names: list[str]) -> None:
    for key in SINUSOID_KEYS:
        if reader.keys(key):
            check_sinusoids(reader, key, network.config.dim, num_dims=3)
    for module, name in (
        (network.embed_motion, "input_process.poseEmbedding"),
        (network.embed_timestep.inner, "embed_timestep.time_embed.0"),
        (network.embed_timestep.out, "embed_timestep.time_embed.2"),
        (network.embed_text, "embed_text"),
        (network.out, "output_process.poseFinal"),
        *zip(network.layers, layer_names, strict=True),
    ):
        read_parameters(reader, name, module)


TEXT = "openai/clip-vit-base-patch32"
"""The CLIP model whose text vectors the published networks were trained on; a text has at most 20 of its tokens."""
_MAX_TOKENS = 22


def _text(files: Files) -> ClipPooledEncoder:
    source = files.text or TEXT
    sizes: dict[str, Any] = tower_sizes(source)
    sizes["max_tokens"] = min(sizes["max_tokens"], _MAX_TOKENS)
    config = TextConfig(kind="clip_pooled", name_or_path=source, output_dim=projection_dim(source), **sizes)
    text = ClipPooledEncoder(config).eval()
    load_tower(text)
    with_tower(text, files)
    return text


def _settings(path: Path) -> dict[str, Any]:
    """The published options, which lie beside the weights; none where they do not."""
    beside = path.parent / "args.json"
    values = read_json(beside) if beside.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{beside}: expected a mapping, got {type(values).__name__}")
    return values


def _common(path: Path, files: Files) -> tuple[dict[str, Tensor], dict[str, Any], Statistics, dict[str, Any]]:
    """State dict, options, statistics, and what both models' configurations take from HumanML3D."""
    state, _ = read_checkpoint(path)
    motion = REPRESENTATIONS["humanml3d"]
    statistics = statistics_of(path, files, ("Mean.npy", "Std.npy"), motion.frame_size)
    shared = {"fps": motion.fps, "min_frames": motion.min_frames, "max_frames": motion.max_frames}
    return state, _settings(path), statistics, shared | {"representation": motion.name}


def _read_mdm(path: Path, files: Files) -> MDMPipeline:
    state, options, statistics, shared = _common(path, files)
    network, text = load_mdm(state, options), _text(files)
    config = MDMModelConfig(name="mdm-humanml3d", network=network.config, text=text.config, **shared)
    return MDMPipeline(config, network, text, statistics)


def _read_commdm(path: Path, files: Files) -> ComMDMPipeline:
    state, options, statistics, shared = _common(path, files)
    network, text = load_commdm(state, options), _text(files)
    config = ComMDMModelConfig(name="commdm-humanml3d", network=network.config, text=text.config, **shared)
    return ComMDMPipeline(config, network, text, statistics)


LAYOUT = Layout(
    "MDM",
    lambda keys: any(key.startswith("seqTransEncoder.layers.") for key in keys),
    ("stats", "tokenizer", "text"),
    _read_mdm,
)
LAYOUT_OF_TWO = Layout(
    "ComMDM",
    lambda keys: any(key.startswith("multi_person.") for key in keys),
    ("stats", "tokenizer", "text"),
    _read_commdm,
)
