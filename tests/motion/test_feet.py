from __future__ import annotations

import pytest
import torch

from intermoe.metrics.kinematics import foot_contact
from intermoe.motion.bones import hold_bone_lengths
from intermoe.motion.feet import with_planted_feet
from intermoe.motion.interhuman import joints, with_positions
from intermoe.motion.skeleton import PARENTS

LEFT, RIGHT = 10, 11  # balls of the feet
BALLS = (259, 261)


def lengths(motion: torch.Tensor) -> torch.Tensor:
    positions = joints(motion)
    return (positions[..., 1:, :] - positions[..., list(PARENTS[1:]), :]).norm(dim=-1)


@pytest.fixture
def clip(clip: torch.Tensor) -> torch.Tensor:
    """The same with bones that are rigid to the last digit."""
    return with_positions(clip, hold_bone_lengths(joints(clip)))


def drifting(clip: torch.Tensor, reach: float = 0.2) -> torch.Tensor:
    """The clip with everybody sliding ``reach`` metres sideways and back, by up to 4.5 cm a frame."""
    way = reach * torch.sin(0.225 * torch.arange(clip.shape[1]))
    return with_positions(clip, joints(clip) + torch.stack([way, 0 * way, 0 * way], dim=-1)[:, None])


def test_sliding_feet_rest_and_others_move_on(clip: torch.Tensor) -> None:
    slides = drifting(clip)
    planted = with_planted_feet(slides)
    before, after, truth = (foot_contact(joints(motion).numpy()) for motion in (slides, planted, clip))
    assert before.sliding > 3 * truth.sliding
    # of people made up none slides
    assert after.sliding < (1.2 * truth.sliding if truth.sliding else 0.05 * before.sliding)
    stands = slides[:, :-1, BALLS] > 0.3
    speed = [joints(motion)[:, :, (LEFT, RIGHT)].diff(dim=1)[..., (0, 2)].norm(dim=-1) for motion in (slides, planted)]
    assert speed[1][stands].mean() < 0.3 * speed[0][stands].mean()
    assert speed[1][~stands].mean() > 0.6 * speed[0][~stands].mean()


def test_offsets_minimise_what_is_documented(clip: torch.Tensor) -> None:
    slides = drifting(clip, reach=0.03)  # less than a leg has left
    offset = joints(with_planted_feet(slides))[0, :, LEFT] - joints(slides)[0, :, LEFT]
    ball, stands = joints(slides)[0, :, LEFT], (slides[0, :-1, BALLS[0]] > 0.3).double()

    def cost(o: torch.Tensor) -> torch.Tensor:
        unwanted = stands[:, None] * ball.double().diff(dim=0)[:, (0, 2)]
        return o.square().sum() + 14**2 * (o.diff(dim=0) + unwanted).square().sum()

    o = offset.double()[:, (0, 2)].requires_grad_()
    (slope,) = torch.autograd.grad(cost(o), o)
    zero = torch.zeros_like(o, requires_grad=True)
    (at_zero,) = torch.autograd.grad(cost(zero), zero)
    assert offset[:, 1].abs().max() < 1e-6
    assert slope.abs().max() < 1e-3 * at_zero.abs().max()


def test_heights_bones_and_the_rest_of_the_body_stay(clip: torch.Tensor) -> None:
    slides = drifting(clip)
    planted = with_planted_feet(slides)
    torch.testing.assert_close(lengths(planted), lengths(slides), rtol=0, atol=1e-4)
    above = [joint for joint in range(22) if joint not in (4, 5, 7, 8, 10, 11)]
    assert torch.equal(joints(planted)[:, :, above], joints(slides)[:, :, above])
    moved = (joints(planted) - joints(slides))[:, :, (7, 10, 8, 11)]
    torch.testing.assert_close(moved[:, :, 0], moved[:, :, 1])  # the foot as a whole
    torch.testing.assert_close(planted[:, :-1, 66:132], planted[..., :66].diff(dim=1))
    assert torch.equal(planted[..., 132:], slides[..., 132:])


