"""InterMask's sampling: both persons' codes from nothing but the text, or one person's from the other's.

Every round draws all codes that are still open, keeps the likeliest and opens the rest again, until none are left
(Chang et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from intermoe.systems.intermask.codebook import gumbel
from intermoe.systems.intermask.config import UnmaskingConfig
from intermoe.systems.intermask.network import PERSONS, InterMask

NO_CODE = -1


@torch.no_grad()
def unmask(
    network: InterMask,
    text: Tensor,
    mask: Tensor,
    config: UnmaskingConfig,
    *,
    known: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
    uniforms: Tensor | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Codes of two persons, drawn round by round.

    Round i of n masks the round(cos(pi/2 * i / (n - 1)) * points) least likely codes, at least one, and draws them from
    the ``keep_share`` likeliest of the guided logits u + s (c - u); u is with zero text. A code's score is its
    probability under all guided logits; one that was kept is never reconsidered.

    Args:
        text: (B, text_dim).
        mask: (B, L) bool, True = valid.
        known: (B, num_parts, L) codes of person 1 that are given: only person 2 is drawn, in half as many rounds.
        generators: one CPU generator per sample, so that a sample does not depend on the rest of its batch.
        uniforms: (rounds, B, persons drawn, num_parts, L, num_codes) in (0, 1), in place of ``generators``.
        callback: called as ``callback(rounds_done, rounds)``.

    Returns:
        (B, 2, num_parts, L) int64, ``NO_CODE`` at padding.
    """
    sizes, valid = network.config, mask[:, None, None]
    grid = (len(mask), PERSONS, sizes.num_parts, mask.shape[1])
    codes = torch.full(grid, network.mask_id, device=text.device)
    first = 0
    if known is not None:
        codes[:, 0], first = known, 1
    scores = torch.zeros(grid, device=text.device).masked_fill(~valid, math.inf)[:, first:]
    points = scores.isfinite().flatten(1).sum(dim=1)
    rounds = config.num_inference_steps // (1 + first)
    keep = math.ceil(config.keep_share * sizes.num_codes)
    for number, share in enumerate(open_shares(rounds)):
        count = (share.to(points.device) * points).round().clamp(min=1)
        ranks = scores.flatten(1).argsort(dim=1).argsort(dim=1).view(scores.shape)
        is_open = (ranks < count[:, None, None, None]) & valid
        codes[:, first:] = codes[:, first:].masked_fill(is_open, network.mask_id)
        logits = guided_logits(network, codes, text, mask, config.guidance_scale)[:, first:]
        drawn = uniforms[number] if uniforms is not None else _uniforms(generators, mask, logits.shape)
        likeliest = only_likeliest(logits, keep)
        choice = (likeliest + gumbel(drawn.to(logits))).argmax(dim=-1)
        codes[:, first:] = torch.where(is_open, choice, codes[:, first:])
        probabilities = logits.softmax(dim=-1).gather(-1, choice[..., None])[..., 0]
        scores = torch.where(is_open, probabilities, math.inf)
        if callback is not None:
            callback(number + 1, rounds)
    return codes.masked_fill(~valid, NO_CODE)


def open_shares(rounds: int) -> Tensor:
    """Share of the codes that are masked at the start of each round, from 1 to 0: float32 (rounds,)."""
    return torch.cos(torch.linspace(0, 1, rounds) * (math.pi / 2))


def guided_logits(network: InterMask, codes: Tensor, text: Tensor, mask: Tensor, scale: float) -> Tensor:
    """u + scale (c - u) of the logits with text and with zeros in its place, as one doubled batch."""
    if scale == 1:
        conditional: Tensor = network(codes, text, mask)
        return conditional
    both = torch.cat([text, torch.zeros_like(text)])
    conditional, unconditional = network(codes.repeat(2, 1, 1, 1), both, mask.repeat(2, 1)).chunk(2)
    return unconditional + scale * (conditional - unconditional)


def only_likeliest(logits: Tensor, keep: int) -> Tensor:
    """``logits`` (..., K) with all but the ``keep`` largest at -inf."""
    values, places = logits.topk(keep, dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, places, values)


def _uniforms(generators: Sequence[torch.Generator] | None, mask: Tensor, shape: torch.Size) -> Tensor:
    """Numbers (B, persons, parts, L, K) in [0, 1); a sample's do not depend on how far its batch is padded."""
    if generators is None or len(generators) != shape[0]:
        raise ValueError(f"generators: expected one for each of the {shape[0]} samples, got {generators!r}")
    numbers = torch.full(shape, 0.5)
    for row, valid, generator in zip(numbers, mask.cpu(), generators, strict=True):
        drawn = torch.rand((*shape[1:3], int(valid.sum()), shape[-1]), generator=generator)
        row[:, :, valid] = drawn
    return numbers
