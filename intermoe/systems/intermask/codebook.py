"""The vectors that InterMask's features are rounded to, moved by averages instead of gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_REPLACEMENT_NOISE = 0.01
_SMALL_SHARE = 1e-7


class Codebook(nn.Module):
    """``num_codes`` vectors; each is the moving average of the features that were rounded to it (Razavi et al. 2019).

    The averages of counts and sums are part of ``state_dict()``, so that training resumes where it stopped.
    """

    vectors: Tensor
    sums: Tensor
    counts: Tensor
    initialised: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", torch.zeros(num_codes, dim))
        self.register_buffer("sums", torch.zeros(num_codes, dim))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("initialised", torch.tensor(False))

    def distances(self, points: Tensor) -> Tensor:
        """Squared distances of ``points`` (..., dim) to all vectors: (..., num_codes)."""
        products = points @ self.vectors.t()
        return points.square().sum(dim=-1, keepdim=True) - 2 * products + self.vectors.square().sum(dim=-1)

    def nearest(self, points: Tensor) -> Tensor:
        """Codes of the nearest vectors: (..., dim) -> (...) int64."""
        return self.distances(points).argmin(dim=-1)

    def draw(self, points: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """Codes (...) drawn from softmax(-distance / temperature) by Gumbel noise of ``uniforms`` (..., num_codes)."""
        return (gumbel(uniforms) - self.distances(points) / temperature).argmax(dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors of ``codes`` (...), zeros for code -1: (..., dim)."""
        return self.vectors[codes.clamp(min=0)] * (codes >= 0)[..., None]

    @torch.no_grad()
    def update(self, points: Tensor, codes: Tensor, noise: Tensor | None = None) -> None:
        """Move the averages by ``points`` (M, dim), rounded to ``codes`` (M,); call it once after each optimiser step.

            counts <- decay * counts + (1 - decay) * count of the code
            sums <- decay * sums + (1 - decay) * sum of its points
            vector <- sums / counts, or point number c for code c whose count is below 1

        Too few points for that are repeated with ``noise`` (num_codes, dim), standard normal, times 0.01 / sqrt(dim).
        The first update takes the points themselves as vectors.
        """
        points = points.detach().to(self.sums.dtype)
        spare = self._spare(points, noise)
        if not self.initialised:
            self.vectors.copy_(spare)
            self.sums.copy_(spare)
            self.counts.fill_(1.0)
            self.initialised.fill_(True)
        count = torch.bincount(codes, minlength=len(self.counts)).to(self.counts.dtype)
        total = torch.zeros_like(self.sums).index_add_(0, codes, points)
        self.counts.lerp_(count, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        used = (self.counts >= 1)[:, None]
        self.vectors.copy_(torch.where(used, self.sums / self.counts[:, None], spare))

    def _spare(self, points: Tensor, noise: Tensor | None) -> Tensor:
        """As many points as there are codes: (num_codes, dim)."""
        missing = math.ceil(len(self.vectors) / len(points))
        if missing == 1:
            return points[: len(self.vectors)]
        if noise is None:
            noise = torch.randn_like(self.vectors)
        repeated = points.repeat(missing, 1)[: len(self.vectors)]
        return repeated + noise * (_REPLACEMENT_NOISE / math.sqrt(points.shape[1]))


def gumbel(uniforms: Tensor) -> Tensor:
    """Gumbel noise -log(-log u) of numbers in (0, 1); adding it to logits and taking the largest draws from softmax."""
    tiny = torch.finfo(uniforms.dtype).tiny
    return -torch.log((-torch.log(uniforms.clamp(min=tiny))).clamp(min=tiny))


def perplexity(codes: Tensor, num_codes: int) -> Tensor:
    """exp of the entropy of how often each code occurs in ``codes``: from 1 (one code) to ``num_codes`` (all alike)."""
    share = torch.bincount(codes.flatten(), minlength=num_codes) / codes.numel()
    return torch.exp(-(share * (share + _SMALL_SHARE).log()).sum())
