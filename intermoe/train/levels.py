"""Noise levels of a training batch: of the whole sample, or of every person and frame, where a part may be clean.

Levels of their own for parts of a sample are those of Diffusion Forcing (Chen et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from intermoe.diffusion import DiffusionConfig, shifted_timesteps
from intermoe.train.config import LevelMixConfig
from intermoe.train.draws import ItemDraws


def mixed_timesteps(
    mix: LevelMixConfig,
    draws: ItemDraws,
    timesteps: Tensor,
    frames: Sequence[int],
    persons: int,
    diffusion: DiffusionConfig,
) -> Tensor:
    """Timesteps (B, P, T') of a batch by the shares of ``mix``; 0 where a sample is clean, above it elsewhere.

    A sample's depend on its own draws and length alone, not on its batch or padding.

    Args:
        timesteps: (B,), each sample's one level.
        frames: latent frames of each sample, T' being the most.
    """
    mode, which, place = draws.uniform(3)[:, :, None, None].unbind(1)
    levels, given = rearrange(draws.uniform_over(frames, persons, 2), "b t p n -> n b p t")
    time = torch.arange(levels.shape[2], device=levels.device)
    starts = time // mix.run * mix.run
    independent = shifted_timesteps(levels[:, :, starts], diffusion.num_train_timesteps, diffusion.timestep_shift)
    bounds = torch.tensor(mix.shares[:-1], dtype=torch.float64, device=levels.device).cumsum(0)
    choice = torch.bucketize(mode.double(), bounds, right=True)
    person = torch.arange(persons, device=levels.device)[:, None] == (which * persons).long()
    lengths = torch.tensor(frames, device=levels.device)[:, None, None]
    prefix = time < (which * lengths).long()
    free = 1 + (which * (lengths - 1)).long()
    first = (place * (lengths - free + 1)).long()
    around = (time < first) | (time >= first + free)
    clean = (choice == 2) & person | (choice == 3) & prefix | (choice == 5) & around
    clean |= (choice == 4) & (given[:, :, starts] < which)
    noisy = torch.where(choice == 1, independent, timesteps[:, None, None]).clamp(min=1)
    return noisy.masked_fill(clean, 0)
