"""Where a joint shall be: at a place, near somebody's joint or away from it; and bodies that keep apart.

What is asked is a loss of decoded joints. While a motion is sampled, each estimate of its latents takes a step against
the loss's gradient through the decoder, as long as the loss over the gradient's square (Polyak 1987), up to a bound;
the network is not differentiated. In the end some steps of Adam bring the latents the rest of the way, held to small,
smooth displacements and to feet that stay where they stood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from intermoe.config import check_flag, check_integer, check_number, check_several
from intermoe.motion.arrays import LARGEST, real_array
from intermoe.motion.capsules import overlaps
from intermoe.motion.skeleton import FOOT_JOINTS, JOINT_NAMES

# What other numbers do, to the targets and to feet: `intermoe evaluate control --data DATA`.
REFINE_STEPS = 60
_RATE = 0.05
_SMOOTH, _STAND = 0.3, 0.5
_STANDING_SPEED = 0.01
_MOST = 0.5
"""Root mean square by which a step moves a latent frame at most: where a joint cannot be, the step has no bound."""

Decode = Callable[[Tensor], Tensor]
"""Latents (P, T', X) of one motion to its joints (P, T, 22, 3), with gradients."""


@dataclass(frozen=True, eq=False)
class Target:
    """A joint of one person at some frames: at places, or by a joint of somebody else.

    Args:
        person: who it is, from 0.
        joint: its name (``intermoe.motion.skeleton.JOINT_NAMES``) or number.
        frames: when.
        positions: (len(frames), 3) metres, Y up, in the model's frame of reference; or
        to: a person and a joint of theirs.
        distance: with ``to``, how far from it at most, in metres.
        apart: with ``to``, at least that far instead.

    Raises:
        ValueError: a value outside its range, not exactly one of positions and to, two places at one frame, numbers
            that are not finite.
        TypeError: a value of another kind.
    """

    person: int
    joint: str | int
    frames: Sequence[int]
    positions: Any = None
    to: tuple[int, str | int] | None = None
    distance: float = 0.0
    apart: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "person", check_integer(self.person, "person", low=0))
        object.__setattr__(self, "joint", joint_number(self.joint, "joint"))
        frames = tuple(check_integer(frame, "frames", low=0) for frame in check_several(self.frames, "frames"))
        object.__setattr__(self, "frames", frames)
        if not frames:
            raise ValueError("frames: expected at least one, got none")
        if (self.positions is None) == (self.to is None):
            raise ValueError("positions, to: expected one of the two, got both or neither")
        check_flag(self.apart, "apart")
        if not 0 <= check_number(self.distance, "distance") <= LARGEST:
            raise ValueError(f"distance: expected metres from 0 to {LARGEST:g}, got {self.distance}")
        if self.to is not None:
            if len(check_several(self.to, "to")) != 2:
                raise ValueError(f"to: expected a person and a joint, got {self.to!r}")
            other = check_integer(self.to[0], "to: person", low=0)
            if other == self.person:
                raise ValueError(f"to: expected somebody else than person {self.person}, got the same")
            object.__setattr__(self, "to", (other, joint_number(self.to[1], "to: joint")))
            return
        if self.distance or self.apart:
            raise ValueError("distance, apart: expected with to, got positions")
        places = torch.from_numpy(real_array(self.positions, "positions").copy())
        if places.shape != (len(frames), 3):
            raise ValueError(f"positions: expected shape ({len(frames)}, 3), got {tuple(places.shape)}")
        if not (places.abs() <= LARGEST).all():  # what is not finite is not within it either
            raise ValueError(f"positions: expected finite numbers up to {LARGEST:g}, got others")
        if len(set(frames)) < len(frames):
            raise ValueError(f"frames: expected each frame once, got {list(frames)}")
        object.__setattr__(self, "positions", places)

    def check(self, num_frames: int, persons: int) -> None:
        """Raise ``ValueError`` for a person or frame that a motion does not have."""
        for name, person in (("person", self.person), ("to: person", self.to[0] if self.to else 0)):
            if person >= persons:
                raise ValueError(f"{name}: expected one of 0 to {persons - 1}, got {person}")
        if max(self.frames) >= num_frames:
            raise ValueError(f"frames: expected within [0, {num_frames}), got {max(self.frames)}")

    def missed(self, joints: Tensor) -> Tensor:
        """By how many metres joints (P, T, 22, 3) miss it, at each of its frames."""
        here = joints[self.person, list(self.frames), cast(int, self.joint)]
        if self.to is None:
            return _norm(here - self.positions.to(here))
        between = _norm(here - joints[self.to[0], list(self.frames), cast(int, self.to[1])])
        return (self.distance - between if self.apart else between - self.distance).clamp(min=0)


