"""Pipelines of systems that diffuse motion itself: a text encoder, a network and the statistics of its columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from intermoe.control.known import Control, known_latents
from intermoe.diffusion import SCHEDULERS, Sampler, build_scheduler, sample
from intermoe.hub import CONFIG_FILE, WEIGHTS_FILE
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import MotionPipeline, Progress, check_batch
from intermoe.pipeline.system import check_level
from intermoe.seeds import generator_of
from intermoe.systems.files import read_text_encoder, read_weights, to_be_filled, write_model
from intermoe.systems.intergen.config import InterGenConfig, InterGenModelConfig, RawMotionConfig
from intermoe.systems.intergen.network import InterGen
from intermoe.text.protocol import TextEncoder


class RawMotionPipeline(MotionPipeline):
    """What systems that diffuse motion itself share; each says its configuration and its network.

    Args:
        config: the model's configuration.
        network, text_encoder: its parts.
        statistics: of its motion columns.

    Attributes:
        entries: frames of what the network diffuses that stand in front of the motion.
        tells_persons: whether a prompt may describe each person beside what happens between them.
    """

    schedulers = SCHEDULERS
    controls: ClassVar[tuple[str, ...]] = ("known",)
    entries: ClassVar[int] = 0
    tells_persons: ClassVar[bool] = False
    config: RawMotionConfig

    def __init__(
        self, config: RawMotionConfig, network: nn.Module, text_encoder: TextEncoder, statistics: Statistics
    ) -> None:
        self.config = config
        self.representation = REPRESENTATIONS["interhuman"]
        self.network = network.eval()
        self.text_encoder = text_encoder.eval()
        self.statistics = statistics

    @staticmethod
    @abstractmethod
    def build_network(config: Any) -> nn.Module:
        """The system's network, freshly drawn."""

    @classmethod
    def load(cls, folder: Path) -> RawMotionPipeline:
        """See ``MotionPipeline.load``."""
        config = cls.config_type.load(folder / CONFIG_FILE)
        if not isinstance(config, RawMotionConfig):
            raise TypeError(f"config_type: expected a RawMotionConfig, got {type(config).__name__}")
        text_encoder = read_text_encoder(folder, config.text)
        with to_be_filled(folder / WEIGHTS_FILE):
            network = cls.build_network(config.network)
        parts = {"network": network, "text": text_encoder}
        statistics = read_weights(folder, parts, columns=config.network.input_dim)
        return cls(config, network, text_encoder, statistics)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """See ``MotionPipeline.save_pretrained``."""
        write_model(folder, self.config, self.modules, self.statistics, self.text_encoder.tokenizer_json, dtype)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Network and text encoder."""
        return {"network": self.network, "text": self.text_encoder}

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
        return self._sample(
            self.network, prompts, lengths, seeds, num_inference_steps, guidance_scale, scheduler, control, progress
        )

    def _sample(
        self,
        denoiser: Callable[..., Tensor],
        prompts: Sequence[str],
        lengths: Sequence[int],
        seeds: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        scheduler: str | None,
        control: Control | None,
        progress: Progress | None,
    ) -> list[Tensor]:
        if control is not None:
            self.check_control(control, max(lengths))
        check_batch(prompts, lengths, seeds)
        generators = [generator_of(seed) for seed in seeds]
        rows = [self.entries + length for length in lengths]
        shape = (len(prompts), self.representation.persons, max(rows), self.config.network.input_dim)
        noise = torch.zeros(shape)
        for row, count, generator in zip(noise, rows, generators, strict=True):
            row[:, :count] = torch.randn((shape[1], count, shape[3]), generator=generator)
        valid = torch.arange(max(rows)) < torch.tensor(rows)[:, None]
        given = [control.place(self.representation, length, shape[1]) for length in lengths] if control else []
        made = sample(
            denoiser,
            self.condition(prompts),
            shape,
            Sampler(
                self.config.diffusion,
                self.schedulers[0] if scheduler is None else scheduler,
                num_inference_steps,
                guidance_scale,
            ),
            mask=None if valid.all() else valid.to(self.device),
            generators=generators,
            noise=noise,
            known=known_latents(
                given,
                lambda motion: self.statistics.normalise(self.statistics.familiar(motion).to(self.device)),
                1,
                by_levels=False,
                resampling=control.resampling,
            )
            if control
            else None,
            callback=progress,
        )
        motion = self.to_motion(made.cpu())
        motions = [row[:, :length].clone() for row, length in zip(motion, lengths, strict=True)]
        return [each.paste(motion) for each, motion in zip(given, motions, strict=True)] if given else motions

    @staticmethod
    def split_prompt(prompt: str, persons: int) -> list[str]:
        """The texts of a prompt, each encoded on its own. Raises ``ValueError`` for a prompt that cannot be split."""
        return [prompt]

    @classmethod
    def embed(cls, encoder: nn.Module, prompts: Sequence[str], persons: int) -> Tensor:
        """The network's text condition of B prompts for so many persons: (B, C), or (B, N, C) of N texts each."""
        texts = [text for prompt in prompts for text in cls.split_prompt(prompt, persons)]
        condition: Tensor = encoder(texts)
        return condition if len(texts) == len(prompts) else condition.unflatten(0, (len(prompts), -1))

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """The network's text condition of B prompts: (B, *text_shape)."""
        return self.embed(self.text_encoder, prompts, self.representation.persons).to(self.dtype)

    @property
    def text_shape(self) -> tuple[int, ...]:
        """Shape of one sample's text condition."""
        return (self.config.network.text_dim,)

    def to_motion(self, x: Tensor) -> Tensor:
        """What the network makes, (B, P, entries + T, X), as motion (B, P, T, X)."""
        return self.statistics.denormalise(x)

    def from_motion(self, motion: Tensor) -> Tensor:
        """Motion (B, P, T, X) as the network sees it, (B, P, entries + T, X)."""
        return self.statistics.normalise(motion)

    @torch.no_grad()
    def denoise_once(self, motion: Tensor, level: float, *, prompt: str = "", seed: int = 0) -> int:
        """See ``MotionPipeline.denoise_once``."""
        clean = self.from_motion(motion[None].to(self.device))
        noise = torch.randn(clean.shape, generator=generator_of(seed)).to(clean)
        timestep = int(check_level(level) * self.config.diffusion.num_train_timesteps)
        timesteps = torch.tensor([timestep], device=clean.device)
        noisy = build_scheduler("ddpm", self.config.diffusion).add_noise(clean, noise, timesteps)
        text = self.condition([prompt]) if prompt else torch.zeros(1, *self.text_shape).to(clean)
        self.network(noisy, timesteps, text)
        return timestep

    def check(self, prompts: Sequence[str], num_frames: int) -> None:
        """See ``MotionPipeline.check``."""
        super().check(prompts, num_frames)
        persons = self.representation.persons
        self.text_encoder.check([text for prompt in prompts for text in self.split_prompt(prompt, persons)])

    def unknown_words(self, prompt: str) -> list[str]:
        """See ``TextEncoder.unknown_words``."""
        return self.text_encoder.unknown_words(prompt)


class InterGenPipeline(RawMotionPipeline):
    """A model of InterGen."""

    config_type = InterGenModelConfig

    @staticmethod
    def build_network(config: InterGenConfig) -> nn.Module:
        """InterGen's network, freshly drawn."""
        return InterGen(config)
