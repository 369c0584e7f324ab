"""What is given comes back bit for bit, steers the rest, and is refused by name where it does not fit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intermoe.control import Control, Given, Known, Target, known_latents
from intermoe.control.known import WHOLE_GAP
from intermoe.motion.bones import bone_lengths, with_rigid_bones
from intermoe.motion.humanml3d import HUMANML3D
from intermoe.motion.interhuman import CONTACT_COLUMNS, INTERHUMAN, from_joints, process_pair
from intermoe.motion.interx import INTERX
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.rotations import from_rot6d
from intermoe.motion.skeleton import bone_vectors
from intermoe.pipeline import UNTRAINED
from intermoe.systems.intergen.config import InterGenConfig, InterGenModelConfig
from intermoe.systems.intergen.network import InterGen
from intermoe.systems.intergen.pipeline import InterGenPipeline
from intermoe.systems.intermoe.pipeline import InterMoEPipeline

FRAMES = 22


@pytest.fixture(params=["levels", "replacement"])
def pipeline(request: pytest.FixtureRequest, tiny_pipeline: Any) -> Any:
    """The tiny model, taken as trained with levels or not."""
    config = dataclasses.replace(tiny_pipeline.config, levels=request.param == "levels")
    parts = (tiny_pipeline.vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    return InterMoEPipeline(config, *parts)


def standing(frames: int, seed: int = 0) -> Tensor:
    """Joints (frames, 22, 3) of a swaying body."""
    rng = np.random.default_rng(seed)
    body = np.column_stack([rng.uniform(-0.3, 0.3, 22), np.linspace(0.0, 1.7, 22), rng.uniform(-0.2, 0.2, 22)])
    sway = 0.1 * np.sin(np.arange(frames)[:, None, None] / 8 + rng.uniform(0, 6, (1, 22, 3)))
    return torch.tensor(body + sway, dtype=torch.float32)


def motion_of(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(frames, 262, generator=torch.Generator().manual_seed(seed))


def made(pipeline: Any, *known: Known, **options: Any) -> Any:
    control = Control(known, **options) if known else None
    return pipeline("two people bow", num_frames=FRAMES, num_inference_steps=3, control=control)


pytestmark = pytest.mark.filterwarnings("ignore:control. model")


def test_a_given_person_comes_back_and_the_other_reacts(pipeline: Any) -> None:
    joints = standing(FRAMES)
    found = made(pipeline, Known(1, joints=joints))
    assert torch.equal(found.joints[0, 1], joints)
    free, other = made(pipeline), made(pipeline, Known(1, joints=standing(FRAMES, seed=1)))
    assert not torch.equal(found.joints[0, 0], free.joints[0, 0])
    assert not torch.equal(found.joints[0, 0], other.joints[0, 0])


def test_given_frames_come_back_and_only_they(pipeline: Any) -> None:
    first, last = motion_of(8), motion_of(5, seed=1)
    found = made(
        pipeline,
        Known(0, motion=first.numpy()),
        Known(0, motion=last, frames=slice(17, 22)),
        Known(1, motion=first, frames=slice(3, None)),
    )
    assert torch.equal(found.motion[0, 0, :8], first)
    assert torch.equal(found.motion[0, 0, 17:], last)
    assert torch.equal(found.motion[0, 1, 3:11], first)
    free = made(pipeline)
    assert not (found.motion[0, 0, 8:17] == free.motion[0, 0, 8:17]).all(dim=1).any()
    assert not torch.equal(found.motion[0, 1, 20:], free.motion[0, 1, 20:])  # no seam near: the latents differ


def test_lengths_of_a_batch_are_controlled_each(pipeline: Any) -> None:
    control, motion = Control([Known(0, motion=motion_of(9))]), motion_of(9)
    options: dict[str, Any] = {"num_inference_steps": 2, "control": control}
    both = pipeline.sample(["two people bow", "one of them turns"], [10, 30], [3, 4], **options)
    assert [len(each[0]) for each in both] == [10, 30]
    assert all(torch.equal(each[0, :9], motion) for each in both)
    (alone,) = pipeline.sample(["one of them turns"], [30], [4], **options)
    torch.testing.assert_close(both[1], alone, atol=1e-4, rtol=1e-4)


def test_the_way_is_that_of_the_models_training(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    forward = pipeline.denoiser.forward

    def watched(x: Tensor, timesteps: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(timesteps)
        return forward(x, timesteps, *rest, **options)

    monkeypatch.setattr(pipeline.denoiser, "forward", watched)
    if pipeline.config.levels:
        made(pipeline, Known(1, motion=motion_of(FRAMES)))
        assert all(levels.shape == (1, 2, 1) for levels in seen)
        assert all((levels[:, 1] == 0).all() and (levels[:, 0] == levels[0, 0]).all() for levels in seen)
    else:
        with pytest.warns(UserWarning, match=rf"^control: model 'tiny' {UNTRAINED}"):
            made(pipeline, Known(1, motion=motion_of(FRAMES)))
        assert all(levels.dim() == 1 for levels in seen)


def test_guidance_is_off_by_default_where_a_model_with_levels_is_given_something(pipeline: Any) -> None:
    given = Control([Known(0, motion=motion_of(24))])
    aims = Control(targets=[Target(0, "head", [5], positions=torch.zeros(1, 3))])
    expected = 1.0 if pipeline.config.levels else pipeline.config.default_guidance
    assert pipeline.default_guidance(given) == expected
    assert pipeline.default_guidance() == pipeline.default_guidance(aims) == pipeline.config.default_guidance == 3.5
    options: dict[str, Any] = {"num_frames": 24, "num_inference_steps": 2, "seed": 3}
    for control, scale in ((given, expected), (None, 3.5)):
        by_default, asked, other = (
            pipeline("a man walks", control=control, **options, **each).motion
            for each in ({}, {"guidance_scale": scale}, {"guidance_scale": 2.0})
        )
        assert torch.equal(by_default, asked)
        assert not torch.equal(by_default, other)


def test_only_whole_runs_have_latents() -> None:
    control = Control([Known(0, motion=motion_of(9), frames=slice(3, 12)), Known(1, motion=motion_of(14))])
    given = [control.place(INTERHUMAN, 14, 2), control.place(INTERHUMAN, 18, 2)]
    known = known_latents(given, lambda motion: motion[:, :, ::4], 4, by_levels=True)
    assert known.where.int().tolist() == [
        [[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]],
        [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]],
    ]
    assert torch.equal(known.latents[0, 0, 1], motion_of(9)[1])  # frame 4 is the second that is given


@pytest.mark.parametrize(("start", "stop", "expected"), [(4, 14, [0, 1, 1, 1]), (0, 12, [1, 1, 1, 0])])
def test_a_motion_that_ends_within_a_run_ends_as_its_last_frame(start: int, stop: int, expected: list[int]) -> None:
    control = Control([Known(0, motion=motion_of(stop - start), frames=slice(start, stop))])
    given = control.place(INTERHUMAN, 14, 2)
    known = known_latents([given], lambda motion: motion[:, :, ::4], 4, by_levels=True)
    assert known.where[0, 0].int().tolist() == expected


def test_gaps_are_filled_on_a_line_and_ends_are_held() -> None:
    motion = torch.arange(7.0)[:, None].expand(7, 262) ** 2
    where = torch.tensor([[False, True, False, False, True, True, False]])
    filled = Given(INTERHUMAN, motion[None], where, 0).filled(8)[0, :, 0]
    assert filled.tolist() == [1, 1, 6, 11, 16, 25, 25, 25]


@pytest.fixture
def not_eased(monkeypatch: pytest.MonkeyPatch) -> None:
    """What neighbours are led by, before they are eased."""
    monkeypatch.setattr("intermoe.control.known._eased", lambda row, where, blend: row.clone())


@pytest.mark.usefixtures("not_eased")
@pytest.mark.parametrize("blend", [0, 1, 3, 20])
def test_neighbours_are_led_to_what_is_given(blend: int) -> None:
    """Of a body that drifts evenly the frame beside the seam goes on as the given ones do, the others by less."""
    decoded = (motion_of(1) + 0.1 * torch.arange(30)[:, None] * motion_of(1, seed=1))[None]
    contacts = decoded[..., CONTACT_COLUMNS].clone()
    control = Control([Known(0, motion=decoded[0, 10:15] + 5, frames=slice(10, 15))], blend=blend)
    found = control.place(INTERHUMAN, 30, 1).paste(decoded)[0]
    given = torch.arange(30).sub(12).abs() <= 2
    assert torch.equal(found[given], decoded[0, given] + 5)
    moved = (found - decoded[0])[:, :66]
    torch.testing.assert_close(moved, moved[:, :1].expand(-1, 66), atol=1e-4, rtol=0)
    shift = moved[:, 0]
    steps, after = torch.arange(10), torch.arange(15)
    assert ((shift[:11].diff() > 1e-4) == ((steps >= 9 - blend) & ((steps < 9) | (blend == 0)))).all()
    assert ((shift[14:].diff() < -1e-4) == ((after <= blend) & ((after > 0) | (blend == 0)))).all()
    assert shift[: 10 - min(blend, 10)].abs().max() == 0 if blend < 10 else True
    torch.testing.assert_close(found[~given][:, CONTACT_COLUMNS], contacts[0, ~given])
    changed = torch.arange(29)[(found[:-1] != decoded[0, :-1]).any(dim=1) & ~given[:-1]]
    assert 9 in changed
    torch.testing.assert_close(found[changed, 66:132], found[changed + 1, :66] - found[changed, :66])


def test_a_short_gap_is_led_to_both_ends() -> None:
    decoded = torch.zeros(1, 12, 262)
    high, low = torch.full((5, 262), 1.0), torch.full((4, 262), -1.0)
    known = [Known(0, motion=high), Known(0, motion=low, frames=slice(8, 12))]
    gap = Control(known, blend=8).place(INTERHUMAN, 12, 1).paste(decoded)[0, 5:8, 0]
    assert gap[0] > 0.5
    assert gap[1].abs() < 1e-6
    assert gap[2] < -0.5


@pytest.mark.usefixtures("not_eased")
@pytest.mark.parametrize("gap", [2, 9, 30, WHOLE_GAP])
def test_a_gap_that_is_off_by_a_line_is_filled_as_it_was(gap: int) -> None:
    """The same offset at both ends is taken away from every frame between; of different ones the middle gets half."""
    true = (motion_of(1) + 0.1 * torch.arange(gap + 20)[:, None] * motion_of(1, seed=1))[None]
    known = [Known(0, motion=true[0, :10]), Known(0, motion=true[0, -10:], frames=slice(gap + 10, gap + 20))]
    placed = Control(known).place(INTERHUMAN, gap + 20, 1)
    torch.testing.assert_close(placed.paste(true + 3)[..., :66], true[..., :66], atol=1e-4, rtol=0)
    rising = torch.where(torch.arange(gap + 20)[:, None] < gap // 2 + 10, 1.0, 3.0)
    moved = (placed.paste(true + rising) - true - rising)[0, 10:-10, 0]
    assert moved[0].item() == pytest.approx(-1, abs=1e-4)
    assert moved[-1].item() == pytest.approx(-3, abs=1e-4)
    assert (moved.diff() < 1e-5).all()


def test_a_gap_that_is_long_is_led_at_its_ends_alone() -> None:
    gap = WHOLE_GAP + 1
    decoded = torch.zeros(1, gap + 20, 262)
    known = [
        Known(0, motion=decoded[0, :10] + 1),
        Known(0, motion=decoded[0, :10] + 1, frames=slice(gap + 10, gap + 20)),
    ]
    moved = Control(known, blend=8).place(INTERHUMAN, gap + 20, 1).paste(decoded)[0, 10:-10, 0]
    assert (moved[:8] > 0).all()
    assert (moved[-8:] > 0).all()
    assert (moved[8:-8] == 0).all()


def test_what_is_decoded_with_a_jump_is_eased_beside_what_is_given() -> None:
    """The minimiser by least squares of all its terms, stacked; given frames and those beyond stay to the bit."""
    blend, time = 6, torch.arange(30.0)[:, None]
    smooth = motion_of(1) + 0.01 * time * motion_of(1, seed=1)
    decoded = (smooth + (time >= 12) * motion_of(1, seed=2))[None]
    control = Control([Known(0, motion=smooth[:10])], blend=blend)
    found = control.place(INTERHUMAN, 30, 1).paste(decoded)[0]
    assert torch.equal(found[:10], smooth[:10])
    assert torch.equal(found[10 + blend :], decoded[0, 10 + blend :])
    torch.testing.assert_close(found[10:16, CONTACT_COLUMNS], decoded[0, 10:16, CONTACT_COLUMNS])
    x = decoded[0, :, :66].double().numpy()
    x[10:16] += 0  # the jump comes later than the first free frame, so nothing is led
    d3 = np.diff(np.eye(30), n=3, axis=0)
    weights = (np.arange(1, blend + 1) / (blend + 1)) ** 2
    rows = np.concatenate([d3[:, 10:16], np.diag(weights)])
    fixed = np.r_[0:10, 16:30]
    wanted = np.concatenate([-d3[:, fixed] @ x[fixed], weights[:, None] * x[10:16]])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    np.testing.assert_allclose(found[10:16, :66].numpy(), expected, atol=1e-4)
    jerk = lambda y: float(y[:, :66].diff(n=3, dim=0).abs().max())  # noqa: E731
    assert jerk(found) < 0.3 * jerk(decoded[0])


def test_bones_beside_what_is_given_keep_their_length_and_do_not_tremble() -> None:
    """Of somebody whose decoded motion is turned and smaller: led to what is given joint by joint, bones shrink."""
    count, known = 60, 20
    given = from_joints(torch.from_numpy(at_rest(REST_POSE)).float() + 0.01 * torch.arange(count)[:, None, None])
    turned = INTERHUMAN.joints(given) @ torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]) * 0.9
    jumps = 0.1 * torch.randn(count // 4, 22, 3, generator=torch.Generator().manual_seed(0))
    turned = turned + jumps.repeat_interleave(4, dim=0)  # as latents of four frames each are off
    where = torch.arange(count)[None] < known
    kept = Given(INTERHUMAN, given[None] * where[..., None], where, blend=16)
    pasted = kept.paste(from_joints(turned)[None])
    lengths = bone_lengths(INTERHUMAN.joints(given))[None]
    found = kept.with_rigid_bones(pasted, lengths)
    assert torch.equal(found[0, :known], given[:known])

    def variation(motion: Tensor) -> float:
        lengths = torch.linalg.vector_norm(bone_vectors(INTERHUMAN.joints(motion[0])), dim=-1)
        return float((lengths / lengths[:1] - 1).abs().max())

    def jerk(motion: Tensor) -> float:
        return float(INTERHUMAN.joints(motion[0]).diff(n=3, dim=0)[known - 3 :][:20].norm(dim=-1).mean())

    assert variation(pasted) > 0.2
    assert variation(found) < 1e-4
    alone = pasted.clone()
    alone[0, known:] = with_rigid_bones(pasted, lengths)[0, known:]
    assert jerk(found) < 0.7 * jerk(alone)
    moves = INTERHUMAN.joints(found[0]).diff(dim=0).flatten(1)
    torch.testing.assert_close(found[0, known:-1, INTERHUMAN.velocity], moves[known:], rtol=0, atol=1e-6)
    # without room to be led in nothing is smoothed, and who is given whole, or not at all, stays
    for other in (Given(INTERHUMAN, given[None], where | True, 16), Given(INTERHUMAN, given[None], where & False, 16)):
        assert torch.equal(other.with_rigid_bones(pasted, lengths), pasted)
    hard = dataclasses.replace(kept, blend=0).with_rigid_bones(pasted, lengths)
    torch.testing.assert_close(hard[0, known:], alone[0, known:])


@pytest.mark.parametrize("given", [slice(0, 8), slice(0, FRAMES)])
def test_who_is_given_keeps_their_own_bones(tiny_pipeline: Any, given: slice) -> None:
    config = dataclasses.replace(tiny_pipeline.config, levels=True, rigid_bones=True)
    parts = (tiny_pipeline.vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    tall = torch.from_numpy(at_rest(1.3 * REST_POSE)).float().expand(FRAMES, 22, 3)[given]
    found = made(InterMoEPipeline(config, *parts), Known(0, joints=tall, frames=given)).joints[0]
    torch.testing.assert_close(bone_lengths(found[0]), bone_lengths(tall), rtol=1e-3, atol=0)
    spread = torch.linalg.vector_norm(bone_vectors(found), dim=-1).std(dim=1)
    assert spread.max() < 1e-3
    assert not torch.allclose(bone_lengths(found[1]), bone_lengths(tall), rtol=0.05)


def test_a_motion_of_constant_velocity_is_left_as_it_is() -> None:
    time = torch.arange(30.0)[:, None]
    decoded = (motion_of(1) + 0.1 * time * motion_of(1, seed=1))[None]
    known = [Known(0, motion=decoded[0, :8]), Known(0, motion=decoded[0, 20:22], frames=slice(20, 22))]
    found = Control(known).place(INTERHUMAN, 30, 1).paste(decoded)
    torch.testing.assert_close(found[..., :66], decoded[..., :66], atol=1e-3, rtol=0)


def test_a_person_of_whom_nothing_is_given_is_left_as_decoded() -> None:
    decoded = torch.stack([motion_of(12), motion_of(12, seed=1)])
    found = Control([Known(1, motion=motion_of(4))]).place(INTERHUMAN, 12, 2).paste(decoded)
    assert torch.equal(found[0], decoded[0])


def test_motion_of_joints_is_that_of_the_representation() -> None:
    rng = np.random.default_rng(0)
    positions = standing(40).double().numpy()
    positions[:, [7, 8, 10, 11], 1] = 0.03
    raw = np.zeros((40, 192))
    raw[:, :66] = np.stack([positions[..., 0], -positions[..., 2], positions[..., 1]], axis=-1).reshape(40, 66)
    raw[:, 66:] = rng.normal(size=(40, 126))
    expected = process_pair(raw, raw)[0]
    found = from_joints(torch.from_numpy(expected[:, :66]).unflatten(1, (22, 3)))
    assert torch.equal(found[:, :66], torch.from_numpy(expected[:, :66]))
    torch.testing.assert_close(found[:-1, 66:132], torch.from_numpy(expected[:-1, 66:132]), atol=1e-6, rtol=0)
    assert torch.equal(found[:-1, CONTACT_COLUMNS], torch.from_numpy(expected[:-1, CONTACT_COLUMNS]))
    assert found[:, CONTACT_COLUMNS].any()
    torch.testing.assert_close(found[-1, 66:132], found[-2, 66:132], atol=1e-6, rtol=0)
    columns = found[:, 132:258].unflatten(1, (21, 3, 2)).double()
    torch.testing.assert_close(
        columns.mT @ columns, torch.eye(2).double().expand_as(columns.mT @ columns), atol=1e-5, rtol=0
    )


def test_rotations_of_joints_turn_the_bones() -> None:
    """A body that bends one elbow: the elbow's rotation is by that angle, the others' stay."""
    from intermoe.motion.rig import REST_POSE, at_rest
    from intermoe.motion.rotations import about_axis

    angles = np.linspace(0, 1, 5)
    joints = np.tile(at_rest(REST_POSE), (5, 1, 1))
    joints[:, 20] = joints[:, 18] + (about_axis(1, angles) @ REST_POSE[20])
    found = from_rot6d(from_joints(torch.tensor(joints, dtype=torch.float32))[:, 132:258].unflatten(1, (21, 6)).numpy())
    turns = found[0].swapaxes(-1, -2) @ found
    traces = np.trace(turns, axis1=-2, axis2=-1).clip(-1, 3)
    turned = np.arccos((traces - 1) / 2)
    np.testing.assert_allclose(turned[:, 17], angles, atol=2e-3)
    assert turned[:, [*range(17), 18, 20]].max() < 2e-3


NAN = torch.full((4, 262), 0.0).index_fill(0, torch.tensor(2), float("nan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"motion": NAN}, r"^motion: expected finite numbers up to 10000, got others in frame 2"),
        ({"joints": NAN[:, :66].unflatten(1, (22, 3))}, r"^joints: expected finite numbers .* got others in frame 2"),
        (
            {"joints": torch.full((4, 22, 3), 2e4)},
            r"^joints: expected finite numbers up to 10000, got others in frame 0",
        ),
        ({}, r"^joints, motion: expected one of the two, got both or neither"),
        ({"joints": torch.zeros(4, 22, 3), "motion": torch.zeros(4, 262)}, r"^joints, motion: expected one"),
        ({"joints": torch.zeros(4, 66)}, r"^joints: expected shape \(t, J, 3\), got \(4, 66\)"),
        ({"motion": torch.zeros(0, 262)}, r"^motion: expected frames in the first dimension"),
        ({"motion": torch.zeros(4, 262), "frames": slice(0, 5)}, r"^frames: expected 4 frames, .*got \[0, 5\)"),
        ({"motion": torch.zeros(4, 262), "frames": slice(0, 8, 2)}, r"^frames: expected a run of frames, got step 2"),
        ({"motion": torch.zeros(4, 262), "frames": slice(-4, None)}, r"^frames: start: expected a value >= 0, got -4"),
        ({"motion": torch.zeros(4, 262), "person": -1}, r"^person: expected a value >= 0, got -1"),
    ],
)
def test_what_cannot_be_given_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Known(**{"person": 0, **arguments})


def test_values_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^frames: expected a slice, got 3"):
        Known(0, motion=torch.zeros(4, 262), frames=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^person: expected an integer"):
        Known("first", motion=torch.zeros(4, 262))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^known, targets: expected at least one, got none"):
        Control()
    for arguments, message in (
        ({"known": Known(0, motion=torch.zeros(4, 262))}, "^known: expected a list or the like"),
        ({"known": None}, "^known: expected a list or the like, got None"),
        ({"targets": "head"}, "^targets: expected a list or the like, got 'head'"),
        ({"bodies_apart": "no"}, "^bodies_apart: expected True or False, got 'no'"),
    ):
        with pytest.raises(TypeError, match=message):
            Control(**arguments)
    with pytest.raises(ValueError, match=r"^blend: expected a value in \[0, 1000\], got -1"):
        Control([Known(0, motion=torch.zeros(4, 262))], blend=-1)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (Known(2, motion=torch.zeros(4, 262)), r"^known\[1\]\.person: expected one of 0 to 1, got 2"),
        (
            Known(0, motion=torch.zeros(4, 262), frames=slice(20, 24)),
            r"^known\[1\]\.frames: expected within \[0, 22\), got \[20, 24\)",
        ),
        (
            Known(0, motion=torch.zeros(4, 262), frames=slice(1, 5)),
            r"^known\[1\]\.frames: expected each frame .*twice",
        ),
        (Known(1, motion=torch.zeros(4, 262), fps=20), r"^known\[1\]\.fps: expected 30, the model's rate, got 20"),
        (Known(1, motion=torch.zeros(4, 263)), r"^known\[1\]\.motion: expected shape \(t, 262\) of interhuman"),
        (Known(1, joints=torch.zeros(4, 24, 3)), r"^known\[1\]\.joints: expected 22 joints, got 24"),
    ],
)
def test_what_does_not_fit_the_motion_is_refused(tiny_pipeline: Any, known: Known, message: str) -> None:
    control = Control([Known(0, motion=torch.zeros(2, 262), fps=30), known])
    with pytest.raises(ValueError, match=message):
        tiny_pipeline("two people bow", num_frames=FRAMES, control=control)
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.sample(["two people bow"], [FRAMES], [0], control=control)
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.check_control(control, FRAMES)  # before any work


def test_joints_are_refused_where_motion_does_not_follow_from_them() -> None:
    for representation in (INTERX, HUMANML3D):
        with pytest.raises(ValueError, match=rf"joints: expected motion, as {representation.name} does not follow"):
            Control([Known(0, joints=torch.zeros(4, 22, 3))]).place(representation, 8, 1)


@pytest.mark.parametrize("representation", [INTERX, HUMANML3D], ids=lambda each: each.name)
def test_motion_of_every_representation_is_pasted(representation: Any) -> None:
    decoded = torch.randn(1, 12, *representation.frame_shape)
    given = torch.randn(4, *representation.frame_shape)
    found = Control([Known(0, motion=given, frames=slice(4, 8))]).place(representation, 12, 1).paste(decoded)
    assert torch.equal(found[0, 4:8], given)
    assert not torch.equal(found[0, 3], decoded[0, 3])
    if not representation.root_centred:
        steps = representation.positions(found[0]).diff(dim=0)
        torch.testing.assert_close(found[0, :3, :, 3:6], steps[:3])


def test_a_system_without_latents_keeps_what_is_known_frame_by_frame(tiny_pipeline: Any) -> None:
    torch.manual_seed(0)
    config = InterGenModelConfig(
        min_frames=8,
        network=InterGenConfig(text_dim=8, dim=8, num_layers=1, num_heads=2, feedforward_dim=8),
        text=tiny_pipeline.config.text,
    )
    network = InterGen(config.network)
    torch.nn.init.normal_(network.out.weight, std=0.2)
    pipeline = InterGenPipeline(config, network, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    joints = standing(FRAMES)
    with pytest.warns(UserWarning, match=UNTRAINED):
        found = made(pipeline, Known(0, joints=joints), Known(1, joints=joints[:1], frames=slice(5, 6)))
    assert torch.equal(found.joints[0, 0], joints)
    assert torch.equal(found.joints[0, 1, 5], joints[0])
    assert not (found.joints[0, 1, 15:] == made(pipeline).joints[0, 1, 15:]).all()


def test_a_system_that_cannot_is_named(tiny_pipeline: Any) -> None:
    class Plain(InterMoEPipeline):
        controls = ()

    parts = (tiny_pipeline.vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    with pytest.raises(ValueError, match=r"^control: expected a system that keeps what is known, got intermoe"):
        made(Plain(tiny_pipeline.config, *parts), Known(0, motion=motion_of(4)))


def test_what_is_given_is_a_copy() -> None:
    motion = motion_of(4)
    known, before = Known(0, motion=motion), motion.clone()
    motion += 1
    assert torch.equal(known.motion, before)


@pytest.mark.usefixtures("not_eased")
@pytest.mark.parametrize(("blend", "tail"), [(1, 5), (3, 5), (4, 4), (8, 4)])
def test_weights_of_neighbours_are_half_a_cosine(blend: int, tail: int) -> None:
    """(1 + cos(pi (d - 1) / r)) / 2 at distance d of 1 to r, the blend or all the frames that there are."""
    known = [Known(0, motion=torch.ones(3, 262), frames=slice(tail, 3 + tail))]
    frames = 3 + 2 * tail
    found = Control(known, blend=blend).place(INTERHUMAN, frames, 1).paste(torch.zeros(1, frames, 262))[0, :, 0]
    reach, expected = min(blend, tail), torch.zeros(tail)
    for distance in range(1, reach + 1):
        expected[distance - 1] = (1 + math.cos(math.pi * (distance - 1) / reach)) / 2
    torch.testing.assert_close(found, torch.cat([expected.flip(0), torch.ones(3), expected]))


@pytest.mark.usefixtures("not_eased")
@pytest.mark.parametrize(("gap", "expected"), [(1, [0.5]), (2, [1, 0]), (3, [1, 0.5, 0])])
def test_weights_of_a_gap_add_up_to_one(gap: int, expected: list[float]) -> None:
    """Of given frames at 1 and at -1 every frame between gets its weights' difference: they are 1 and 0 at the ends."""
    known = [Known(0, motion=torch.ones(3, 262)), Known(0, motion=-torch.ones(2, 262), frames=slice(3 + gap, 5 + gap))]
    for blend in (1, 8):
        found = Control(known, blend=blend).place(INTERHUMAN, 5 + gap, 1).paste(torch.zeros(1, 5 + gap, 262))
        torch.testing.assert_close(found[0, 3:-2, 0], 2.0 * torch.tensor(expected) - 1)
    untouched = Control(known, blend=0).place(INTERHUMAN, 5 + gap, 1).paste(torch.zeros(1, 5 + gap, 262))
    assert not untouched[0, 3:-2, :66].any()


