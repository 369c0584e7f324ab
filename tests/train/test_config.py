from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import intermoe.train
from intermoe.diffusion import DiffusionConfig
from intermoe.systems.intergen.config import MotionLossConfig
from intermoe.systems.intermask.config import InterMaskConfig, TokenizerConfig, TokenizerLossConfig
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import DenoiserLayer
from intermoe.systems.mdm.config import ComMDMConfig, MDMConfig
from intermoe.train.config import (
    DataConfig,
    DenoiserTrainConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    VAELossConfig,
    VAETrainConfig,
)
from intermoe.train.intermask import InterMaskTrainConfig, TokenizerTrainConfig
from intermoe.train.mdm import ComMDMTrainConfig, MDMTrainConfig
from intermoe.train.motion import MotionTrainConfig
from intermoe.train.trainers import TRAINERS, trainer_of

CONFIGS = Path(intermoe.train.__file__).parent / "configs"


SHIPPED = [(path.stem, TRAINERS[trainer_of(path)].config) for path in sorted(CONFIGS.glob("*.yaml"))]


@pytest.mark.parametrize(("name", "kind"), SHIPPED)
def test_shipped_configuration_is_valid_and_survives_json(name: str, kind: type[TrainConfig]) -> None:
    config = kind.load(CONFIGS / f"{name}.yaml")
    assert kind.from_dict(config.to_dict()) == config
    assert config.data.root is None, "a shipped file must not name a folder of somebody's machine"


@pytest.mark.parametrize("kind", ["interhuman", "interx", "humanml3d"])
def test_published_recipes(kind: str) -> None:
    vae = VAETrainConfig.load(CONFIGS / f"{kind}_vae.yaml")
    denoiser = DenoiserTrainConfig.load(CONFIGS / f"{kind}_denoiser.yaml")
    assert vae.data.representation == denoiser.data.representation == vae.model.representation == kind
    persons = 1 if kind == "humanml3d" else 2
    assert vae.data.batch_size * persons == 256
    assert (vae.window, vae.window_stride, vae.optim.epochs) == (64, 10, 500)
    assert (vae.optim.learning_rate, vae.optim.weight_decay) == (2e-4, 2e-5)
    assert vae.losses == VAELossConfig() and vae.losses.kl == 0.02  # noqa: PT018
    assert denoiser.denoiser == DenoiserConfig(), "the defaults are the published model"
    assert denoiser.diffusion == DiffusionConfig()
    assert (denoiser.optim.epochs, denoiser.optim.warmup_epochs, denoiser.data.batch_size) == (1000, 10, 64)
    assert (denoiser.optim.learning_rate, denoiser.optim.weight_decay) == (1e-4, 2e-5)
    assert (denoiser.optim.clip, denoiser.optim.clip_limit, denoiser.optim.ema_decay) == ("value", 1.0, 0.0)
    assert (denoiser.text.kind, denoiser.text.clip_layers, denoiser.text.num_layers) == ("clip", 12, 2)


@pytest.mark.parametrize(("system", "epochs"), [("intergen", 2000), ("timotion", 1900), ("in2in", 2000)])
def test_published_recipes_of_other_systems(system: str, epochs: int) -> None:
    config = MotionTrainConfig.load(CONFIGS / f"interhuman_{system}.yaml")
    assert config.network_config() == type(config.network_config())(), "the defaults are the published network"
    assert config.losses == MotionLossConfig()
    assert config.diffusion == DiffusionConfig()
    assert (config.optim.epochs, config.optim.warmup_epochs, config.data.batch_size) == (epochs, 10, 32)
    assert (config.optim.learning_rate, config.optim.weight_decay) == (1e-4, 2e-5)
    assert (config.optim.clip, config.optim.clip_limit, config.optim.ema_decay) == ("norm", 0.5, 0.0)
    assert (config.text.kind, config.text.clip_layers, config.text.num_layers) == ("clip", 12, 2)


