"""Motion to the latents that the denoiser sees, and back: the autoencoder with the statistics of its motion."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from intermoe.motion.statistics import Statistics
from intermoe.ops.checks import check_tensor
from intermoe.systems.intermoe.vae import CausalSkeletalVAE, LatentDistribution


class LatentCodec:
    """Persons are coded one by one, with shared weights.

    Not a module: the frozen autoencoder is neither trained nor saved with what it is used for, and ``train()`` of what
    holds this must not switch its dropout on.
    """

    def __init__(self, vae: CausalSkeletalVAE, statistics: Statistics) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.statistics = statistics

    @torch.no_grad()
    def encode(self, motion: Tensor) -> LatentDistribution:
        """The posterior, float32 (B, P, T / 4, X) each, of motion (B, P, T, ...), not normalised.

        Raises:
            TypeError: no floating-point tensor.
            ValueError: T is not a multiple of 4, or frames that are not those of the autoencoder's representation.
        """
        if not isinstance(motion, Tensor) or not motion.is_floating_point():
            raise TypeError(f"motion: expected a floating-point tensor, got {getattr(motion, 'dtype', motion)}")
        persons = motion.shape[1]
        self.vae.to(motion.device)
        normalised = self.statistics.normalise(motion).flatten(0, 1)
        posterior = self.vae.encode(normalised.to(next(self.vae.parameters()).dtype))
        mean, log_var = (
            rearrange(part, "(b p) t part x -> b p t (part x)", p=persons).float()
            for part in (posterior.mean, posterior.log_var)
        )
        return LatentDistribution(mean, log_var)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Un-normalised motion (B, P, 4T', ...) of latents (B, P, T', X), float32 on their device."""
        return self.decode_with_gradients(latents)

    def decode_with_gradients(self, latents: Tensor) -> Tensor:
        """``decode`` through which latents can be steered."""
        check_tensor("latents", latents, ("B", "P", "T", self.vae.latent_joints * self.vae.config.latent_dim))
        parts = rearrange(latents, "b p t (part x) -> (b p) t part x", part=self.vae.latent_joints)
        motion = self.statistics.denormalise(self.vae.decode(parts.to(next(self.vae.parameters()).dtype)).float())
        return motion.unflatten(0, latents.shape[:2])