@pytest.mark.usefixtures("not_eased")
def test_a_frame_alone_leads_on_as_what_was_decoded_goes_on() -> None:
    decoded = (motion_of(1) + 0.1 * torch.arange(30)[:, None] * motion_of(1, seed=1))[None]
    control = Control([Known(0, motion=decoded[0, 10:11] + 5, frames=slice(10, 11))], blend=3)
    found = control.place(INTERHUMAN, 30, 1).paste(decoded)[0]
    for beside in (9, 10, 11):
        torch.testing.assert_close(found[beside, :66], decoded[0, beside, :66] + 5)


def test_velocities_about_a_root_are_left_as_decoded() -> None:
    generator = torch.Generator().manual_seed(0)
    decoded = torch.randn(1, 12, 263, generator=generator)
    given = torch.randn(4, 263, generator=generator)
    control = Control([Known(0, motion=given, frames=slice(5, 9))], blend=0)
    found = control.place(HUMANML3D, 12, 1).paste(decoded)
    assert torch.equal(found[0, 5:9], given)
    assert torch.equal(found[0, :5], decoded[0, :5])
    assert torch.equal(found[0, 9:], decoded[0, 9:])


@pytest.mark.parametrize("resampling", [1, 7])
def test_steps_are_taken_as_often_as_asked(resampling: int) -> None:
    given = [Control([Known(0, motion=motion_of(8))]).place(INTERHUMAN, 8, 2)]
    known = known_latents(given, lambda motion: motion[:, :, ::4], 4, by_levels=False, resampling=resampling)
    assert known.resampling == resampling
    assert not known.by_levels


