"""Joints come to where they shall be, bodies out of each other, and what cannot be asked is refused by name."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intermoe.control import Control, Known, Target
from intermoe.control.targets import Aims
from intermoe.motion.capsules import CAPSULES, deepest, overlaps
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.skeleton import JOINT_NAMES
from intermoe.systems.intermoe.pipeline import InterMoEPipeline

FRAMES = 24
WRIST = JOINT_NAMES.index("left_wrist")

pytestmark = pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: Any) -> Any:
    """The tiny model with a decoder whose joints follow the latents by more than millimetres."""
    vae = copy.deepcopy(tiny_pipeline.vae)
    with torch.no_grad():
        vae.joint_decoder.weight.mul_(20)
    parts = (vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    return InterMoEPipeline(tiny_pipeline.config, *parts)


def made(pipeline: Any, control: Control | None = None, **options: Any) -> Tensor:
    found: Tensor = pipeline("two people bow", FRAMES, num_inference_steps=3, control=control, **options).joints[0]
    return found


def body() -> Tensor:
    """Joints (22, 3) at rest, arms out to the sides."""
    return torch.tensor(at_rest(REST_POSE), dtype=torch.float32)


def test_a_joint_comes_to_its_place(pipeline: Any) -> None:
    free = made(pipeline)
    places = free[1, [6, 15], WRIST] + torch.tensor([0.2, 0.1, -0.1])
    target = Target(1, "left_wrist", [6, 15], positions=places)
    found = made(pipeline, Control(targets=[target]))
    # of this random decoder all joints move together, and smooth displacements of all of them are asked
    assert (target.missed(found) < 0.85 * target.missed(free)).all()
    assert torch.equal(found, made(pipeline, Control(targets=[target])))


def test_steps_and_refining_make_the_loss_less() -> None:
    """Through a linear decoder: a step of Polyak's halves a distance at least, Adam comes near."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 66, generator=generator)
    latents = torch.randn(2, 10, 6, generator=generator)

    def decode(latents: Tensor) -> Tensor:
        return (latents @ weight).unflatten(-1, (22, 3))

    start = decode(latents)
    aims = Aims([Target(0, 3, [4], positions=(start[0, 4, 3] + 0.3)[None]), Target(1, 0, [2], to=(0, 5))], False)
    losses = [float(aims.loss(decode(latents)))]
    for _ in range(4):
        latents = aims.step(latents, decode)
        losses.append(float(aims.loss(decode(latents))))
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.2 * losses[0]
    free = torch.ones(2, 10, dtype=torch.bool)
    free[0] = False
    refined = aims.refine(latents, decode, free)
    assert torch.equal(refined[0], latents[0])
    assert not torch.equal(refined[1], latents[1])
    assert aims.loss(decode(aims.refine(latents, decode))) < losses[-1]


def test_what_is_met_is_left_alone() -> None:
    latents = torch.randn(2, 4, 66)
    joints = latents.unflatten(-1, (22, 3))
    aims = Aims([Target(0, 0, [1], to=(1, 0), distance=100.0)], False)
    assert torch.equal(aims.step(latents, lambda each: each.unflatten(-1, (22, 3))), latents)
    assert float(aims.loss(joints)) == 0


def test_by_how_much_targets_are_missed() -> None:
    joints = torch.zeros(2, 5, 22, 3)
    joints[1, 3, 20] = torch.tensor([0.0, 0.3, 0.4])
    assert Target(1, "left_wrist", [3], positions=[[0.0, 0.3, 0.0]]).missed(joints).tolist() == pytest.approx([0.4])
    near, far = (Target(0, 0, [3], to=(1, "left_wrist"), distance=d, apart=a) for d, a in ((0.2, False), (0.7, True)))
    assert near.missed(joints).tolist() == pytest.approx([0.3])
    assert far.missed(joints).tolist() == pytest.approx([0.2])
    assert Target(0, 0, [3], to=(1, 20), distance=0.2, apart=True).missed(joints).tolist() == [0.0]


def test_a_joint_comes_to_a_person_who_is_given(pipeline: Any) -> None:
    given = made(pipeline, seed=4)[0]
    target = Target(1, "left_wrist", [8, 12], to=(0, "right_wrist"))
    known = [Known(0, joints=given)]
    before = made(pipeline, Control(known))
    found = made(pipeline, Control(known, targets=[target]))
    assert torch.equal(found[0], given)
    assert target.missed(found).mean() < 0.7 * target.missed(before).mean()


