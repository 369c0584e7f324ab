"""Distillation: what is learned are the model's own steps, taken a few at a time, and nothing else of it changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.checkpoints import load_safetensors
from intermoe.control import Control, Known, Target
from intermoe.control.targets import Aims
from intermoe.diffusion import DiffusionConfig, Sampler, distilled, sample
from intermoe.files import write_tensors
from intermoe.pipeline import MotionPipeline
from intermoe.systems.intermoe.config import ShortcutConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import distill, run
from intermoe.train.config import DistillConfig
from intermoe.train.distill import DistillObjective, Steps, Trajectories, make_trajectories, run_distill
from intermoe.train.draws import ItemDraws

DIFFUSION = DiffusionConfig(latent_scale=0.5, guidance_until=0.5, scale_input=True)
GIVEN = Control([Known(1, motion=torch.zeros(8, 262))])
LED = Control(targets=[Target(1, "head", [10], positions=[(0.0, 1.0, 0.0)])])
VALUES: dict[str, Any] = {
    "trainer": "distill",
    "steps": 4,
    "teacher_steps": 8,
    "trajectories": 6,
    "width": 5,
    "data": {"batch_size": 3, "min_frames": 16, "max_frames": 40},
    "optim": {"steps": 4, "warmup_steps": 1, "learning_rate": 1e-2, "ema_decay": 0.5},
    "run": {"log_every": 2, "validate_every": 2, "checkpoint_every": 2},
}


@pytest.fixture
def model(tiny_pipeline: InterMoEPipeline, tmp_path: Path) -> Path:
    """A model that scales its input and guides noisy timesteps alone."""
    config = dataclasses.replace(tiny_pipeline.config, diffusion=DIFFUSION)
    parts = (tiny_pipeline.vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    InterMoEPipeline(config, *parts).save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def recipe(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "distill.json"
    path.write_text(json.dumps({**VALUES, **changes}))
    return path


def opened(tmp_path: Path, pairs: Path, **changes: Any) -> tuple[DistillConfig, Any]:
    config = run.with_data(DistillConfig.load(recipe(tmp_path, **changes)), pairs)
    return config, run.open_split(config, "train", min_frames=config.data.min_frames)


def with_shortcuts(pipeline: InterMoEPipeline, steps: int = 4, guidance: float = 3.5) -> Denoiser:
    shortcut = ShortcutConfig(steps, guidance, 5)
    denoiser = Denoiser(dataclasses.replace(pipeline.config.denoiser, shortcut=shortcut))
    denoiser.load_state_dict(denoiser.state_dict() | pipeline.denoiser.state_dict())
    return denoiser


@pytest.mark.parametrize("number", [1, 2, 4, 20])
def test_steps_are_those_of_ddim_from_noise_alone(number: int) -> None:
    """x' = sqrt(a') s x_0 + sqrt(1 - a') e with the e of x = sqrt(a) s x_0 + sqrt(1 - a) e (Song et al. 2021)."""
    sampler = distilled(DIFFUSION, number, 3.5)
    steps, solver = Steps(sampler), sampler.start()
    assert list(steps.timesteps) == solver.timesteps.tolist() == sorted(steps.timesteps, reverse=True)
    assert steps.timesteps[0] == DIFFUSION.num_train_timesteps - 1
    assert steps.levels[0] < 1e-6
    assert number == 1 or steps.timesteps[-1] == 30
    assert number != 4 or steps.timesteps == (999, 749, 499, 30)
    noisy, clean = torch.randn(2, 3, 2, 5, 7, dtype=torch.float64)
    scaled = DIFFUSION.latent_scale * clean
    for step, timestep in enumerate(solver.timesteps):
        here = solver.alphas_cumprod[timestep].item()
        there = solver.alphas_cumprod[solver.timesteps[step + 1]].item() if step + 1 < number else 1.0
        error = (noisy - here**0.5 * scaled) / (1 - here) ** 0.5
        expected = there**0.5 * scaled + (1 - there) ** 0.5 * error
        after = steps.taken(step, noisy, clean)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(solver.step(scaled, timestep, noisy).prev_sample, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(steps.wanted(step, noisy, after), clean)
    torch.testing.assert_close(steps.taken(number - 1, noisy, clean), scaled)
    assert steps.guided == sum(timestep >= 500 for timestep in steps.timesteps)


@torch.no_grad()
def test_estimates_step_by_step_are_what_sampling_does(tiny_pipeline: InterMoEPipeline) -> None:
    """Where every step is guided."""
    steps = Steps(distilled(dataclasses.replace(DIFFUSION, guidance_until=0.0), 4, 2.5))
    noise, condition = torch.randn(3, 2, 6, 28), torch.randn(3, 8)
    mask = torch.arange(6) < torch.tensor([6, 4, 5])[:, None]
    expected = sample(tiny_pipeline.denoiser, condition, tuple(noise.shape), steps.sampler, mask=mask, noise=noise)
    noisy = noise
    for step in range(4):
        noisy = steps.taken(step, noisy, steps.estimate(tiny_pipeline.denoiser, step, noisy, condition, mask))
    valid = mask[:, None, :, None]
    torch.testing.assert_close(noisy / DIFFUSION.latent_scale * valid, expected * valid, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": (30, 10)}, "timesteps: expected 3 falling numbers"),
        ({"timesteps": (30, 10, 10)}, "timesteps: expected 3 falling numbers"),
        ({"timesteps": (1000, 30, 10)}, r"timesteps: expected 3 falling numbers in \[0, 1000\)"),
        ({"timesteps": (30, 10, -1)}, "timesteps: expected 3 falling numbers"),
        (
            {"timesteps": (30, 10, 0), "scheduler": "unipc"},
            "scheduler: expected 'ddim' with own timesteps, got 'unipc'",
        ),
    ],
)
def test_timesteps_that_are_none_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**{"num_inference_steps": 3, **changes})


