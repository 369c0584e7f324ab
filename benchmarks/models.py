"""The published model's networks with random weights, and the same denoiser with the authors' form of its blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from intermoe import backends
from intermoe.benchmarks import baselines
from intermoe.benchmarks.forms import PERSONS
from intermoe.benchmarks.harness.case import Outputs
from intermoe.benchmarks.harness.work import Work
from intermoe.integrations.training import calibrated_selection
from intermoe.nn.moe import InterMoEBlock
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import Denoiser

PUBLISHED = DenoiserConfig(dropout=0.0)
TINY = DenoiserConfig(
    input_dim=28, text_dim=16, dim=32, num_layers=2, num_heads=2, num_experts=4, expert_dim=16, dropout=0.0
)
FRAMES = 75
"""Latent frames of 10 seconds of motion."""


def build_denoiser(config: DenoiserConfig, dtype: torch.dtype, device: torch.device) -> Denoiser:
    """Random weights everywhere, also where training starts from zeros; selections settled at the capacity."""
    torch.manual_seed(0)
    with torch.device(device):  # drawing hundreds of millions of weights takes a CPU seconds
        denoiser = Denoiser(config).eval()
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if name.endswith("modulation.weight") or name == "out.weight":
                parameter.normal_(std=0.02)
    denoiser.to(device)
    inputs = denoiser_inputs(config, 2, PERSONS, FRAMES, torch.float32, device)
    with calibrated_selection(denoiser), torch.no_grad():
        denoiser(*inputs)
    return denoiser.to(dtype)


def denoiser_inputs(
    config: DenoiserConfig, batch: int, persons: int, frames: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, P, T', X), timesteps (B,) and text (B, C), as for one prompt with guidance if ``batch`` is 2."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, persons, frames, config.input_dim, generator=generator)
    text = torch.randn(batch, config.text_dim, generator=generator)
    text[batch // 2 :] *= 0.0 if batch > 1 else 1.0
    return x.to(device, dtype), torch.full((batch,), 500, device=device), text.to(device, dtype)


class PublishedBlock(nn.Module):
    """An InterMoEBlock computed in the authors' form, one call for each person."""

    def __init__(self, block: InterMoEBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (B, P * T, D), condition (B, D) -> (B, P * T, D). Masks are not supported."""
        if mask is not None:
            raise ValueError("mask: expected unpadded sequences, which the baseline takes alone, got a mask")
        persons = hidden.unflatten(1, (PERSONS, -1)).unbind(1)
        return torch.cat([self._person(person, condition) for person in persons], dim=1)

    def _person(self, hidden: Tensor, condition: Tensor) -> Tensor:
        block = self.block
        if block.norm is None:
            raise ValueError("norm: expected a block that normalises, got one that does not")
        logits = block.routing_logits(hidden, condition).flatten(0, 1)
        tokens = block.norm(hidden, condition).flatten(0, 1)
        weights = baselines.Weights(block.w_gate_up, block.w_down)
        return baselines.authors_form(tokens, logits, block.selection_bias, weights).view(hidden.shape)


def with_published_blocks(denoiser: Denoiser, share: bool = True) -> Denoiser:
    """The denoiser with the authors' form in place of every block; the same tensors if ``share``, else copies."""
    tensors = [*denoiser.parameters(), *denoiser.buffers()] if share else []
    twin = copy.deepcopy(denoiser, {id(tensor): tensor for tensor in tensors})
    for layer, block in zip(twin.layers, twin.moe_blocks(), strict=True):
        layer.moe = PublishedBlock(block)
    return twin


def on(backend: str, call: Callable[[], Outputs]) -> Callable[[int], Outputs]:
    """The call with its blocks on one backend, without gradients."""

    def run(_: int) -> Outputs:
        with torch.no_grad(), backends.use(backend):
            return call()

    return run


def counted(call: Callable[[], object], *modules: nn.Module) -> list[Work]:
    """FLOPs of a call's products as torch counts them, and its parameters read once."""
    with FlopCounterMode(display=False) as counter, backends.use("reference"):
        call()
    size = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    return [Work(float(counter.get_total_flops()), float(size))]
