"""InterGen's losses on raw motion: geometric ones of every person, interaction ones of every two (Liang et al. 2024).

Every ``*_error`` is a mean squared error of one frame, on joints in metres.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.motion.interhuman import CONTACT_HEIGHTS, CONTACT_SQUARED_SPEED, joints
from intermoe.motion.skeleton import FOOT_JOINTS, LEFT_HIP, PARENTS, RIGHT_HIP
from intermoe.motion.statistics import Statistics
from intermoe.ops.checks import check_tensor
from intermoe.systems.intergen.config import MotionLossConfig

CLOSE = 1.0
TOUCHING = 0.1
_NO_PAIRS = 1e-7
_NO_DIRECTION = 1e-8


def motion_losses(
    estimate: Tensor,
    target: Tensor,
    timesteps: Tensor,
    mask: Tensor | None,
    statistics: Statistics,
    config: MotionLossConfig,
) -> dict[str, Tensor]:
    """Weighted terms of InterGen's loss, scalars summed over persons or pairs of persons, and ``"loss"``, their sum.

    - simple: of all normalised columns; mean over the valid frames of all samples.
    - velocity, bones, feet: of every person. distances, touch, orientation: of every pair of persons; 0 for one person.
      All these are means over the valid frames (steps between frames) of a sample, then over the samples whose
      timestep is at most ``config.last_timestep``; 0 where there is none. See ``MotionLossConfig`` for two switches.

    Args:
        estimate: (B, P, T, 262) normalised estimate of the clean motion.
        target: (B, P, T, 262) normalised clean motion; padded with zeros before normalising for ``step_into_padding``.
        timesteps: (B,) of the noise.
        mask: (B, T) bool, True = valid, or ``None``. What padded frames hold changes nothing, but with
            ``step_into_padding``.
        statistics: mean and deviation that the motion was normalised with.

    Raises:
        ValueError: a shape that does not fit, named.
    """
    size = check_tensor("estimate", estimate, ("B", "P", "T", len(statistics.mean)))
    check_tensor("target", target, tuple(estimate.shape))
    check_tensor("timesteps", timesteps, (size["B"],))
    if mask is None:
        mask = torch.ones(size["B"], size["T"], dtype=torch.bool, device=estimate.device)
    check_tensor("mask", mask, (size["B"], size["T"]))
    estimate, target = (x if x.dtype == torch.float64 else x.float() for x in (estimate, target))
    if not config.step_into_padding:  # 0 times infinity would be NaN
        estimate, target = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (estimate, target))
    found, expected = (joints(statistics.denormalise(x)) for x in (estimate, target))
    judged = timesteps <= config.last_timestep
    moves = mask[:, :-1] if config.step_into_padding else mask[:, :-1] & mask[:, 1:]

    def of_persons(error: Tensor, frames: Tensor) -> Tensor:
        return _mean(error.sum(dim=1), frames, judged)

    terms = {
        "simple": config.simple * _mean_over_frames((estimate - target).square().mean(dim=(1, 3)), mask),
        "velocity": config.velocity * of_persons(velocity_error(found, expected), moves),
        "bones": config.bones * of_persons(bone_error(found, expected), mask),
        "feet": config.feet * of_persons(standing_foot_error(found), moves),
    }
    pairs = dict.fromkeys(("distances", "touch", "orientation"), estimate.new_zeros(()))
    for a, b in combinations(range(size["P"]), 2):
        distance, expected_distance = (joint_distances(p[:, a], p[:, b]) for p in (found, expected))
        turn, expected_turn = (facing_quaternion(p[:, a], p[:, b]) for p in (found, expected))
        turned = (turn - expected_turn).square().mean(dim=-1)
        near = _mean(distance_error(distance, expected_distance), mask, judged)
        touch = _mean(touch_error(distance, expected_distance), mask, judged)
        if config.orientation_of_all:
            orientation = _mean_over_frames(turned, mask) * judged.any()
        else:
            orientation = _mean(turned, mask, judged)
        pairs["distances"] = pairs["distances"] + config.distances * near
        pairs["touch"] = pairs["touch"] + config.touch * touch
        pairs["orientation"] = pairs["orientation"] + config.orientation * orientation
    terms |= pairs
    return {**terms, "loss": torch.stack(list(terms.values())).sum()}


def velocity_error(found: Tensor, expected: Tensor) -> Tensor:
    """Of frame differences of joints: (..., T, 22, 3) -> (..., T - 1)."""
    return (found.diff(dim=-3) - expected.diff(dim=-3)).square().mean(dim=(-2, -1))


def bone_error(found: Tensor, expected: Tensor) -> Tensor:
    """Of the lengths of the 21 bones: (..., T, 22, 3) -> (..., T)."""
    return (_bone_lengths(found) - _bone_lengths(expected)).square().mean(dim=-1)


def standing_foot_error(found: Tensor) -> Tensor:
    """Squared velocity of the feet that stand: (..., T, 22, 3) -> (..., T - 1), 0 where none does.

    A foot stands by the rule of the motion's contact columns, on the estimated motion itself.
    """
    feet = found[..., list(FOOT_JOINTS), :]
    squares = feet.diff(dim=-3).square()
    low = feet[..., :-1, :, 1] < feet.new_tensor(CONTACT_HEIGHTS)
    return _mean_of_chosen(squares.mean(dim=-1), (squares.sum(dim=-1) < CONTACT_SQUARED_SPEED) & low)


def joint_distances(a: Tensor, b: Tensor) -> Tensor:
    """Of every joint of one person from every joint of the other: (..., 22, 3) -> (..., 484)."""
    return torch.linalg.vector_norm(a[..., :, None, :] - b[..., None, :, :], dim=-1).flatten(-2)


def distance_error(found: Tensor, expected: Tensor) -> Tensor:
    """Of the distances that are estimated below 1 m: (..., N) -> (...)."""
    return _mean_of_chosen((found - expected).square(), found < CLOSE)


def touch_error(found: Tensor, expected: Tensor) -> Tensor:
    """Squared estimated distance of joints that should be within 0.1 m of each other: (..., N) -> (...)."""
    return _mean_of_chosen(found.square(), expected < TOUCHING)


def facing_quaternion(a: Tensor, b: Tensor) -> Tensor:
    """Components w and y of the unit quaternion that turns person a's facing into b's: (..., 22, 3) -> (..., 2).

    A person faces up x (right hip - left hip), a horizontal direction, so the other two components are 0.
    """
    facing = []
    for person in (a, b):
        across = person[..., RIGHT_HIP, :] - person[..., LEFT_HIP, :]
        direction = torch.stack([across[..., 2], -across[..., 0]], dim=-1)
        facing.append(F.normalize(direction, dim=-1, eps=_NO_DIRECTION))
    (ax, az), (bx, bz) = (direction.unbind(dim=-1) for direction in facing)
    quaternion = torch.stack([1 + ax * bx + az * bz, az * bx - ax * bz], dim=-1)
    return F.normalize(quaternion, dim=-1, eps=_NO_DIRECTION)


def _bone_lengths(positions: Tensor) -> Tensor:
    children = range(1, len(PARENTS))
    bones = positions[..., list(children), :] - positions[..., [PARENTS[child] for child in children], :]
    return torch.linalg.vector_norm(bones, dim=-1)


def _mean_of_chosen(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the last dimension of the values that are chosen; 0 where none is."""
    return (values * chosen).sum(dim=-1) / (chosen.sum(dim=-1) + _NO_PAIRS)


def _mean(per_frame: Tensor, frames: Tensor, judged: Tensor) -> Tensor:
    """(B, T) -> mean over the valid frames of every sample, then over the samples that are judged."""
    per_sample = (per_frame * frames).sum(dim=1) / frames.sum(dim=1).clamp(min=1)
    return (per_sample * judged).sum() / judged.sum().clamp(min=1)


def _mean_over_frames(per_frame: Tensor, frames: Tensor) -> Tensor:
    """(B, T) -> mean over the valid frames of all samples."""
    return (per_frame * frames).sum() / frames.sum().clamp(min=1)