def test_bodies_come_apart(pipeline: Any) -> None:
    free = made(pipeline)
    found = made(pipeline, Control(bodies_apart=True))
    assert deepest(free).max() > 0
    assert deepest(found).sum() < 0.7 * deepest(free).sum()


def test_overlaps_are_those_of_capsules() -> None:
    """Against the distances of many points of both segments; two upright bodies of one place and of another."""
    first, second = body(), body() + torch.tensor([0.05, 0.02, 0.1])
    found = overlaps(first, second).numpy()
    shares = np.linspace(0, 1, 201)[:, None]
    for i, (a, b, radius) in enumerate(CAPSULES):
        for j, (c, d, other) in enumerate(CAPSULES):
            one = first[a].numpy() * (1 - shares) + first[b].numpy() * shares
            two = second[c].numpy() * (1 - shares) + second[d].numpy() * shares
            nearest = np.linalg.norm(one[:, None] - two, axis=-1).min()
            assert found[i, j] == pytest.approx(max(radius + other - nearest, 0), abs=2e-3)
    assert found.max() > 0.01
    apart = torch.stack([first, first + torch.tensor([3.0, 0.0, 0.0])])[:, None]
    assert deepest(apart).tolist() == [0]
    assert deepest(apart[:1]).tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"joint": "wrist"}, r"^joint: expected one of pelvis, left_hip"),
        ({"joint": 22}, r"^joint: expected a value in \[0, 21\]"),
        ({"frames": []}, r"^frames: expected at least one"),
        ({"frames": [1, 2]}, r"^positions: expected shape \(2, 3\), got \(1, 3\)"),
        ({"positions": [[0.0, float("nan"), 0.0]]}, r"^positions: expected finite numbers"),
        ({"positions": None}, r"^positions, to: expected one of the two, got both or neither"),
        ({"to": (1, "head")}, r"^positions, to: expected one of the two, got both or neither"),
        ({"positions": None, "to": (0, "head")}, r"^to: expected somebody else than person 0"),
        ({"positions": None, "to": (1, "nose")}, r"^to: joint: expected one of"),
        ({"positions": [[0.0, 2e4, 0.0]]}, r"^positions: expected finite numbers up to 10000"),
        ({"frames": [3, 3], "positions": [[0.0, 1.0, 0.0], [0.0, 2.0, 0.0]]}, r"^frames: expected each frame once"),
        ({"distance": -1.0}, r"^distance: expected metres from 0"),
        ({"positions": None, "to": (1, "head"), "distance": 2e4}, r"^distance: expected metres from 0 to 10000"),
        ({"distance": 0.5}, r"^distance, apart: expected with to"),
        ({"apart": True}, r"^distance, apart: expected with to"),
    ],
)
def test_targets_that_are_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(**{"person": 0, "joint": "head", "frames": [3], "positions": [[0.0, 1.0, 0.0]], **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 3}, "^frames: expected a list or the like, got 3"),
        ({"frames": None}, "^frames: expected a list or the like, got None"),
        ({"frames": "12"}, "^frames: expected a list or the like, got '12'"),
        ({"positions": None, "to": 1}, "^to: expected a list or the like, got 1"),
        ({"positions": None, "to": "1h"}, "^to: expected a list or the like, got '1h'"),
        ({"positions": None, "to": (1, "head"), "distance": "near"}, "^distance: expected a finite number, got 'near'"),
        ({"positions": None, "to": (1, "head"), "distance": torch.zeros(2)}, "^distance: expected a finite number"),
        ({"positions": None, "to": (1, "head"), "apart": "no"}, "^apart: expected True or False, got 'no'"),
    ],
)
def test_values_of_another_kind_are_told_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Target(**{"person": 0, "joint": "head", "frames": [3], "positions": [[0.0, 1.0, 0.0]], **arguments})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(2, "head", [3], positions=[[0, 1, 0]]), r"^targets\[1\]\.person: expected one of 0 to 1, got 2"),
        (Target(0, "head", [3], to=(2, "head")), r"^targets\[1\]\.to: person: expected one of 0 to 1, got 2"),
        (Target(0, "head", [24], to=(1, "head")), r"^targets\[1\]\.frames: expected within \[0, 24\), got 24"),
    ],
)
def test_targets_outside_the_motion(pipeline: Any, target: Target, message: str) -> None:
    inside = Target(0, "head", [23], to=(1, "head"))
    with pytest.raises(ValueError, match=message):
        made(pipeline, Control(targets=[inside, target]))


