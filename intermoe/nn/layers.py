"""Small layers that the block and the denoiser share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AdaLN(nn.Module):
    """Adaptive layer normalisation: LN(x) * (1 + scale(c)) + shift(c), zero-initialised (Peebles and Xie 2023).

    Args:
        dim: width D of the tokens. cond_dim: width C of the condition.
    """

    eps = 1e-6

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.modulation = nn.Linear(cond_dim, 2 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def scale_shift(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (..., D), of a condition (..., C)."""
        scale, shift = self.modulation(nn.functional.silu(condition)).chunk(2, dim=-1)
        return scale, shift

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """hidden (B, ..., D), condition (B, C) -> (B, ..., D)."""
        scale, shift = self.scale_shift(condition)
        broadcast = (hidden.shape[0], *[1] * (hidden.dim() - 2), self.dim)
        normed = nn.functional.layer_norm(hidden, (self.dim,), eps=self.eps)
        return normed * (1 + scale.view(broadcast)) + shift.view(broadcast)


class SwiGLU(nn.Module):
    """Dense SwiGLU network W_down(silu(W_gate x) * W_up x) without biases (Shazeer 2020)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        down: Tensor = self.down(nn.functional.silu(gate) * up)
        return down


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding with interleaved sine and cosine (Vaswani et al. 2017).

    Args:
        positions: (...) integers. dim: even width.

    Returns:
        (..., dim) float32.
    """
    even = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] * torch.exp(even * (-math.log(10000.0) / dim))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class TimestepEmbedding(nn.Module):
    """Sinusoid of the diffusion timestep through Linear, SiLU, Linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.inner = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) integers -> (B, dim)."""
        hidden = self.inner(sinusoid(timesteps, self.dim).to(self.inner.weight.dtype))
        embedded: Tensor = self.out(nn.functional.silu(hidden))
        return embedded
