"""Losses of InterMask's two stages: of the tokeniser's motion, and of the masked codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.motion.interhuman import CONTACT_HEIGHTS, CONTACT_SQUARED_SPEED, INTERHUMAN
from intermoe.motion.skeleton import BODY, FOOT_JOINTS
from intermoe.systems.intermask.config import TokenizerLossConfig
from intermoe.systems.intermask.network import PERSONS, InterMask

_ROTATIONS = {"interhuman": (INTERHUMAN.rotation, 21), "interx": (slice(0, 330), 55)}
_CLAMP = 1e-7
_RANDOM_SHARE, _MASK_SHARE = 0.1, 0.88
_UNROLL_STEP = 1 / 21


def tokenizer_losses(
    output: Tensor,
    target: Tensor,
    mean: Tensor,
    std: Tensor,
    weights: TokenizerLossConfig,
    representation: str = "interhuman",
) -> dict[str, Tensor]:
    """Terms of the tokeniser's loss, unweighted, and ``"loss"``, their weighted sum; commitment is apart.

    Smooth L1 of all normalised columns but the contacts (``reconstruction``), positions (``position``), differences of
    successive positions (``velocity``) and bone lengths (``bone``); the mean angle between rotations (``rotation``);
    and the velocity in metres per frame of feet that stand in the target (``contact``, 0 where none does). All but the
    last are taken on normalised values, as published, whatever bones and rotations then mean: a rotation is what
    Gram-Schmidt makes of the first and the last three of its six numbers. Inter-X has no positions without a body
    model, so its terms are ``reconstruction`` and ``rotation``.

    Args:
        output, target: normalised, (N, T, 262), or (N, T, 56, 6) for ``representation`` interx, T >= 2.
        mean, std: that the motion was normalised with, (262,).

    Raises:
        ValueError: shapes differ.
    """
    if output.shape != target.shape or target.shape[1] < 2:
        raise ValueError(
            f"output: expected the target's shape {tuple(target.shape)}, T >= 2, got {tuple(output.shape)}"
        )
    columns, joints = _ROTATIONS[representation]
    rotations = [motion.flatten(2)[..., columns].unflatten(-1, (joints, 6)) for motion in (output, target)]
    terms = {"rotation": _mean_angle(*rotations)}
    if representation == "interx":
        terms["reconstruction"] = F.smooth_l1_loss(output, target)
    else:
        found, expected = (motion[..., :66].unflatten(-1, (22, 3)) for motion in (output, target))
        metres = [(motion * std + mean)[..., :66].unflatten(-1, (22, 3)) for motion in (output, target)]
        terms |= {
            "reconstruction": F.smooth_l1_loss(output[..., :258], target[..., :258]),
            "position": F.smooth_l1_loss(found, expected),
            "velocity": F.smooth_l1_loss(found.diff(dim=1), expected.diff(dim=1)),
            "bone": F.smooth_l1_loss(_bone_lengths(found), _bone_lengths(expected)),
            "contact": _sliding(*metres),
        }
    loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return {"loss": loss, **terms}


def commitment(features: Tensor, vectors: Tensor) -> Tensor:
    """Mean squared distance of features to the code vectors they were rounded to, which get no gradient."""
    return F.mse_loss(features, vectors.detach())


def _bone_lengths(positions: Tensor) -> Tensor:
    """(N, T, 22, 3) -> (N, T, 21)."""
    parents, children = zip(*BODY.bones, strict=True)
    return torch.linalg.vector_norm(positions[..., children, :] - positions[..., parents, :], dim=-1)


def _sliding(found: Tensor, expected: Tensor) -> Tensor:
    """Smooth L1 of the found feet's velocity while the expected feet stand; positions (N, T, 22, 3) in metres."""
    feet = list(FOOT_JOINTS)
    moves, target_moves = (positions[:, :, feet].diff(dim=1) for positions in (found, expected))
    still = target_moves.square().sum(dim=-1) < CONTACT_SQUARED_SPEED
    low = expected[:, :-1, feet, 1] < expected.new_tensor(CONTACT_HEIGHTS)
    stands = (still & low)[..., None]
    error = F.smooth_l1_loss(moves * stands, torch.zeros_like(moves), reduction="sum")
    return error / (3 * stands.sum()).clamp(min=1)


def _mean_angle(found: Tensor, expected: Tensor) -> Tensor:
    """Mean angle in radians between rotations given as six numbers (..., 6)."""
    product = _rotation(found) * _rotation(expected)
    cosine = (product.sum(dim=(-2, -1)) - 1) / 2
    return torch.acos(cosine.clamp(-1 + _CLAMP, 1 - _CLAMP)).mean()


