"""What a call of a pipeline hands on, shown with parts that write down what they got."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch

from intermoe.control import Control, Given, Known, Target
from intermoe.control.known import RESAMPLING
from intermoe.control.scene import TAIL
from intermoe.control.targets import Aims
from intermoe.diffusion import DiffusionConfig, build_scheduler
from intermoe.export import View
from intermoe.motion.bones import bone_lengths
from intermoe.motion.interhuman import INTERHUMAN, from_joints
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.skeleton import bone_vectors
from intermoe.pipeline import UNTRAINED, ModelConfig, MotionPipeline, PipelineResult
from intermoe.pipeline.models import system_of
from intermoe.pipeline.system import check_level
from intermoe.systems.intermoe import pipeline as module

PROMPTS = ["two people bow", "one of them turns to the left"]


@pytest.fixture
def seen(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of every call of the denoiser."""
    calls: list[tuple[Any, ...]] = []
    forward = tiny_pipeline.denoiser.forward

    def watched(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return forward(*args, **options)

    monkeypatch.setattr(tiny_pipeline.denoiser, "forward", watched)
    return calls


def test_what_is_asked_reaches_sample(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []

    def sample(*args: Any, **options: Any) -> list[torch.Tensor]:
        got.append((args, options))
        return [torch.zeros(2, 9, 262)] * 2

    def progress(done: int, steps: int) -> None: ...

    monkeypatch.setattr(tiny_pipeline, "sample", sample)
    values = {"num_inference_steps": 7, "guidance_scale": 1.5, "scheduler": "unipc", "progress": progress}
    values["control"] = None
    assert tiny_pipeline(PROMPTS, num_frames=9, seed=4, **values).seeds == (4, 5)
    assert got == [((tuple(PROMPTS), [9, 9], (4, 5)), values)]


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("guidance", [None, 1.5])
def test_what_is_asked_of_a_scene_reaches_every_window(
    tiny_pipeline: Any, live: bool, guidance: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []

    def sample(prompts: Any, lengths: Any, seeds: Any, *, control: Any, progress: Any, **options: Any) -> Any:
        got.append((prompts, lengths, seeds, options, None if control is None else control.resampling))
        return [torch.randn(2, *lengths, 262, generator=torch.Generator().manual_seed(0))]

    monkeypatch.setattr(tiny_pipeline, "sample", sample)
    options: dict[str, Any] = {"num_inference_steps": 7, "guidance_scale": guidance, "scheduler": "unipc"}
    if live:
        scene = tiny_pipeline.live(PROMPTS[0], seed=4, chunk=12, resampling=9, **options)
        next(scene)
        scene.send(PROMPTS[1])
        next(scene)
    else:
        tiny_pipeline.timeline([(prompt, 12) for prompt in PROMPTS], seed=4, resampling=9, **options)
    if guidance is None:
        options["guidance_scale"] = tiny_pipeline.config.default_guidance
    # the second window begins with all of the first, which is shorter than what two windows have in common
    lengths = [12 + TAIL, 12 + 12 + TAIL]
    assert got == [([PROMPTS[0]], lengths[:1], [4], options, None), ([PROMPTS[1]], lengths[1:], [5], options, 9)]


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_a_result_says_what_it_was_made_of(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call for each of its motions, a timeline for its one; and so does what becomes a file."""
    config = dataclasses.replace(tiny_pipeline.config, fps=20)
    monkeypatch.setattr(tiny_pipeline, "config", config)
    made = {
        "call": tiny_pipeline(PROMPTS, num_frames=12, num_inference_steps=1, seed=4),
        "scene": tiny_pipeline.timeline([(each, 12) for each in PROMPTS], num_inference_steps=1, seed=6),
    }
    prompts = {"call": tuple(PROMPTS), "scene": ("; ".join(PROMPTS),)}
    view = View("top", (128, 256))
    for name, seeds, frames in (("call", (4, 5), 12), ("scene", (6,), 24)):
        found = made[name]
        assert (found.prompts, found.seeds, found.fps) == (prompts[name], seeds, 20)
        assert (found.joints.shape[:3], found.motion.shape[:3]) == ((len(seeds), 2, frames),) * 2
        for index, seed in enumerate(seeds):
            take = found.take(index, details={"model": "m"}, view=view)
            assert (take.prompt, take.fps, take.view) == (prompts[name][index], 20, view)
            assert dict(take.details) == {"seed": seed, "model": "m"}
            assert torch.equal(torch.from_numpy(take.motion), found.motion[index])
            assert torch.equal(torch.from_numpy(take.joints), found.joints[index])
            assert found.take(index).view == View()


@pytest.mark.parametrize("levels", [False, True])
def test_guidance_is_off_where_a_model_that_was_trained_so_is_given_motion(
    levels: bool, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets are not given motion, and a model without levels is led by its words as ever."""
    monkeypatch.setattr(tiny_pipeline, "trained_with_levels", levels)
    own = tiny_pipeline.config.default_guidance
    assert own > 1
    given = Control([Known(0, motion=torch.zeros(9, 262))])
    led = Control(targets=[Target(0, "pelvis", [3], positions=[(0.0, 1.0, 0.0)])])
    for control, expected in (
        (None, own),
        (led, own),
        (Control(bodies_apart=True), own),
        (given, 1.0 if levels else own),
    ):
        assert tiny_pipeline.default_guidance(control) == expected


def test_seeds_end_where_their_numbers_do(tiny_pipeline: Any) -> None:
    last = 2**63 - 1
    assert tiny_pipeline(PROMPTS, num_frames=8, num_inference_steps=1, seed=last - 1).seeds == (last - 1, last)
    with pytest.raises(ValueError, match="seed"):
        tiny_pipeline(PROMPTS, num_frames=8, num_inference_steps=1, seed=last)


def test_noise_length_and_mask_of_every_motion(tiny_pipeline: Any, seen: list[tuple[Any, ...]]) -> None:
    """Motion i has the noise of its seed, frame by frame, in the latent frames that its length needs; no more."""
    made = tiny_pipeline.sample(PROMPTS, [9, 13], [3, 8], num_inference_steps=2, guidance_scale=1.0)
    assert [motion.shape for motion in made] == [(2, 9, 262), (2, 13, 262)]
    x, _, _, mask = seen[0]
    assert len(seen) == 2
    assert mask.tolist() == [[True] * 3 + [False], [True] * 4]
    for row, (seed, count) in enumerate(((3, 3), (8, 4))):
        noise = torch.randn((count, 2, 28), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(x[row, :, :count], noise.transpose(0, 1))
        assert not x[row, :, count:].any()


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
@pytest.mark.parametrize("given", [False, True])
def test_what_is_led_to_targets_is_what_is_free(
    tiny_pipeline: Any, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latent frames of four; of the first person two are given, and of the second none. Each motion has its own."""
    asked: list[Any] = []

    def refine(aims: Aims, latents: torch.Tensor, decode: Any, free: Any = None) -> torch.Tensor:
        asked.append((latents.shape[1], free if free is None else free.tolist()))
        assert decode(latents).shape[:2] == (2, (12, 16)[len(asked) - 1])
        return latents

    monkeypatch.setattr(Aims, "refine", refine)
    known = [Known(0, motion=torch.randn(8, 262))] if given else []
    control = Control(known, targets=[Target(1, "head", [10], positions=[(0.0, 1.0, 0.0)])])
    tiny_pipeline.sample(PROMPTS, [12, 16], [3, 8], num_inference_steps=1, guidance_scale=1.0, control=control)
    free = [[[False, False, *[True] * more], [True] * (2 + more)] if given else None for more in (1, 2)]
    assert asked == [(3, free[0]), (4, free[1])]


@pytest.mark.parametrize("prompt", ["", "they bow"])
def test_one_call_at_a_level(tiny_pipeline: Any, seen: list[tuple[Any, ...]], prompt: str, monkeypatch: Any) -> None:
    """sqrt(a) s z + sqrt(1 - a) noise at timestep level * T, with the text of the prompt or with zeros."""
    diffusion = DiffusionConfig(num_train_timesteps=200, latent_scale=0.5)
    monkeypatch.setattr(tiny_pipeline, "config", dataclasses.replace(tiny_pipeline.config, diffusion=diffusion))
    motion = torch.randn(2, 8, 262)
    assert tiny_pipeline.denoise_once(motion, 0.3, prompt=prompt, seed=6) == 60
    ((x, timesteps, text),) = seen
    assert timesteps.tolist() == [60]
    level = 1.0
    for t in range(61):
        level *= 1 - min(1 - alpha_bar((t + 1) / 200) / alpha_bar(t / 200), 0.999)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    expected = level**0.5 * 0.5 * tiny_pipeline.encode(motion[None]) + (1 - level) ** 0.5 * noise
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    expected = tiny_pipeline.text_encoder([prompt]) if prompt else torch.zeros(1, 8)
    torch.testing.assert_close(text, expected.detach())


def alpha_bar(share: float) -> float:
    return float(torch.cos(torch.tensor((share + 0.008) / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2)


def test_a_take_is_of_its_index() -> None:
    joints, motion = torch.randn(2, 2, 9, 22, 3), torch.randn(2, 2, 9, 262)
    motion[..., :66] = joints.flatten(-2)
    result, view = PipelineResult(joints, motion, ("bow", "turn"), (4, 9), 12), View()
    for index in (0, 1):
        take = result.take(index, details={"model": "tiny"}, view=view)
        assert (take.joints == joints[index].numpy()).all()
        assert take.motion is not None
        assert (take.motion == motion[index].numpy()).all()
        assert (take.prompt, take.fps) == (("bow", "turn")[index], 12)
        assert take.details == {"seed": (4, 9)[index], "model": "tiny"}
        assert take.view is view


def test_a_model_comes_on_the_device_that_is_asked_for(
    tiny_pipeline: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="device: expected a device of this machine, got 'meta'"):
        MotionPipeline.from_pretrained(tmp_path, device="meta")
    asked: list[Any] = []
    monkeypatch.setattr(type(tiny_pipeline), "to", lambda self, device=None, dtype=None: asked.append(device) or self)
    MotionPipeline.from_pretrained(tmp_path, device="cuda:1")
    assert "cuda:1" in map(str, asked)


STEPS = {
    "smooth": "with_smooth_joints", "rigid_bones": "with_rigid_bones", "on_floor": "with_persons_on_floor",
    "planted_feet": "with_planted_feet", "bodies_apart": "with_bodies_apart",
}  # fmt: skip


@pytest.mark.parametrize("asked", [(), *((name,) for name in STEPS), tuple(STEPS)])
def test_a_motion_is_corrected_as_configured_and_no_more(
    asked: tuple[str, ...], tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order; persons are not moved apart where joints were asked for at places."""
    done: list[str] = []

    def noting(name: str) -> Any:
        def correct(motion: torch.Tensor, *_: Any) -> torch.Tensor:
            done.append(name)
            return motion

        return correct

    for name, function in STEPS.items():
        monkeypatch.setattr(module, function, noting(name))
    config = dataclasses.replace(tiny_pipeline.config, **dict.fromkeys(asked, True))
    monkeypatch.setattr(tiny_pipeline, "config", config)
    tiny_pipeline(["two people bow"], num_frames=12, num_inference_steps=1)
    assert done == list(asked)
    done.clear()
    aim = Control(targets=(Target(0, "pelvis", [3], positions=[[0.0, 1.0, 0.0]]),))
    tiny_pipeline(["two people bow"], num_frames=12, num_inference_steps=1, control=aim)
    assert done == [name for name in asked if name != "bodies_apart"]


@pytest.mark.parametrize("rigid", [True, False])
def test_joints_of_what_is_sampled_have_the_bones_of_who_is_given(
    rigid: bool, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is led to targets: frames that are given stand as they are, the others' bones are as long as theirs."""
    monkeypatch.setattr(tiny_pipeline, "config", dataclasses.replace(tiny_pipeline.config, rigid_bones=rigid))
    tall = from_joints(torch.from_numpy(at_rest(1.3 * REST_POSE)).float().expand(10, 22, 3))
    where = torch.zeros(2, 10, dtype=torch.bool)
    where[0, :4] = True
    given = Given(INTERHUMAN, torch.stack([tall, tall]) * where[..., None], where, 0)
    latents = torch.randn(2, 3, tiny_pipeline.config.denoiser.input_dim)
    with torch.no_grad():
        found = tiny_pipeline._joints_of(given)(latents)
        plain = INTERHUMAN.joints(tiny_pipeline.codec.decode_with_gradients(latents[None])[0])
    assert found.shape == (2, 10, 22, 3)
    torch.testing.assert_close(found[0, :4], INTERHUMAN.joints(tall)[:4])
    if not rigid:
        assert torch.equal(found[~where], plain[:, :10][~where])
        return
    lengths = torch.linalg.vector_norm(bone_vectors(found), dim=-1)
    expected = torch.linalg.vector_norm(bone_vectors(INTERHUMAN.joints(tall)), dim=-1)[:1]
    torch.testing.assert_close(lengths[0], expected.expand(10, 21), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(lengths[1], bone_lengths(plain)[1:].expand(10, 21), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels", [True, False])
def test_a_user_is_warned_of_what_the_model_has_not_learned(
    levels: bool, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of words that it has never seen in any case, each prompt once; of motion that is given where it has no levels."""
    monkeypatch.setattr(tiny_pipeline, "trained_with_levels", levels)
    untrained = f"control: model 'tiny' {UNTRAINED}"
    words = [f"the model has never seen: juggle (in {prompt!r}); it can only guess" for prompt in ("juggle", "juggle.")]
    monkeypatch.setattr(tiny_pipeline, "unknown_words", lambda prompt: ["juggle"] if "juggle" in prompt else [])
    prompts = ["juggle", "two people bow", "juggle.", "juggle"]
    known = Control([Known(0, joints=torch.zeros(12, 22, 3))])
    for call, given in (
        (lambda: tiny_pipeline(prompts, num_frames=12, num_inference_steps=1), False),
        (lambda: tiny_pipeline(prompts, num_frames=12, num_inference_steps=1, control=known), True),
        (lambda: tiny_pipeline.timeline([(prompt, 12) for prompt in prompts], num_inference_steps=1), True),
        (lambda: tiny_pipeline.live("juggle", num_inference_steps=1), True),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            call()
        seen = words[:1] if call.__code__.co_consts.count("juggle") else words
        expected = [*seen, *([untrained] if given and not levels else [])]
        assert [str(each.message) for each in told if each.category is UserWarning] == expected
        assert {each.filename for each in told if each.category is UserWarning} == {__file__}


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_what_nobody_asks_for(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven seconds; scenes of 50 steps, each taken three times; live, chunks of 20 frames of 4 steps, taken once."""
    got: list[Any] = []

    def sample(prompts: Any, lengths: Any, seeds: Any, *, control: Any, **options: Any) -> Any:
        asked = (options["num_inference_steps"], options["guidance_scale"], options["scheduler"])
        got.append((lengths, tuple(seeds), asked, None if control is None else control.resampling))
        return [torch.randn(2, *lengths, 262, generator=torch.Generator().manual_seed(0))]

    monkeypatch.setattr(tiny_pipeline, "sample", sample)
    monkeypatch.setattr(tiny_pipeline, "config", dataclasses.replace(tiny_pipeline.config, max_frames=300))
    assert tiny_pipeline(PROMPTS[0]).joints.shape == (1, 2, 210, 22, 3)
    assert got.pop() == ([210], (0,), (50, 3.5, None), None)
    tiny_pipeline.timeline([(prompt, 30) for prompt in PROMPTS])
    assert got == [([34], (0,), (50, 3.5, None), None), ([54], (1,), (50, 3.5, None), RESAMPLING)]
    assert RESAMPLING == 3
    got.clear()
    live = tiny_pipeline.live(PROMPTS[0])
    assert [next(live).shape[1], next(live).shape[1]] == [20, 20]
    assert got == [([24], (0,), (4, 3.5, None), None), ([44], (1,), (4, 3.5, None), 1)]


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_each_motion_is_steered_in_its_own_frames(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every step, by the joints of that motion; what is made of the estimate is what goes on."""
    asked: list[Any] = []

    def step(aims: Aims, latents: torch.Tensor, decode: Any) -> torch.Tensor:
        assert [target.frames for target in aims.targets] == [(10,)]
        asked.append((latents.shape[1], decode(latents).shape[1]))
        return torch.full_like(latents, float(len(asked)))

    refined: list[torch.Tensor] = []
    monkeypatch.setattr(Aims, "step", step)
    monkeypatch.setattr(Aims, "refine", lambda aims, latents, *_: refined.append(latents.clone()) or latents)
    control = Control(targets=[Target(1, "head", [10], positions=[(0.0, 1.0, 0.0)])])
    tiny_pipeline.sample(PROMPTS, [11, 16], [3, 8], num_inference_steps=2, control=control)
    assert asked == [(3, 11), (4, 16)] * 2
    torch.testing.assert_close(refined, [torch.full((2, 3, 28), 3.0), torch.full((2, 4, 28), 4.0)], rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
@pytest.mark.parametrize(("levels", "calls"), [(False, 5 + 5 + 1), (True, 3)])
def test_steps_of_a_control_are_taken_as_often_as_it_says(
    levels: bool, calls: int, tiny_pipeline: Any, seen: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the last; a model that is told what is known needs no more than one pass."""
    monkeypatch.setattr(tiny_pipeline, "trained_with_levels", levels)
    control = Control([Known(1, motion=torch.randn(8, 262))], resampling=5)
    tiny_pipeline.sample(PROMPTS[:1], [12], [3], num_inference_steps=3, control=control)
    assert len(seen) == calls


def test_one_call_of_a_model_whose_input_is_scaled(
    tiny_pipeline: Any, seen: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    motion = torch.randn(2, 8, 262)
    level = build_scheduler("ddpm", DiffusionConfig()).alphas_cumprod[250]
    for scaled in (False, True):
        diffusion = DiffusionConfig(latent_scale=0.5, scale_input=scaled)
        monkeypatch.setattr(tiny_pipeline, "config", dataclasses.replace(tiny_pipeline.config, diffusion=diffusion))
        assert tiny_pipeline.denoise_once(motion, 0.25, seed=2) == 250
    (plain, *_), (brought, *_) = seen
    torch.testing.assert_close(brought, plain / (level * 0.25 + 1 - level).sqrt())


def test_a_motion_is_corrected_over_all_frames_that_are_decoded_and_cut_then(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three latent frames twelve are decoded, of which nine are wanted; bodies are moved apart in these alone."""
    done: dict[str, int] = {}

    def counting(name: str) -> Any:
        def correct(motion: torch.Tensor, *_: Any) -> torch.Tensor:
            done[name] = motion.shape[-2]
            return motion + 1

        return correct

    for name, function in STEPS.items():
        monkeypatch.setattr(module, function, counting(name))
    plain = tiny_pipeline.sample(PROMPTS, [9, 14], [3, 4], num_inference_steps=1)
    config = dataclasses.replace(tiny_pipeline.config, **dict.fromkeys(STEPS, True))
    monkeypatch.setattr(tiny_pipeline, "config", config)
    found = tiny_pipeline.sample(PROMPTS, [9, 14], [3, 4], num_inference_steps=1)
    assert done == {"smooth": 16, "rigid_bones": 16, "on_floor": 16, "planted_feet": 16, "bodies_apart": 14}
    for motion, before in zip(found, plain, strict=True):
        torch.testing.assert_close(motion, before + 5)


@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_gaps_are_not_estimated_where_joints_are_led_somewhere(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the control says so, nor by a model that has not learned it."""
    asked: list[Given] = []
    monkeypatch.setattr(Given, "with_gaps", lambda given, fill: asked.append(given) or given)
    monkeypatch.setattr(Aims, "refine", lambda aims, latents, *_: latents)
    between = torch.nn.Module()
    between.filled = None
    known = [Known(0, motion=torch.randn(4, 262)), Known(0, motion=torch.randn(4, 262), frames=slice(8, 12))]
    target = Target(1, "head", [10], positions=[(0.0, 1.0, 0.0)])
    for part, control, expected in (
        (between, Control(known), 1),
        (None, Control(known), 0),
        (between, Control(known, estimate_gaps=False), 0),
        (between, Control(known, targets=[target]), 0),
        (between, Control(known, bodies_apart=True), 0),
    ):
        monkeypatch.setattr(tiny_pipeline, "between", part)
        asked.clear()
        tiny_pipeline.sample(PROMPTS[:1], [12], [3], num_inference_steps=1, control=control)
        assert len(asked) == expected


def test_a_model_of_before_there_were_several_systems_is_of_the_first(tmp_path: Any) -> None:
    path = tmp_path / "config.json"
    for content, expected in (("{}", "InterMoEPipeline"), ('{"system": "mdm"}', "MDMPipeline")):
        path.write_text(content)
        assert system_of(path).__name__ == expected
    for content, message in (
        ("[]", "expected a mapping, got list"),
        ('{"system": 3}', "system: expected one of intermoe, .*, got 3"),
        ('{"system": "intermo"}', "system: expected one of intermoe, .*, got 'intermo'"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"config\.json: {message}$"):
            system_of(path)


def test_what_every_models_configuration_has() -> None:
    own = ModelConfig()
    assert (own.system, own.name, own.fps, own.min_frames, own.max_frames) == ("intermoe", "intermoe", 30, 16, 300)
    assert (own.min_steps, own.max_steps, own.default_steps, own.default_guidance) == (1, None, 50, 3.5)
    assert ModelConfig(min_frames=4, max_frames=4).max_frames == 4
    own.check_steps(1)
    own.check_steps(10**6)
    with pytest.raises(ValueError, match=r"^num_inference_steps: expected >= 1 for intermoe, got 0$"):
        own.check_steps(0)


@pytest.mark.parametrize(
    ("level", "taken"), [(0.0, True), (0.999, True), (1.0, False), (-1e-9, False), (float("nan"), False)]
)
def test_levels_are_a_share_of_the_schedule(level: float, taken: bool) -> None:
    if taken:
        assert check_level(level) == level
        return
    with pytest.raises(ValueError, match="level: expected a"):
        check_level(level)
