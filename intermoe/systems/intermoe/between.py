"""What lies between given frames: a small network that leads each person's joints from one end of a gap to the other.

In a short gap the frames on either side tell most of what happens, and one estimate of the mean is nearer to it than
motion that is drawn. The network sees a person alone, in a frame that stands between the ends of the gap and faces as
they do, and adds waves that are zero at both ends to the straight way between them (Oreshkin et al. 2022 let a network
add to an interpolation, too).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from intermoe.motion.interhuman import FPS
from intermoe.motion.skeleton import LEFT_HIP, LEFT_JOINTS, NUM_JOINTS, RIGHT_HIP, RIGHT_JOINTS
from intermoe.nn.layers import Linear, ZeroLinear
from intermoe.systems.intermoe.config import BetweenConfig

SEEN = (0, 1, 3, 6, 12)
"""Frames that are seen on either side of a gap, by their distance from the one beside it."""
LEAST = 4
"""Given frames on either side of a gap, at least: fewer do not tell how fast somebody goes."""
_FLAT = 3 * NUM_JOINTS
_SMALLEST = 1e-6
_FASTEST, _SPEEDS = 10.0, 0.1
"""Least seconds, inverted, over which a speed is told, and what metres a second are multiplied by."""
_PARTNERS = list(range(NUM_JOINTS))
for _left, _right in zip(LEFT_JOINTS, RIGHT_JOINTS, strict=True):
    _PARTNERS[_left], _PARTNERS[_right] = _right, _left


class Ends(NamedTuple):
    """Joints beside gaps, ``before`` and ``after`` (G, 5, 22, 3) metres at ``SEEN`` frames from them, in any frame of
    the world whose Y is up, and how many ``frames`` (G,) lie between.
    """

    before: Tensor
    after: Tensor
    frames: Tensor

    def reversed(self) -> Ends:
        """The same backward in time."""
        return Ends(self.after, self.before, self.frames)

    def mirrored(self) -> Ends:
        """The mirror image, left and right exchanged."""
        return Ends(mirrored(self.before), mirrored(self.after), self.frames)


class Gap(NamedTuple):
    """Frames [``begin``, ``end``) between given ones, which reach from ``first`` to ``last``."""

    first: int
    begin: int
    end: int
    last: int

    @property
    def frames(self) -> int:
        """How many it has."""
        return self.end - self.begin

    @property
    def least(self) -> int:
        """How many are given on the side that has fewer."""
        return min(self.begin - self.first, self.last + 1 - self.end)


class Between(nn.Module):
    """The joints of a person in a gap, from those beside it.

    Args:
        config: with a ``width`` above 0.

    Attributes:
        mean, std: (10, 66), of what is seen in training; what is seen is brought to unit variance by them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BetweenConfig) -> None:
        super().__init__()
        self.config = config
        self.places = Linear(_FLAT, config.code)
        self.speeds = Linear(_FLAT, config.code, bias=False)
        self.first = Linear(2 * len(SEEN) * config.code + 2, config.width)
        self.layers = nn.ModuleList(Linear(config.width, config.width) for _ in range(config.layers))
        self.waves = Linear(config.width, config.waves * config.code)
        self.joints = ZeroLinear(config.code, _FLAT, bias=False)
        self.register_buffer("mean", torch.zeros(2 * len(SEEN), _FLAT))
        self.register_buffer("std", torch.ones(2 * len(SEEN), _FLAT))

    def forward(self, ends: Ends, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Joints (G, n, 22, 3) at ``frames`` (G, n) of each gap, from 0 on, where ``ends`` are.

        Args:
            noise: (G, 10, 66), added to what is seen, in its standard deviations.
        """
        before, after, origin, turn = _placed(ends)
        told = (_seen(before, after) - self.mean) / self.std
        if noise is not None:
            told = told + noise
        told, seconds = told.to(self.first.weight.dtype), (ends.frames / FPS)[:, None].to(self.first.weight.dtype)
        codes = torch.cat([self.places(told[:, :2]), self.speeds(told[:, 2:])], dim=1).flatten(1)
        hidden = nn.functional.gelu(self.first(torch.cat([codes, seconds, seconds**2], dim=1)))
        for layer in self.layers:
            hidden = hidden + nn.functional.gelu(layer(hidden))
        waves = self.joints(rearrange(self.waves(hidden), "g (k c) -> g k c", k=self.config.waves))
        share = (frames + 1) / (ends.frames[:, None] + 1)
        shapes = torch.sin(torch.pi * share[..., None] * torch.arange(1, self.config.waves + 1, device=share.device))
        added = einsum(shapes, waves.to(shapes), "g n k, g k x -> g n x").unflatten(-1, (NUM_JOINTS, 3))
        line = torch.lerp(before[:, :1], after[:, :1], share[..., None, None])
        return (line + added) @ turn[:, None] + origin[:, None, None]

    def estimate(self, ends: Ends, frames: Tensor) -> Tensor:
        """The mean of ``forward`` as things are, backward in time, and of the mirror image of both."""
        every = []
        for backward, mirror in itertools.product((False, True), repeat=2):
            way, when = (ends.reversed(), ends.frames[:, None] - 1 - frames) if backward else (ends, frames)
            made = self(way.mirrored() if mirror else way, when)
            every.append(mirrored(made) if mirror else made)
        return torch.stack(every).mean(dim=0)

    @torch.no_grad()
    def filled(self, joints: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (P, T, 22, 3) with every gap of up to ``max_frames`` filled, and where (P, T) that was.

        Args:
            where: (P, T) bool, which frames are given; a gap lies between two of them.
        """
        result, filled = joints.clone(), torch.zeros_like(where)
        for person, given in enumerate(where):
            for gap in gaps(given, self.config.max_frames):
                own = joints[person].to(self.mean.device, torch.float32)
                made = self.estimate(ends_of(own, gap), torch.arange(gap.frames).to(own)[None])
                result[person, gap.begin : gap.end] = made[0].to(result)
                filled[person, gap.begin : gap.end] = True
        return result, filled


def gaps(given: Tensor, max_frames: int) -> list[Gap]:
    """Those of up to ``max_frames`` between ``LEAST`` or more frames that are ``given`` (T,)."""
    edges = nn.functional.pad(given.int(), (1, 1)).diff()
    runs = list(zip(edges.eq(1).nonzero()[:, 0].tolist(), edges.eq(-1).nonzero()[:, 0].tolist(), strict=True))
    every = [Gap(first, begin, end, last - 1) for (first, begin), (end, last) in itertools.pairwise(runs)]
    return [gap for gap in every if gap.frames <= max_frames and gap.least >= LEAST]


def ends_of(joints: Tensor, gap: Gap) -> Ends:
    """What is seen of joints (T, 22, 3) beside a gap; where few are given, the furthest of them is seen again."""
    before = joints[[max(gap.begin - 1 - distance, gap.first) for distance in SEEN]]
    after = joints[[min(gap.end + distance, gap.last) for distance in SEEN]]
    return Ends(before[None], after[None], joints.new_tensor([gap.frames]))


def mirrored(joints: Tensor) -> Tensor:
    """The mirror image of joints (..., 22, 3): x negated, left and right exchanged."""
    return joints[..., _PARTNERS, :] * joints.new_tensor([-1.0, 1.0, 1.0])


def seen(ends: Ends) -> Tensor:
    """What the network sees of ``ends`` (G, 10, 66): where joints are beside the gap, and how fast on either side."""
    before, after, _, _ = _placed(ends)
    return _seen(before, after)


def _placed(ends: Ends) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ends seen from where they stand, and ``_standing``."""
    origin, turn = _standing(ends)
    before, after = ((each - origin[:, None, None]) @ turn.mT[:, None] for each in ends[:2])
    return before, after, origin, turn


def _standing(ends: Ends) -> tuple[Tensor, Tensor]:
    """The ground (G, 3) half way between the ends, and turns (G, 3, 3) about Y that make both together face Z-."""
    origin = (ends.before[:, 0, 0] + ends.after[:, 0, 0]) / 2
    origin = origin * origin.new_tensor([1.0, 0.0, 1.0])
    hips = ends.before[:, 0] + ends.after[:, 0]
    across = hips[:, RIGHT_HIP] - hips[:, LEFT_HIP]
    x, z = -across[:, 2], across[:, 0]
    length = (x.square() + z.square()).sqrt() + _SMALLEST
    sin, cos, zero = x / length, z / length, torch.zeros_like(x)
    rows = [(cos, zero, -sin), (zero, zero + 1, zero), (sin, zero, cos)]
    return origin, torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _seen(before: Tensor, after: Tensor) -> Tensor:
    speed = before.new_tensor([min(FPS / distance, _FASTEST) * _SPEEDS for distance in SEEN[1:]])[:, None, None]
    parts = [
        before[:, :1],
        after[:, :1],
        (before[:, :1] - before[:, 1:]) * speed,
        (after[:, 1:] - after[:, :1]) * speed,
    ]
    return torch.cat(parts, dim=1).flatten(2)
