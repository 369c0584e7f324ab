"""Causal-Skeletal VAE at the published size: 300 frames of one person, encoded, decoded at once and as a stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from intermoe.benchmarks import models
from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, test_case, tolerance
from intermoe.motion.interhuman import FPS
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE

__all__ = ["cases", "test_case"]


def build(scope: Scope) -> CausalSkeletalVAE:
    torch.manual_seed(0)
    config = VAEConfig(latent_dim=4, num_blocks=1) if scope.quick else VAEConfig()
    return CausalSkeletalVAE(config).eval().to(scope.device)


def stream(vae: CausalSkeletalVAE, latents: Tensor) -> Tensor:
    """Decode one latent frame after the other."""
    decoder = vae.streaming_decoder()
    return torch.cat([decoder.step(latent) for latent in latents.unbind(1)], dim=1)


def decoding(scope: Scope, frames: int) -> Contest:
    """Both ways give the same motion, so each checks the other."""
    vae = build(scope)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, frames // vae.downsampling, vae.latent_joints, vae.config.latent_dim, generator=generator)
    latents = latents.to(scope.device)

    @torch.no_grad()
    def whole(_: int) -> Outputs:
        return (vae.decode(latents),)

    @torch.no_grad()
    def streamed(_: int) -> Outputs:
        return (stream(vae, latents),)

    with torch.no_grad():
        work = models.counted(lambda: vae.decode(latents), vae)
    return Contest(
        entries={"whole": whole, "stream": streamed},
        expected=lambda: streamed(0),
        tolerance=tolerance(torch.float32),
        work=work,
        seconds_of_motion=frames / FPS,
    )


def encoding(scope: Scope, frames: int) -> Contest:
    """A causal encoder gives the first half of a sequence the same latents, whatever follows."""
    vae = build(scope)
    motion = torch.randn(1, frames, 262, generator=torch.Generator().manual_seed(0)).to(scope.device)
    half = frames // 2 // vae.downsampling * vae.downsampling

    @torch.no_grad()
    def whole(_: int) -> Outputs:
        return (vae.encode(motion).mean,)

    @torch.no_grad()
    def expected() -> Outputs:
        rest = whole(0)[0][:, half // vae.downsampling :]
        return (torch.cat([vae.encode(motion[:, :half]).mean, rest], dim=1),)

    with torch.no_grad():
        work = models.counted(lambda: vae.encode(motion), vae)
    return Contest({"whole": whole}, expected, tolerance(torch.float32), work, seconds_of_motion=frames / FPS)


def cases(scope: Scope) -> Iterator[Case]:
    frames = 16 if scope.quick else 300
    shape: dict[str, float] = {"frames": frames}
    yield Case("vae", "decode", torch.float32, shape, lambda: decoding(scope, frames))
    yield Case("vae", "encode", torch.float32, shape, lambda: encoding(scope, frames))
