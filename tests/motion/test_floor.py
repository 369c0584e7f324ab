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


@pytest.mark.parametrize(("airborne", "stays"), [(19, True), (20, True), (21, False), (25, False)])
def test_who_leaves_the_floor_for_more_than_twice_ten_frames_comes_down(airborne: int, stays: bool) -> None:
    heights = torch.zeros(80)
    heights[30 : 30 + airborne] = 0.3
    made = lowest(with_persons_on_floor(person(heights)))
    assert torch.equal(made, heights) == stays


def test_what_is_taken_off_goes_over_by_twenty_one_frames() -> None:
    """Half a metre above the floor from frame 60 on: what is 10 frames from there is wrong, its mean over 21 goes."""
    heights = torch.where(torch.arange(140) < 60, 0.0, 0.5)
    wrong = torch.where(torch.arange(140) < 70, 0.0, 0.5 - STANDING)
    expected = heights.clone()
    for frame in range(30, 110):
        expected[frame] -= wrong[frame - 10 : frame + 11].mean()
    made = lowest(with_persons_on_floor(person(heights)))
    torch.testing.assert_close(made[30:110], expected[30:110])


def test_the_ends_of_a_clip_go_on_as_they_are() -> None:
    """Somebody who comes up from the floor, and the same backward: the first frame counts for the ten before it."""
    wrong = 0.02 * torch.arange(40.0)
    made = lowest(with_persons_on_floor(person(wrong + STANDING)))
    lowered = torch.cat([torch.zeros(10), wrong[:-10]])  # the lowest within ten frames is ten frames before
    for frame in (0, 4, 39):
        around = [lowered[min(max(frame + k, 0), 39)] for k in range(-10, 11)]
        assert float(made[frame]) == pytest.approx(float(wrong[frame] + STANDING - sum(around) / 21), abs=1e-5)
    backward = lowest(with_persons_on_floor(person(wrong.flip(0) + STANDING)))
    torch.testing.assert_close(backward, made.flip(0))


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
