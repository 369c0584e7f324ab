"""Causal-Skeletal VAE at full size: 300 frames of one person, whole and streamed, and one training step."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from intermoe.config import VAEConfig
from intermoe.nn.vae import CausalSkeletalVAE


@pytest.fixture(scope="module")
def vae() -> CausalSkeletalVAE:
    torch.manual_seed(0)
    return CausalSkeletalVAE(VAEConfig()).eval()


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(1, 75, 7, 64, generator=torch.Generator().manual_seed(0))


def stream(vae: CausalSkeletalVAE, latents: Tensor) -> Tensor:
    decoder = vae.streaming_decoder()
    return torch.cat([decoder.step(latent) for latent in latents.unbind(1)], dim=1)


@torch.no_grad()
def test_decode_whole(vae: CausalSkeletalVAE, latents: Tensor, benchmark: BenchmarkFixture) -> None:
    expected = stream(vae, latents)
    assert ((vae.decode(latents) - expected).norm() / expected.norm()).item() < 1e-5
    benchmark(vae.decode, latents)


@torch.no_grad()
def test_decode_streamed(vae: CausalSkeletalVAE, latents: Tensor, benchmark: BenchmarkFixture) -> None:
    expected = vae.decode(latents)
    assert ((stream(vae, latents) - expected).norm() / expected.norm()).item() < 1e-5
    benchmark(stream, vae, latents)


@torch.no_grad()
def test_encode_whole(vae: CausalSkeletalVAE, benchmark: BenchmarkFixture) -> None:
    motion = torch.randn(1, 300, 262)
    first = vae.encode(motion[:, :4]).mean
    assert ((vae.encode(motion).mean[:, :1] - first).norm() / first.norm()).item() < 1e-5
    benchmark(vae.encode, motion)


@pytest.mark.parametrize("latent_dim", [32, 64])
def test_training_step(latent_dim: int, benchmark: BenchmarkFixture) -> None:
    """Forward and backward of 16 windows of 64 frames."""
    vae = CausalSkeletalVAE(VAEConfig(latent_dim=latent_dim, dropout=0.0)).train()
    motion = torch.randn(16, 64, 262)

    def step() -> Tensor:
        vae.zero_grad()
        reconstruction, posterior = vae(motion)
        loss = (reconstruction - motion).square().mean() + 0.02 * posterior.kl()
        loss.backward()
        return loss.detach()

    assert step().isfinite()
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
