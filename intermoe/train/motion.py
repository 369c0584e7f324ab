"""Training of systems that diffuse motion itself, without an autoencoder, by InterGen's losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.config import _require
from intermoe.data.dataset import MotionDataset
from intermoe.data.sets import DATA_SETS, train_statistics
from intermoe.diffusion import DiffusionConfig, build_scheduler, shifted_timesteps
from intermoe.files import replacing_folder
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import SYSTEMS
from intermoe.systems.files import write_model
from intermoe.systems.intergen.config import InterGenConfig, MotionLossConfig
from intermoe.systems.intergen.losses import motion_losses
from intermoe.systems.intergen.network import MotionNetwork
from intermoe.systems.intergen.pipeline import RawMotionPipeline
from intermoe.text.protocol import TextConfig, TextEncoder
from intermoe.train import run
from intermoe.train.condition import keep_tokenizer, prepare_text
from intermoe.train.config import TrainConfig
from intermoe.train.denoiser import VALIDATION_NOISE_LEVELS
from intermoe.train.draws import ItemDraws
from intermoe.train.individual import IndividualTexts
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit

_OF_LATENTS = ("snr_gamma", "latent_scale", "loss_std_floor", "scale_input")


@dataclass(frozen=True)
class MotionTrainConfig(TrainConfig):
    """Training of network and text encoder on motion itself. ``name`` goes into the saved model.

    ``system`` is one of ``trainable()``, ``network`` the values of its configuration, the defaults where absent. The
    settings of ``diffusion`` that shape latents and their loss stay at their defaults.
    """

    trainer: str = "motion"
    name: str = "motion"
    system: str = "intergen"
    network: dict[str, Any] = field(default_factory=dict)
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    losses: MotionLossConfig = field(default_factory=MotionLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(_network_type(self.system) is not None, "system", f"one of {trainable()}", self.system)
        network = self.network_config()
        object.__setattr__(self, "network", network.to_dict())  # whole, so that it says what was trained
        expected = f"network.text_dim={network.text_dim}"
        _require(self.text.output_dim == network.text_dim, "text.output_dim", expected, self.text.output_dim)
        name = self.data.representation
        _require(name == "interhuman", "data.representation", "'interhuman', whose joints the losses compare", name)
        for name in _OF_LATENTS:
            default, got = getattr(DiffusionConfig(), name), getattr(self.diffusion, name)
            _require(got == default, f"diffusion.{name}", f"{default} where there are no latents", got)

    def network_config(self) -> InterGenConfig:
        """The configuration of ``system`` with the values of ``network``."""
        config_type = _network_type(self.system)
        if config_type is None:
            raise ValueError(f"system: expected one of {trainable()}, got {self.system!r}")
        return config_type.from_dict(self.network, where="network")

    def pipeline_type(self) -> Any:
        """The class of the models of ``system``."""
        return SYSTEMS[self.system]


def trainable() -> tuple[str, ...]:
    """The systems that can be trained here: those whose network is one of InterGen's kind."""
    return tuple(name for name in SYSTEMS if _network_type(name) is not None)


def _network_type(system: str) -> type[InterGenConfig] | None:
    """The configuration class of a system's network, or ``None`` where it is not of InterGen's kind."""
    if system not in SYSTEMS or not issubclass(SYSTEMS[system], RawMotionPipeline):
        return None
    made: Any = SYSTEMS[system].config_type()
    return type(made.network) if isinstance(made.network, InterGenConfig) else None


