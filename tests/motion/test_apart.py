from __future__ import annotations

import numpy as np
import pytest
import torch

from intermoe.metrics.bodies import penetration
from intermoe.motion.apart import REACH, SWEEPS, with_bodies_apart
from intermoe.motion.bones import hold_bone_lengths
from intermoe.motion.capsules import CAPSULES, between, deepest, overlaps
from intermoe.motion.interhuman import joints, with_positions
from intermoe.motion.rig import REST_POSE
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS, bone_vectors
from tests.motion.conftest import walking

J = JOINT_NAMES.index


def meeting(frames: int = 200, aside: float = -0.7) -> torch.Tensor:
    """Two people who walk towards each other and through each other, ``aside`` metres from their usual 0.8."""
    motion = walking(frames)
    positions = joints(motion).clone()
    positions[1, ..., 0] += aside
    return with_positions(motion, hold_bone_lengths(positions))


def standing(where: list[list[float]], frames: int = 40) -> torch.Tensor:
    """People in the rest pose, arms to the sides, who stand still at places on the ground."""
    pose = torch.zeros(22, 3)
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            pose[joint] = pose[parent] + torch.from_numpy(np.asarray(REST_POSE[joint])).float()
    pose[:, 1] -= pose[:, 1].min()
    people = torch.stack([pose + torch.tensor([x, 0.0, z]) for x, z in where])
    return with_positions(torch.zeros(len(where), frames, 262), people[:, None].expand(-1, frames, -1, -1))


def lengths(motion: torch.Tensor) -> torch.Tensor:
    return bone_vectors(joints(motion)).norm(dim=-1)


def depth(motion: torch.Tensor) -> torch.Tensor:
    return deepest(joints(motion))


def test_people_who_walk_through_each_other_pass_beside_each_other() -> None:
    motion = meeting()
    made = with_bodies_apart(motion)
    assert depth(motion).max() > 0.1
    assert depth(made).sum() < 0.35 * depth(motion).sum()
    torch.testing.assert_close(lengths(made), lengths(motion), rtol=0, atol=2e-4)
    # what is moved is moved smoothly: less fast than a hand that is thrown up
    step = joints(made).diff(dim=1) - joints(motion).diff(dim=1)
    assert step.norm(dim=-1).max() < 0.2
    # and what is far from it in time stays to the bit
    touched = (depth(motion) > 0).nonzero()[:, 0]
    far = torch.tensor([(touched - t).abs().min() > REACH * SWEEPS for t in range(motion.shape[1])])
    assert far.any()
    assert torch.equal(joints(made)[:, far], joints(motion)[:, far])


def test_velocities_follow_and_other_columns_stay() -> None:
    motion = meeting()
    made = with_bodies_apart(motion)
    torch.testing.assert_close(made[:, :-1, 66:132], joints(made).diff(dim=1).flatten(-2))
    assert torch.equal(made[..., 132:], motion[..., 132:])


def test_what_is_not_moved_keeps_its_velocities_whatever_they_are() -> None:
    motion = meeting()
    motion[..., 66:132] = 7.0
    fixed = torch.zeros(2, motion.shape[1], dtype=torch.bool)
    fixed[0] = True
    made = with_bodies_apart(motion, fixed)
    assert torch.equal(made[0], motion[0])
    moves = (joints(made)[1] != joints(motion)[1]).flatten(1).any(dim=1)
    first = int(moves.nonzero()[0])
    assert torch.equal(made[1, : first - 1], motion[1, : first - 1])
    torch.testing.assert_close(
        made[1, first - 1, 66:132], (joints(made)[1, first] - joints(made)[1, first - 1]).flatten()
    )


@pytest.mark.parametrize("aside", [0.0, 1.0])
def test_people_who_do_not_touch_stay_to_the_bit(aside: float) -> None:
    motion = meeting(aside=aside)
    assert depth(motion).max() == 0
    assert torch.equal(with_bodies_apart(motion), motion)
    assert torch.equal(with_bodies_apart(motion[:1]), motion[:1])


def test_who_is_fixed_stays_and_the_other_goes_all_the_way() -> None:
    motion = meeting()
    for person in (0, 1):
        fixed = torch.zeros(2, motion.shape[1], dtype=torch.bool)
        fixed[person] = True
        made = with_bodies_apart(motion, fixed)
        assert torch.equal(made[person], motion[person])
        assert depth(made).sum() < 0.35 * depth(motion).sum()
    both = torch.ones(2, motion.shape[1], dtype=torch.bool)
    assert torch.equal(with_bodies_apart(motion, both), motion)


def test_frames_that_are_fixed_stay_and_those_beside_them_do_not_jump() -> None:
    motion = meeting()
    first = int(depth(motion).nonzero()[0]) + 1
    fixed = torch.zeros(2, motion.shape[1], dtype=torch.bool)
    fixed[:, :first] = True
    made = with_bodies_apart(motion, fixed)
    assert torch.equal(made[:, :first], motion[:, :first])  # their velocities too
    assert not torch.equal(joints(made)[:, first], joints(motion)[:, first])
    assert depth(made)[first + REACH :].sum() < 0.5 * depth(motion)[first + REACH :].sum()
    step = joints(made).diff(dim=1) - joints(motion).diff(dim=1)
    assert step.norm(dim=-1).max() < 0.2


