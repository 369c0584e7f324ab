"""A model of in2IN: InterGen's pipeline around another network, guided by four passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from intermoe.control.known import Control
from intermoe.pipeline import Progress
from intermoe.systems.in2in.config import In2INModelConfig
from intermoe.systems.in2in.guidance import FourPasses
from intermoe.systems.in2in.network import In2IN
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intergen.pipeline import RawMotionPipeline

SEPARATOR = "|"


class In2INPipeline(RawMotionPipeline):
    """A model of in2IN. A prompt is the interaction's, which every person gets as their own too, or all three texts:
    ``"they bow to each other | one person bows deeply | one person nods"``.
    """

    config_type = In2INModelConfig
    config: In2INModelConfig

    @staticmethod
    def build_network(config: InterGenConfig) -> nn.Module:
        """in2IN's network, freshly drawn."""
        return In2IN(config)

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
        """See ``MotionPipeline.sample``; ``guidance_scale`` is the weight of the pass with every text."""
        if guidance_scale < 1:
            raise ValueError(f"guidance_scale: must be >= 1, got {guidance_scale}")
        weights = dataclasses.replace(self.config.guidance, everything=guidance_scale)
        denoiser = FourPasses(self.network, weights) if guidance_scale > 1 else self.network
        return self._sample(denoiser, prompts, lengths, seeds, num_inference_steps, 1.0, scheduler, control, progress)

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """(B, 1 + P, C): of the interaction, then of every person."""
        texts = [text for prompt in prompts for text in self.texts(prompt)]
        condition: Tensor = self.text_encoder(texts).to(self.dtype)
        return condition.unflatten(0, (len(prompts), -1))

    @property
    def text_shape(self) -> tuple[int, ...]:
        """Shape of one sample's text condition."""
        return (1 + self.representation.persons, self.config.network.text_dim)

    def texts(self, prompt: str) -> list[str]:
        """The interaction's text and every person's. Raises ``ValueError`` for another number of them, or none."""
        persons = self.representation.persons
        texts = [text.strip() for text in prompt.split(SEPARATOR)]
        if len(texts) == 1:
            return texts * (1 + persons)
        if len(texts) != 1 + persons or not all(texts):
            raise ValueError(
                f"prompts: expected one text, or {1 + persons} with {SEPARATOR!r} between them, got {prompt!r}"
            )
        return texts

    def check(self, prompts: Sequence[str], num_frames: int) -> None:
        """See ``MotionPipeline.check``."""
        super().check(prompts, num_frames)
        self.text_encoder.check([text for prompt in prompts for text in self.texts(prompt)])