def _rotation(numbers: Tensor) -> Tensor:
    """Gram-Schmidt of the first and the last three of (..., 6): orthonormal vectors (..., 3, 3)."""
    first = F.normalize(numbers[..., :3], dim=-1)
    second = numbers[..., 3:]
    second = F.normalize(second - (first * second).sum(dim=-1, keepdim=True) * first, dim=-1)
    return torch.stack((first, second, torch.linalg.cross(first, second)), dim=-2)


@dataclass(frozen=True)
class MaskedCodes:
    """Codes of which some are hidden.

    ``inputs`` (B, 2, num_parts, L) is what the network sees; ``chosen``, bool, where it shall find the true codes.
    ``points`` is how many tokens shares are of, padding counted.
    """

    inputs: Tensor
    chosen: Tensor
    points: int


@dataclass(frozen=True)
class MaskDraws:
    """Numbers in [0, 1) that ``mask_codes`` decides by: ``sample`` (B, 3), ``points`` (B, 2, num_parts, G, 4).

    G >= L: shares are of a grid of G time steps, so that they do not depend on how far a batch is padded.
    """

    sample: Tensor
    points: Tensor


def mask_codes(network: InterMask, codes: Tensor, mask: Tensor, draws: MaskDraws, person_share: float) -> MaskedCodes:
    """Hide some codes, as training does.

    cos(pi / 2 * u) of all points, padding counted, at least one; or, with probability ``person_share``, all of one
    person's. Of those a tenth become random codes, 88 % of the rest the mask id, and the others stay as they are.

    Args:
        codes: (B, 2, num_parts, L).
        mask: (B, L) bool, True = valid.
    """
    ratio, whole_person, which = draws.sample.unbind(dim=1)
    order = draws.points[..., 0]
    way, replace, number = draws.points[..., : codes.shape[-1], 1:].unbind(dim=-1)
    points = order[0].numel()
    count = (torch.cos(ratio * (math.pi / 2)) * points).round().clamp(min=1)
    ranks = order.flatten(1).argsort(dim=1).argsort(dim=1).view(order.shape)[..., : codes.shape[-1]]
    scattered = ranks < count[:, None, None, None]
    persons = torch.arange(PERSONS, device=codes.device) == (which[:, None] * PERSONS).long()
    one_person = persons[:, :, None, None].expand(codes.shape)
    chosen = torch.where((whole_person < person_share)[:, None, None, None], one_person, scattered)
    chosen = chosen & mask[:, None, None]
    random = chosen & (way < _RANDOM_SHARE)
    hidden = chosen & ~random & (replace < _MASK_SHARE)
    inputs = torch.where(random, (number * network.config.num_codes).long(), codes)
    return MaskedCodes(inputs.masked_fill(hidden, network.mask_id), chosen, points)


def unmasking_losses(
    network: InterMask, codes: Tensor, masked: MaskedCodes, text: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """Cross-entropy at the chosen points, and once more after one step of sampling; ``"loss"`` is their sum.

    The step fills every mask id with its likeliest code and hides again all but the most confident: with tau from
    cos(pi / 2 * tau) = share of mask ids, cos(pi / 2 * (tau + 1 / 21)) of all points, padding counted. What is not
    hidden again is accepted and out of the second cross-entropy.

    Returns:
        ``loss``, ``cross_entropy``, ``unrolled`` and the ``accuracy`` of the likeliest codes at the chosen points.
    """
    logits = network(masked.inputs, text, mask)
    is_open = masked.inputs == network.mask_id
    with torch.no_grad():
        confidence, likeliest = logits.softmax(dim=-1).max(dim=-1)
        share = is_open.flatten(1).sum(dim=1) / masked.points
        step = (torch.acos(share) * (2 / math.pi) + _UNROLL_STEP).clamp(max=1)
        count = (torch.cos(step * (math.pi / 2)) * masked.points).round().clamp(min=1)
        confidence = confidence.masked_fill(~is_open, math.inf).flatten(1)
        ranks = confidence.argsort(dim=1).argsort(dim=1).view(codes.shape)
        stays_open = (ranks < count[:, None, None, None]) & is_open
        filled = torch.where(is_open, likeliest, masked.inputs).masked_fill(stays_open, network.mask_id)
    cross_entropy = _cross_entropy(logits, codes, masked.chosen)
    unrolled = _cross_entropy(network(filled, text, mask), codes, masked.chosen & ~(is_open & ~stays_open))
    accuracy = ((likeliest == codes) & masked.chosen).sum() / masked.chosen.sum().clamp(min=1)
    return {
        "loss": cross_entropy + unrolled,
        "cross_entropy": cross_entropy,
        "unrolled": unrolled,
        "accuracy": accuracy,
    }


def _cross_entropy(logits: Tensor, codes: Tensor, where: Tensor) -> Tensor:
    """Mean over the points ``where`` is True, 0 if there are none."""
    labels = torch.where(where, codes, 0)
    each = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="none")
    return (each * where.flatten()).sum() / where.sum().clamp(min=1)