ONES = np.ones((4, 22, 3), np.float32)


@pytest.mark.parametrize(
    "joints",
    [
        torch.ones(4, 22, 3, dtype=torch.bool),
        torch.ones(4, 22, 3, dtype=torch.complex64),
        torch.ones(4, 22, 3, device="meta"),
        torch.ones(4, 22, 3).to_sparse(),
        "bow.npz",
        [None],
        [[1.0, 2.0], [3.0]],
        np.array([[{}]], dtype=object),
        np.ma.masked_array(ONES, mask=ONES > 0),
    ],
    ids=["flags", "complex", "meta", "sparse", "words", "nothing", "ragged", "objects", "masked"],
)
def test_motion_is_of_real_numbers(joints: Any) -> None:
    with pytest.raises(TypeError, match=r"^joints: expected real numbers, got"):
        Known(0, joints=joints)
    with pytest.raises(TypeError, match=r"^positions: expected real numbers, got"):
        Target(0, "head", range(4), positions=joints)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "joints",
    [
        ONES.astype(">f4"),
        ONES.astype(np.longdouble),
        np.asfortranarray(ONES)[::-1],
        np.broadcast_to(np.float16(1), ONES.shape),
        ONES.astype(np.uint8),
        ONES.tolist(),
        list(ONES),
        [torch.ones(22, 3)] * 4,
        torch.ones(4, 22, 3, dtype=torch.bfloat16, requires_grad=True),
    ],
    ids=["other bytes", "long", "backwards", "read only", "whole", "lists", "arrays", "tensors", "gradient"],
)
def test_real_numbers_of_every_kind_are_taken(joints: Any) -> None:
    assert torch.equal(Known(0, joints=joints).joints, torch.ones(4, 22, 3))


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_the_autoencoder_reads_nothing_that_training_did_not_have(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joints a long way off, and rotations that are a fit: what is encoded is near what the model knows."""
    seen: list[Tensor] = []
    encode = tiny_pipeline.encode

    def watched(motion: Tensor) -> Tensor:
        seen.append(motion)
        return encode(motion)

    monkeypatch.setattr(tiny_pipeline, "encode", watched)
    joints = torch.as_tensor(at_rest(REST_POSE)).float() + torch.linspace(0, 40, 16)[:, None, None]
    result = tiny_pipeline("Two people bow.", 16, 1, control=Control([Known(0, joints=joints)]))
    assert torch.equal(result.joints[0, 0], joints)
    (motion,) = seen
    assert tiny_pipeline.statistics.normalise(motion[0, 0]).abs().max() == pytest.approx(4.0, rel=1e-4)
