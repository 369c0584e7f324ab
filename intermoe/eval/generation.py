"""Motion of different lengths in one batch, each sample the same whatever shares its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intermoe.diffusion import build_scheduler, sample

if TYPE_CHECKING:
    from intermoe.systems.intermoe.pipeline import InterMoEPipeline


@torch.no_grad()
def generate(
    pipeline: InterMoEPipeline,
    prompts: Sequence[str],
    lengths: Sequence[int],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 3.5,
    scheduler: str = "ddim",
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """One motion (lengths[i], P, ...) for each prompt, float32 on CPU, in the data's representation.

    Latent frames beyond a motion's own are masked; its noise depends on its seed and length alone. So a sample depends
    on the others of its batch by rounding only (but for the stochastic scheduler "ddpm").
    """
    if not len(prompts) == len(lengths) == len(seeds):
        raise ValueError(f"lengths, seeds: expected {len(prompts)} of each, got {len(lengths)} and {len(seeds)}")
    frames = [-(-length // pipeline.vae.downsampling) for length in lengths]
    shape = (max(frames), pipeline.representation.persons, pipeline.config.denoiser.input_dim)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.zeros(len(prompts), *shape)
    for row, count, generator in zip(noise, frames, generators, strict=True):
        row[:count] = torch.randn((count, *shape[1:]), generator=generator)
    device = pipeline.device
    latents = sample(
        pipeline.denoiser,
        pipeline.text_encoder(prompts),
        (len(prompts), *shape),
        scheduler=build_scheduler(scheduler, pipeline.config.diffusion),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        latent_scale=pipeline.config.diffusion.latent_scale,
        guidance_until=pipeline.config.diffusion.guidance_until,
        mask=torch.arange(shape[0], device=device) < torch.tensor(frames, device=device)[:, None],
        generators=generators,
        noise=noise,
        callback=progress,
    )
    # each alone: bones and feet are straightened over all frames that are decoded together, padding included
    decoded = (pipeline.decode(row[None, :count])[0] for row, count in zip(latents, frames, strict=True))
    return [motion.transpose(0, 1)[:length].clone() for motion, length in zip(decoded, lengths, strict=True)]
