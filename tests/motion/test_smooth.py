"""Trembling goes, movement stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from intermoe.motion.interhuman import INTERHUMAN, joints, with_positions
from intermoe.motion.smooth import WEIGHT, with_smooth_joints


def moving(track: torch.Tensor) -> torch.Tensor:
    """InterHuman motion (T, 262) whose joints and rotations all follow ``track`` (T,)."""
    motion = torch.zeros(len(track), 262)
    motion[:, INTERHUMAN.rotation] = track[:, None]
    motion[:, 258:] = 1.0
    return with_positions(motion, track[:, None, None].expand(-1, 22, 3))


def test_constant_acceleration_stays_and_so_do_contacts_and_short_clips() -> None:
    time = torch.arange(50) / 30
    motion = moving(0.3 + 1.5 * time - 2 * time**2)
    torch.testing.assert_close(with_smooth_joints(motion), motion, atol=1e-5, rtol=1e-5)
    short = moving(torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(with_smooth_joints(short), short)


@pytest.mark.parametrize("frequency", [0.05, 0.2, 0.45])
def test_a_swing_becomes_as_small_as_the_formula_says(frequency: float) -> None:
    """Of swings to and fro, a share of the frame rate, 1 / (1 + WEIGHT (2 sin(pi f))^6) is left, far from the ends."""
    swing = torch.cos(2 * torch.pi * frequency * torch.arange(400))
    left = 1 / (1 + WEIGHT * (2 * torch.sin(torch.tensor(torch.pi * frequency))) ** 6)
    made = with_smooth_joints(moving(swing))
    middle = slice(150, 250)
    torch.testing.assert_close(joints(made)[middle, 3, 1], left * swing[middle], atol=1e-4, rtol=0)
    torch.testing.assert_close(made[middle, INTERHUMAN.rotation][:, 7], left * swing[middle], atol=1e-4, rtol=0)
    assert left == pytest.approx({0.05: 1.0, 0.2: 0.56, 0.45: 0.05}[frequency], abs=0.01)


def test_velocities_are_those_of_the_new_positions_and_persons_are_alone() -> None:
    two = torch.stack([moving(torch.randn(30)), moving(torch.randn(30))])
    made = with_smooth_joints(two)
    torch.testing.assert_close(made[:, :-1, 66:132], joints(made).diff(dim=1).flatten(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(made[1], with_smooth_joints(two[1]))


@pytest.mark.parametrize("kind", ["made up", "real"])
def test_people_who_walk_and_dance_move_by_millimetres(items: Callable[[str], list[torch.Tensor]], kind: str) -> None:
    for motion in items(kind):
        moved = torch.linalg.vector_norm(joints(with_smooth_joints(motion)) - joints(motion), dim=-1)
        assert moved.mean() < 0.006


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames_have_no_jerk_and_stay_to_the_bit(frames: int) -> None:
    """Their velocities too, whatever they are."""
    motion = torch.randn(2, frames, 262, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_smooth_joints(motion), motion)
