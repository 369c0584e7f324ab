from __future__ import annotations

from pathlib import Path

import pytest

import intermoe.train
from intermoe.train.config import DataConfig, DenoiserTrainConfig, OptimConfig, RunConfig, TrainConfig, VAETrainConfig

CONFIGS = Path(intermoe.train.__file__).parent / "configs"


@pytest.mark.parametrize(("name", "kind"), [("salsa_vae", VAETrainConfig), ("salsa_denoiser", DenoiserTrainConfig)])
def test_shipped_configuration_is_valid_and_survives_json(name: str, kind: type[TrainConfig]) -> None:
    config = kind.load(CONFIGS / f"{name}.yaml")
    assert kind.from_dict(config.to_dict()) == config
    assert config.data.root is None, "a shipped file must not name a folder of somebody's machine"


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
        (lambda: VAETrainConfig.from_dict({"model": {"layout": "interx"}}), "model.layout"),
        (lambda: DenoiserTrainConfig.from_dict({"text": {"output_dim": 3}}), "text.output_dim"),
        (lambda: DenoiserTrainConfig.from_dict({"optim": {"lr": 1}}), "'lr'"),
    ],
)
def test_wrong_value_is_refused_by_name(build, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()
