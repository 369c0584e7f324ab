"""One training step, from the batch to the moved weights: denoiser and VAE.

Dropout is off, so that every entry computes the same loss; each entry trains its own copy of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.forms import PERSONS, usable_backends
from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, test_case, tolerance
from intermoe.diffusion import DiffusionConfig, build_scheduler, training_loss
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE
from intermoe.train.graphs import TrainingGraph

__all__ = ["cases", "test_case"]


class Trainee:
    """A network with its optimiser, as the published model trains: gradients clipped by value, AdamW."""

    def __init__(self, module: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        self.module, self.loss = module, loss
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=2e-5, fused=True)

    def step(self) -> Outputs:
        """The loss before the step."""
        self.optimizer.zero_grad()
        loss = self.loss(self.module)
        loss.backward()
        nn.utils.clip_grad_value_(self.module.parameters(), 1.0)
        self.optimizer.step()
        return (loss.detach(),)


def denoiser(scope: Scope, layers: int, batch: int) -> Contest:
    """Diffusion loss on unpadded latents; the selection stays settled, so that every step is as much work."""
    config = models.TINY if scope.quick else replace(models.PUBLISHED, num_layers=layers)
    built = models.build_denoiser(config, torch.float32, scope.device).train()
    latents, _, text = models.denoiser_inputs(config, batch, PERSONS, models.FRAMES, torch.float32, scope.device)
    timesteps = torch.linspace(0, 999, batch).long().to(scope.device)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2)).to(scope.device)
    scheduler = build_scheduler("ddpm", DiffusionConfig())

    def loss(module: Any) -> Tensor:
        return training_loss(module, latents, text, None, scheduler=scheduler, timesteps=timesteps, noise=noise)

    def entry(trainee: Trainee, backend: str) -> Callable[[int], Outputs]:
        def call(_: int) -> Outputs:
            with backends.use(backend):
                return trainee.step()

        return call

    names, skipped = usable_backends(scope.device, torch.float32)
    with torch.no_grad(), backends.use("reference"):
        expected = loss(built)
    published = models.with_published_blocks(built, share=False)
    entries = {
        names[0]: entry(Trainee(built, loss), names[0]),
        "authors' block": entry(Trainee(published, loss), "reference"),
    }
    if scope.device.type == "cuda":
        twin = copy.deepcopy(built)
        graph = TrainingGraph(lambda *given: (twin(*given),), twin)
        replayed = Trainee(twin, lambda _: loss(lambda x, timesteps, text, _: graph(x, timesteps, text)[0]))
        entries[f"{names[0]}, captured"] = entry(replayed, names[0])
    tokens = batch * PERSONS * models.FRAMES
    return Contest(entries, lambda: (expected,), tolerance(torch.float32), tokens=tokens, skipped=skipped)


def vae(scope: Scope, batch: int) -> Contest:
    """Windows of 64 frames, as the published model trains."""
    torch.manual_seed(0)
    config = VAEConfig(latent_dim=4, num_blocks=1, dropout=0.0) if scope.quick else VAEConfig(dropout=0.0)
    built = CausalSkeletalVAE(config).train().to(scope.device)
    motion = torch.randn(batch, 64, 262, generator=torch.Generator().manual_seed(1)).to(scope.device)

    def loss(module: Any) -> Tensor:
        mean = module.encode(motion)
        reconstruction = module.decode(mean.mode())
        return (reconstruction - motion).square().mean() + 0.02 * mean.kl()

    with torch.no_grad():
        expected = loss(built)
    trainee = Trainee(built, loss)
    return Contest({"whole": lambda _: trainee.step()}, lambda: (expected,), tolerance(torch.float32))


def cases(scope: Scope) -> Iterator[Case]:
    """On a CPU the denoiser has two of its eight layers, unless the run is a full one."""
    cuda = scope.device.type == "cuda"
    layers, batch = (8, 64) if cuda else (8, 4) if scope.full else (2, 4)
    shape: dict[str, float] = {"B": batch, "T'": models.FRAMES, "layers": layers}
    yield Case("training", "denoiser step", torch.float32, shape, lambda: denoiser(scope, layers, batch))
    windows = 256 if cuda else 16
    yield Case("training", "vae step", torch.float32, {"B": windows, "frames": 64}, lambda: vae(scope, windows))
