"""Dense feed-forward networks of hosts: their widths, and the weights of those that are SwiGLU without biases."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


def token_width(dense: nn.Module) -> int | None:
    """D of a network (..., D) -> (..., D), from its first and last linear layer; ``None`` where these do not fit."""
    weights = swiglu_weights(dense)
    if weights is not None and weights.down.shape[0] == weights.gate.shape[1]:
        return weights.gate.shape[1]
    linears = [m for m in dense.modules() if isinstance(m, nn.Linear)]
    if not linears or linears[0].in_features != linears[-1].out_features:
        return None
    return linears[0].in_features


def flops_per_token(dense: nn.Module) -> int:
    """Operations of all matrix products for one token, two for each multiply-add."""
    return sum(2 * m.weight.numel() for m in dense.modules() if isinstance(m, nn.Linear))


@dataclass(frozen=True)
class SwiGLUWeights:
    """W_down(silu(W_gate x) * W_up x): views into a dense network's own weights."""

    gate: Tensor
    """(F, D)"""
    up: Tensor
    """(F, D)"""
    down: Tensor
    """(D, F)"""
    biases: tuple[Tensor, ...]


def swiglu_weights(dense: nn.Module) -> SwiGLUWeights | None:
    """The weights of ``dense`` if its layers are named as a SwiGLU's are: intermoe, diffusers, Llama; else ``None``."""
    net: Any = getattr(dense, "net", None)
    if isinstance(net, nn.ModuleList) and type(net[0]).__name__ == "SwiGLU":
        layers: list[Any] = [net[0].proj, next(m for m in reversed(net) if isinstance(m, nn.Linear))]
        up, gate = layers[0].weight.detach().chunk(2)
        return SwiGLUWeights(gate, up, layers[1].weight.detach(), _biases(layers))
    linears = _linears(dense, ("gate_up", "down"))
    if linears:
        gate, up = linears[0].weight.detach().chunk(2)
        return SwiGLUWeights(gate, up, linears[1].weight.detach(), _biases(linears))
    for names in (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")):
        linears = _linears(dense, names)
        if linears:
            gate, up, down = (linear.weight.detach() for linear in linears)
            return SwiGLUWeights(gate, up, down, _biases(linears))
    return None


def computes_weights(dense: nn.Module) -> bool:
    """Whether the weight of a linear layer is computed from others, by weight_norm, pruning or a parametrisation."""
    return any("weight" not in m._parameters for m in dense.modules() if isinstance(m, nn.Linear))


@torch.no_grad()
def is_swiglu(dense: nn.Module) -> bool:
    """Whether ``dense`` computes a SwiGLU without biases, tried on random tokens in float32.

    A network that cannot be copied is none: torch refuses to where a hook computes weights (old weight_norm, pruning).
    """
    try:
        probe = copy.deepcopy(dense).float().eval()
    except RuntimeError:
        return False
    weights = swiglu_weights(probe)
    if weights is None or any(bias.any() for bias in weights.biases):
        return False
    if weights.gate.shape != weights.up.shape or weights.down.shape != weights.gate.T.shape:
        return False
    tokens = torch.randn(1, 8, weights.gate.shape[1], generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(weights.gate.device)
    expected = (nn.functional.silu(tokens @ weights.gate.T) * (tokens @ weights.up.T)) @ weights.down.T
    return bool((probe(tokens) - expected).norm() <= TOLERANCE * expected.norm())


def _linears(dense: nn.Module, names: tuple[str, ...]) -> list[nn.Linear]:
    found = [getattr(dense, name, None) for name in names]
    linears = [layer for layer in found if isinstance(layer, nn.Linear)]
    return linears if len(linears) == len(names) else []


def _biases(linears: list[nn.Linear]) -> tuple[Tensor, ...]:
    return tuple(linear.bias.detach() for linear in linears if linear.bias is not None)
