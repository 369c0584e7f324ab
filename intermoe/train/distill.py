"""Distillation: a model learns to sample in few steps what it makes in many.

The model itself, asked with as many steps as ``teacher_steps``, makes motion for the captions of the training data, and
the noisy latents on its way are kept at the timesteps of the few steps. From each of these to the next a step of DDIM
leads exactly, if the estimate of the clean latents is the right one. That one is learned for the guided steps (Luhman
and Luhman 2021; Meng et al. 2023), in half of the batches from where the learned steps before it lead, so that errors
do not add up. It is held in small networks beside the denoiser (``intermoe.systems.intermoe.denoiser.Shortcut``): with
other numbers of steps the model stays what it was.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import track
from torch import Tensor

from intermoe.checkpoints import load_safetensors
from intermoe.data.dataset import MotionDataset
from intermoe.diffusion import Sampler, distilled, guided_estimate, sample, scaled_input, with_none
from intermoe.files import replacing_folder, write_tensors
from intermoe.seeds import derived_seed
from intermoe.systems.intermoe.config import ShortcutConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import run
from intermoe.train.config import DistillConfig, TrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.latents import METRIC_FILE, LatentEncoder, read_fitted, write_metric
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit

FOLDER = "trajectories"
OWN_SHARE = 0.5
"""Of the batches that start where the learned steps lead."""


class Trajectory(TypedDict):
    """From noise on: ``states`` (N + 1, P, T', X), scaled, at the timesteps of the N guided steps and after them."""

    name: str
    states: Tensor
    condition: Tensor


class Steps:
    """The few steps: DDIM's on a model's schedule.

    Args:
        sampler: of them.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.scale = sampler, sampler.diffusion.latent_scale
        self.timesteps = sampler.timesteps
        self.levels: list[float] = [*sampler.solver.alphas_cumprod[list(self.timesteps)].tolist(), 1.0]
        """Share of the signal's variance, alpha_bar, at each timestep and at the end."""
        self.guided = sum(map(sampler.is_guided, self.timesteps))
        """How many steps are guided, the first ones."""

    def _coefficients(self, step: int) -> tuple[float, float]:
        """What noisy latents and scaled clean ones are multiplied by, for those after ``step``."""
        here, there = self.levels[step], self.levels[step + 1]
        kept = math.sqrt((1 - there) / (1 - here))
        return kept, math.sqrt(there) - kept * math.sqrt(here)

    def taken(self, step: int, noisy: Tensor, clean: Tensor) -> Tensor:
        """Noisy latents after step ``step``, by an estimate of the clean ones."""
        kept, added = self._coefficients(step)
        return kept * noisy + added * self.scale * clean

    def wanted(self, step: int, noisy: Tensor, after: Tensor) -> Tensor:
        """The estimate of clean latents with which step ``step`` leads from ``noisy`` to ``after``."""
        kept, added = self._coefficients(step)
        return (after - kept * noisy) / (added * self.scale)

    def estimate(
        self, denoiser: Callable[..., Tensor], step: int, noisy: Tensor, condition: Tensor, mask: Tensor
    ) -> Tensor:
        """The denoiser's estimate of clean latents before step ``step``, a guided one, as in sampling."""
        timesteps = torch.full((len(noisy),), self.timesteps[step], device=noisy.device)
        seen = noisy
        if self.sampler.diffusion.scale_input:
            seen = scaled_input(self.sampler.solver, seen, timesteps, self.scale)
        return guided_estimate(denoiser, seen, timesteps, with_none(condition), mask, self.sampler.guidance_scale)


class DistillObjective(Objective):
    """The shortcuts of a denoiser that is frozen, and the error of its estimates on trajectories."""

    metric: Tensor | None

    def __init__(self, denoiser: Denoiser, steps: Steps, metric: Tensor | None = None) -> None:
        super().__init__()
        self.shortcuts = denoiser.shortcuts
        self.denoiser = [denoiser.eval()]  # in a list: it is neither trained nor saved
        self.steps = steps
        self.register_buffer("metric", metric, persistent=False)

    @staticmethod
    def collate(items: Sequence[Any]) -> Batch:
        """Trajectories, padded with zeros to the longest, and their mask (B, T')."""
        frames = [item["states"].shape[2] for item in items]
        states = torch.zeros(len(items), *items[0]["states"].shape[:2], max(frames), items[0]["states"].shape[3])
        for row, count, item in zip(states, frames, items, strict=True):
            row[:, :, :count] = item["states"]
        return {
            "names": [item["name"] for item in items],
            "states": states,
            "condition": torch.stack([item["condition"] for item in items]),
            "mask": torch.arange(max(frames)) < torch.tensor(frames)[:, None],
        }

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """Training: the error at one step, the same for the batch. Validation: at each, from where the own lead.

        The step is drawn with the batch's first item, so that, unlike others', an optimiser step of several batches
        depends on how they share its items.
        """
        states, condition, mask = batch["states"].unbind(dim=1), batch["condition"], batch["mask"]
        number = len(states) - 1
        estimated = functools.partial(self.steps.estimate, functools.partial(self.denoiser[0], shortcut=True))

        def error(step: int, noisy: Tensor) -> tuple[Tensor, Tensor]:
            estimate = estimated(step, noisy, condition, mask)
            wanted = self.steps.wanted(step, noisy, states[step + 1])
            off = (estimate - wanted).float().masked_fill(~mask[:, None, :, None], 0.0)
            off = off if self.metric is None else off @ self.metric
            return off.square().mean(dim=(1, 3)).sum() / mask.sum(), estimate

        if validating:
            noisy, errors = states[0], {}
            for step in range(number):
                errors[f"loss_step{step + 1}"], estimate = error(step, noisy)
                noisy = self.steps.taken(step, noisy, estimate)
            return {"loss": torch.stack(list(errors.values())).mean(), **errors}
        which, own = draws.on_host().uniform(2)[0].tolist()
        step = int(which * number)
        noisy = states[step]
        if own < OWN_SHARE:
            noisy = states[0]
            with torch.no_grad():
                for before in range(step):
                    noisy = self.steps.taken(before, noisy, estimated(before, noisy, condition, mask))
        return {"loss": error(step, noisy)[0]}


class Trajectories:
    """Trajectories that ``make_trajectories`` wrote, one item each."""

    def __init__(self, folder: Path, numbers: Sequence[int]) -> None:
        self.items: list[Trajectory] = []
        for number in numbers:
            tensors = load_safetensors(folder / f"{number}.safetensors")
            for row, count in enumerate(tensors["frames"].tolist()):
                self.items.append(
                    {
                        "name": f"trajectory {number}, {row}",
                        "states": tensors["states"][row, :, :, :count],
                        "condition": tensors["condition"][row],
                    }
                )

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, index: int, epoch: int) -> Trajectory:
        """Item ``index``, the same in every epoch."""
        return self.items[index]

    def num_frames(self, index: int) -> int:
        """Length of item ``index``."""
        return self.items[index]["states"].shape[2]


