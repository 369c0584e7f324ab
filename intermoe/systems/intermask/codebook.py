"""The vectors that InterMask's features are rounded to, moved by averages instead of gradients."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

_REPLACEMENT_NOISE = 0.01


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
    def initialise(self, points: Tensor, noise: Tensor | None = None) -> None:
        """Take the first of ``points`` (M, dim) as vectors, before the first draw; ``noise`` as in ``update``."""
        self.vectors.copy_(self._spare(points, noise))
        self.sums.copy_(self.vectors)
        self.counts.fill_(1.0)
        self.initialised.fill_(True)

    @torch.no_grad()
    def update(self, points: Tensor, codes: Tensor, noise: Tensor | None = None) -> None:
        """Move the averages by ``points`` (M, dim), rounded to ``codes`` (M,); call it once for each training batch.

            counts <- decay * counts + (1 - decay) * count of the code
            sums <- decay * sums + (1 - decay) * sum of its points
            vector <- sums / counts, or point number c for code c whose count is below 1

        Too few points for that are repeated with ``noise`` (num_codes, dim), standard normal, times 0.01 / sqrt(dim).
        Processes that train together count together, and take spare points of the first of them.
        """
        points = points.to(self.sums.dtype)
        count = torch.bincount(codes, minlength=len(self.counts)).to(self.counts.dtype)
        total = torch.zeros_like(self.sums).index_add_(0, codes, points)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(total)
        self.counts.lerp_(count, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        used = (self.counts >= 1)[:, None]
        self.vectors.copy_(torch.where(used, self.sums / self.counts[:, None], self._spare(points, noise)))

    def _spare(self, points: Tensor, noise: Tensor | None) -> Tensor:
        """As many points as there are codes: (num_codes, dim)."""
        repeats = math.ceil(len(self.vectors) / len(points))
        spare = points.to(self.vectors.dtype).repeat(repeats, 1)[: len(self.vectors)]
        if repeats > 1:
            noise = torch.randn_like(self.vectors) if noise is None else noise
            spare = spare + noise * (_REPLACEMENT_NOISE / math.sqrt(points.shape[1]))
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(spare, src=0)
        return spare


def gumbel(uniforms: Tensor) -> Tensor:
    """Gumbel noise -log(-log u) of numbers in (0, 1); adding it to logits and taking the largest draws from softmax."""
    tiny = torch.finfo(uniforms.dtype).tiny
    return -torch.log((-torch.log(uniforms.clamp(min=tiny))).clamp(min=tiny))
