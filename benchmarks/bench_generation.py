"""A whole generation: seconds for one second of motion. The shipped model from prompt to joints, and the published size
from noise to motion, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from intermoe.benchmarks import models
from intermoe.benchmarks.bench_denoiser import chaotic
from intermoe.benchmarks.forms import PERSONS, usable_backends
from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, test_case
from intermoe.diffusion import Sampler, sample
from intermoe.graphs import Graphs
from intermoe.motion.interhuman import FPS
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.systems.intermoe.vae import CausalSkeletalVAE

__all__ = ["cases", "test_case"]

PROMPT = "Two people dance salsa together."


class NoGraphs(Graphs):
    """The network's calls as they are."""

    def of(self, network: nn.Module, **options: Any) -> Callable[..., Tensor]:
        """``network`` itself."""
        return partial(network, **options)


def shipped(scope: Scope, frames: int, steps: int) -> Contest:
    pipeline = InterMoEPipeline.from_pretrained("duets", device=scope.device)
    captured = Graphs()

    def run(graphs: Graphs) -> Outputs:
        pipeline.graphs = graphs
        return (pipeline([PROMPT], num_frames=frames, num_inference_steps=steps, seed=0).joints,)

    names, skipped = usable_backends(scope.device, torch.float32)
    plain = partial(run, NoGraphs())
    entries = {name: models.on(name, plain) for name in (names if scope.all_backends else names[:1])}
    if scope.device.type == "cuda":
        entries[f"{names[0]}, captured"] = models.on(names[0], partial(run, captured))
    reference = models.on("reference", plain)
    return Contest(
        entries, lambda: reference(0), 10 * chaotic(torch.float32), skipped=skipped, seconds_of_motion=frames / FPS
    )


def published(scope: Scope, frames: int, steps: int) -> Contest:
    """Sampling with guidance and decoding; every entry starts from the same noise."""
    config = models.TINY if scope.quick else models.PUBLISHED
    denoiser = models.build_denoiser(config, torch.float32, scope.device)
    vae = CausalSkeletalVAE(VAEConfig(latent_dim=config.input_dim // 7)).eval().to(scope.device)
    text = torch.randn(1, config.text_dim, generator=torch.Generator().manual_seed(0)).to(scope.device)
    shape = (1, PERSONS, frames // 4, config.input_dim)
    sampler = Sampler(num_inference_steps=steps)
    baseline = models.with_published_blocks(denoiser)

    def run(network: Denoiser, graphs: Graphs) -> Outputs:
        latents = sample(graphs.of(network), text, shape, sampler, generators=[torch.Generator().manual_seed(0)])
        parts = latents.flatten(0, 1).unflatten(-1, (vae.latent_joints, -1))
        return (vae.decode(parts),)

    names, skipped = usable_backends(scope.device, torch.float32)
    entries = {names[0]: models.on(names[0], partial(run, denoiser, NoGraphs()))}
    if scope.device.type == "cuda":
        entries[f"{names[0]}, captured"] = models.on(names[0], partial(run, denoiser, Graphs()))
    if scope.all_backends:
        entries["authors' block"] = models.on("reference", partial(run, baseline, NoGraphs()))
    return Contest(entries, None, 0.0, skipped=skipped, seconds_of_motion=frames / FPS)


def cases(scope: Scope) -> Iterator[Case]:
    frames = 16 if scope.quick else 120
    for steps in (2,) if scope.quick else (10, 50):
        shape: dict[str, float] = {"frames": frames, "steps": steps}
        yield Case("generation", "shipped model", torch.float32, shape, partial(shipped, scope, frames, steps))
    frames = 16 if scope.quick else 300
    for steps in (10, 50) if scope.full or scope.device.type == "cuda" else (10,):
        shape = {"frames": frames, "steps": steps}
        yield Case("generation", "published size", torch.float32, shape, partial(published, scope, frames, steps))
