from __future__ import annotations

import re

import pytest
import torch

from intermoe.motion.interx import INTERX
from intermoe.systems.intermoe.vae import LatentDistribution
from intermoe.train.config import VAELossConfig
from intermoe.train.losses import vae_losses


def _posterior() -> LatentDistribution:
    return LatentDistribution(torch.zeros(2, 2, 7, 4), torch.zeros(2, 2, 7, 4))


def test_perfect_reconstruction_costs_nothing() -> None:
    motion = torch.randn(2, 8, 262)
    losses = vae_losses(motion, motion, _posterior(), torch.randn(262), torch.rand(262) + 0.1, VAELossConfig())
    assert all(value == 0 for value in losses.values())


def test_position_is_in_decimetres_whatever_the_statistics() -> None:
    std = torch.rand(262) + 0.1
    target = torch.randn(2, 8, 262)
    metres = torch.zeros(262)
    metres[:66:3] = 0.3  # every joint 30 cm off along x, and 40 cm along z
    metres[2:66:3] = 0.4
    losses = vae_losses(target + metres / std, target, _posterior(), torch.zeros(262), std, VAELossConfig())
    torch.testing.assert_close(losses["position"], torch.tensor(5.0))
    # the error does not move, and the velocity columns are right
    torch.testing.assert_close(losses["velocity"], torch.tensor(0.0), atol=1e-4, rtol=0)
    assert losses["rotation"] == 0


def test_jitter_of_positions_counts_as_velocity() -> None:
    target, std = torch.zeros(1, 4, 262), torch.ones(262)
    output = target.clone()
    output[:, ::2, 0] = 0.5  # one coordinate of 66 jumps by 0.5 between all frames
    losses = vae_losses(output, target, _posterior(), torch.zeros(262), std, VAELossConfig())
    torch.testing.assert_close(losses["velocity"], torch.tensor(0.5 / 66))


def test_loss_is_the_weighted_sum() -> None:
    motion, output = torch.randn(2, 8, 262), torch.randn(2, 8, 262)
    posterior = LatentDistribution(torch.ones(2, 2, 7, 4), torch.zeros(2, 2, 7, 4))
    weights = VAELossConfig(reconstruction=1, position=2, velocity=3, rotation=4, kl=5, bone=6, skating=7)
    losses = vae_losses(output, motion, posterior, torch.zeros(262), torch.ones(262), weights)
    expected = sum(getattr(weights, name) * value for name, value in losses.items() if name != "loss")
    torch.testing.assert_close(losses["loss"], expected)
    assert losses["kl"] == 0.5


