"""Training of the denoiser and its text encoder on the latents of a frozen autoencoder."""

from __future__ import annotations

import filecmp
import functools
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from intermoe.checkpoints import load_module, load_safetensors
from intermoe.data.batching import MotionBatch, collate
from intermoe.data.dataset import MotionDataset
from intermoe.data.sets import DATA_SETS
from intermoe.diffusion import ErrorMetrics, Sampler, build_scheduler, by_runs, sample, shifted_timesteps, training_loss
from intermoe.evaluators.evaluator import Evaluator, load_evaluator
from intermoe.files import replacing_folder, write_tensors
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.systems.intermoe.config import PipelineConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.systems.intermoe.vae import CausalSkeletalVAE, LatentDistribution
from intermoe.text.build import build_text_encoder
from intermoe.text.protocol import TextEncoder
from intermoe.train import run
from intermoe.train.condition import keep_tokenizer, prepare_text
from intermoe.train.config import DenoiserTrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.graphs import TrainingGraph
from intermoe.train.latents import (
    METRIC_FILE,
    LatentDataset,
    LatentEncoder,
    collate_latents,
    first_motions,
    position_map,
    read_fitted,
    without_padding,
    write_metric,
)
from intermoe.train.levels import mixed_timesteps
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit
from intermoe.train.routing import RouterZ
from intermoe.train.stream import DrawnDataset
from intermoe.train.text import pretrain_text
from intermoe.train.vae import load_vae_folder

TEXT_FILE = "text.safetensors"
POSITIONS_FILE = "positions.safetensors"
CAPTIONS_KEPT = 100_000
VALIDATION_NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the validation loss is taken, as shares of the diffusion's timesteps."""


