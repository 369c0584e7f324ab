"""in2IN's guidance by four passes, and DualMDM, which mixes an interaction with individuals.

Each is a denoiser made of denoisers: call it as ``In2IN``, give it to ``intermoe.diffusion.sample`` with
``guidance_scale=1`` (it is guided already) and a text condition (B, 1 + P, C): that of the interaction, then one of
every person.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from intermoe.systems.in2in.config import DualMDMConfig, GuidanceConfig

Denoise = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(x (B, P, T, X), timesteps (B,), text, mask (B, T) or ``None``) -> estimate of the clean motion, like x."""


class FourPasses:
    """w everything + w_I interaction alone + w_i individuals alone + (1 - w - w_I - w_i) nothing, as one batch.

    Args:
        network: an ``In2IN``.
        config: the weights.
    """

    def __init__(self, network: Denoise, config: GuidanceConfig | None = None) -> None:
        self.network = network
        self.config = GuidanceConfig() if config is None else config

    def __call__(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """The guided estimate (B, P, T, X); text (B, 1 + P, C)."""
        interaction, individuals = text.clone(), text.clone()
        interaction[:, 1:] = 0
        individuals[:, 0] = 0
        passes = [text, interaction, individuals, torch.zeros_like(text)]
        weights = [self.config.everything, self.config.interaction, self.config.individuals, self.config.nothing]
        return _combine(self.network, passes, weights, x, timesteps, mask)


class DualMDM:
    """interaction + w(t) (individual - interaction), both guided on their own.

    Args:
        interaction: an ``In2IN``.
        individual: an ``IndividualPrior``, called with every person alone.
        config: scales and the schedule w.
    """

    def __init__(self, interaction: Denoise, individual: Denoise, config: DualMDMConfig | None = None) -> None:
        self.interaction, self.individual = interaction, individual
        self.config = DualMDMConfig() if config is None else config

    def __call__(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mixed estimate (B, P, T, X); text (B, 1 + P, C)."""
        persons = x.shape[1]
        together = guided(self.interaction, self.config.interaction_scale, x, timesteps, text, mask)
        alone = guided(
            self.individual,
            self.config.individual_scale,
            x.flatten(0, 1)[:, None],
            timesteps.repeat_interleave(persons),
            text[:, 1:].flatten(0, 1),
            None if mask is None else mask.repeat_interleave(persons, dim=0),
        ).view_as(together)
        weight = individual_weight(timesteps, self.config).to(x.dtype)
        return together + weight[:, None, None, None] * (alone - together)


def guided(network: Denoise, scale: float, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """Classifier-free guidance: scale * with text + (1 - scale) * without (Ho and Salimans 2022)."""
    return _combine(network, [text, torch.zeros_like(text)], [scale, 1 - scale], x, timesteps, mask)


def individual_weight(timesteps: Tensor, config: DualMDMConfig) -> Tensor:
    """w at every timestep (B,), float32; see ``DualMDMConfig``."""
    if config.schedule == "constant":
        return torch.full(timesteps.shape, config.rate, device=timesteps.device)
    if config.schedule == "linear":
        return timesteps.float() / config.num_train_timesteps
    decay = torch.exp(-config.rate * (config.num_train_timesteps - timesteps.float()))
    return decay if config.schedule == "exponential" else 1 - decay


def _combine(
    network: Denoise, texts: list[Tensor], weights: list[float], x: Tensor, timesteps: Tensor, mask: Tensor | None
) -> Tensor:
    """Weighted sum of the estimates with each of the texts, which run as one batch."""
    repeats = len(texts)
    estimates = network(
        x.repeat(repeats, 1, 1, 1),
        timesteps.repeat(repeats),
        torch.cat(texts),
        None if mask is None else mask.repeat(repeats, 1),
    ).chunk(repeats)
    return torch.stack([weight * estimate for weight, estimate in zip(weights, estimates, strict=True)]).sum(dim=0)
