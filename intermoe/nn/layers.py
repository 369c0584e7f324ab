"""Small layers that the block and the denoiser share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from intermoe.ops.linear import linear


def whole(parameter: Tensor) -> Tensor:
    """A parameter as a plain tensor, also where a distributed one is read outside of its module's forward (FSDP2).

    Gathering a distributed one is a collective: every rank must call it.
    """
    if type(parameter) in (Tensor, nn.Parameter) or not hasattr(parameter, "full_tensor"):
        return parameter
    gathered: Tensor = parameter.full_tensor()
    return gathered


class Linear(nn.Linear):
    """``torch.nn.Linear``, through the fastest product there is where nothing is differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


class ZeroLinear(Linear):
    """A Linear layer that starts at zero, also when it is built on the meta device and filled later."""

    def reset_parameters(self) -> None:
        super().reset_parameters()  # draws, so that what is drawn next does not depend on this layer's kind
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class AdaLN(nn.Module):
    """Adaptive layer normalisation: LN(x) * (1 + scale(c)) + shift(c), zero-initialised (Peebles and Xie 2023).

    Args:
        dim: width D of the tokens.
        cond_dim: width C of the condition.
    """

    eps = 1e-6

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.modulation = ZeroLinear(cond_dim, 2 * dim)

    def scale_shift(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (..., D), of a condition (..., C)."""
        weight, bias = whole(self.modulation.weight), whole(self.modulation.bias)
        scale, shift = linear(nn.functional.silu(condition), weight, bias).chunk(2, dim=-1)
        return scale, shift

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """hidden (B, ..., D), condition (B, C) or (B, ..., K, C) -> (B, ..., D).

        K rows of the condition are for K equal runs of the dimension before the last, which K divides.
        """
        scale, shift = self.scale_shift(condition)
        normed = nn.functional.layer_norm(hidden, (self.dim,), eps=self.eps)
        if condition.dim() == 2:
            broadcast = (hidden.shape[0], *[1] * (hidden.dim() - 2), self.dim)
            return torch.addcmul(shift.view(broadcast), normed, 1 + scale.view(broadcast))  # one pass over the tokens
        runs = normed.unflatten(-2, (condition.shape[-2], -1))
        return torch.addcmul(shift[..., None, :], runs, 1 + scale[..., None, :]).flatten(-3, -2)


class SwiGLU(nn.Module):
    """Dense SwiGLU network W_down(silu(W_gate x) * W_up x) without biases (Shazeer 2020)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = Linear(dim, 2 * hidden_dim, bias=False)
        self.down = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = linear(x, whole(self.gate_up.weight)).chunk(2, dim=-1)
        return linear(nn.functional.silu(gate) * up, whole(self.down.weight))


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding with interleaved sine and cosine (Vaswani et al. 2017).

    Args:
        positions: (...) integers.
        dim: even width.

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
        self.inner = Linear(dim, dim)
        self.out = Linear(dim, dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(...) integers -> (..., dim)."""
        hidden = self.inner(sinusoid(timesteps, self.dim).to(self.inner.weight.dtype))
        embedded: Tensor = self.out(nn.functional.silu(hidden))
        return embedded