def test_an_arm_leaves_a_trunk_that_stays() -> None:
    """Somebody with arms outstretched stands beside somebody whose arms hang, one hand in the other's trunk."""
    motion = standing([[0.0, 0.0], [0.55, 0.0]])
    hanging = joints(walking(30))[0, :1]
    motion = with_positions(motion, torch.stack([hanging.expand(motion.shape[1], -1, -1), joints(motion)[1]]))
    inside = overlaps(*joints(motion)[:, 0])
    trunk, arm = CAPSULES.index((J("spine3"), J("neck"), 0.11)), len(CAPSULES) - 1
    assert inside[trunk, arm] > 0.05
    made = with_bodies_apart(motion)
    assert depth(made).max() < 0.2 * depth(motion).max()
    still = [J("pelvis"), J("neck"), J("left_foot"), J("right_foot")]
    moved = (joints(made) - joints(motion)).norm(dim=-1)
    assert moved[0].max() < 0.02
    assert moved[1, :, still].max() < 0.05 < moved[1, :, J("right_wrist")].min()


@pytest.mark.parametrize("aside", [-0.6, -0.7, -0.75, -0.9])
@pytest.mark.parametrize("held", [None, 0, 1])
def test_no_pelvis_comes_within_two_trunks_of_another(aside: float, held: int | None) -> None:
    motion = meeting(aside=aside)
    offset = joints(motion)[0, :, 0] - joints(motion)[1, :, 0]
    frame = int(offset.norm(dim=-1).argmin())
    assert offset[frame].norm() < 0.22
    fixed = torch.zeros(2, motion.shape[1], dtype=torch.bool)
    if held is not None:
        fixed[held] = True
    made = joints(with_bodies_apart(motion, fixed))
    apart = made[0, :, 0] - made[1, :, 0]
    assert apart.norm(dim=-1).min() > 0.22
    # on the side on which they were, and each as far as the other, where nobody is held
    side = offset[frame] * torch.tensor([1.0, 0.0, 0.0])  # they walk along Z
    assert apart[frame] @ side > 0
    far = (made - joints(motion))[:, frame, 0, 0].abs()
    assert far.max() > 0.1
    if held is None:
        torch.testing.assert_close(far[0], far[1], rtol=0, atol=0.03)
    step = made.diff(dim=1) - joints(motion).diff(dim=1)
    assert step.norm(dim=-1).max() < (0.2 if held is None else 0.3)


def test_who_is_lifted_over_another_is_not_led_past() -> None:
    """Their pelvises are in one place seen from above, and half a metre apart."""
    motion = standing([[0.0, 0.0], [0.02, 0.0]])
    up = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.5, 0.0]])
    motion = with_positions(motion, joints(motion) + up[:, None, None])
    assert torch.equal(with_bodies_apart(motion), motion)


def test_two_in_one_place_leave_it() -> None:
    motion = standing([[0.0, 0.0], [0.0, 0.0]])
    made = with_bodies_apart(motion)
    pelvis = joints(made)[..., 0, :]
    assert (pelvis[0] - pelvis[1]).norm(dim=-1).min() > 0.21
    torch.testing.assert_close(pelvis[..., 1], joints(motion)[..., 0, 1], rtol=0, atol=0.02)  # along the ground


def test_neither_the_order_of_persons_nor_the_frame_of_reference_matters() -> None:
    motion = meeting()
    made = joints(with_bodies_apart(motion))
    torch.testing.assert_close(joints(with_bodies_apart(motion.flip(0))), made.flip(0), rtol=0, atol=1e-4)
    turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    turned = with_positions(motion, joints(motion) @ turn.T)
    torch.testing.assert_close(joints(with_bodies_apart(turned)), made @ turn.T, rtol=0, atol=1e-3)


def test_three_people_leave_each_other() -> None:
    motion = torch.cat([meeting(), meeting(aside=-0.6)[1:]])
    made = with_bodies_apart(motion)
    before, after = (penetration(joints(each).numpy()) for each in (motion, made))
    assert after.depth < 0.4 * before.depth
    pelvis = joints(made)[:, :, 0]
    assert min(float((pelvis[a] - pelvis[b]).norm(dim=-1).min()) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.21


@pytest.mark.parametrize("shape", [(12, 262), (1, 2, 12, 262), (2, 12, 261)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="motion: expected"):
        with_bodies_apart(torch.zeros(shape))


def test_the_way_between_capsules_is_the_shortest() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 22, 3)
    way, s, t = between(first, second)
    grid = torch.linspace(0, 1, 101)
    for a, (start, end, _) in enumerate(CAPSULES):
        for b, (other, far, _) in enumerate(CAPSULES):
            one = torch.lerp(first[:, start, None], first[:, end, None], grid[:, None])
            two = torch.lerp(second[:, other, None], second[:, far, None], grid[:, None])
            nearest = torch.cdist(one, two).flatten(1).amin(dim=1)
            torch.testing.assert_close(way[:, a, b].norm(dim=-1), nearest, rtol=0, atol=0.02)
            here = torch.lerp(first[:, start], first[:, end], s[:, a, b, None])
            there = torch.lerp(second[:, other], second[:, far], t[:, a, b, None])
            torch.testing.assert_close(way[:, a, b], here - there)
