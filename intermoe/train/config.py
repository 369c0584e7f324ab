"""Configuration of a training run: one validated file, copied to ``config.json`` in the run's folder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from intermoe.config import Config, _require
from intermoe.data.sets import DATA_SETS
from intermoe.diffusion import DiffusionConfig
from intermoe.motion.representation import FRAMES_TOGETHER
from intermoe.systems.intermoe.config import BetweenConfig, DenoiserConfig, VAEConfig
from intermoe.text.protocol import TextConfig

SCHEDULES = ("cosine", "constant", "steps")
CLIPS = ("value", "norm", "none")
PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class DataConfig(Config):
    """Which motion is read and how it is batched.

    ``representation`` names a data set of ``intermoe.data.DATA_SETS``, ``root`` its folder as published or its cache
    from ``intermoe prepare``. ``batch_size`` counts items (all persons of a clip) per process and micro-step.
    ``mirror`` is for interhuman alone, ``swap_persons`` for data of two persons.
    """

    RENAMED: ClassVar[dict[str, str]] = {"kind": "representation"}

    representation: str = "interhuman"
    root: str | None = None
    batch_size: int = 64
    min_frames: int = 16
    max_frames: int = 300
    mirror: bool = True
    swap_persons: bool = True
    num_workers: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        name = self.representation
        _require(name in DATA_SETS, "representation", f"one of {tuple(DATA_SETS)}", name)
        data_set = DATA_SETS[name]
        _require(not self.mirror or data_set.mirror is not None, "mirror", f"false for {name}", self.mirror)
        _require(not self.swap_persons or data_set.swappable, "swap_persons", f"false for {name}", self.swap_persons)
        _require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        _require(
            4 <= self.min_frames <= self.max_frames,
            "min_frames",
            f"a value in [4, max_frames={self.max_frames}]",
            self.min_frames,
        )
        _require(self.num_workers >= 0, "num_workers", ">= 0", self.num_workers)


@dataclass(frozen=True)
class OptimConfig(Config):
    """AdamW, learning-rate schedule, gradient clipping, precision and the average of the weights.

    ``steps`` counts optimiser steps, each of ``accumulation_steps`` micro-batches; ``epochs`` and ``warmup_epochs`` are
    the same in passes through the training set, and take the place of ``steps`` and ``warmup_steps``. The schedule
    "steps" multiplies the rate by ``decay`` at each of the shares ``decay_at`` of all steps. ``ema_decay`` is
    approached as min(ema_decay, (1 + n) / (10 + n)) after n steps; 0 turns the average off (the last weights are kept).
    ``tf32`` lets a GPU multiply float32 matrices in TF32.
    """

    steps: int = 10_000
    epochs: int | None = None
    learning_rate: float = 2e-4
    weight_decay: float = 2e-5
    betas: tuple[float, ...] = (0.9, 0.999)
    schedule: str = "cosine"
    decay: float = 0.1
    decay_at: tuple[float, ...] = ()
    warmup_steps: int = 200
    warmup_epochs: float | None = None
    clip: str = "value"
    clip_limit: float = 1.0
    accumulation_steps: int = 1
    mixed_precision: str = "no"
    tf32: bool = False
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", ">= 1", self.steps)
        _require(self.epochs is None or self.epochs >= 1, "epochs", ">= 1", self.epochs)
        ok = self.warmup_epochs is None or (self.epochs is not None and 0 <= self.warmup_epochs < self.epochs)
        _require(ok, "warmup_epochs", f"a value in [0, epochs={self.epochs})", self.warmup_epochs)
        _require(self.learning_rate > 0.0, "learning_rate", "> 0", self.learning_rate)
        _require(self.weight_decay >= 0.0, "weight_decay", ">= 0", self.weight_decay)
        ok = len(self.betas) == 2 and all(0.0 <= beta < 1.0 for beta in self.betas)
        _require(ok, "betas", "two values in [0, 1)", self.betas)
        _require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}", self.schedule)
        _require(0.0 < self.decay < 1.0, "decay", "a value in (0, 1)", self.decay)
        _require(
            bool(self.decay_at) == (self.schedule == "steps"), "decay_at", "shares for 'steps' alone", self.decay_at
        )
        ok = all(0.0 < share < 1.0 for share in self.decay_at)
        _require(
            ok and list(self.decay_at) == sorted(self.decay_at), "decay_at", "rising values in (0, 1)", self.decay_at
        )
        ok = self.warmup_steps >= 0 and (self.warmup_steps < self.steps or self.epochs is not None)
        _require(ok, "warmup_steps", f"a value in [0, steps={self.steps})", self.warmup_steps)
        _require(self.clip in CLIPS, "clip", f"one of {CLIPS}", self.clip)
        _require(self.clip_limit > 0.0, "clip_limit", "> 0", self.clip_limit)
        _require(self.accumulation_steps >= 1, "accumulation_steps", ">= 1", self.accumulation_steps)
        ok = self.mixed_precision in PRECISIONS
        _require(ok, "mixed_precision", f"one of {PRECISIONS}", self.mixed_precision)
        _require(0.0 <= self.ema_decay < 1.0, "ema_decay", "a value in [0, 1)", self.ema_decay)

    def in_steps(self, items: int, items_per_step: int) -> OptimConfig:
        """The same with epochs of ``items`` counted in steps."""
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * items / items_per_step)
        warmup = self.warmup_steps
        if self.warmup_epochs is not None:
            warmup = math.ceil(self.warmup_epochs * items / items_per_step)
        return dataclasses.replace(
            self, steps=steps, warmup_steps=min(warmup, steps - 1), epochs=None, warmup_epochs=None
        )


@dataclass(frozen=True)
class RunConfig(Config):
    """How often things are logged, validated and saved, in optimiser steps. May differ when a run is resumed.

    ``compile`` is a backend of ``torch.compile`` ("inductor") for the repeated parts of the model. With ``cuda_graphs``
    a GPU replays captured forwards and backwards of the denoiser, whose batches are all padded to ``data.max_frames``
    (``intermoe.train.graphs``); for a denoiser's training on one GPU. With ``fid_clips`` the validation of a denoiser
    generates motion for that many captions, with ``fid_steps`` solver steps, and gives its FID: of embeddings by the
    evaluator in the folder ``fid_evaluator``, or without one of latents averaged over time.
    """

    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    compile: str | None = None
    cuda_graphs: bool = False
    fid_clips: int = 0
    fid_steps: int = 10
    fid_evaluator: str | None = None

    def __post_init__(self) -> None:
        _require(self.fid_clips != 1 and self.fid_clips >= 0, "fid_clips", "0 or >= 2", self.fid_clips)
        _require(self.fid_steps >= 1, "fid_steps", ">= 1", self.fid_steps)
        if self.compile is not None:
            known = torch.compiler.list_backends(exclude_tags=())
            _require(self.compile in known, "compile", f"null or one of {known}", self.compile)
            _require(not self.cuda_graphs, "cuda_graphs", "false with run.compile", self.cuda_graphs)
        for name in ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))


@dataclass(frozen=True)
class TrainConfig(Config):
    """What all trainings have in common. ``trainer`` says whose recipe it is (``intermoe.train.trainers``).

    ``MIN_STEPS`` is the least number of sampling steps of what is trained, ``CAPTURES`` whether its steps can be
    captured (``run.cuda_graphs``).
    """

    MIN_STEPS: ClassVar[int] = 1
    CAPTURES: ClassVar[bool] = False
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    trainer: str = ""

    def __post_init__(self) -> None:
        own = type(self).trainer  # of the class, which is the default
        _require(self.trainer == own, "trainer", repr(own), self.trainer)
        _require(0 <= self.seed < 2**32, "seed", "a value in [0, 2**32)", self.seed)
        ok = self.CAPTURES or not self.run.cuda_graphs
        _require(ok, "run.cuda_graphs", f"false for trainer {own!r}", self.run.cuda_graphs)


@dataclass(frozen=True)
class VAELossConfig(Config):
    """Weights of the terms of ``intermoe.train.losses.vae_losses``; ``skating`` is for grounded contacts alone."""

    reconstruction: float = 1.0
    position: float = 0.5
    velocity: float = 0.5
    rotation: float = 0.5
    kl: float = 0.02
    bone: float = 0.0
    skating: float = 0.0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _require(getattr(self, f.name) >= 0.0, f.name, ">= 0", getattr(self, f.name))


@dataclass(frozen=True)
class VAETrainConfig(TrainConfig):
    """Training of the Causal-Skeletal VAE on windows of ``window`` frames, a multiple of 4 (the VAE's down-sampling).

    An epoch has one window of each sequence, at a random place, or with ``window_stride`` all windows that start at
    multiples of it, as in the release.

    ``decoder_only`` refines the decoder of a trained VAE; its latents, and so a denoiser trained on them, stay valid.
    ``latent_noise`` is the largest standard deviation of the noise that the decoder's input gets, drawn from 0 up to it
    for each sequence: the decoder learns to undo errors such as a denoiser makes.
    """

    trainer: str = "vae"
    decoder_only: bool = False
    latent_noise: float = 0.0
    window: int = 64
    window_stride: int | None = None
    model: VAEConfig = field(default_factory=VAEConfig)
    losses: VAELossConfig = field(default_factory=VAELossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.window % FRAMES_TOGETHER == 0 and FRAMES_TOGETHER <= self.window <= self.data.max_frames
        told = f"a multiple of {FRAMES_TOGETHER} frames in [{FRAMES_TOGETHER}, data.max_frames={self.data.max_frames}]"
        _require(ok, "window", told, self.window)
        _require(self.latent_noise >= 0.0, "latent_noise", ">= 0", self.latent_noise)
        ok = self.window_stride is None or self.window_stride >= 1
        _require(ok, "window_stride", ">= 1", self.window_stride)
        data, model = self.data.representation, self.model.representation
        _require(model == data, "model.representation", f"data.representation={data!r}", model)
        feet = self.losses.skating == 0 or DATA_SETS[data].representation.grounded
        _require(feet, "losses.skating", f"0 for {data}", self.losses.skating)


@dataclass(frozen=True)
class TextPretrainingConfig(Config):
    """Training of the text encoder on its own (``intermoe.train.text``), after which it is kept as it is.

    At 0 ``steps`` there is none, and the text encoder is trained together with the denoiser.
    """

    steps: int = 0
    batch_size: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "steps", ">= 0", self.steps)
        _require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        _require(self.learning_rate > 0.0, "learning_rate", "> 0", self.learning_rate)


SHARES = ("one_level", "independent", "person", "prefix", "frames", "gap")


@dataclass(frozen=True)
class LevelMixConfig(Config):
    """Which share of the training samples has which noise levels (``intermoe.train.levels``); the shares sum to 1.

    ``one_level``: one for the whole sample. ``independent``: one for each person and run of ``run`` latent frames. Of
    the others a part is clean and the rest has one level: ``person``, one person, chosen at random; ``prefix``, the
    first frames of all persons; ``frames``, random runs of ``run`` latent frames of each person; ``gap``, all but one
    random stretch of all persons. A model that is given persons or frames (``intermoe.control``) needs these.

    ``positions`` weighs, in samples of which a part is clean, the squared error of where the joints are, in decimetres,
    by a linear map of the latents (``intermoe.train.latents.position_map``): a loss by variances hears little of ten
    centimetres, by which what is made would miss what is given.
    """

    one_level: float = 1.0
    independent: float = 0.0
    person: float = 0.0
    prefix: float = 0.0
    frames: float = 0.0
    gap: float = 0.0
    run: int = 4
    positions: float = 0.0

    def __post_init__(self) -> None:
        for name, share in zip(SHARES, self.shares, strict=True):
            _require(share >= 0.0, name, ">= 0", share)
        _require(math.isclose(sum(self.shares), 1.0, abs_tol=1e-6), "one_level", "1 less the others", self.one_level)
        _require(self.run >= 1, "run", ">= 1", self.run)
        _require(self.positions >= 0.0, "positions", ">= 0", self.positions)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares, in the order of ``SHARES``."""
        return self.one_level, self.independent, self.person, self.prefix, self.frames, self.gap

    @property
    def mixed(self) -> bool:
        """Whether any sample has several levels."""
        return any(share > 0.0 for share in self.shares[1:])


@dataclass(frozen=True)
class DenoiserTrainConfig(TrainConfig):
    """Training of denoiser and text encoder on the latents of a trained VAE. ``name`` goes into the saved pipeline.

    ``load_balance`` weighs the load-balance loss of token-choice routing (Fedus et al. 2021 have 0.01);
    ``router_z`` weighs the z-loss of the routers' logits (``intermoe.ops.routing.router_z_loss``), which keeps the
    number of experts that a token takes alike at all noise levels; 0 is the published training.
    ``rigid_bones``, ``planted_feet``, ``on_floor``, ``bodies_apart`` and ``smooth`` go into the saved pipeline
    (``PipelineConfig``), as does whether ``levels`` are mixed.
    """

    CAPTURES: ClassVar[bool] = True
    trainer: str = "denoiser"
    name: str = "intermoe"
    rigid_bones: bool = False
    planted_feet: bool = False
    on_floor: bool = False
    bodies_apart: bool = False
    smooth: bool = False
    load_balance: float = 0.01
    router_z: float = 0.0
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    text: TextConfig = field(default_factory=TextConfig)
    text_pretraining: TextPretrainingConfig = field(default_factory=TextPretrainingConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    levels: LevelMixConfig = field(default_factory=LevelMixConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.levels.person == 0.0 or DATA_SETS[self.data.representation].representation.persons > 1
        _require(ok, "levels.person", f"0 for {self.data.representation}, of one person", self.levels.person)
        _require(self.load_balance >= 0.0, "load_balance", ">= 0", self.load_balance)
        _require(self.router_z >= 0.0, "router_z", ">= 0", self.router_z)
        ok = self.router_z == 0.0 or self.run.compile is None
        _require(ok, "router_z", "0 with run.compile, whose graphs have no room for it", self.router_z)
        ok = not (self.run.cuda_graphs and self.denoiser.recompute)
        _require(ok, "run.cuda_graphs", "false with denoiser.recompute", self.run.cuda_graphs)
        expected = f"denoiser.text_dim={self.denoiser.text_dim}"
        _require(self.text.output_dim == self.denoiser.text_dim, "text.output_dim", expected, self.text.output_dim)


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """Distillation of a model into ``steps`` steps of DDIM at ``guidance_scale`` (``intermoe.train.distill``).

    What is learned are those of the steps that are guided (the model's ``guidance_until``), from ``trajectories`` of
    its own with ``teacher_steps`` steps, made in batches of ``data.batch_size``; one batch in twenty validates.
    ``width`` is that of the networks that learn.
    """

    trainer: str = "distill"
    steps: int = 4
    teacher_steps: int = 20
    guidance_scale: float = 3.5
    trajectories: int = 4800
    width: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps >= 1, "steps", ">= 1", self.steps)
        ok = self.teacher_steps > self.steps and self.teacher_steps % self.steps == 0
        _require(ok, "teacher_steps", f"a multiple of steps={self.steps} above it", self.teacher_steps)
        _require(self.guidance_scale > 1.0, "guidance_scale", "> 1", self.guidance_scale)
        least = 2 * self.data.batch_size
        _require(self.trajectories >= least, "trajectories", f">= two batches, {least}", self.trajectories)
        _require(self.width >= 1, "width", ">= 1", self.width)


@dataclass(frozen=True)
class BetweenTrainConfig(TrainConfig):
    """Training of what fills short gaps between given frames (``intermoe.train.between``).

    ``gaps`` of each clip in a batch, and ``noise`` on what is seen beside them, in its standard deviations. Of
    ``optim``'s steps each sees ``data.batch_size`` clips.
    """

    trainer: str = "between"
    gaps: int = 8
    noise: float = 0.05
    between: BetweenConfig = field(default_factory=lambda: BetweenConfig(width=224))

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.gaps >= 1, "gaps", ">= 1", self.gaps)
        _require(self.noise >= 0.0, "noise", ">= 0", self.noise)
        _require(self.between.width >= 1, "between.width", ">= 1", self.between.width)
        name = self.data.representation
        _require(name == "interhuman", "data.representation", "'interhuman'", name)
