"""Persons are put on the floor, and motion that touches it stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from intermoe.motion.floor import REACH, STANDING, with_persons_on_floor
from intermoe.motion.interhuman import joints, with_positions


def person(heights: torch.Tensor) -> torch.Tensor:
    """InterHuman motion (T, 262) of a body whose lowest joint is at ``heights`` (T,)."""
    body = torch.rand(22, 3, generator=torch.Generator().manual_seed(0))
    body[:, 1] -= body[:, 1].min()
    positions = body.expand(len(heights), 22, 3) + heights[:, None, None] * torch.tensor([0.0, 1.0, 0.0])
    return with_positions(torch.zeros(len(heights), 262), positions)


def lowest(motion: torch.Tensor) -> torch.Tensor:
    return joints(motion)[..., 1].amin(dim=-1)


@pytest.mark.parametrize(("height", "becomes"), [(0.25, STANDING), (-0.1, 0.0), (0.02, 0.02), (0.0, 0.0)])
def test_a_person_at_one_height_is_put_down(height: float, becomes: float) -> None:
    motion = person(torch.full((40,), height))
    made = with_persons_on_floor(motion)
    torch.testing.assert_close(lowest(made), torch.full((40,), becomes))
    # all joints move alike, and nothing but heights changes
    torch.testing.assert_close(joints(made).diff(dim=-2), joints(motion).diff(dim=-2))
    torch.testing.assert_close(joints(made)[..., [0, 2]], joints(motion)[..., [0, 2]])
    torch.testing.assert_close(made[:, 132:], motion[:, 132:])


def test_a_jump_stays_and_a_person_who_floats_on_and_on_does_not() -> None:
    heights = torch.zeros(80)
    heights[30:40] = 0.4 * torch.sin(torch.linspace(0, torch.pi, 10))  # a third of a second
    motion = person(heights)
    torch.testing.assert_close(with_persons_on_floor(motion), motion)
    floating = torch.linspace(0.05, 0.6, 200)
    made = lowest(with_persons_on_floor(person(floating)))
    slope = float(floating[1] - floating[0])
    assert made.max() < STANDING + 2 * REACH * slope + 1e-3
    assert made.min() > -1e-6


def test_persons_and_clips_are_treated_alone_and_short_ones_too() -> None:
    two = torch.stack([person(torch.full((5,), 0.3)), person(torch.zeros(5))])
    together = with_persons_on_floor(torch.stack([two, two.flip(0)]))
    torch.testing.assert_close(together[0, 0], with_persons_on_floor(two[0]))
    torch.testing.assert_close(together[1], together[0].flip(0))
    torch.testing.assert_close(lowest(together[0, 0]), torch.full((5,), STANDING))
    torch.testing.assert_close(together[0, 1], two[1])


def test_velocities_are_those_of_the_new_positions() -> None:
    motion = person(torch.linspace(0.1, 0.9, 60))
    made = with_persons_on_floor(motion)
    steps = joints(made).diff(dim=0).flatten(1)
    torch.testing.assert_close(made[:-1, 66:132], steps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["made up", "real"])
def test_people_on_the_floor_hardly_move(items: Callable[[str], list[torch.Tensor]], kind: str) -> None:
    for motion in items(kind):
        assert (joints(with_persons_on_floor(motion)) - joints(motion)).abs().mean() < 0.005
