"""The published model's checkpoint file as a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from intermoe.checkpoints import load_tensors, read_checkpoint, require_setting, setting
from intermoe.diffusion import DiffusionConfig
from intermoe.motion.interhuman import FPS, MOTION_WIDTH
from intermoe.motion.statistics import Statistics
from intermoe.reading import read_npy
from intermoe.systems.intermoe.config import PipelineConfig
from intermoe.systems.intermoe.official import load_denoiser, load_text_encoder, load_vae
from intermoe.systems.intermoe.pipeline import InterMoEPipeline

STATISTICS_FILES = ("global_mean.npy", "global_std.npy")
MIN_FRAMES, MAX_FRAMES = 15, 300

# The published configuration, for files that carry none: neither heads nor capacity can be read off the weights.
PUBLISHED: dict[str, Any] = {
    "INPUT_DIM": 448,
    "LATENT_DIM": 768,
    "FF_SIZE": 1024,
    "NUM_LAYERS": 8,
    "NUM_HEADS": 8,
    "DROPOUT": 0.1,
    "MoE_config": {"num_experts": 8, "capacity": 1, "n_shared_experts": 0},
    "vae": {"latent_dim": 64, "dataset_name": "interhuman", "n_extra_layers": 1, "kernel_size": 3, "dropout": 0.1},
    "DIFFUSION_STEPS": 1000,
}


def checkpoint_kind(path: str | Path) -> str:
    """What a file holds: a "model", or an evaluator, "interclip" or "bigru".

    Raises:
        FileNotFoundError: no such file. ValueError: neither; says what is expected.
    """
    if "movement_encoder" in load_tensors(Path(path)):
        return "bigru"
    keys = read_checkpoint(path)[0].keys()
    if any(key.startswith("model.denoiser.net.") for key in keys):
        return "model"
    if any(key.removeprefix("model.").startswith("motion_encoder.") for key in keys):
        return "interclip"
    raise ValueError(
        f"{path}: expected the published denoiser's checkpoint (keys model.denoiser.net.*; it holds the autoencoder "
        f"too) or an evaluator's (motion_encoder.*, movement_encoder), got {sorted(keys)[:3]}..."
    )


def load_checkpoint(path: str | Path, stats: str | Path | None = None) -> InterMoEPipeline:
    """The published model from its checkpoint of the denoiser, which holds autoencoder and CLIP tower too.

    The file's own configuration decides; where it has none, the published values. The selection bias carries over and
    routing fuses by the plain sum, as in the published code.

    Args:
        path: the Lightning checkpoint. stats: folder with ``global_mean.npy`` and ``global_std.npy`` of the published
            data statistics; by default that of ``path``.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a key that is missing, unexpected or of the wrong shape, a
            setting that is not implemented, or an object that is not loaded; named.
    """
    path = Path(path)
    statistics = read_statistics(path.parent if stats is None else Path(stats))
    if (kind := checkpoint_kind(path)) != "model":
        raise ValueError(f"{path}: expected the published denoiser's checkpoint, got that of an evaluator ({kind})")
    state, config = read_checkpoint(path)
    parts = split_state(state)
    config = PUBLISHED | config
    require_setting(config, "BETA_SCHEDULER", "cosine", "cosine")
    require_setting(config, "use_moe", "dualdydiff", "dualdydiff")
    require_setting(setting(config, "vae"), "dataset_name", "interhuman", "interhuman")
    vae = load_vae(parts["vae"], config["vae"])
    denoiser = load_denoiser(
        parts["denoiser"],
        {
            "input_feats": config["INPUT_DIM"],
            "latent_dim": config["LATENT_DIM"],
            "ff_size": config["FF_SIZE"],
            "num_layers": config["NUM_LAYERS"],
            "num_heads": config["NUM_HEADS"],
            "dropout": config["DROPOUT"],
            "MoE_config": config["MoE_config"],
        },
    )
    text = load_text_encoder(parts["text"], {"clip_layers": _count_layers(parts["text"])})
    pipeline_config = PipelineConfig(
        name="intermoe-interhuman",
        fps=FPS,
        min_frames=MIN_FRAMES,
        max_frames=MAX_FRAMES,
        vae=vae.config,
        denoiser=denoiser.config,
        text=text.config,
        diffusion=DiffusionConfig(num_train_timesteps=config["DIFFUSION_STEPS"]),
    )
    return InterMoEPipeline(pipeline_config, vae, denoiser, text, statistics)


def split_state(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state dicts of ``vae``, ``denoiser`` and ``text``, each with the keys of its own module.

    Raises:
        ValueError: a key that does not begin with ``model.``.
    """
    foreign = sorted(key for key in state if not key.startswith("model."))
    if foreign:
        raise ValueError(f"state_dict: unexpected keys {foreign[:8]}: all keys of a checkpoint begin with 'model.'")
    parts: dict[str, dict[str, Tensor]] = {"vae": {}, "denoiser": {}, "text": {}}
    for key, value in state.items():
        for part, prefix in (("vae", "model.vae."), ("denoiser", "model.denoiser.net."), ("text", "model.")):
            if key.startswith(prefix):
                parts[part][key.removeprefix(prefix)] = value
                break
    return parts


def read_statistics(folder: Path) -> Statistics:
    """Mean and deviation (262,) of the published statistics' .npy files."""
    arrays = []
    for name in STATISTICS_FILES:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"stats: {folder} holds no {name}; the published repository has it")
        values = read_npy(path)
        if values.shape != (MOTION_WIDTH,):
            raise ValueError(f"{path}: expected shape ({MOTION_WIDTH},), got {values.shape}")
        arrays.append(values)
    try:
        return Statistics(*arrays)
    except ValueError as error:
        raise ValueError(f"{folder}: {STATISTICS_FILES}: {error}") from error


def _count_layers(text: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[2] for key in text if key.startswith("clip_transformer.resblocks.")})
