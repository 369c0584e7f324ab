"""A model of in2IN: InterGen's pipeline around another network, guided by four passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from intermoe.config import check_guidance
from intermoe.control.known import Control
from intermoe.pipeline import Progress
from intermoe.systems.in2in.config import In2INModelConfig
from intermoe.systems.in2in.guidance import FourPasses
from intermoe.systems.in2in.network import In2IN
from intermoe.systems.in2in.texts import split_texts
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intergen.pipeline import RawMotionPipeline


class In2INPipeline(RawMotionPipeline):
    """A model of in2IN. A prompt is the interaction's, which every person gets as their own too, or all three texts:
    ``"they bow to each other | one person bows deeply | one person nods"``.
    """

    config_type = In2INModelConfig
    tells_persons = True
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
        weights = dataclasses.replace(self.config.guidance, everything=check_guidance(guidance_scale))
        denoiser = FourPasses(self.network, weights) if guidance_scale > 1 else self.network
        return self._sample(denoiser, prompts, lengths, seeds, num_inference_steps, 1.0, scheduler, control, progress)

    @staticmethod
    def split_prompt(prompt: str, persons: int) -> list[str]:
        """The interaction's text and every person's; see ``split_texts``."""
        return split_texts(prompt, persons)

    @property
    def text_shape(self) -> tuple[int, ...]:
        """Shape of one sample's text condition."""
        return (1 + self.representation.persons, self.config.network.text_dim)