def joint_number(joint: str | int, name: str) -> int:
    """The number of a joint. Raises ``ValueError`` that lists the names."""
    if isinstance(joint, str):
        if joint not in JOINT_NAMES:
            raise ValueError(f"{name}: expected one of {', '.join(JOINT_NAMES)}, got {joint!r}")
        return JOINT_NAMES.index(joint)
    return check_integer(joint, name, low=0, high=len(JOINT_NAMES) - 1)


def _norm(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=-1).clamp(min=1e-12).sqrt()


@dataclass(frozen=True, eq=False)
class Aims:
    """What a motion is steered to: targets, and whether bodies keep apart."""

    targets: Sequence[Target]
    bodies_apart: bool

    def loss(self, joints: Tensor) -> Tensor:
        """Half the sum of the squared metres by which joints (P, T, 22, 3) miss what is asked; 0 where they do not."""
        total = joints.new_zeros(())
        for target in self.targets:
            total = total + 0.5 * target.missed(joints).square().sum()
        if self.bodies_apart:
            for index, body in enumerate(joints):
                for other in joints[index + 1 :]:
                    total = total + 0.5 * overlaps(body, other).square().sum()
        return total

    def step(self, latents: Tensor, decode: Decode) -> Tensor:
        """Latents (P, T', X) of one motion a step nearer."""
        with torch.enable_grad():
            latents = latents.detach().requires_grad_()
            loss = self.loss(decode(latents))
            if not loss > 0:
                return latents.detach()
            (gradient,) = torch.autograd.grad(loss, latents)
        change = loss / gradient.square().sum().clamp(min=1e-12) * gradient
        most = change.square().mean(dim=-1).sqrt().max()
        return (latents - change * (_MOST / most.clamp(min=_MOST))).detach()

    def refine(self, latents: Tensor, decode: Decode, free: Tensor | None = None, steps: int = REFINE_STEPS) -> Tensor:
        """Latents (P, T', X) of one motion as near as ``steps`` of Adam bring them.

        Args:
            free: (P, T') bool, which may be moved; ``None`` for all.
        """
        with torch.enable_grad():
            moved = latents.detach().clone().requires_grad_()
            before = decode(moved).detach()
            stands = _norm(before[..., list(FOOT_JOINTS), :].diff(dim=1)) < _STANDING_SPEED
            optimiser = torch.optim.Adam([moved], lr=_RATE)
            for step in range(steps):
                optimiser.param_groups[0]["lr"] = _RATE * (1 - step / steps)
                joints = decode(moved)
                shift = joints - before
                slide = stands[..., None] * shift[..., list(FOOT_JOINTS), :].diff(dim=1)
                held = _SMOOTH * shift.diff(dim=1).diff(dim=1).square().sum() + _STAND * slide.square().sum()
                optimiser.zero_grad()
                (self.loss(joints) + held / 2).backward()  # type: ignore[no-untyped-call]
                if free is not None and moved.grad is not None:
                    moved.grad.masked_fill_(~free[..., None], 0.0)
                optimiser.step()
        return moved.detach()
