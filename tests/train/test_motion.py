"""Training of systems that diffuse motion itself: it learns, resumes, takes experts, and refuses what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from intermoe.data import InterHumanDataset, collate
from intermoe.diffusion import build_scheduler
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import MotionPipeline
from intermoe.systems.intergen.losses import motion_losses
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train.draws import ItemDraws
from intermoe.train.motion import MotionObjective, MotionTrainConfig, run_motion, trainable

VALUES: dict[str, Any] = {
    "name": "tiny",
    "data": {"batch_size": 3},
    "network": {"text_dim": 8, "dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 24},
    "text": {
        "output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16, "vocab_size": 60,
    },
    "optim": {"steps": 4, "warmup_steps": 1, "learning_rate": 1e-3, "ema_decay": 0.9, "clip": "norm"},
    "run": {"log_every": 2, "validate_every": 4, "checkpoint_every": 2},
}  # fmt: skip
CPU = torch.device("cpu")


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**VALUES, **changes}), encoding="utf-8")
    return path


def objective(pairs: Path, **changes: Any) -> tuple[MotionObjective, Any]:
    config = MotionTrainConfig.from_dict({**VALUES, **changes})
    tokenizer = WordPieceTextEncoder.train_tokenizer(["two people dance"], config.text.vocab_size)
    torch.manual_seed(0)
    statistics = Statistics(np.linspace(-1, 1, 262), np.linspace(0.5, 2, 262))
    dataset = InterHumanDataset(pairs, "train", min_frames=16)
    made = MotionObjective(config, WordPieceTextEncoder(config.text, tokenizer), statistics)
    return made, collate([dataset[0], dataset[1], dataset[2]])


@pytest.mark.parametrize("system", trainable())
def test_the_loss_falls(pairs: Path, system: str) -> None:
    made, batch = objective(pairs, system=system)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        terms = made.train()(batch, ItemDraws((0, step), range(3), CPU))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        if step in (0, 29):  # five forwards, with the same draws each time
            losses.append(made.eval()(batch, ItemDraws((1,), range(3), CPU), validating=True)["loss"].item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.grad is not None for parameter in made.network.parameters())


def test_the_terms_are_intergens_at_the_drawn_timesteps(pairs: Path) -> None:
    made, batch = objective(pairs, diffusion={"condition_dropout": 0.0})
    made.eval()
    terms = made(batch, ItemDraws((0,), range(3), CPU))
    draws, frames = ItemDraws((0,), range(3), CPU), batch["lengths"].tolist()
    motion = made.statistics.normalise(batch["motion"][:, :, : max(frames)])
    noise = draws.normal(frames, 2, 262).transpose(1, 2)
    timesteps = (1000 * draws.uniform()).long()
    noisy = build_scheduler("ddpm", made.diffusion).add_noise(motion, noise, timesteps)
    mask = torch.arange(max(frames)) < batch["lengths"][:, None]
    estimate = made.network(noisy, timesteps, made.text(batch["captions"]), mask)
    expected = motion_losses(estimate, motion, timesteps, mask, made.statistics, made.losses)
    torch.testing.assert_close(terms, expected)


def test_text_is_dropped_for_whole_samples(pairs: Path) -> None:
    made, batch = objective(pairs, diffusion={"condition_dropout": 1.0})
    for parameter in made.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # what starts at zero hides the text
    other = {**batch, "captions": ["two people bow"] * 3}
    draws = [ItemDraws((0,), range(3), CPU) for _ in range(2)]
    dropped = [made.eval()(each, draw)["loss"] for each, draw in zip((batch, other), draws, strict=True)]
    assert dropped[0] == dropped[1]
    validated = [made(each, ItemDraws((0,), range(3), CPU), validating=True)["loss"] for each in (batch, other)]
    assert validated[0] != validated[1]  # validation keeps it


@pytest.mark.parametrize("system", trainable())
def test_a_run_resumes_bit_for_bit_and_its_model_is_a_pipeline(pairs: Path, tmp_path: Path, system: str) -> None:
    config = write(tmp_path, system=system)
    whole = run_motion(config, tmp_path / "whole", data=pairs)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "model")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000004")
    resumed = run_motion(config, tmp_path / "cut", data=pairs, resume=True)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    model, average = load_file(whole / "model.safetensors"), tmp_path / "whole/checkpoints/step-00000004"
    assert all(torch.equal(model[key], value) for key, value in load_file(average / "average.safetensors").items())
    assert json.loads((whole / "training.json").read_text())["data"]["root"] is None

    pipeline = MotionPipeline.from_pretrained(whole)
    assert (pipeline.config.system, pipeline.config.name, pipeline.config.fps) == (system, "tiny", 30)
    result = pipeline(["two people dance", "they bow"], num_frames=17, num_inference_steps=2)
    assert result.joints.shape == (2, 2, 17, 22, 3)
    assert result.joints.isfinite().all()
    apart = pipeline.sample(["two people dance", "they bow"], [17, 20], [0, 1], num_inference_steps=2)
    torch.testing.assert_close(apart[0], result.motion[0])  # whatever else is in the call
    assert apart[1].shape == (2, 20, 262)
    assert pipeline.denoise_once(apart[0], 0.5, prompt="they bow") == 500
    with pytest.raises(ValueError, match="encode: expected a system with latents"):
        pipeline.encode(result.motion)
    pipeline.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "config.json").read_bytes() == (whole / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "intergone"}, r"system: expected one of \('intergen', 'timotion', 'in2in'.*\), got 'intergone'"),
        ({"network": {"text_dim": 9}}, r"text\.output_dim: expected network\.text_dim=9, got 8"),
        ({"network": {"width": 9}}, r"network: unknown key 'width'"),
        (
            {"diffusion": {"latent_scale": 0.5}},
            r"diffusion\.latent_scale: expected 1\.0 where there are no latents, got 0\.5",
        ),
        (
            {"data": {"representation": "humanml3d", "mirror": False, "swap_persons": False}},
            r"data\.representation: expected 'interhuman'",
        ),
    ],
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionTrainConfig.from_dict({**VALUES, **changes})