def test_errors_are_weighed_by_the_metric_of_a_model_that_has_one(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = json.loads((model / "config.json").read_text())
    pipeline = InterMoEPipeline.from_pretrained(model)
    config, data = opened(tmp_path, pairs)
    make_trajectories(pipeline, data, config, 0, tmp_path / "0.safetensors")
    batch = DistillObjective.collate(Trajectories(tmp_path, [0]).items)
    steps = Steps(distilled(DIFFUSION, 4, 3.5))
    plain, doubled = (
        DistillObjective(with_shortcuts(pipeline), steps, metric).eval()(batch, None, validating=True)["loss"].item()
        for metric in (None, 2 * torch.eye(28))
    )
    assert doubled == pytest.approx(4 * plain, rel=1e-5)
    seen: list[torch.Tensor | None] = []
    start = DistillObjective.__init__

    def watched(self: DistillObjective, denoiser: Denoiser, steps: Steps, metric: torch.Tensor | None = None) -> None:
        seen.append(metric)
        start(self, denoiser, steps, metric)

    monkeypatch.setattr(DistillObjective, "__init__", watched)
    for floor, name in ((0.0, "plain"), (0.1, "weighed")):
        values["diffusion"]["loss_std_floor"] = floor
        (model / "config.json").write_text(json.dumps(values))
        run_distill(recipe(tmp_path), tmp_path / name, model=model, data=pairs)
        assert (tmp_path / name / "metric.safetensors").exists() == (floor > 0)
    assert seen[0] is None
    assert torch.equal(seen[1], load_safetensors(tmp_path / "weighed" / "metric.safetensors")["metric"])


def test_trajectories_are_the_models_own_from_noise_to_motion(model: Path, pairs: Path, tmp_path: Path) -> None:
    pipeline = InterMoEPipeline.from_pretrained(model)
    config, data = opened(tmp_path, pairs)
    for number in (1, 0):
        make_trajectories(pipeline, data, config, number, tmp_path / f"{number}.safetensors")
    made = Trajectories(tmp_path, [0, 1])
    assert len(made) == 6
    for place, item in enumerate(made.items):
        choice, caption = data.choose(place % len(data), place // len(data))
        assert made.num_frames(place) == item["states"].shape[2] == data.motion(choice).shape[1] // 4
        torch.testing.assert_close(item["condition"], pipeline.text_encoder([caption])[0].detach())
        states, teacher = item["states"].float(), Steps(distilled(DIFFUSION, 8, 3.5))
        assert teacher.timesteps[0:5:2] == (999, 749, 499)
        noisy, everybody = states[:1], torch.ones(1, states.shape[2], dtype=torch.bool)
        for step in range(4):
            estimate = teacher.estimate(pipeline.denoiser, step, noisy, item["condition"][None], everybody)
            noisy = teacher.taken(step, noisy, estimate.detach())
            if step % 2:
                torch.testing.assert_close(states[(step + 1) // 2][None], noisy, rtol=1e-2, atol=1e-2)  # of float16
        assert len(states) == 3
    noises = [item["states"][0].flatten()[:20] for item in made.items]
    assert len({tuple(noise.tolist()) for noise in noises}) == len(noises)
    assert torch.cat(noises).std() > 0.8
    # a batch is the same whatever was made before it
    make_trajectories(pipeline, data, config, 1, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_who_takes_the_teachers_steps_has_nothing_to_learn(model: Path, pairs: Path, tmp_path: Path) -> None:
    """Of trajectories with as many steps as are learned the estimates are right already, and only of those."""
    pipeline = InterMoEPipeline.from_pretrained(model)
    _, data = opened(tmp_path, pairs)
    losses = {}
    for teacher in (4, 8):
        config = DistillConfig.from_dict(VALUES)
        object.__setattr__(config, "teacher_steps", teacher)
        make_trajectories(pipeline, data, config, 0, tmp_path / "0.safetensors")
        made = Trajectories(tmp_path, [0])
        objective = DistillObjective(with_shortcuts(pipeline), Steps(distilled(DIFFUSION, 4, 3.5)))
        batch = objective.collate(made.items)
        losses[teacher] = {key: value.item() for key, value in objective.eval()(batch, None, validating=True).items()}
    assert losses[4]["loss"] < 0.01 * losses[8]["loss"]
    assert losses[8]["loss"] == pytest.approx((losses[8]["loss_step1"] + losses[8]["loss_step2"]) / 2)


def test_what_is_frozen_drops_nothing_out_in_training(tiny_pipeline: InterMoEPipeline) -> None:
    steps, denoiser = Steps(distilled(DIFFUSION, 4, 3.5)), with_shortcuts(tiny_pipeline)
    objective = DistillObjective(denoiser.train(), steps).train()
    assert not any(module.training for module in denoiser.modules() if module not in set(denoiser.shortcuts.modules()))
    assert {id(p) for p in objective.parameters()} == {id(p) for p in denoiser.shortcuts.parameters()}
    assert set(objective.state_dict()) == {f"shortcuts.{name}" for name in denoiser.shortcuts.state_dict()}


def test_a_batch_starts_where_the_learned_steps_lead_or_where_the_teachers_did(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    pipeline = InterMoEPipeline.from_pretrained(model)
    config, data = opened(tmp_path, pairs)
    make_trajectories(pipeline, data, config, 0, tmp_path / "0.safetensors")
    steps = Steps(distilled(DIFFUSION, 4, 3.5))
    objective = DistillObjective(with_shortcuts(pipeline), steps)
    batch = objective.collate(Trajectories(tmp_path, [0]).items)
    states = batch["states"].unbind(dim=1)

    def squares(noisy: torch.Tensor, step: int) -> float:
        estimate = steps.estimate(pipeline.denoiser, step, noisy, batch["condition"], batch["mask"])
        error = (estimate - steps.wanted(step, noisy, states[step + 1])) * batch["mask"][:, None, :, None]
        return (error.square().mean(dim=(1, 3)).sum() / batch["mask"].sum()).item()

    with torch.no_grad():
        led = steps.taken(
            0, states[0], steps.estimate(pipeline.denoiser, 0, states[0], batch["condition"], batch["mask"])
        )
        expected = {(0, False): squares(states[0], 0), (1, False): squares(states[1], 1), (1, True): squares(led, 1)}
    expected[0, True] = expected[0, False]
    seen = set()
    for number in range(16):
        draws = ItemDraws((3, number), range(3), torch.device("cpu"))
        which, own = ItemDraws((3, number), range(3), torch.device("cpu")).uniform(2)[0].tolist()
        case = (int(2 * which), own < distill.OWN_SHARE)
        assert objective(batch, draws)["loss"].item() == pytest.approx(expected[case], rel=1e-4)
        seen.add(case)
    assert len(seen) == 4
    assert len(set(expected.values())) == 3


def test_shortcuts_are_all_that_is_learned(model: Path, pairs: Path, tmp_path: Path) -> None:
    values = {**VALUES["optim"], "steps": 60}
    path = recipe(tmp_path, optim=values, run={"log_every": 20, "validate_every": 20, "checkpoint_every": 60})
    folder = run_distill(path, tmp_path / "run", model=model, data=pairs)
    start, made = InterMoEPipeline.from_pretrained(model), InterMoEPipeline.from_pretrained(folder)
    assert made.config.denoiser.shortcut == ShortcutConfig(4, 3.5, 5)
    assert (
        dataclasses.replace(made.config, denoiser=dataclasses.replace(made.config.denoiser, shortcut=ShortcutConfig()))
        == start.config
    )
    before, after = start.denoiser.state_dict(), made.denoiser.state_dict()
    learned = sorted(after.keys() - before.keys())
    assert learned == [
        f"shortcuts.0.{name}" for name in ("condition.weight", "down.bias", "down.weight", "up.bias", "up.weight")
    ]
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert after["shortcuts.0.up.weight"].abs().max() > 0
    call: dict[str, Any] = {"num_frames": 24, "seed": 5}
    assert torch.equal(
        made("two people bow", num_inference_steps=3, **call).motion,
        start("two people bow", num_inference_steps=3, **call).motion,
    )
    assert not torch.equal(
        made("two people bow", num_inference_steps=4, **call).motion,
        start("two people bow", num_inference_steps=4, **call).motion,
    )
    # nearer to what the model makes in many steps than without
    trajectories = Trajectories(tmp_path / "run" / "trajectories", [0, 1])
    steps, batch = Steps(distilled(DIFFUSION, 4, 3.5)), DistillObjective.collate(trajectories.items)
    fresh, taught = (
        DistillObjective(denoiser, steps).eval()(batch, None, validating=True)["loss"].item()
        for denoiser in (with_shortcuts(start), made.denoiser)
    )
    assert taught < 0.97 * fresh
    # a second distillation begins anew
    again = run_distill(path, tmp_path / "again", model=folder, data=pairs)
    first, second = (load_safetensors(each / "model.safetensors") for each in (folder, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_goes_on_with_the_trajectories_that_are_there(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_distill(recipe(tmp_path), tmp_path / "whole", model=model, data=pairs)
    made: list[int] = []

    def counted(*given: Any) -> None:
        made.append(given[3])
        make_trajectories(*given)
        if len(made) == 2 and not (tmp_path / "part" / "checkpoints").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(distill, "make_trajectories", counted)
    with pytest.raises(KeyboardInterrupt):
        run_distill(recipe(tmp_path), tmp_path / "part", model=model, data=pairs)
    monkeypatch.setattr(distill, "make_trajectories", lambda *given: pytest.fail(f"made again: {given[3]}"))
    resumed = run_distill(recipe(tmp_path), tmp_path / "part", model=model, data=pairs, resume=True)
    assert made == [0, 1]
    first, second = (load_safetensors(each / "model.safetensors") for each in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("trajectories", "validating"), [(6, 1), (59, 1), (120, 2)])
def test_one_batch_in_twenty_validates_and_is_not_trained_on(
    trajectories: int, validating: int, model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at least; what does not fill a batch is not made."""
    drawn: list[list[str]] = []
    asked: list[int] = []

    def write(pipeline: Any, data: Any, config: DistillConfig, number: int, path: Path) -> None:
        asked.append(number)
        values = {"states": torch.zeros(3, 3, 2, 4, 28), "condition": torch.zeros(3, 8)}
        write_tensors(path, {**values, "frames": torch.tensor([4, 2, 3])})

    def fit(accelerator: Any, objective: Any, config: Any, train: Any, validation: Any, *_: Any, **__: Any) -> None:
        drawn.extend([each.draw(number, 0)["name"] for number in range(len(each))] for each in (train, validation))
        assert [train.num_frames(number) for number in range(3)] == [4, 2, 3]

    monkeypatch.setattr(distill, "make_trajectories", write)
    monkeypatch.setattr(distill, "fit", fit)
    run_distill(recipe(tmp_path, trajectories=trajectories), tmp_path / "run", model=model, data=pairs)
    assert asked == list(range(trajectories // 3))
    names = [f"trajectory {number}, {row}" for number in asked for row in range(3)]
    assert drawn == [names[3 * validating :], names[: 3 * validating]]


def test_no_two_runs_share_their_noise(model: Path, pairs: Path, tmp_path: Path) -> None:
    """Not even those of seeds beside each other."""
    pipeline = InterMoEPipeline.from_pretrained(model)
    first = []
    for seed in (0, 1, 2):
        config, data = opened(tmp_path, pairs, seed=seed)
        make_trajectories(pipeline, data, config, 1, tmp_path / "1.safetensors")
        first += [item["states"][0].flatten()[:16] for item in Trajectories(tmp_path, [1]).items]
    assert len({tuple(noise.tolist()) for noise in first}) == 9


def test_what_is_not_guided_is_not_distilled(model: Path, pairs: Path, tmp_path: Path) -> None:
    values = json.loads((model / "config.json").read_text())
    values["diffusion"]["guidance_until"] = 1.0
    (model / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"model: expected one with guided steps, got guidance_until=1.0"):
        run_distill(recipe(tmp_path), tmp_path / "run", model=model, data=pairs)
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_motion_or_system_is_refused(
    model: Path, pairs: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    data = {**VALUES["data"], "representation": "interx", "mirror": False}
    with pytest.raises(ValueError, match=r"data.representation: expected 'interhuman', which this model is for"):
        run_distill(recipe(tmp_path, data=data), tmp_path / "run", model=model, data=pairs)
    other = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**other, "system": "mdm"}))
    with pytest.raises(ValueError, match="expected one of InterMoEPipeline"):
        run_distill(recipe(tmp_path), tmp_path / "run", model=model, data=pairs)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("call", "used"),
    [
        ({"num_inference_steps": 4, "guidance_scale": 3.5}, True),
        ({"num_inference_steps": 4}, True),
        ({"num_inference_steps": 3, "guidance_scale": 3.5}, False),
        ({"num_inference_steps": 4, "guidance_scale": 2.0}, False),
        ({"num_inference_steps": 4, "guidance_scale": 3.5, "scheduler": "dpmsolver++"}, False),
        ({"num_inference_steps": 4, "guidance_scale": 3.5, "control": GIVEN}, False),
        ({"num_inference_steps": 4, "guidance_scale": 3.5, "control": LED}, True),
    ],
)
@pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")
def test_shortcuts_are_for_the_steps_that_they_were_learned_for(
    tiny_pipeline: InterMoEPipeline, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any], used: bool
) -> None:
    denoiser = with_shortcuts(tiny_pipeline).eval()
    config = dataclasses.replace(tiny_pipeline.config, denoiser=denoiser.config, diffusion=DIFFUSION)
    parts = (tiny_pipeline.vae, denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    pipeline: MotionPipeline = InterMoEPipeline(config, *parts)
    seen: list[tuple[bool, int]] = []
    forward = denoiser.forward

    def watched(*given: Any, shortcut: bool = False, **options: Any) -> Any:
        seen.append((shortcut, int(given[1].flatten()[0])))
        return forward(*given, shortcut=shortcut, **options)

    monkeypatch.setattr(denoiser, "forward", watched)
    monkeypatch.setattr(Aims, "refine", lambda aims, latents, *_: latents)
    pipeline("two people bow", num_frames=16, **call)
    assert any(shortcut for shortcut, _ in seen) == used
    if used:  # at guided timesteps alone
        assert seen == [(True, 999), (True, 749), (False, 499), (False, 30)]


def test_a_denoiser_without_shortcuts_refuses_them(tiny_pipeline: InterMoEPipeline) -> None:
    with pytest.raises(ValueError, match="shortcut: expected false for a denoiser that was not distilled"):
        tiny_pipeline.denoiser(torch.zeros(1, 2, 3, 28), torch.zeros(1).long(), torch.zeros(1, 8), shortcut=True)


@torch.no_grad()
def test_a_shortcut_is_the_written_sum(tiny_pipeline: InterMoEPipeline) -> None:
    denoiser = with_shortcuts(tiny_pipeline)
    (own,) = denoiser.shortcuts
    hidden, levels = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 2, 8)
    assert torch.equal(own(hidden, levels), torch.zeros_like(hidden))
    torch.nn.init.normal_(own.up.weight)
    for condition, each in ((levels, levels.repeat_interleave(3, dim=2)), (levels[:, 0, 0], levels[:, :1, :1])):
        normed = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        inner = normed @ own.down.weight.T + own.down.bias + (each * each.sigmoid()) @ own.condition.weight.T
        expected = (inner * inner.sigmoid()) @ own.up.weight.T + own.up.bias
        torch.testing.assert_close(own(hidden, condition), expected)
