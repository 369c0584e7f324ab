"""Published checkpoints as pipelines; our own among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from intermoe.checkpoints import read_checkpoint, require_setting, setting
from intermoe.diffusion import DiffusionConfig
from intermoe.motion.interhuman import FPS, MOTION_WIDTH
from intermoe.official.layouts import layout_of
from intermoe.pipeline import MotionPipeline
from intermoe.systems.intermoe.config import PipelineConfig
from intermoe.systems.intermoe.official import load_denoiser, load_text_encoder, load_vae
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.systems.published import INTERHUMAN_STATISTICS, Files, Layout, statistics_of, with_tower

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


def load_checkpoint(
    path: str | Path,
    stats: str | Path | None = None,
    *,
    part: str | Path | None = None,
    text: str | None = None,
) -> MotionPipeline:
    """A published model of any system whose files are read here, found by the keys of its checkpoint.

    Of ours, and of those built like it, the file's own configuration decides; where it has none, the published values.

    Args:
        path: the checkpoint.
        stats: folder of the published data statistics; by default that of ``path``.
        part: the second file of a model that is published in two.
        text: CLIP model, a folder or a Hugging Face name, whose text tower the file leaves out.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a key that is missing, unexpected or of the wrong shape, a
            setting that is not implemented, or an object that is not loaded; named.
    """
    layout = layout_of(path)
    files = Files(stats=None if stats is None else Path(stats), part=None if part is None else Path(part), text=text)
    made = layout.read(Path(path), files)
    if not isinstance(made, MotionPipeline):
        raise ValueError(f"{path}: expected a model's checkpoint, got that of an evaluator ({layout.title})")
    return made


def _read(path: Path, files: Files) -> InterMoEPipeline:
    """Our own from its checkpoint of the denoiser, which holds autoencoder and CLIP tower too.

    The selection bias carries over and routing fuses by the plain sum, as in the published code.
    """
    statistics = statistics_of(path, files, INTERHUMAN_STATISTICS, MOTION_WIDTH)
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
    with_tower(text, files)
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


def _count_layers(text: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[2] for key in text if key.startswith("clip_transformer.resblocks.")})


LAYOUT = Layout(
    "InterMoE",
    lambda keys: any(key.startswith("model.denoiser.net.") for key in keys),
    ("stats", "tokenizer"),
    _read,
)