def test_motion_whose_feet_rest_hardly_changes(clip: torch.Tensor) -> None:
    assert (joints(with_planted_feet(clip)) - joints(clip)).norm(dim=-1).mean() < 0.006


def test_a_leg_goes_no_farther_than_its_bones(clip: torch.Tensor) -> None:
    far = clip.clone()
    far[..., BALLS] = 1.0
    way = torch.linspace(0, 6, clip.shape[1])
    far = with_positions(far, joints(far) + torch.stack([way, 0 * way, 0 * way], dim=-1)[:, None])
    planted = with_planted_feet(far)
    assert torch.isfinite(planted).all()
    torch.testing.assert_close(lengths(planted), lengths(far), rtol=0, atol=1e-4)


def test_feet_that_never_stand_and_joints_in_one_place_do_no_harm(clip: torch.Tensor) -> None:
    free = clip.clone()
    free[..., BALLS] = 0.0
    torch.testing.assert_close(joints(with_planted_feet(free)), joints(free), rtol=0, atol=1e-4)
    assert torch.isfinite(with_planted_feet(torch.zeros(3, 262))).all()
    assert torch.isfinite(with_planted_feet(torch.zeros(1, 262))).all()


def test_a_knee_that_is_bent_stays_where_it_is_though_the_foot_points_aside() -> None:
    """The foot decides of straight legs alone: of one that is bent by 6 cm it moves the knee by a thousandth of it."""
    pose = torch.zeros(2, 22, 3)
    for hip, knee, ankle, ball in ((1, 4, 7, 10), (2, 5, 8, 11)):
        pose[:, hip, 1], pose[:, ball] = 0.85, torch.tensor([0.12, 0.08, 0.0])
        pose[:, knee], pose[:, ankle] = torch.tensor([0.0, 0.45, 0.06]), torch.tensor([0.0, 0.08, 0.0])
    motion = with_positions(torch.zeros(2, 262), pose)
    torch.testing.assert_close(joints(with_planted_feet(motion)), pose, rtol=0, atol=3e-4)


def test_a_leg_that_is_out_of_reach_is_stretched_out() -> None:
    """As far as its bones go but for a ten-thousandth, its foot with it; who slides by 2 m is held back by 1 m."""
    pose = torch.zeros(2, 22, 3)
    for side, (hip, knee, ankle, ball) in ((0.1, (1, 4, 7, 10)), (-0.1, (2, 5, 8, 11))):
        for joint, place in ((hip, (0.9, 0.0)), (knee, (0.5, 0.1)), (ankle, (0.1, 0.0)), (ball, (0.1, 0.15))):
            pose[:, joint] = torch.tensor([side, *place])
    pose[1, :, 2] += 2.0
    motion = with_positions(torch.zeros(2, 262), pose)
    motion[:, 261] = 1.0  # the right ball stands
    made = joints(with_planted_feet(motion))
    torch.testing.assert_close(made[:, [1, 4, 7, 10]], pose[:, [1, 4, 7, 10]], rtol=0, atol=1e-4)
    leg = 2 * (0.4**2 + 0.1**2) ** 0.5 * (1 - 1e-4)
    torch.testing.assert_close((made[:, 8] - made[:, 2]).norm(dim=-1), torch.full((2,), leg), rtol=0, atol=1e-5)
    torch.testing.assert_close(made[:, 11] - made[:, 8], pose[:, 11] - pose[:, 8])
    assert (made[0, 8, 2] - pose[0, 8, 2] > 0.3) & (made[1, 8, 2] - pose[1, 8, 2] < -0.3)


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"motion: expected last dimension 262, got \(4, 263\)"):
        with_planted_feet(torch.zeros(4, 263))
    with pytest.raises(ValueError, match=r"motion: expected shape \(\.\.\., T, 262\), got \(262,\)"):
        with_positions(torch.zeros(262), torch.zeros(22, 3))