@torch.no_grad()
def make_trajectories(
    pipeline: InterMoEPipeline, data: MotionDataset, config: DistillConfig, number: int, path: Path
) -> None:
    """Write the trajectories of batch ``number``: of captions and lengths as training draws them, each with own noise.

    ``states`` (B, N + 1, P, T', X) in float16 for N guided steps, ``condition`` (B, C), ``frames`` (B,).
    """
    size, diffusion = config.data.batch_size, pipeline.config.diffusion
    captions, frames, noises = [], [], []
    for place in range(number * size, (number + 1) * size):
        choice, caption = data.choose(place % len(data), place // len(data))
        captions.append(caption)
        frames.append(max(1, data.motion(choice).shape[1] // pipeline.vae.downsampling))
        noises.append(torch.Generator().manual_seed(derived_seed(config.seed, place)))
    persons, width, device = pipeline.representation.persons, pipeline.config.denoiser.input_dim, pipeline.device
    noise = torch.zeros(size, persons, max(frames), width)
    for row, count, generator in zip(noise, frames, noises, strict=True):
        row[:, :count] = torch.randn((persons, count, width), generator=generator)
    noise, condition = noise.to(device), pipeline.text_encoder(captions)
    mask = (torch.arange(max(frames)) < torch.tensor(frames)[:, None]).to(device)
    estimates: list[Tensor] = []

    def kept(estimate: Tensor) -> Tensor:
        estimates.append(estimate)
        return estimate

    teacher = distilled(diffusion, config.teacher_steps, config.guidance_scale)
    sample(pipeline.denoiser, condition, tuple(noise.shape), teacher, mask=mask, noise=noise, steer=kept)  # type: ignore[arg-type]
    few = Steps(distilled(diffusion, config.steps, config.guidance_scale))
    kept_at, every, noisy, states = set(few.timesteps[: few.guided + 1]), Steps(teacher), noise, []
    for step, (timestep, estimate) in enumerate(zip(every.timesteps, estimates, strict=True)):
        if timestep in kept_at:
            states.append(noisy)
        noisy = every.taken(step, noisy, estimate)
    if few.guided == config.steps:
        states.append(noisy)
    write_tensors(
        path,
        {
            "states": torch.stack(states, dim=1).half().cpu(),
            "condition": condition.float().cpu(),
            "frames": torch.tensor(frames),
        },
    )


def model_of(model: str | Path, config: TrainConfig) -> InterMoEPipeline:
    """The model that ``config`` teaches more. Raises as ``from_pretrained``, and ``ValueError`` for other motion."""
    pipeline = InterMoEPipeline.from_pretrained(model)
    own, read = pipeline.config.vae.representation, config.data.representation
    if own != read:
        raise ValueError(f"data.representation: expected {own!r}, which this model is for, got {read!r}")
    return pipeline


def run_distill(
    config_path: str | Path,
    output_dir: str | Path,
    model: str | Path,
    resume: bool = False,
    data: str | Path | None = None,
) -> Path:
    """Distil a model of InterMoE; returns ``output_dir/model``, the same model that also samples in few steps.

    Args:
        config_path: YAML or JSON of ``DistillConfig``.
        output_dir: gets ``config.json``, ``trajectories``, ``checkpoints``, ``logs``, ``model``, and
            ``metric.safetensors`` if the model was trained with one.
        model: the model's folder or name; on ``resume`` the one that the run was started with.
        resume: go on from the newest complete checkpoint in ``output_dir``, with the trajectories that are there.
        data: folder of the data in place of the configured one.

    Raises:
        FileExistsError, ValueError, FileNotFoundError: as ``run_denoiser``; also if ``model`` is none of InterMoE, or
            has other motion than the data.
    """
    config = run.with_data(DistillConfig.load(config_path), data)
    output_dir = Path(output_dir)
    pipeline = model_of(model, config)
    diffusion = pipeline.config.diffusion
    steps = Steps(distilled(diffusion, config.steps, config.guidance_scale))
    if not steps.guided:
        raise ValueError(f"model: expected one with guided steps, got guidance_until={diffusion.guidance_until}")
    splits = {name: run.open_split(config, name, min_frames=config.data.min_frames) for name in ("train", "val")}
    run.check_captions(pipeline.text_encoder, *splits.values())
    shortcut = ShortcutConfig(config.steps, config.guidance_scale, config.width)
    made = dataclasses.replace(
        pipeline.config, denoiser=dataclasses.replace(pipeline.config.denoiser, shortcut=shortcut)
    )
    torch.manual_seed(config.seed)
    denoiser = Denoiser(made.denoiser)
    base = {key: value for key, value in pipeline.denoiser.state_dict().items() if not key.startswith("shortcuts.")}
    denoiser.load_state_dict(denoiser.state_dict() | base)
    denoiser.requires_grad_(False).shortcuts.requires_grad_(True)
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        metric = None
        if diffusion.loss_std_floor > 0:
            encoder = LatentEncoder(pipeline.codec)
            write = functools.partial(write_metric, diffusion.loss_std_floor, splits["train"], encoder)
            metric = read_fitted(run.once(accelerator, output_dir / METRIC_FILE, write, resume=resume), "metric")
        pipeline.to(accelerator.device)
        drawn = _trajectories(accelerator, pipeline, splits["train"], config, output_dir, resume=resume)
        objective = DistillObjective(denoiser.to(accelerator.device), steps, metric)
        state = fit(accelerator, objective, config, *drawn, output_dir, resume=resume)
        if state is not None:
            denoiser.cpu().load_state_dict(denoiser.state_dict() | state)
            with replacing_folder(output_dir / "model") as temporary:
                parts = (pipeline.vae.cpu(), denoiser, pipeline.text_encoder.cpu())
                InterMoEPipeline(made, *parts, pipeline.statistics, pipeline.between).save_pretrained(temporary)
                run.write_config(temporary / "training.json", run.without_paths(config))
    return output_dir / "model"


def _trajectories(
    accelerator: Accelerator,
    pipeline: InterMoEPipeline,
    data: MotionDataset,
    config: DistillConfig,
    output_dir: Path,
    *,
    resume: bool,
) -> tuple[Trajectories, Trajectories]:
    """Those to train on and those to validate with, made where they are not there yet."""
    folder = output_dir / FOLDER
    folder.mkdir(exist_ok=True)
    count = config.trajectories // config.data.batch_size
    console, main = Console(stderr=True), accelerator.is_main_process
    for number in track(range(count), description=FOLDER, console=console, disable=not main):
        with accelerator.autocast():
            write = functools.partial(make_trajectories, pipeline, data, config, number)
            run.once(accelerator, folder / f"{number}.safetensors", write, resume=resume)
    held = max(1, count // 20)
    return Trajectories(folder, range(held, count)), Trajectories(folder, range(held))


TRAINER = run.Training(DistillConfig, run_distill, start="model", needs_start=True)