class DenoiserObjective(Objective):
    """Denoiser and text encoder, and their diffusion loss on batches of motion or of its latents."""

    generates = True
    error_metric: Tensor | None
    known_metric: Tensor | None

    def __init__(
        self,
        config: DenoiserTrainConfig,
        encoder: LatentEncoder,
        text: TextEncoder,
        error_metric: Tensor | None = None,
        position_map: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = Denoiser(config.denoiser)
        self.text = text
        self.encoder = encoder
        self.register_buffer("error_metric", error_metric, persistent=False)
        known = None if position_map is None else math.sqrt(config.levels.positions) * position_map
        self.register_buffer("known_metric", known, persistent=False)
        self.scheduler = build_scheduler("ddpm", config.diffusion)
        self.diffusion = config.diffusion
        self.condition_dropout = config.diffusion.condition_dropout
        # the objective drops conditions itself, and validation weighs every timestep alike
        self.weighed = replace(config.diffusion, condition_dropout=0.0)
        self.unweighed = replace(self.weighed, snr_gamma=0.0)
        self.timestep_shift = config.diffusion.timestep_shift
        self.load_balance = config.load_balance
        self.router_z, self.router_z_losses = config.router_z, RouterZ(self.denoiser)
        self.levels = config.levels
        steps = config.diffusion.num_train_timesteps
        self.run, self.max_frames = config.run, config.data.max_frames
        self.graph = TrainingGraph(self._estimates, self.denoiser)
        self.evaluator: list[Evaluator] = []  # in a list: it is neither trained nor saved
        if config.run.fid_evaluator is not None:
            self.evaluator = [load_evaluator(config.run.fid_evaluator)]
        self.embedded: dict[str, Tensor] = {}
        self.validation_timesteps = [int(level * steps) for level in VALIDATION_NOISE_LEVELS]

    def train(self, mode: bool = True) -> DenoiserObjective:
        """Training mode; a text encoder that is not trained stays without dropout."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.text.parameters()):
            self.text.eval()
        return self

    @staticmethod
    def collate(items: Sequence[Any]) -> Batch:
        """Items of motion or of its latents."""
        return collate_latents(items) if "posterior" in items[0] else collate(items)

    def repeated_parts(self) -> list[nn.Module]:
        """The denoiser's layers."""
        return list(self.denoiser.layers)

    def forward(
        self, batch: Batch, draws: ItemDraws, validating: bool = False, generating: bool = False
    ) -> dict[str, Tensor]:
        """Training: the diffusion loss. Validation: it at fixed timesteps, with fixed noise.

        With ``generating`` also features (B, F) of motion ``"generated"`` for the captions and of the ``"real"`` one.
        """
        posterior, mask, frames = self._encoded(batch)
        persons, width = posterior.mean.shape[1], posterior.mean.shape[3]
        sampling_noise, noise = rearrange(draws.normal(frames, 2, persons, width), "b t n p x -> n b p t x")
        latents = posterior.sample(noise=sampling_noise)
        condition = self._condition(batch["captions"])
        if not validating:
            host = draws.on_host()  # as few runs as can tell the levels are found without a read of the device
            timesteps = shifted_timesteps(host.uniform(), self.diffusion.num_train_timesteps, self.timestep_shift)
            kept = draws.uniform() >= self.condition_dropout
            if self.levels.mixed:
                timesteps = mixed_timesteps(self.levels, host, timesteps, frames, persons, self.diffusion)
                timesteps = timesteps if self.run.cuda_graphs else by_runs(timesteps)
            timesteps = timesteps.to(latents.device, non_blocking=True)
            metrics = ErrorMetrics(self.error_metric, self.known_metric)
            weights: dict[str, Any] = {"diffusion": self.weighed, "metrics": metrics}
            beside: list[Tensor] = []

            def denoise(*arguments: Tensor) -> Tensor:
                estimate, *others = self._network(*arguments)
                beside.extend(others)
                return estimate

            inputs = (latents, condition * kept[:, None], mask, timesteps, noise)
            loss = self._loss(*inputs, denoiser=denoise, **weights)
            balance, *z_losses = beside
            loss = loss + self.load_balance * balance
            if not z_losses:
                return {"loss": loss}
            return {"loss": loss + self.router_z * z_losses[0], "router_z": z_losses[0]}
        values: dict[str, Tensor] = {}
        for t in self.validation_timesteps:
            timesteps = torch.full((len(latents),), t, device=latents.device)
            options = {"denoiser": self.denoiser, "diffusion": self.unweighed}
            values[f"loss_t{t}"] = self._loss(latents, condition, mask, timesteps, noise, **options)
        values = {"loss": torch.stack(list(values.values())).mean(), **values}
        if generating:
            made = sample(
                self.denoiser,
                condition,
                (latents.shape[0], persons, latents.shape[2], width),
                Sampler(self.diffusion, "ddim", self.run.fid_steps),
                mask=mask,
                noise=rearrange(draws.normal(frames, persons, width), "b t p x -> b p t x"),
            )
            values |= {"generated": self._features(made, mask), "real": self._features(posterior.mode(), mask)}
        return values

    def _network(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """As ``_estimates``; with ``run.cuda_graphs`` of frames padded to the most that there are, for one shape."""
        if not self.run.cuda_graphs:
            return self._estimates(x, timesteps, text, mask)
        frames = x.shape[2]
        rest = self.max_frames // self.encoder.downsampling - frames
        x, mask = F.pad(x, (0, 0, 0, rest)), F.pad(mask, (0, rest))
        if timesteps.dim() == 3:
            timesteps = F.pad(timesteps, (0, rest))
        call = self.graph if self.replays else self._estimates
        estimate, *others = call(x, timesteps, text, mask)
        return estimate[:, :, :frames], *others

    def _estimates(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The denoiser's estimate and balance loss, and where it is weighed the routers' z-loss."""
        if self.router_z == 0.0:
            estimate, balance = self.denoiser(*arguments, balance=True)
            return estimate, balance
        with self.router_z_losses.collecting() as z_losses:
            estimate, balance = self.denoiser(*arguments, balance=True)
        return estimate, balance, torch.stack(z_losses).sum()

    def _encoded(self, batch: Batch) -> tuple[LatentDistribution, Tensor, list[int]]:
        """Posterior, mask, and the numbers of latent frames."""
        if "posterior" in batch:
            posterior = LatentDistribution(*batch["posterior"].unbind(dim=1))
            return without_padding(posterior, batch["mask"]), batch["mask"], batch["frames"]
        posterior, mask = self.encoder(cast("MotionBatch", batch))
        return posterior, mask, mask.sum(dim=1).tolist()

    def _condition(self, captions: list[str]) -> Tensor:
        """(B, C); a text encoder that is not trained embeds a caption once, and alone, for numbers that stay."""
        if self.text.training or any(parameter.requires_grad for parameter in self.text.parameters()):
            return self.text(captions)
        if len(self.embedded) > CAPTIONS_KEPT:
            self.embedded.clear()
        for caption in captions:
            if caption not in self.embedded:
                self.embedded[caption] = self.text([caption])[0]
        return torch.stack([self.embedded[caption] for caption in captions])

    def _features(self, latents: Tensor, mask: Tensor) -> Tensor:
        latents = latents.masked_fill(~mask[:, None, :, None], 0.0)
        if not self.evaluator:
            mean = latents.sum(dim=2) / mask.sum(dim=1)[:, None, None]
            return mean.flatten(1)
        evaluator = self.evaluator[0].to(latents.device)
        return evaluator.embed_motion(self.encoder.codec.decode(latents), self.encoder.downsampling * mask.sum(dim=1))

    def _loss(
        self, latents: Tensor, condition: Tensor, mask: Tensor, timesteps: Tensor, noise: Tensor, **options: Any
    ) -> Tensor:
        return training_loss(
            latents=latents,
            text_condition=condition,
            mask=mask,
            scheduler=self.scheduler,
            timesteps=timesteps,
            noise=noise,
            **options,
        )


def run_denoiser(
    config_path: str | Path,
    output_dir: str | Path,
    vae: str | Path | None = None,
    resume: bool = False,
    data: str | Path | None = None,
) -> Path:
    """Train denoiser and text encoder; returns ``output_dir/model``, a folder for ``InterMoEPipeline.from_pretrained``.

    Args:
        config_path: YAML or JSON of ``DenoiserTrainConfig``.
        output_dir: gets ``config.json``, a copy of ``vae``, ``tokenizer.json``, ``checkpoints``, ``logs``, ``model``,
            ``text.safetensors`` if the text encoder is trained first, and ``metric.safetensors`` and
            ``positions.safetensors`` if the loss has them.
        vae: model folder that ``run_vae`` wrote; needed to start a run, and compared with the run's copy on ``resume``.
        resume: go on from the newest complete checkpoint in ``output_dir`` (from the start if there is none).
        data: folder of the data in place of the configured one.

    Raises:
        ValueError: a wrong configuration, VAE or data, named. FileNotFoundError: no such VAE.
        FileExistsError: ``output_dir`` holds a run already.
        FloatingPointError: the loss is not finite; names step and items.
    """
    config = run.with_data(DenoiserTrainConfig.load(config_path), data)
    output_dir = Path(output_dir)
    source = Path(vae) if vae is not None else None
    loaded, statistics = load_vae_folder(_vae_of_run(source, output_dir, resume=resume))
    width = loaded.latent_joints * loaded.config.latent_dim
    if config.denoiser.input_dim != width:
        raise ValueError(
            f"denoiser.input_dim: expected {width} for this VAE ({loaded.latent_joints} joints x latent_dim "
            f"{loaded.config.latent_dim}), got {config.denoiser.input_dim}"
        )
    own, data = loaded.config.representation, config.data.representation
    if own != data:
        raise ValueError(f"data.representation: expected {own!r}, which this VAE is for, got {data!r}")
    if config.run.fid_evaluator is not None:
        load_evaluator(config.run.fid_evaluator)  # refuses a folder that holds none before anything is made
    train = run.open_split(config, "train", min_frames=config.data.min_frames)
    validation = run.open_split(config, "val", min_frames=config.data.min_frames)
    text = prepare_text(config, config.text, train, output_dir, resume=resume)
    tokenizer = text.tokenizer_json
    run.check_captions(text, train, validation)
    folder, splits = output_dir / "model", {"train": train, "val": validation}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        once = functools.partial(run.once, accelerator, resume=resume)
        if source is not None:
            once(output_dir / "vae", functools.partial(_copy, source))
        keep_tokenizer(accelerator, text, output_dir, resume=resume)
        encoder = LatentEncoder(LatentCodec(loaded, statistics))
        metric = None
        if config.diffusion.loss_std_floor > 0:
            write = functools.partial(write_metric, config.diffusion.loss_std_floor, train, encoder)
            metric = read_fitted(once(output_dir / METRIC_FILE, write), "metric")
        positions = None
        if config.levels.mixed and config.levels.positions > 0:
            path = once(output_dir / POSITIONS_FILE, functools.partial(_fit_positions, train, encoder))
            positions = read_fitted(path, "positions")
        if config.text_pretraining.steps:
            path = once(output_dir / TEXT_FILE, functools.partial(_pretrain, config, text, train, encoder, metric))
            load_module(text, load_safetensors(path), path)
            text.requires_grad_(False)
        objective = DenoiserObjective(config, encoder, text, metric, positions)
        drawn: list[DrawnDataset] = [train, validation]
        if config.data.num_workers == 0:  # processes of their own would each encode everything
            drawn = [LatentDataset(split, encoder, accelerator.device) for split in (train, validation)]
        state = fit(accelerator, objective, config, drawn[0], drawn[1], output_dir, resume=resume)
        if state is not None:
            _save_pipeline(folder, config, state, loaded, statistics, tokenizer)
    return folder


def _vae_of_run(source: Path | None, output_dir: Path, *, resume: bool) -> Path:
    copy = output_dir / "vae"
    if not (resume and copy.is_dir()):
        if source is None:
            raise ValueError("vae: expected the folder of a trained VAE to start a run, got None")
        return source
    weights = "model.safetensors"
    if source is not None and not filecmp.cmp(source / weights, copy / weights, shallow=False):
        raise ValueError(f"vae: expected the weights of {copy}, with which the run was started, got others in {source}")
    return copy


def _copy(source: Path, folder: Path) -> None:
    with replacing_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def _pretrain(
    config: DenoiserTrainConfig,
    text: TextEncoder,
    train: MotionDataset,
    encoder: LatentEncoder,
    metric: Tensor | None,
    path: Path,
) -> None:
    def encode(motion: Tensor) -> Tensor:
        mean = encoder.posterior(motion).mean
        return mean if metric is None else mean @ metric

    pretrain_text(text, train, encode, config.text_pretraining, seed=config.seed)
    write_tensors(path, text.state_dict())


def _fit_positions(train: MotionDataset, encoder: LatentEncoder, path: Path) -> None:
    representation = REPRESENTATIONS[encoder.codec.vae.config.representation]
    latents, positions = [], []
    for motion in first_motions(train):
        means = encoder.posterior(motion).mean[0]
        joints = representation.positions(motion[:, : means.shape[1] * encoder.downsampling])
        latents.append(means.flatten(0, 1))
        positions.append(rearrange(joints, "p (t n) j x -> (p t) (n j x)", n=encoder.downsampling))
    write_tensors(path, {"positions": position_map(torch.cat(latents), torch.cat(positions))})


def _save_pipeline(
    folder: Path,
    config: DenoiserTrainConfig,
    state: dict[str, Tensor],
    vae: CausalSkeletalVAE,
    statistics: Statistics,
    tokenizer: str | None,
) -> None:
    denoiser, text = Denoiser(config.denoiser), build_text_encoder(config.text, tokenizer)
    for name, module in (("denoiser.", denoiser), ("text.", text)):
        module.load_state_dict({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})
    pipeline_config = PipelineConfig(
        name=config.name,
        fps=DATA_SETS[config.data.representation].representation.fps,
        min_frames=config.data.min_frames,
        max_frames=config.data.max_frames,
        rigid_bones=config.rigid_bones,
        planted_feet=config.planted_feet,
        on_floor=config.on_floor,
        bodies_apart=config.bodies_apart,
        smooth=config.smooth,
        vae=vae.config,
        denoiser=config.denoiser,
        text=config.text,
        diffusion=config.diffusion,
        levels=config.levels.mixed,
    )
    with replacing_folder(folder) as temporary:
        InterMoEPipeline(pipeline_config, vae, denoiser, text, statistics).save_pretrained(temporary)
        run.write_config(temporary / "training.json", run.without_paths(config))


TRAINER = run.Training(DenoiserTrainConfig, run_denoiser, start="vae")