@pytest.mark.parametrize("shape", [(2, 1, 262), (2, 8, 263), (8, 262)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    motion = torch.zeros(shape)
    told = re.escape(f"output, target: expected both of (N, T >= 2, 262), got {shape} and {shape}")
    with pytest.raises(ValueError, match=f"^{told}$"):
        vae_losses(motion, motion, _posterior(), torch.zeros(262), torch.ones(262), VAELossConfig())


def test_frames_of_several_dimensions_are_refused_with_all_of_them() -> None:
    motion, weights = torch.zeros(2, 8, 262), VAELossConfig()
    with pytest.raises(ValueError, match=r"expected both of \(N, T >= 2, 55, 12\), got"):
        vae_losses(motion, motion, _posterior(), torch.zeros(12), torch.ones(12), weights, INTERX)


def _standing() -> torch.Tensor:
    """(1, 4, 262) un-normalised motion whose joints lie on a line 10 cm apart, in the order of their numbers."""
    motion = torch.zeros(1, 4, 262)
    motion[..., 1:66:3] = 0.1 * torch.arange(22)
    return motion


def test_bone_is_the_relative_error_of_lengths() -> None:
    target, output = _standing(), _standing()
    output[..., :66] *= 1.2  # every bone 20 % too long
    terms = vae_losses(output, target, _posterior(), torch.zeros(262), torch.ones(262), VAELossConfig())
    torch.testing.assert_close(terms["bone"], torch.tensor(0.2))
    moved = _standing()
    moved[..., :66:3] += 3.0
    terms = vae_losses(moved, target, _posterior(), torch.zeros(262), torch.ones(262), VAELossConfig())
    torch.testing.assert_close(terms["bone"], torch.tensor(0.0), atol=1e-6, rtol=0)


def test_skating_is_what_feet_in_contact_move_too_fast() -> None:
    target, output = _standing(), _standing()
    output[:, :, 3 * 10] = 0.01 * torch.arange(4)  # joint 10, a foot, slides 1 cm a frame: 0.3 m/s
    arguments = (_posterior(), torch.zeros(262), torch.ones(262), VAELossConfig())
    assert vae_losses(output, target, *arguments)["skating"] == 0, "no contact"
    target[..., 259] = 1.0  # the contact column of joint 10, one of four
    torch.testing.assert_close(vae_losses(output, target, *arguments)["skating"], torch.tensor(0.3 / 4))
    target[:, :, 3 * 10] = 0.02 * torch.arange(4)  # the target slides faster
    assert vae_losses(output, target, *arguments)["skating"] == 0
    target, output = _standing(), _standing()
    target[..., 259] = 1.0
    output[:, :, 3 * 10 + 1] += 0.01 * torch.arange(4)  # what rises does not slide
    assert vae_losses(output, target, *arguments)["skating"] == 0


@pytest.mark.parametrize(("contact", "expected"), [(0, 0.0), (1, 0.3 / 12), (2, 0.0)])
def test_a_contact_is_of_the_step_that_begins_with_it(contact: int, expected: float) -> None:
    """One foot of four slides in the second step of three, and in no other."""
    target, output = _standing(), _standing()
    output[:, 2:, 3 * 10] = 0.01
    target[:, contact, 259] = 1.0
    mean, std = torch.zeros(262), torch.ones(262)
    mean[258:], std[258:] = -1.0, 2.0  # of contacts: 1 is normalised to 1, and 0 to 0.5
    target[..., 258:] = target[..., 258:] * 0.5 + 0.5
    terms = vae_losses(output, target, _posterior(), mean, std, VAELossConfig())
    torch.testing.assert_close(terms["skating"], torch.tensor(expected))
    target[:, 1, 259] = -3.0  # less than no contact is none
    assert vae_losses(output, target, _posterior(), mean, std, VAELossConfig())["skating"] == 0
    two = target[:, :2]
    assert vae_losses(two, two, _posterior(), mean, std, VAELossConfig())["skating"] == 0


def test_velocity_of_positions_is_in_units_of_the_velocity_columns() -> None:
    """A jump of 0.5 m in x is 0.5 / std of the x velocity, and of no other column."""
    target, std = torch.zeros(1, 4, 262), torch.linspace(0.1, 2, 262)
    output = target.clone()
    output[:, ::2, 3] = 0.5 / std[3]  # joint 1, along x
    losses = vae_losses(output, target, _posterior(), torch.zeros(262), std, VAELossConfig())
    torch.testing.assert_close(losses["velocity"], 0.5 / std[66 + 3] / 66)


def test_each_term_by_hand_where_square_and_absolute_errors_differ() -> None:
    """One column of each kind is off: smooth L1 is e^2 / 2 below 1 and |e| - 1/2 above it, L1 is |e|."""
    std, target = torch.ones(262), _standing().repeat(2, 1, 1)
    arguments = (_posterior(), torch.zeros(262), std, VAELossConfig())

    def terms(column: int, error: float) -> dict[str, float]:
        output = target.clone()
        output[1, :, column] += error
        return {name: value.item() for name, value in vae_losses(output, target, *arguments).items()}

    # of two motions of 262 columns one is off in one
    assert terms(261, 0.5)["reconstruction"] == pytest.approx(0.125 / 262 / 2)
    assert terms(261, 3.0)["reconstruction"] == pytest.approx(2.5 / 262 / 2)
    velocity = terms(70, 3.0)  # of 66 columns from 66 on
    assert velocity["velocity"] == pytest.approx(3.0 / 66 / 2)
    assert velocity["rotation"] == velocity["position"] == velocity["bone"] == 0
    rotation = terms(140, 3.0)  # of 126 columns from 132 on
    assert rotation["rotation"] == pytest.approx(3.0 / 126 / 2)
    assert rotation["velocity"] == rotation["position"] == rotation["bone"] == 0
    position = terms(0, 0.4)  # the first of 22 joints, 4 dm to the side in every frame
    assert position["position"] == pytest.approx(4.0 / 22 / 2)
    assert position["velocity"] == position["rotation"] == 0
