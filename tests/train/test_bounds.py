"""Every bound of a training's configuration: what lies beyond is refused word for word, what lies on it is taken."""

from __future__ import annotations

import dataclasses
import re
from typing import Any
from unittest import mock

import pytest
import torch

import intermoe.train.config
from intermoe.config import Config, ConfigError, _require
from intermoe.data.sets import DATA_SETS
from intermoe.train.config import DenoiserTrainConfig, DistillConfig, OptimConfig, VAETrainConfig

ALL_SETS = f"one of {tuple(DATA_SETS)}"
SCHEDULED = {"optim": {"schedule": "steps"}}
EPOCHS = {"optim": {"epochs": 3}}
MIXED = {"levels": {"one_level": 0.75, "independent": 0.25}}
COMPILERS = f"null or one of {torch.compiler.list_backends(exclude_tags=())}"

# beside which other values, the key, a value beyond, one on the bound, and what is expected
BOTH: list[tuple[dict[str, Any], str, Any, Any, str]] = [
    ({}, "seed", -1, 0, "a value in [0, 2**32)"),
    ({}, "seed", 2**32, 2**32 - 1, "a value in [0, 2**32)"),
    ({}, "data.representation", "walk", "interhuman", ALL_SETS),
    ({}, "data.batch_size", 0, 1, ">= 1"),
    ({"data": {"max_frames": 100}}, "data.min_frames", 3, 4, "a value in [4, max_frames=100]"),
    ({"data": {"max_frames": 100}}, "data.min_frames", 101, 100, "a value in [4, max_frames=100]"),
    ({}, "data.num_workers", -1, 0, ">= 0"),
    ({"optim": {"warmup_steps": 0}}, "optim.steps", 0, 1, ">= 1"),
    ({}, "optim.epochs", 0, 1, ">= 1"),
    (EPOCHS, "optim.warmup_epochs", -0.1, 0.0, "a value in [0, epochs=3)"),
    (EPOCHS, "optim.warmup_epochs", 3.0, 2.9, "a value in [0, epochs=3)"),
    ({"optim": {"epochs": None}}, "optim.warmup_epochs", 1.0, None, "a value in [0, epochs=None)"),
    ({}, "optim.learning_rate", 0.0, 1e-9, "> 0"),
    ({}, "optim.weight_decay", -0.1, 0.0, ">= 0"),
    ({}, "optim.betas", (0.9, 1.0), (0.0, 0.0), "two values in [0, 1)"),
    ({}, "optim.betas", (-0.1, 0.9), (0.9, 0.99), "two values in [0, 1)"),
    ({}, "optim.betas", (0.9, 0.9, 0.9), (0.9, 0.9), "two values in [0, 1)"),
    ({}, "optim.schedule", "linear", "constant", "one of ('cosine', 'constant', 'steps')"),
    ({}, "optim.decay", 0.0, 0.1, "a value in (0, 1)"),
    ({}, "optim.decay", 1.0, 0.9, "a value in (0, 1)"),
    (SCHEDULED, "optim.decay_at", (), (0.5,), "shares for 'steps' alone"),
    ({"optim": {"schedule": "cosine"}}, "optim.decay_at", (0.5,), (), "shares for 'steps' alone"),
    (SCHEDULED, "optim.decay_at", (0.0, 0.5), (0.1, 0.5), "rising values in (0, 1)"),
    (SCHEDULED, "optim.decay_at", (0.5, 1.0), (0.5, 0.9), "rising values in (0, 1)"),
    (SCHEDULED, "optim.decay_at", (0.7, 0.5), (0.5, 0.7), "rising values in (0, 1)"),
    ({"optim": {"steps": 10}}, "optim.warmup_steps", -1, 0, "a value in [0, steps=10)"),
    ({"optim": {"steps": 10}}, "optim.warmup_steps", 10, 9, "a value in [0, steps=10)"),
    ({}, "optim.clip", "max", "none", "one of ('value', 'norm', 'none')"),
    ({}, "optim.clip_limit", 0.0, 0.1, "> 0"),
    ({}, "optim.accumulation_steps", 0, 1, ">= 1"),
    ({}, "optim.mixed_precision", "fp8", "bf16", "one of ('no', 'fp16', 'bf16')"),
    ({}, "optim.ema_decay", -0.1, 0.0, "a value in [0, 1)"),
    ({}, "optim.ema_decay", 1.0, 0.999, "a value in [0, 1)"),
    ({}, "run.fid_clips", 1, 2, "0 or >= 2"),
    ({}, "run.fid_clips", -1, 0, "0 or >= 2"),
    ({}, "run.fid_steps", 0, 1, ">= 1"),
    ({}, "run.compile", "gcc", "inductor", COMPILERS),
    *(({}, f"run.{name}", 0, 1, ">= 1") for name in ("log_every", "validate_every", "checkpoint_every")),
    ({}, "run.keep_checkpoints", 0, 1, ">= 1"),
]
OF_VAE: list[tuple[dict[str, Any], str, Any, Any, str]] = [
    ({}, "trainer", "denoiser", "vae", "'vae'"),
    ({"data": {"max_frames": 60}}, "window", 0, 4, "a multiple of 4 frames in [4, data.max_frames=60]"),
    ({"data": {"max_frames": 60}}, "window", 64, 60, "a multiple of 4 frames in [4, data.max_frames=60]"),
    ({"data": {"max_frames": 60}}, "window", 30, 32, "a multiple of 4 frames in [4, data.max_frames=60]"),
    ({}, "latent_noise", -0.1, 0.0, ">= 0"),
    ({}, "window_stride", 0, 1, ">= 1"),
    ({"data": {"representation": "interhuman"}}, "model.representation", "interx", "interhuman",
     "data.representation='interhuman'"),
    *(({}, f"losses.{name.name}", -0.1, 0.0, ">= 0")
      for name in dataclasses.fields(intermoe.train.config.VAELossConfig)),
    ({"data": {"representation": "interx", "mirror": False}, "model": {"representation": "interx"}},
     "losses.skating", 0.5, 0.0, "0 for interx"),
    ({"data": {"representation": "interx"}, "model": {"representation": "interx"}},
     "data.mirror", True, False, "false for interx"),
    ({"data": {"representation": "humanml3d", "mirror": False}, "model": {"representation": "humanml3d"}},
     "data.swap_persons", True, False, "false for humanml3d"),
    ({}, "run.cuda_graphs", True, False, "false for trainer 'vae'"),
]  # fmt: skip
OF_DENOISER: list[tuple[dict[str, Any], str, Any, Any, str]] = [
    ({}, "trainer", "vae", "denoiser", "'denoiser'"),
    ({}, "text_pretraining.steps", -1, 0, ">= 0"),
    ({}, "text_pretraining.batch_size", 0, 1, ">= 1"),
    ({}, "text_pretraining.learning_rate", 0.0, 1e-9, "> 0"),
    *((MIXED, f"levels.{name}", -0.25, 0.0, ">= 0") for name in ("person", "prefix", "frames", "gap")),
    ({"levels": {"person": 1.0}}, "levels.one_level", -0.25, 0.0, ">= 0"),
    ({"levels": {"one_level": 1.0}}, "levels.independent", -0.25, 0.0, ">= 0"),
    (MIXED, "levels.one_level", 0.5, 0.75, "1 less the others"),
    ({}, "levels.run", 0, 1, ">= 1"),
    ({}, "levels.positions", -0.1, 0.0, ">= 0"),
    ({}, "load_balance", -0.1, 0.0, ">= 0"),
    ({}, "router_z", -0.1, 0.0, ">= 0"),
    ({"run": {"compile": "inductor"}}, "router_z", 0.1, 0.0,
     "0 with run.compile, whose graphs have no room for it"),
    ({"denoiser": {"text_dim": 16}}, "text.output_dim", 8, 16, "denoiser.text_dim=16"),
    ({"run": {"compile": "inductor"}}, "run.cuda_graphs", True, False, "false with run.compile"),
    ({"denoiser": {"recompute": True}}, "run.cuda_graphs", True, False, "false with denoiser.recompute"),
]  # fmt: skip
OF_DISTILLATION: list[tuple[dict[str, Any], str, Any, Any, str]] = [
    ({}, "trainer", "denoiser", "distill", "'distill'"),
    ({}, "steps", 0, 1, ">= 1"),
    ({"steps": 4}, "teacher_steps", 4, 8, "a multiple of steps=4 above it"),
    ({"steps": 4}, "teacher_steps", 10, 12, "a multiple of steps=4 above it"),
    ({"data": {"batch_size": 8}}, "trajectories", 15, 16, ">= two batches, 16"),
    ({}, "guidance_scale", 1.0, 1.1, "> 1"),
    ({}, "width", 0, 1, ">= 1"),
]
ROWS = [
    *((kind, *row) for kind in (VAETrainConfig, DenoiserTrainConfig) for row in BOTH),
    *((VAETrainConfig, *row) for row in OF_VAE),
    *((DenoiserTrainConfig, *row) for row in OF_DENOISER),
    *((DistillConfig, *row) for row in OF_DISTILLATION),
]


