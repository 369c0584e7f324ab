"""Principal coordinates of latents, which a small denoiser learns faster than the latents themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intermoe.nn.vae import LatentDistribution


class LatentSpace(nn.Module):
    """y_k = v_k . (z - mean) / sqrt(std_k): the ``rank`` directions v_k in which latents z vary most, and how much.

    An autoencoder's latents vary by orders of magnitude more in some directions than in others. The first outlast
    almost any noise, so that the text has nothing to tell, and the last drown in the least. Coordinates divided by
    their standard deviation would count an error of a detail like one of the place; the root lies between.

    Args:
        width: of the latents of one person and frame. rank: number of coordinates, at most ``width``.
    """

    mean: Tensor
    directions: Tensor
    std: Tensor

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        if not 1 <= rank <= width:
            raise ValueError(f"rank: must be in [1, width={width}], got {rank}")
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("directions", torch.eye(rank, width))
        self.register_buffer("std", torch.ones(rank))

    @classmethod
    def fit(cls, latents: Tensor, rank: int) -> LatentSpace:
        """The space of latents (N, width), N > ``rank``."""
        if len(latents) <= rank:
            raise ValueError(f"latents: principal directions of {rank} need more latent frames than {len(latents)}")
        space = cls(latents.shape[1], rank)
        centred = latents.double() - latents.double().mean(dim=0)
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(latents))  # ascending
        space.mean.copy_(latents.mean(dim=0))
        space.directions.copy_(directions.T.flip(0)[:rank])
        space.std.copy_(variances.flip(0)[:rank].clamp(min=1e-12).sqrt())
        return space

    @property
    def coordinate_std(self) -> Tensor:
        """Standard deviations (rank,) of the coordinates."""
        return self.std.sqrt()

    def coordinates(self, posterior: LatentDistribution) -> LatentDistribution:
        """The distribution of the coordinates (..., rank) of latents (..., width), each alone."""
        to = self.directions / self.std.sqrt()[:, None]
        variance = posterior.log_var.exp() @ to.square().T
        return LatentDistribution((posterior.mean - self.mean) @ to.T, variance.clamp(min=1e-30).log())

    def latents(self, coordinates: Tensor) -> Tensor:
        """Latents (..., width) of coordinates (..., rank)."""
        return (coordinates * self.std.sqrt()) @ self.directions + self.mean