def test_a_system_that_cannot_is_named(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(pipeline), "controls", ("known",))
    with pytest.raises(ValueError, match=r"^control: expected a system that can be led to targets, got intermoe"):
        made(pipeline, Control(bodies_apart=True))


@pytest.mark.parametrize("frames", [[2, 10], [10, 2], [10]])
def test_every_frame_of_a_target_is_one_of_the_motion(frames: list[int]) -> None:
    target = Target(0, "pelvis", frames, positions=torch.zeros(len(frames), 3))
    target.check(11, 1)
    with pytest.raises(ValueError, match=r"frames: expected within \[0, 10\), got 10"):
        target.check(10, 1)


def test_the_loss_is_the_sum_over_all_targets() -> None:
    joints = torch.zeros(1, 4, 22, 3)
    targets = [Target(0, "pelvis", [k], positions=[[0.0, 0.0, 1.0 + k]]) for k in range(3)]
    assert float(Aims(targets, bodies_apart=False).loss(joints)) == pytest.approx((1 + 4 + 9) / 2)


def as_joints(latents: Tensor, scale: float = 1.0) -> Tensor:
    """Latents (P, T, 66) as joints, ``scale`` metres for each unit."""
    return scale * latents.unflatten(-1, (22, 3))


@pytest.mark.parametrize(("scale", "moved"), [(1.0, 0.5), (0.01, 0.5 * 66**0.5)])
def test_a_step_halves_the_distance_and_has_a_bound(scale: float, moved: float) -> None:
    """Loss d^2 / 2 over the gradient's square, times the gradient: d / 2 over the scale; at most 0.5 rms of a frame."""
    aims = Aims([Target(0, "pelvis", [1], positions=[[0.0, 0.0, 1.0]])], bodies_apart=False)
    latents = torch.zeros(1, 3, 66)
    expected = latents.clone()
    expected[0, 1, 2] = moved
    torch.testing.assert_close(aims.step(latents, lambda each: as_joints(each, scale)), expected)


def test_refining_slows_down_to_a_stop() -> None:
    """A step of Adam under a gradient that stays is its rate: 0.05 (1 - k / steps), in all 0.05 (steps + 1) / 2."""
    far = Aims([Target(0, "pelvis", [0], positions=[[0.0, 0.0, 1000.0]])], bodies_apart=False)
    moved = far.refine(torch.zeros(1, 1, 66), as_joints, steps=7)
    assert float(moved[0, 0, 2]) == pytest.approx(0.05 * 4, rel=1e-3)
    assert int(moved.count_nonzero()) == 1


def test_refining_bends_neighbours_along() -> None:
    """Displacements are held to be smooth in time: of one frame's target its neighbours take a part."""
    aims = Aims([Target(0, "pelvis", [3], positions=[[0.0, 0.0, 0.5]])], bodies_apart=False)
    moved = aims.refine(torch.zeros(1, 7, 66), as_joints)[0, :, 2]
    assert moved[3] > moved[2] > 0.1
    assert moved[3] - moved[2] < 0.2


def test_refining_leaves_feet_where_they_stood() -> None:
    """All joints move with the one latent; feet that stood hold it back, feet that slid do not."""

    def slid(speed: float) -> Tensor:
        def decode(latents: Tensor) -> Tensor:
            still = body().expand(1, 12, 22, 3) + speed * torch.arange(12.0)[:, None, None]
            return still + latents[..., None, :]

        place = decode(torch.zeros(1, 12, 3))[0, 11, 15] + torch.tensor([0.4, 0.0, 0.0])
        aims = Aims([Target(0, "head", [11], positions=place[None])], bodies_apart=False)
        return aims.refine(torch.zeros(1, 12, 3), decode)[0].diff(dim=0).square().sum()

    assert slid(0.0) < 0.5 * slid(0.02)


