"""Feet that stay where the motion itself says that they stand."""

from __future__ import annotations

import torch
from torch import Tensor

from intermoe.motion.interhuman import CONTACT_COLUMNS, joints, with_positions
from intermoe.motion.skeleton import FOOT_JOINTS

# Hip, knee, ankle and ball of each leg, and which of the contact columns is that of the ball.
_LEGS = (((1, 4, 7, 10), FOOT_JOINTS.index(10)), ((2, 5, 8, 11), FOOT_JOINTS.index(11)))
# Frames over which a displacement fades.
REACH = 14.0
# What generated contact columns, which are means of what may be, are above while a foot stands; real ones are 0 or 1.
STANDS = 0.3
_STRAIGHT = 1 - 1e-4
_SHORTEST = 1e-6
_FOOT = 1e-3


def with_planted_feet(motion: Tensor) -> Tensor:
    """InterHuman motion (..., T, 262), un-normalised, whose feet do not slide while they stand.

    They stand where the contact columns of their balls are above ``STANDS``.

    Each foot is moved horizontally by o_t, which minimises

        sum_t |o_t|^2 + REACH^2 sum_t |o_(t+1) - o_t + c_t (p_(t+1) - p_t)|^2

    over the clip, p being the ball of the foot and c_t whether it stands from frame t to t + 1: standing feet rest,
    others move as before, and what was moved returns to its place. The knee follows on the plane in which the leg was
    bent, with bones of the same length (inverse kinematics of two bones). Velocities are the differences of the
    positions (the last frame's stays); other columns stay.

    Raises:
        ValueError: not (..., T, 262).
    """
    positions = joints(motion)
    parts = list(positions.unbind(dim=-2))
    for (hip, knee, ankle, ball), column in _LEGS:
        stands = motion[..., CONTACT_COLUMNS][..., :-1, column, None] > STANDS
        offset = _offsets(parts[ball], stands)
        leg = (parts[hip], parts[knee], parts[ankle], parts[ball])
        moved, parts[knee] = _bend(*leg, parts[ankle] + offset)
        parts[ball] = parts[ball] + moved - parts[ankle]
        parts[ankle] = moved
    return with_positions(motion, torch.stack(parts, dim=-2))


def _offsets(ball: Tensor, stands: Tensor) -> Tensor:
    """The minimiser o (..., T, 3) for positions (..., T, 3) and moves (..., T - 1, 1); its height is 0."""
    frames = ball.shape[-2]
    identity = torch.eye(frames, dtype=torch.float64, device=ball.device)
    moves = identity.diff(dim=0)
    unwanted = ball.double().diff(dim=-2) * stands
    unwanted[..., 1] = 0
    system = identity / REACH**2 + moves.T @ moves
    return -torch.linalg.solve(system, moves.T @ unwanted).to(ball.dtype)


def _bend(hip: Tensor, knee: Tensor, ankle: Tensor, ball: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Ankle and knee (..., 3) of a leg whose ankle reaches for ``wanted``, as far as its bones go.

    The knee points where it did, or, of a straight leg, where the foot does.
    """
    thigh, shin = (torch.linalg.vector_norm(a - b, dim=-1, keepdim=True) for a, b in ((knee, hip), (ankle, knee)))
    leg = wanted - hip
    distance = torch.linalg.vector_norm(leg, dim=-1, keepdim=True).clamp(min=_SHORTEST)
    along = leg / distance
    reached = distance.minimum((thigh + shin) * _STRAIGHT).maximum((thigh - shin).abs())
    forward = knee - hip + _FOOT * (ball - ankle)
    forward = forward - (forward * along).sum(dim=-1, keepdim=True) * along
    forward = forward / torch.linalg.vector_norm(forward, dim=-1, keepdim=True).clamp(min=_SHORTEST)
    cosine = (thigh**2 + reached**2 - shin**2) / (2 * thigh * reached).clamp(min=_SHORTEST)
    height = thigh * (1 - cosine.clamp(-1, 1) ** 2).sqrt()
    return hip + reached * along, hip + cosine * thigh * along + height * forward
