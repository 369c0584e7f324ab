"""Training of the Causal-Skeletal VAE."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.data.dataset import EpochNumbers, MotionDataset
from intermoe.data.items import MotionItem
from intermoe.data.sets import train_statistics
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE
from intermoe.train import run
from intermoe.train.config import VAETrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.folders import load_trained, save_trained
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit
from intermoe.train.losses import vae_losses


class VAEObjective(Objective):
    """The VAE and its losses on batches of ``intermoe.data.collate``."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VAETrainConfig, statistics: Statistics) -> None:
        super().__init__()
        self.vae = CausalSkeletalVAE(config.model)
        self.weights, self.representation = config.losses, REPRESENTATIONS[config.model.representation]
        self.latent_noise = config.latent_noise
        if config.decoder_only:
            for part in (self.vae.joint_encoder, self.vae.encoder, self.vae.head):
                part.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(statistics.mean), persistent=False)
        self.register_buffer("std", torch.tensor(statistics.std), persistent=False)

    def repeated_parts(self) -> list[nn.Module]:
        """The residual blocks' stacks."""
        return [*self.vae.encoder, *self.vae.decoder]

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """Training: the terms of ``vae_losses``. Validation: ``joint_error_cm`` of the mode's reconstruction."""
        persons, frames = batch["motion"].shape[1:3]
        valid = torch.arange(frames, device=batch["motion"].device) < batch["lengths"][:, None]
        motion = (batch["motion"] - self.mean) / self.std
        # padding is the mean motion, whatever came: raw zeros lie far outside the data
        motion = motion.masked_fill(~valid.view(len(valid), 1, frames, *[1] * (motion.dim() - 3)), 0.0).flatten(0, 1)
        if not validating:
            posterior = self.vae.encode(motion)
            latent_frames, *rest = posterior.mean.shape[1:]
            noise = rearrange(draws.normal(latent_frames, persons, *rest), "b t p ... -> (b p) t ...")
            output = self.vae.decode(self._disturbed(posterior.sample(noise=noise), draws, persons))
            return vae_losses(output, motion, posterior, self.mean, self.std, self.weights, self.representation)
        output = self.vae.decode(self.vae.encode(motion).mode())
        error = self.representation.positions((output - motion) * self.std)
        distance = torch.linalg.vector_norm(error, dim=-1).mean(dim=-1)
        # frames beyond the last full group of 4 were encoded together with padding
        whole = batch["lengths"] // self.vae.downsampling * self.vae.downsampling
        valid = (torch.arange(frames, device=motion.device) < whole[:, None]).repeat_interleave(persons, dim=0)
        per_person = distance.masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1)
        return {"joint_error_cm": 100 * per_person.mean()}

    def _disturbed(self, latents: Tensor, draws: ItemDraws, persons: int) -> Tensor:
        if self.latent_noise == 0:
            return latents
        frames, *rest = latents.shape[1:]
        levels = draws.uniform(persons, 1, 1, 1).flatten(0, 1)
        noise = rearrange(draws.normal(frames, persons, *rest), "b t p ... -> (b p) t ...")
        return latents + self.latent_noise * levels * noise


class Windows:
    """Windows of whole converted items: one of each at a random place, or all that start at multiples of ``stride``.

    They are cut after the conversion, so that positions are spread as in the whole items that the trained model is used
    on, instead of every window starting at the origin.
    """

    def __init__(self, dataset: MotionDataset, frames: int, stride: int | None = None) -> None:
        self.dataset, self.frames = dataset, frames
        self._numbers = EpochNumbers(dataset.seed, len(dataset), 1, frames)
        rooms = [dataset.num_frames(index) - frames for index in range(len(dataset))]
        self.places: list[tuple[int, int | None]] = [(index, None) for index in range(len(rooms))]
        if stride is not None:
            self.places = [(index, start) for index, room in enumerate(rooms) for start in range(0, room + 1, stride)]

    def __len__(self) -> int:
        return len(self.places)

    def num_frames(self, index: int) -> int:
        """Length of a window, whatever the item."""
        return self.frames

    def draw(self, index: int, epoch: int) -> MotionItem:
        """Window ``index`` of ``epoch``; what is random depends on (seed, epoch, item) alone."""
        number, start = self.places[index]
        if start is None:
            room = self.dataset.num_frames(number) - self.frames
            start = int(self._numbers(epoch)[number, 0] * (room + 1))
        return self.dataset.draw(number, epoch, slice(start, start + self.frames))


def run_vae(
    config_path: str | Path,
    output_dir: str | Path,
    resume: bool = False,
    data: str | Path | None = None,
    init: str | Path | None = None,
) -> Path:
    """Train a VAE as the file says and return ``output_dir/model``, the folder that ``load_vae_folder`` reads.

    Args:
        config_path: YAML or JSON of ``VAETrainConfig``.
        output_dir: gets ``config.json``, ``statistics.json``, ``checkpoints/``, ``logs/`` and, at the end, ``model/``.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.
        init: model folder of a VAE to start from, with its statistics; needed for ``decoder_only``.

    Raises:
        ValueError: a wrong configuration or unusable data, named. FileExistsError: ``output_dir`` holds a run already.
        FloatingPointError: the loss is not finite; names step and items.
    """
    config = run.with_data(VAETrainConfig.load(config_path), data)
    output_dir = Path(output_dir)
    start = load_vae_folder(init) if init is not None else None
    if config.decoder_only and start is None:
        raise ValueError("init: expected the folder of a trained VAE for decoder_only, got None")
    if start is not None and start[0].config != config.model:
        raise ValueError(f"init: expected the configuration of model, got another in {init}: {start[0].config}")
    train = run.open_split(config, "train", min_frames=max(config.window, config.data.min_frames))
    validation = run.open_split(config, "val", min_frames=config.data.min_frames)
    folder, splits = output_dir / "model", {"train": train, "val": validation}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        statistics = Statistics.load(
            run.once(
                accelerator,
                output_dir / "statistics.json",
                lambda path: (start[1] if start else train_statistics(train)).save(path),
                resume=resume,
            )
        )
        torch.manual_seed(config.seed)
        objective = VAEObjective(config, statistics)
        if start is not None:
            objective.vae.load_state_dict(start[0].state_dict())
        windows = Windows(train, config.window, config.window_stride)
        state = fit(accelerator, objective, config, windows, validation, output_dir, resume=resume)
        if state is not None:
            save_trained(folder, "vae", config, state, statistics)
    return folder


def load_vae_folder(folder: str | Path) -> tuple[CausalSkeletalVAE, Statistics]:
    """The VAE that ``run_vae`` saved, in eval mode and frozen, and the statistics of its motion.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file does not fit the configuration; names the key.
    """
    return load_trained(folder, "vae", VAEConfig, CausalSkeletalVAE)


TRAINER = run.Training(VAETrainConfig, run_vae, start="init")
