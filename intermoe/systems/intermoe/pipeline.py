"""InterMoEPipeline: a text encoder, a denoiser and an autoencoder that belong together; loading and saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.control.known import Control, Given, known_latents
from intermoe.control.targets import Aims
from intermoe.diffusion import SCHEDULERS, GuidedApart, Sampler, build_scheduler, distilled, sample, scaled_input
from intermoe.graphs import Graphs
from intermoe.hub import CONFIG_FILE, WEIGHTS_FILE
from intermoe.motion.apart import with_bodies_apart
from intermoe.motion.bones import bone_lengths, hold_bone_lengths, with_rigid_bones
from intermoe.motion.feet import with_planted_feet
from intermoe.motion.floor import with_persons_on_floor
from intermoe.motion.smooth import with_smooth_joints
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import MotionPipeline, Progress, check_batch
from intermoe.pipeline.system import check_level
from intermoe.seeds import generator_of
from intermoe.systems.files import read_text_encoder, read_weights, to_be_filled, write_model
from intermoe.systems.intermoe.between import Between
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.systems.intermoe.config import PipelineConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.vae import CausalSkeletalVAE
from intermoe.text.protocol import TextEncoder

if TYPE_CHECKING:
    from typing_extensions import Self


class InterMoEPipeline(MotionPipeline):
    """A text encoder, a denoiser and an autoencoder that belong together.

    Args:
        config: the model's configuration.
        vae, denoiser, text_encoder: its parts.
        statistics: of its motion columns.
        between: fills short gaps between given frames; a part if ``config.between`` has a width.

    Attributes:
        graphs: on a GPU the denoiser's captured calls, which are replayed (``intermoe.graphs``).
    """

    config_type = PipelineConfig
    schedulers = SCHEDULERS
    controls = ("known", "targets")
    config: PipelineConfig

    def __init__(
        self,
        config: PipelineConfig,
        vae: CausalSkeletalVAE,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        statistics: Statistics,
        between: Between | None = None,
    ) -> None:
        if (between is None) != (config.between.width == 0):
            raise ValueError(f"between: expected a network of width {config.between.width}, got {between!r}")
        self.config = config
        self.representation = vae.representation
        self.codec = LatentCodec(vae, statistics)
        self.vae = vae
        self.frame_multiple = vae.downsampling
        self.trained_with_levels = config.levels
        self.denoiser = denoiser.eval()
        self.text_encoder = text_encoder.eval()
        self.statistics = statistics
        self.between = None if between is None else between.eval()
        self.graphs = Graphs()

    @classmethod
    def load(cls, folder: Path) -> InterMoEPipeline:
        """See ``MotionPipeline.load``."""
        config = PipelineConfig.load(folder / CONFIG_FILE)
        text_encoder = read_text_encoder(folder, config.text)
        with to_be_filled(folder / WEIGHTS_FILE):
            vae, denoiser = CausalSkeletalVAE(config.vae), Denoiser(config.denoiser)
            between = Between(config.between) if config.between.width else None
        parts = _named(vae, denoiser, text_encoder, between)
        statistics = read_weights(folder, parts, columns=vae.representation.frame_shape[-1])
        return cls(config, vae, denoiser, text_encoder, statistics, between)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and, for an own tokenizer, tokenizer.json; each whole or not at all.

        Args:
            folder: made if absent.
            dtype: storage type of the weights (``torch.float16`` halves the file); the statistics and the selection
                biases stay in float32. Loading gives float32 weights in any case.
        """
        write_model(folder, self.config, self.modules, self.statistics, self.text_encoder.tokenizer_json, dtype)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """See ``MotionPipeline.to``. Memory of captured calls is given back."""
        self.graphs.forget()
        return super().to(device, dtype)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Autoencoder, denoiser, text encoder and, where there is one, what fills gaps."""
        return _named(self.vae, self.denoiser, self.text_encoder, self.between)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        lengths: Sequence[int],
        seeds: Sequence[int],
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.5,
        scheduler: str | None = None,
        control: Control | None = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """See ``MotionPipeline.sample``."""
        check_batch(prompts, lengths, seeds)
        frames = [-(-length // self.vae.downsampling) for length in lengths]
        persons, width = self.representation.persons, self.config.denoiser.input_dim
        generators = [generator_of(seed) for seed in seeds]
        noise = torch.zeros(len(prompts), max(frames), persons, width)
        for row, count, generator in zip(noise, frames, generators, strict=True):
            row[:count] = torch.randn((count, persons, width), generator=generator)
        valid = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
        given = [control.place(self.representation, length, persons) for length in lengths] if control else []
        aims = control.aims if control else None
        known = None
        if control and control.known:
            estimates = self.between is not None and control.estimate_gaps and aims is None
            known = known_latents(
                [each.with_gaps(cast(Between, self.between).filled) for each in given] if estimates else given,
                lambda motion: self.encode(self.statistics.familiar(motion).to(self.device)),
                self.vae.downsampling,
                by_levels=self.trained_with_levels,
                resampling=control.resampling,
            )

        def steer(estimate: Tensor) -> Tensor:
            steered = estimate.clone()
            for row, each, count in zip(steered, given, frames, strict=True):
                row[:, :count] = cast(Aims, aims).step(row[:, :count], self._joints_of(each))
            return steered

        sampler = Sampler(
            self.config.diffusion,
            self.schedulers[0] if scheduler is None else scheduler,
            num_inference_steps,
            guidance_scale,
        )
        plain = self.graphs.of(self.denoiser)
        denoise: Callable[..., Tensor] | GuidedApart = plain
        if known is None and self._is_distilled_for(sampler):  # shortcuts were learned at the guided timesteps
            sampler = distilled(self.config.diffusion, num_inference_steps, guidance_scale)
            denoise = GuidedApart(self.graphs.of(self.denoiser, shortcut=True), plain)
        latents = sample(
            denoise,
            self.text_encoder(prompts).to(self.dtype),
            (len(prompts), persons, max(frames), width),
            sampler,
            mask=None if valid.all() else valid.to(self.device),
            generators=generators,
            noise=rearrange(noise, "b t p x -> b p t x"),
            known=known,
            steer=None if aims is None else steer,
            callback=progress,
        )
        if aims is not None:
            free = ~known.where if known is not None else None
            for row, (each, count) in enumerate(zip(given, frames, strict=True)):
                moved = None if free is None else free[row, :, :count]
                latents[row, :, :count] = aims.refine(latents[row, :, :count], self._joints_of(each), moved)
        # each alone: bones and feet are straightened over all frames that are decoded together, padding included
        apart = self.config.bodies_apart and not (aims is not None and aims.targets)
        motions = []
        for index, (row, count, length) in enumerate(zip(latents, frames, lengths, strict=True)):
            kept = given[index] if given else None
            bones = kept.bone_lengths() if kept is not None and self.config.rigid_bones else None
            motion = self._held(self.codec.decode(row[None, :, :count])[0].cpu(), bones)
            if self.config.on_floor:
                motion = with_persons_on_floor(motion)
            if self.config.planted_feet:
                motion = with_planted_feet(motion)
            motion = motion[:, :length].clone()
            reacts = False
            if kept is not None:
                own = None if bones is None else _known_or_own(bones, self.representation.joints(motion))
                motion = kept.paste(motion)
                motion = motion if own is None else kept.with_rigid_bones(motion, own)
                reacts = bool((kept.where.any(dim=0) & ~kept.where.all(dim=0)).any())
            if apart and not reacts:  # who reacts may touch
                motion = with_bodies_apart(motion, None if kept is None else kept.where)
            motions.append(motion)
        return motions

    def _is_distilled_for(self, sampler: Sampler) -> bool:
        shortcut = self.config.denoiser.shortcut
        own = (self.schedulers[0], shortcut.steps, shortcut.guidance_scale)
        return own == (sampler.scheduler, sampler.num_inference_steps, sampler.guidance_scale)

    def _joints_of(self, given: Given) -> Callable[[Tensor], Tensor]:
        """Latents (P, T', X) of a motion to its joints (P, T, 22, 3), those that are given in their place."""
        count = given.where.shape[1]
        fixed = self.representation.joints(given.motion).to(self.device)
        where = given.where.to(self.device)[..., None, None]
        bones = given.bone_lengths().to(self.device) if self.config.rigid_bones else None

        def joints_of(latents: Tensor) -> Tensor:
            joints = self.representation.joints(self.codec.decode_with_gradients(latents[None])[0])
            if bones is not None:
                joints = hold_bone_lengths(joints, _known_or_own(bones, joints))
            return torch.where(where, fixed, joints[:, :count])

        return joints_of

    def encode(self, motion: Tensor) -> Tensor:
        """Motion (B, P, T, ...), T a multiple of 4, to the mean of its latents (B, P, T / 4, X)."""
        return self.codec.encode(motion).mode()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, P, T', X) to motion (B, P, 4T', ...), float32 on CPU, smooth and rigid as configured."""
        return self._held(self.codec.decode(latents).cpu())

    def _held(self, motion: Tensor, bones: Tensor | None = None) -> Tensor:
        """Decoded motion (..., P, T, X), smooth and rigid, with ``bones`` (P, 21) where these are no NaN."""
        if self.config.smooth:
            motion = with_smooth_joints(motion)
        if self.config.rigid_bones:
            own = None if bones is None else _known_or_own(bones, self.representation.joints(motion))
            motion = with_rigid_bones(motion, own)
        return motion

    @torch.no_grad()
    def denoise_once(self, motion: Tensor, level: float, *, prompt: str = "", seed: int = 0) -> int:
        """See ``MotionPipeline.denoise_once``."""
        latents = self.encode(motion[None].to(self.device)).to(self.dtype)
        noise = torch.randn(latents.shape, generator=generator_of(seed)).to(latents)
        timestep = int(check_level(level) * self.config.diffusion.num_train_timesteps)
        timesteps = torch.tensor([timestep], device=latents.device)
        scheduler = build_scheduler("ddpm", self.config.diffusion)
        scale = self.config.diffusion.latent_scale
        noisy = scheduler.add_noise(scale * latents, noise, timesteps)
        if self.config.diffusion.scale_input:
            noisy = scaled_input(scheduler, noisy, timesteps, scale)
        text = self.text_encoder([prompt]) if prompt else torch.zeros(1, self.config.denoiser.text_dim).to(latents)
        self.denoiser(noisy, timesteps, text)
        return timestep

    def check(self, prompts: Sequence[str], num_frames: int) -> None:
        """See ``MotionPipeline.check``. Parts may be used alone, but a motion needs parts that belong together."""
        super().check(prompts, num_frames)
        width, got = self.vae.latent_joints * self.config.vae.latent_dim, self.config.denoiser.input_dim
        if got != width:
            raise ValueError(f"denoiser.input_dim: expected {width} for this vae, got {got}")
        self.text_encoder.check(prompts)

    def unknown_words(self, prompt: str) -> list[str]:
        """See ``TextEncoder.unknown_words``."""
        return self.text_encoder.unknown_words(prompt)


def _named(
    vae: CausalSkeletalVAE, denoiser: Denoiser, text_encoder: TextEncoder, between: Between | None
) -> dict[str, nn.Module]:
    """The parts with weights by the names that the model's file has."""
    parts: dict[str, nn.Module] = {"vae": vae, "denoiser": denoiser, "text": text_encoder}
    return parts if between is None else {**parts, "between": between}


def _known_or_own(bones: Tensor, joints: Tensor) -> Tensor:
    """Lengths (P, 21) of bones that are known, and where these are NaN those of joints (P, T, 22, 3)."""
    return torch.where(bones.isnan(), bone_lengths(joints), bones)
