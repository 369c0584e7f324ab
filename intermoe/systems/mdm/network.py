"""MDM's transformer for one person, and ComMDM: two of it with one set of weights, which exchange what they know once.

A motion of ComMDM starts with a canonical entry: where and how the person stands, in the first 4 of its numbers (see
``intermoe.systems.mdm.canonical``). It passes the backbone by; the communication block reads and estimates it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intermoe.nn.layers import TimestepEmbedding, sinusoid
from intermoe.nn.multihead import EncoderLayer
from intermoe.ops.checks import check_tensor
from intermoe.systems.mdm.canonical import CANONICAL_WIDTH
from intermoe.systems.mdm.config import ComMDMConfig, MDMConfig

PERSONS = 2


class MDM(nn.Module):
    """Estimates clean motion from noisy motion, a timestep and a text condition; persons do not know of each other.

    A token of timestep and text stands in front of the frames: post-norm encoder layers over all of them.
    """

    def __init__(self, config: MDMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_motion = nn.Linear(config.input_dim, config.dim)
        self.embed_timestep = TimestepEmbedding(config.dim)
        self.embed_text = nn.Linear(config.text_dim, config.dim)
        self.layers = nn.ModuleList(
            EncoderLayer(config.dim, config.num_heads, config.feedforward_dim, config.dropout)
            for _ in range(config.num_layers)
        )
        self.out = nn.Linear(config.dim, config.input_dim)

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """One denoising estimate.

        Args:
            x: (B, P, T, input_dim) noisy motion.
            timesteps: (B,) integers in the training schedule.
            text: (B, text_dim) text condition; zeros for none.
            mask: (B, T) bool, True = valid; whatever padded frames hold, they do not reach valid ones (``MDMConfig``).

        Returns:
            (B, P, T, input_dim) estimate of the clean motion. Values at padded frames are meaningless.
        """
        check_inputs(self.config, x, timesteps, text, mask)
        x, mask = without_padding(self.config, x, mask)
        hidden = self.transform(self.embed(x, timesteps, text), mask, slice(None))
        estimate: Tensor = self.out(hidden[:, :, 1:])
        return estimate

    def embed(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The token of timestep and text, then the frames, with sinusoids of their places: (B, P, 1 + T, D)."""
        condition = self.embed_timestep(timesteps) + self.embed_text(text)
        token = condition[:, None, None].expand(-1, x.shape[1], -1, -1)
        places = sinusoid(torch.arange(x.shape[2] + 1, device=x.device), self.config.dim)
        return torch.cat([token, self.embed_motion(x)], dim=2) + places.to(x.dtype)

    def transform(self, hidden: Tensor, mask: Tensor | None, which: slice) -> Tensor:
        """``which`` of the layers, on (B, P, 1 + T, D) with the mask (B, T) of the frames."""
        batch, persons = hidden.shape[:2]
        keys = token_keys(mask, persons)
        rows = hidden.flatten(0, 1)
        for layer in self.layers[which]:
            rows = layer(rows, keys)
        return rows.unflatten(0, (batch, persons))


class Communication(nn.Module):
    """What a person should change, given their own and their partner's states: post-norm layers over all tokens.

    In front of the tokens, each Linear [own | partner] of the states, stands one of the two canonical entries. Its
    output is the canonical estimate; the others are a correction of the own states.
    """

    def __init__(self, config: ComMDMConfig) -> None:
        super().__init__()
        dim = config.backbone.dim
        self.embed_canonical = nn.Linear(2 * CANONICAL_WIDTH, dim)
        self.embed = nn.Linear(2 * dim, dim)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, config.num_heads, config.feedforward_dim, config.backbone.dropout)
            for _ in range(config.num_layers)
        )
        self.out_canonical = nn.Linear(dim, CANONICAL_WIDTH)

    def forward(self, hidden: Tensor, canonical: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Corrections (B, 2, S, D) and canonical estimates (B, 2, 1, CANONICAL_WIDTH) of both persons.

        hidden (B, 2, S, D), canonical (B, 2, 1, CANONICAL_WIDTH), mask (B, S) of the states, True = valid.
        """
        token = self.embed_canonical(torch.cat([canonical, canonical.flip(1)], dim=-1))
        shared = self.embed(torch.cat([hidden, hidden.flip(1)], dim=-1))
        rows = torch.cat([token, shared], dim=2).flatten(0, 1)
        keys = token_keys(mask, PERSONS)
        for layer in self.layers:
            rows = layer(rows, keys)
        rows = rows.unflatten(0, (-1, PERSONS))
        return rows[:, :, 1:], self.out_canonical(rows[:, :, :1])


class ComMDM(nn.Module):
    """Estimates clean motion of two persons; both new states come from the old pair."""

    def __init__(self, config: ComMDMConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = MDM(config.backbone)
        self.communication = Communication(config)

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """One denoising estimate.

        Args:
            x: (B, 2, 1 + T, input_dim): the canonical entry, then noisy motion.
            timesteps: (B,) integers in the training schedule.
            text: (B, text_dim) text condition; zeros for none.
            mask: (B, 1 + T) bool, True = valid, the canonical entry included.

        Returns:
            (B, 2, 1 + T, input_dim). A canonical estimate is zero but for its first numbers.
        """
        config, backbone = self.config.backbone, self.backbone
        check_inputs(config, x, timesteps, text, mask, persons=PERSONS)
        x, mask = without_padding(config, x, mask)
        canonical, motion = x[:, :, :1, :CANONICAL_WIDTH], x[:, :, 1:]
        frames = None if mask is None else mask[:, 1:]
        hidden = backbone.transform(backbone.embed(motion, timesteps, text), frames, slice(self.config.split))
        correction, canonical = self.communication(hidden, canonical, mask)
        hidden = backbone.transform(hidden + correction, frames, slice(self.config.split, None))
        canonical = nn.functional.pad(canonical, (0, config.input_dim - CANONICAL_WIDTH))
        return torch.cat([canonical, backbone.out(hidden[:, :, 1:])], dim=2)


def check_inputs(
    config: MDMConfig, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None, persons: int | str = "P"
) -> None:
    """Raise ``ValueError`` or ``TypeError`` that names the argument which does not fit."""
    size = check_tensor("x", x, ("B", persons, "T", config.input_dim))
    check_tensor("timesteps", timesteps, (size["B"],))
    check_tensor("text", text, (size["B"], config.text_dim))
    if mask is not None:
        check_tensor("mask", mask, (size["B"], size["T"]))
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected dtype torch.bool (True = valid), got {mask.dtype}")


def without_padding(config: MDMConfig, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``x`` (B, P, T, X) with zeros at padding, and the mask (B, T) for attention; published weights want neither."""
    if mask is None or not config.mask_padding:
        return x, None
    return x.masked_fill(~mask[:, None, :, None], 0.0), mask  # an attention weight of 0 times infinity would be NaN


def token_keys(mask: Tensor | None, persons: int) -> Tensor | None:
    """Valid keys (B * persons, 1 + S) of a token and what ``mask`` (B, S) is of, behind it."""
    if mask is None:
        return None
    return nn.functional.pad(mask, (1, 0), value=True).repeat_interleave(persons, dim=0)