def build(kind: type[Config], beside: dict[str, Any], key: str, value: Any) -> Config:
    *section, name = key.split(".")
    values = {part: dict(own) if isinstance(own, dict) else own for part, own in beside.items()}
    (values.setdefault(section[0], {}) if section else values)[name] = value
    return kind.from_dict(values, where="")


@pytest.mark.parametrize(("kind", "beside", "key", "beyond", "on", "bound"), ROWS)
def test_what_lies_beyond_a_bound_is_refused_word_for_word(
    kind: type[Config], beside: dict[str, Any], key: str, beyond: Any, on: Any, bound: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{key}: expected {bound}, got {beyond!r}')}$"):
        build(kind, beside, key, beyond)
    found: Any = build(kind, beside, key, on)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == on


def test_one_person_has_no_level_of_its_own() -> None:
    single = {"representation": "humanml3d", "mirror": False, "swap_persons": False}
    with pytest.raises(ConfigError, match=r"^levels.person: expected 0 for humanml3d, of one person, got 0.5$"):
        DenoiserTrainConfig.from_dict({"data": single, "levels": {"one_level": 0.5, "person": 0.5}}, where="")
    DenoiserTrainConfig.from_dict({"data": {}, "levels": {"one_level": 0.5, "person": 0.5}}, where="")


def test_no_bound_is_without_a_row() -> None:
    """Whatever is asked of a configuration that is taken is refused by a row above."""
    asked: set[str] = set()

    def heard(ok: bool, name: str, expected: str, got: object) -> None:
        asked.add(name.rpartition(".")[2])
        _require(ok, name, expected, got)

    with mock.patch.object(intermoe.train.config, "_require", heard):
        VAETrainConfig(), DenoiserTrainConfig(), DistillConfig()
        VAETrainConfig.from_dict({"run": {"compile": "inductor"}})
    assert asked == {row[2].rpartition(".")[2] for row in ROWS}


def test_epochs_and_their_warm_up_are_counted_in_steps_rounded_up() -> None:
    config = OptimConfig(epochs=3, warmup_epochs=0.5, warmup_steps=0)
    counted = config.in_steps(items=10, items_per_step=4)
    assert (counted.steps, counted.warmup_steps) == (8, 2)  # 7.5 and 1.25
    assert (counted.epochs, counted.warmup_epochs) == (None, None)
    # a warm-up that is longer than so few epochs ends with the step before the last, whichever way it was said
    for longer in (OptimConfig(epochs=1, warmup_steps=200), OptimConfig(epochs=1, warmup_epochs=0.99, warmup_steps=0)):
        counted = longer.in_steps(items=5, items_per_step=2)
        assert (counted.steps, counted.warmup_steps) == (3, 2)