class MotionObjective(Objective):
    """Network and text encoder, and InterGen's losses on batches of ``intermoe.data.collate``."""

    def __init__(self, config: MotionTrainConfig, text: TextEncoder, statistics: Statistics) -> None:
        super().__init__()
        self.pipeline_type = config.pipeline_type()
        self.network: MotionNetwork = self.pipeline_type.build_network(config.network_config())
        self.text = text
        self.statistics = statistics
        self.losses, self.diffusion = config.losses, config.diffusion
        self.scheduler = build_scheduler("ddpm", config.diffusion)
        steps = config.diffusion.num_train_timesteps
        self.validation_timesteps = [int(level * steps) for level in VALIDATION_NOISE_LEVELS]

    def repeated_parts(self) -> list[nn.Module]:
        """The network's layers."""
        return list(self.network.layers)

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """Training: the terms of ``motion_losses``. Validation: their sum at fixed timesteps, with fixed noise."""
        frames = batch["lengths"].tolist()
        clean = self.statistics.normalise(batch["motion"][:, :, : max(frames)])
        persons, width = clean.shape[1], clean.shape[3]
        noise = rearrange(draws.normal(frames, persons, width), "b t p x -> b p t x")
        mask = torch.arange(max(frames), device=clean.device) < batch["lengths"][:, None]
        condition = self.pipeline_type.embed(self.text, batch["captions"], persons)
        if not validating:
            share, steps = draws.uniform(), self.diffusion.num_train_timesteps
            timesteps = shifted_timesteps(share, steps, self.diffusion.timestep_shift)
            kept = draws.uniform() >= self.diffusion.condition_dropout
            kept = kept.view(-1, *[1] * (condition.dim() - 1))  # all texts of a sample or none
            return self._terms(clean, condition * kept, mask, timesteps, noise)
        values: dict[str, Tensor] = {}
        for t in self.validation_timesteps:
            timesteps = torch.full((len(clean),), t, device=clean.device)
            values[f"loss_t{t}"] = self._terms(clean, condition, mask, timesteps, noise)["loss"]
        return {"loss": torch.stack(list(values.values())).mean(), **values}

    def _terms(
        self, clean: Tensor, condition: Tensor, mask: Tensor, timesteps: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        estimate = self.network(noisy, timesteps, condition, mask)
        return motion_losses(estimate, clean, timesteps, mask, self.statistics, self.losses)


def run_motion(
    config_path: str | Path, output_dir: str | Path, resume: bool = False, data: str | Path | None = None
) -> Path:
    """Train network and text encoder; returns ``output_dir/model``, a folder for ``MotionPipeline.from_pretrained``.

    Args:
        config_path: YAML or JSON of ``MotionTrainConfig``.
        output_dir: gets ``config.json``, ``statistics.json``, ``tokenizer.json``, ``checkpoints``, ``logs``, ``model``.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.

    Raises:
        ValueError: a wrong configuration or unusable data, named. FileExistsError: ``output_dir`` holds a run already.
        FloatingPointError: the loss is not finite; names step and items.
    """
    config = run.with_data(MotionTrainConfig.load(config_path), data)
    output_dir = Path(output_dir)
    dataset_type = IndividualTexts if config.pipeline_type().tells_persons else MotionDataset
    train, validation = (
        run.open_split(config, split, min_frames=config.data.min_frames, dataset_type=dataset_type)
        for split in ("train", "val")
    )
    text = prepare_text(config, config.text, train, output_dir, resume=resume)
    persons = train.data_set.representation.persons
    run.check_captions(
        text, train, validation, texts=lambda caption: config.pipeline_type().split_prompt(caption, persons)
    )
    folder, splits = output_dir / "model", {"train": train, "val": validation}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        path = output_dir / "statistics.json"
        run.once(accelerator, path, lambda path: train_statistics(train).save(path), resume=resume)
        keep_tokenizer(accelerator, text, output_dir, resume=resume)
        objective = MotionObjective(config, text, Statistics.load(path))
        state = fit(accelerator, objective, config, train, validation, output_dir, resume=resume)
        if state is not None:
            objective.load_state_dict(state)
            _save_pipeline(folder, config, objective.cpu())
    return folder


def _save_pipeline(folder: Path, config: MotionTrainConfig, objective: MotionObjective) -> None:
    values = {
        "system": config.system,
        "name": config.name,
        "fps": DATA_SETS[config.data.representation].representation.fps,
        "min_frames": config.data.min_frames,
        "max_frames": config.data.max_frames,
        "network": config.network,
        "text": config.text.to_dict(),
        "diffusion": config.diffusion.to_dict(),
    }
    made = config.pipeline_type().config_type.from_dict(values)
    parts = {"network": objective.network, "text": objective.text}
    with replacing_folder(folder) as temporary:
        write_model(temporary, made, parts, objective.statistics, objective.text.tokenizer_json)
        run.write_config(temporary / "training.json", run.without_paths(config))


TRAINER = run.Training(MotionTrainConfig, run_motion)
