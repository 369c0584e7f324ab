from __future__ import annotations

import pytest
import torch

from intermoe.nn.latent_space import LatentSpace
from intermoe.nn.vae import LatentDistribution


def varied(count: int, rank: int, width: int) -> torch.Tensor:
    """Latents (count, width) that vary in ``rank`` directions by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:rank]
    return torch.randn(count, rank, generator=generator) * torch.logspace(1, -1, rank) @ mixing + 3.0


def test_coordinates_are_uncorrelated_and_of_the_root_of_their_size() -> None:
    latents = varied(5000, 6, 10)
    space = LatentSpace.fit(latents, 6)
    coordinates = space.coordinates(LatentDistribution(latents, torch.zeros_like(latents))).mean
    assert coordinates.mean(dim=0).abs().max() < 1e-3
    expected = torch.diag(torch.logspace(1, -1, 6))
    torch.testing.assert_close(coordinates.T @ coordinates / 5000, expected, rtol=0.1, atol=0.05)
    torch.testing.assert_close(space.coordinate_std.square(), torch.logspace(1, -1, 6), rtol=0.05, atol=0)


def test_latents_come_back() -> None:
    latents = varied(200, 4, 10)
    space = LatentSpace.fit(latents, 4)
    coordinates = space.coordinates(LatentDistribution(latents, torch.zeros_like(latents))).mean
    torch.testing.assert_close(space.latents(coordinates.view(2, 100, 4)).view(200, 10), latents)


def test_variances_are_those_of_samples() -> None:
    space = LatentSpace.fit(varied(200, 4, 10), 4)
    posterior = LatentDistribution(torch.ones(10), torch.linspace(-4, 1, 10))
    generator = torch.Generator().manual_seed(0)
    drawn = posterior.mean + torch.exp(0.5 * posterior.log_var) * torch.randn(20_000, 10, generator=generator)
    samples = space.coordinates(LatentDistribution(drawn, torch.zeros_like(drawn))).mean
    found = space.coordinates(posterior)
    torch.testing.assert_close(samples.var(dim=0), found.log_var.exp(), rtol=0.05, atol=0)


def test_more_directions_than_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="need more latent frames than 5"):
        LatentSpace.fit(torch.randn(5, 10), 5)
    with pytest.raises(ValueError, match=r"rank: must be in \[1, width=10\], got 11"):
        LatentSpace(10, 11)