def test_the_loss_of_bodies_is_half_the_squares_of_every_pair() -> None:
    """Of three, the first and the last are in each other; a target adds its own half."""
    joints = body()[None, None].repeat(3, 2, 1, 1)
    joints[1] += torch.tensor([9.0, 0.0, 0.0])
    joints[2, :, :, 2] += 0.1
    expected = 0.5 * overlaps(joints[0], joints[2]).square().sum()
    assert float(expected) > 0.01
    torch.testing.assert_close(Aims((), bodies_apart=True).loss(joints), expected)
    target = Target(1, "pelvis", [1], to=(0, "pelvis"), distance=8.0)
    torch.testing.assert_close(Aims([target], bodies_apart=True).loss(joints), expected + 0.5)
    assert float(Aims([target], bodies_apart=False).loss(joints)) == pytest.approx(0.5)


def test_a_target_is_of_its_person_frames_and_joint() -> None:
    joints = torch.randn(3, 6, 22, 3)
    places = torch.randn(2, 3)
    missed = Target(2, "left_knee", [5, 1], positions=places).missed(joints)
    torch.testing.assert_close(missed, (joints[2, [5, 1], 4] - places).norm(dim=-1))
    missed = Target(2, 4, [5, 1], to=(0, "head")).missed(joints)
    torch.testing.assert_close(missed, (joints[2, [5, 1], 4] - joints[0, [5, 1], 15]).norm(dim=-1))


@pytest.mark.parametrize(("joint", "stand"), [("head", 0.0), ("right_foot", 0.5)])
def test_refining_ends_where_targets_smoothness_and_standing_feet_balance(joint: str, stand: float) -> None:
    """0.5 |x_t - p_t|^2 at targets, 0.15 |second differences|^2, and of feet that stood 0.25 |first differences|^2.

    Every joint has a latent of its own, and all rest before.
    """
    frames, places = [0, 2, 4], torch.tensor([[0.0, 0.1, 0.0], [0.2, 0.0, 0.0], [-0.1, 0.0, 0.3]])
    aims = Aims([Target(0, joint, frames, positions=places)], bodies_apart=False)
    moved = as_joints(aims.refine(torch.zeros(1, 5, 66), as_joints, steps=90))[0, :, JOINT_NAMES.index(joint)]
    identity = torch.eye(5, dtype=torch.float64)
    at, first, second = identity[frames], identity.diff(dim=0), identity.diff(n=2, dim=0)
    system = at.T @ at + 0.3 * second.T @ second + stand * first.T @ first
    torch.testing.assert_close(moved.double(), torch.linalg.solve(system, at.T @ places.double()), atol=1e-3, rtol=0)


def test_feet_that_move_by_a_centimetre_a_frame_do_not_stand() -> None:
    """Of a foot that goes 9 mm and then 11 mm, the first step is held and the second is not."""
    still = torch.zeros(1, 3, 22, 3)
    still[0, :, 10, 0] = torch.tensor([0.0, 0.009, 0.020])
    aims = Aims(
        [
            Target(
                0,
                "left_foot",
                [0, 1, 2],
                positions=still[0, :, 10] + torch.tensor([[0.1, 0, 0], [0, 0, 0], [0.1, 0, 0]]),
            )
        ],
        False,
    )
    moved = (as_joints(aims.refine(torch.zeros(1, 3, 66), lambda each: still + as_joints(each), steps=90)))[0, :, 10, 0]
    identity = torch.eye(3, dtype=torch.float64)
    second, held = identity.diff(n=2, dim=0), identity.diff(dim=0)[:1]
    system = identity + 0.3 * second.T @ second + 0.5 * held.T @ held
    expected = torch.linalg.solve(system, torch.tensor([0.1, 0.0, 0.1], dtype=torch.float64))
    torch.testing.assert_close(moved.double(), expected, atol=1e-3, rtol=0)


def test_a_bound_of_a_step_is_of_the_frame_that_moves_most() -> None:
    """Root mean square over a frame's latents: 0.5 of one, and of the others by the same share."""
    targets = [Target(p, "pelvis", [1], positions=[[0.0, 0.0, far]]) for p, far in ((0, 1.0), (1, 30.0))]
    scale = 0.01
    found = Aims(targets, False).step(torch.zeros(2, 3, 66), lambda each: as_joints(each, scale))
    assert float(found[1, 1, 2]) == pytest.approx(0.5 * 66**0.5, rel=1e-4)
    assert float(found[0, 1, 2] / found[1, 1, 2]) == pytest.approx(1 / 30, rel=1e-4)
    assert int(found.count_nonzero()) == 2