def test_published_recipes_of_intermask() -> None:
    tokenizer = TokenizerTrainConfig.load(CONFIGS / "interhuman_tokenizer.yaml")
    unmasking = InterMaskTrainConfig.load(CONFIGS / "interhuman_intermask.yaml")
    assert (tokenizer.model, tokenizer.losses) == (TokenizerConfig(), TokenizerLossConfig())
    assert unmasking.model == InterMaskConfig(), "the defaults are the published network"
    assert (unmasking.person_share, unmasking.condition_dropout) == (0.2, 0.1)
    batches = [recipe.data.batch_size for recipe in (tokenizer, unmasking)]
    assert batches == [256 / 2, 52]
    assert (tokenizer.window, tokenizer.window_stride) == (64, 10)
    first, second = tokenizer.optim, unmasking.optim
    assert [(o.epochs, o.warmup_epochs, o.learning_rate, o.betas) for o in (first, second)] == [
        (50, 0.25, 2e-4, (0.9, 0.99)),
        (500, 0.25, 2e-4, (0.9, 0.99)),
    ]
    assert (first.decay, first.decay_at, second.decay, second.decay_at) == (0.1, (0.7, 0.85), 1 / 3, (0.5, 0.7, 0.85))
    assert (first.clip, first.clip_limit, second.clip) == ("norm", 1.0, "none")
    assert (first.weight_decay, second.weight_decay) == (0.0, 1e-5)


def test_published_recipes_of_commdm() -> None:
    mdm = MDMTrainConfig.load(CONFIGS / "humanml3d_mdm.yaml")
    assert mdm.model == MDMConfig(), "the defaults are the published network"
    block = ComMDMTrainConfig.load(CONFIGS / "interhuman_commdm.yaml")
    assert block.model == ComMDMConfig(MDMConfig(input_dim=262))
    for recipe in (mdm, block):
        assert recipe.diffusion == DiffusionConfig()
        assert (recipe.data.batch_size, recipe.optim.learning_rate, recipe.optim.weight_decay) == (64, 1e-4, 0.0)
    assert block.optim.steps == 100_000
    for data in ("interhuman", "salsa"):
        first = MDMTrainConfig.load(CONFIGS / f"{data}_mdm.yaml")
        assert ComMDMTrainConfig.load(CONFIGS / f"{data}_commdm.yaml").model.backbone == first.model


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_launch_files_are_accelerates(name: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    path = CONFIGS / "accelerate" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert ClusterConfig.from_yaml_file(str(path)).num_processes == values["num_processes"]
    if name == "fsdp2":
        assert values["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] == DenoiserLayer.__name__


def test_shipped_configurations_fit_together() -> None:
    vae = VAETrainConfig.load(CONFIGS / "salsa_vae.yaml")
    denoiser = DenoiserTrainConfig.load(CONFIGS / "salsa_denoiser.yaml")
    assert denoiser.denoiser.input_dim == 7 * vae.model.latent_dim


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: OptimConfig(steps=0), "steps"),
        (lambda: OptimConfig(steps=10, warmup_steps=10), "warmup_steps"),
        (lambda: OptimConfig(clip="max"), "clip"),
        (lambda: OptimConfig(decay_at=(0.5,)), "decay_at"),
        (lambda: OptimConfig(schedule="steps"), "decay_at"),
        (lambda: OptimConfig(schedule="steps", decay_at=(0.7, 0.5)), "decay_at"),
        (lambda: OptimConfig(decay=1.5), "decay"),
        (lambda: OptimConfig(betas=(0.9,)), "betas"),
        (lambda: OptimConfig(ema_decay=1.0), "ema_decay"),
        (lambda: OptimConfig(mixed_precision="fp8"), "mixed_precision"),
        (lambda: DataConfig(batch_size=0), "batch_size"),
        (lambda: DataConfig(min_frames=40, max_frames=30), "min_frames"),
        (lambda: RunConfig(keep_checkpoints=0), "keep_checkpoints"),
        (lambda: TrainConfig(seed=-1), "seed"),
        (lambda: VAETrainConfig(window=30), "window"),
        (lambda: VAETrainConfig(window=400), "window"),
        (lambda: VAETrainConfig.from_dict({"losses": {"position": -1}}), "position"),
        (lambda: VAETrainConfig.from_dict({"model": {"representation": "interx"}}), "model.representation"),
        (lambda: DenoiserTrainConfig.from_dict({"text": {"output_dim": 3}}), "text.output_dim"),
        (lambda: DenoiserTrainConfig.from_dict({"optim": {"lr": 1}}), "'lr'"),
    ],
)
def test_wrong_value_is_refused_by_name(build, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()
