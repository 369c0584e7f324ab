from __future__ import annotations

import pytest
import torch

from intermoe.motion.bones import hold_bone_lengths, with_rigid_bones
from intermoe.motion.interhuman import joints
from intermoe.motion.skeleton import PARENTS


def lengths(positions: torch.Tensor) -> torch.Tensor:
    return (positions[..., 1:, :] - positions[..., list(PARENTS[1:]), :]).norm(dim=-1)


def test_rigid_motion_stays_as_it_is(clip: torch.Tensor) -> None:
    torch.testing.assert_close(hold_bone_lengths(joints(clip)), joints(clip), atol=2e-3, rtol=0)


def test_bones_of_disturbed_motion_become_rigid_and_joints_come_closer_to_the_truth(clip: torch.Tensor) -> None:
    truth = joints(clip)
    disturbed = truth + 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    held = hold_bone_lengths(disturbed)
    assert (lengths(held).std(dim=1) / lengths(held).mean(dim=1)).max() < 1e-5
    torch.testing.assert_close(lengths(held).mean(dim=1), lengths(disturbed).mean(dim=1), rtol=1e-4, atol=0)
    assert (held - truth).norm(dim=-1).mean() < (disturbed - truth).norm(dim=-1).mean()


def test_velocities_follow_and_other_columns_stay(clip: torch.Tensor) -> None:
    disturbed = clip + 0.01 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    result = with_rigid_bones(disturbed)
    torch.testing.assert_close(result[:, :-1, 66:132], result[..., :66].diff(dim=1))
    assert torch.equal(result[..., 132:], disturbed[..., 132:])
    assert torch.equal(result[:, -1, 66:132], disturbed[:, -1, 66:132])


def test_joints_in_one_place_and_single_frames_do_no_harm() -> None:
    assert torch.isfinite(hold_bone_lengths(torch.zeros(3, 22, 3))).all()
    one = torch.randn(1, 22, 3)
    torch.testing.assert_close(hold_bone_lengths(one), one)


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"motion: expected last dimension 262, got \(4, 263\)"):
        with_rigid_bones(torch.zeros(4, 263))
