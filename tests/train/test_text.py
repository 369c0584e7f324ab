from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from intermoe.data import InterHumanDataset
from intermoe.data.sets import DATA_SETS
from intermoe.text.build import build_text_encoder
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train import run_denoiser
from intermoe.train import text as text_module
from intermoe.train.condition import prepare_text, train_word_pieces
from intermoe.train.config import DenoiserTrainConfig, TextPretrainingConfig
from intermoe.train.text import (
    SEGMENTS,
    _rate,
    _root_mean_square,
    latent_summary,
    pretrain_text,
    turn_summary,
)


def turning_person(degrees: float, frames: int = 81) -> torch.Tensor:
    """A body of 22 joints that turns by ``degrees`` (positive to the left) at constant speed: (T, 22, 3)."""
    body = torch.zeros(22, 3)
    body[:, 1] = 1.0
    body[1, 0] = body[16, 0] = 0.2  # the left side of one who faces Z+ lies at X+
    body[2, 0] = body[17, 0] = -0.2
    angles = torch.linspace(0, np.radians(degrees), frames)
    x, z = body[:, 0], body[:, 2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([x * cos + z * sin, body[:, 1].expand(frames, -1), z * cos - x * sin], dim=-1)


@pytest.mark.parametrize("degrees", [360.0, -720.0, 90.0])
def test_turn_summary_of_steady_turns(degrees: float) -> None:
    summary = turn_summary(torch.stack([turning_person(degrees), turning_person(0.0)]), 30).view(2, SEGMENTS + 4)
    half_turns = degrees / 180
    assert summary[0, :SEGMENTS].tolist() == pytest.approx([half_turns / SEGMENTS] * SEGMENTS, abs=1e-3)
    full = half_turns if abs(degrees) >= 270 else 0.0
    expected = [half_turns, full, max(full, 0.0), min(full, 0.0)]
    assert summary[0, SEGMENTS:].tolist() == pytest.approx(expected, abs=0.05)
    assert summary[1].abs().max() < 1e-3


def test_full_turns_depend_on_the_rate() -> None:
    """A full turn in 300 frames is slower than what counts as one at 20 frames a second, and fast enough at 60."""
    slow = torch.stack([turning_person(360.0, frames=300)])
    assert turn_summary(slow, 20)[SEGMENTS + 1] == 0
    assert turn_summary(slow, 60)[SEGMENTS + 1] == pytest.approx(2.0, abs=0.05)


def test_latent_summary_is_the_mean_over_stretches_of_time() -> None:
    latents = torch.randn(2, 2 * SEGMENTS, 5)
    expected = latents.view(2, SEGMENTS, 2, 5).mean(dim=2)  # (P, SEGMENTS, X)
    torch.testing.assert_close(latent_summary(latents).view(2, 5, SEGMENTS), expected.transpose(1, 2))


class Turners:
    """Clips in which the second of two persons turns to the side that the caption says."""

    data_set = DATA_SETS["interhuman"]
    captions = tuple(f"{who} {how} to the {{}}" for who in ("she", "the second", "one") for how in ("turns", "spins"))

    def __len__(self) -> int:
        return len(self.captions)

    def choose(self, index: int, epoch: int) -> tuple[str, str]:
        side = str(np.random.default_rng((index, epoch)).choice(["left", "right"]))
        return side, self.captions[index].format(side)

    def motion(self, side: str) -> torch.Tensor:
        turned = turning_person(360.0 if side == "left" else -360.0, frames=40)
        positions = torch.stack([turning_person(0.0, frames=40), turned])  # (2, T, 22, 3)
        return torch.cat([positions.flatten(2), torch.zeros(2, 40, 262 - 66)], dim=-1)


def encode(motion: torch.Tensor) -> torch.Tensor:
    return motion[None, :, ::4, :66]


def build(dataset: Turners) -> WordPieceTextEncoder:
    captions = [caption.format(side) for caption in dataset.captions for side in ("left", "right")]
    tokenizer = WordPieceTextEncoder.train_tokenizer(captions, 200)
    config = TextConfig(
        kind="wordpiece", output_dim=16, width=16, num_layers=1, num_heads=2, feedforward_dim=16, vocab_size=200
    )
    torch.manual_seed(0)
    encoder = build_text_encoder(config, tokenizer)
    assert isinstance(encoder, WordPieceTextEncoder)
    return encoder


def test_sides_are_told_apart_whatever_else_the_caption_says() -> None:
    dataset, config = Turners(), TextPretrainingConfig(steps=150, batch_size=4, learning_rate=3e-3)
    encoders = [build(dataset), build(dataset)]
    for encoder in encoders:
        pretrain_text(encoder, dataset, encode, config, seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        first, second = (
            [encoder([caption.format(side) for caption in dataset.captions]) for side in ("left", "right")]
            for encoder in encoders
        )
    assert not encoders[0].training
    assert torch.equal(first[0], second[0])
    between = (first[0] - first[1]).norm(dim=1).mean()
    within = torch.cdist(first[0], first[0]).mean()
    assert between > 2 * within


def test_the_rate_rises_over_a_hundred_steps_and_falls_as_a_cosine() -> None:
    rates = [_rate(step, 1000) for step in (0, 49, 99, 250, 500, 750, 999)]
    falls = [0.5 * (1 + math.cos(math.pi * step / 1000)) for step in (0, 49, 99, 250, 500, 750, 999)]
    assert rates == pytest.approx([0.01 * falls[0], 0.5 * falls[1], *falls[2:]])
    assert falls[4] == pytest.approx(0.5)
    assert rates[-1] < 1e-5


def test_targets_have_mean_square_one_and_every_step_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents without their mean, turns as they are; a caption is that of the epoch with the step's number."""
    seen: list[torch.Tensor] = []
    drawn: list[tuple[int, int]] = []
    error = F.mse_loss
    monkeypatch.setattr(F, "mse_loss", lambda guess, wanted: seen.append(wanted) or error(guess, wanted))

    class Watched(Turners):
        def choose(self, index: int, epoch: int) -> tuple[str, str]:
            drawn.append((index, epoch))
            side = "left" if index % 2 else "right"  # as many of each
            return side, self.captions[index].format(side)

    dataset = Watched()
    config = TextPretrainingConfig(steps=60, batch_size=4)
    pretrain_text(build(dataset), dataset, lambda motion: 50 * encode(motion) + 7, config, seed=0)  # type: ignore[arg-type]
    latents, turned = torch.cat(seen[::2]), torch.cat(seen[1::2])
    assert latents.square().mean().item() == pytest.approx(1, rel=1e-3)
    second = turned.view(-1, 2, 8 + 4)[:, 1]  # of eight stretches of time; the first person never turns
    assert second[:, :8].square().mean().item() == pytest.approx(1, rel=0.05)
    steps = [drawn[len(dataset) + 4 * step :][:4] for step in range(60)]
    assert all({epoch for _, epoch in step} == {number} for number, step in enumerate(steps))
    assert len({tuple(index for index, _ in step) for step in steps}) > 30


def test_what_is_drawn_afterwards_does_not_depend_on_it() -> None:
    """A run that was killed and finds the text encoder trained draws the denoiser's first weights alike."""
    encoder, before = build(Turners()), torch.get_rng_state()
    pretrain_text(encoder, Turners(), encode, TextPretrainingConfig(steps=1), seed=0)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_keeps_the_encoder_that_was_trained_first(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config("denoiser", **{"text_pretraining.steps": 3})
    folder = run_denoiser(config, tmp_path / "run", vae=trained_vae / "model", data=pairs)
    first = load_file(tmp_path / "run" / "text.safetensors")
    kept = {k.removeprefix("text."): v for k, v in load_file(folder / "model.safetensors").items() if "text." in k[:5]}
    assert first.keys() == kept.keys()
    assert all(torch.equal(first[key], kept[key]) for key in first)


def test_no_finite_loss_stops_with_its_step() -> None:
    def broken(motion: torch.Tensor) -> torch.Tensor:
        return encode(motion) * float("nan")

    dataset = Turners()
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        pretrain_text(
            build(dataset),
            dataset,
            broken,
            TextPretrainingConfig(steps=1),
            seed=0,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("resume", [True, False])
def test_word_pieces_are_those_of_a_run_that_goes_on(
    resume: bool, there: bool, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = DenoiserTrainConfig.load(write_config("denoiser"))
    train = InterHumanDataset(pairs, "train", min_frames=16)
    own = train_word_pieces(config, config.text, train)
    kept = WordPieceTextEncoder.train_tokenizer(["somebody kneels"], 40)
    if there:
        (tmp_path / "tokenizer.json").write_text(kept, encoding="utf-8")
    encoder = prepare_text(config, config.text, train, tmp_path, resume=resume)
    assert encoder.tokenizer_json == (kept if resume and there else own) != (own if resume and there else kept)
    again = prepare_text(config, config.text, train, tmp_path, resume=resume)
    other = prepare_text(dataclasses.replace(config, seed=1), config.text, train, tmp_path, resume=resume)
    pairs_of = list(zip(encoder.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two, _ in pairs_of)
    assert any(not torch.equal(one, three) for one, _, three in pairs_of)


def test_the_optimiser_of_the_text_and_the_mode_of_its_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW of what is trained, the encoder and both heads; dropout in every step and none after them."""
    seen: list[dict[str, Any]] = []
    modes: list[bool] = []
    own = torch.optim.AdamW

    def adamw(parameters: list[torch.nn.Parameter], **options: Any) -> torch.optim.AdamW:
        seen.append({"parameters": parameters, **options})
        return own(parameters, **options)

    monkeypatch.setattr(torch.optim, "AdamW", adamw)
    encoder = build(Turners()).eval()
    first = next(encoder.parameters()).requires_grad_(False)
    encoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    pretrain_text(encoder, Turners(), encode, TextPretrainingConfig(steps=3, learning_rate=2e-3), seed=0)  # type: ignore[arg-type]
    (call,) = seen
    assert (call["lr"], call["betas"]) == (2e-3, (0.9, 0.99))
    own_weights = {id(p) for p in encoder.parameters() if p.requires_grad}
    given = {id(p) for p in call["parameters"]}
    assert own_weights < given
    assert id(first) not in given
    # latents of 2 persons with 66 numbers over 8 stretches, by a layer of 256; turns of 2 persons with 12 numbers
    heads = {tuple(p.shape) for p in call["parameters"] if id(p) not in own_weights}
    assert heads == {(256, 16), (256,), (2 * 66 * 8, 256), (2 * 66 * 8,), (24, 16), (24,)}
    assert modes == [True] * 3
    assert not encoder.training


def test_turns_of_several_persons_over_their_stretches_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headings at the ends of eight stretches of 17 frames, and of what counts as a full turn every way of summing."""
    headings = [np.arange(17.0) ** 2, -3.0 * np.arange(17.0)]
    asked: list[tuple[float, float]] = []

    def turns(person: np.ndarray, *, min_degrees: float, fps: float) -> list[float]:
        asked.append((min_degrees, fps))
        return [360.0, -540.0, 720.0] if len(asked) == 1 else []

    monkeypatch.setattr(text_module, "yaw", lambda person: headings[int(person[0, 0, 0])])
    monkeypatch.setattr(text_module, "turns", turns)
    joints = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 17, 22, 3)
    summary = turn_summary(joints, 25)
    steps = [(2 * (k + 1)) ** 2 - (2 * k) ** 2 for k in range(8)]
    expected = [*steps, 256, 540, 1080, -540, *[-6] * 8, -48, 0, 0, 0]
    torch.testing.assert_close(summary, torch.tensor(expected) / 180)
    assert asked == [(text_module.FULL_TURN, 25)] * 2


def test_what_never_changes_is_divided_by_no_zero() -> None:
    values = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    torch.testing.assert_close(_root_mean_square(values, dim=0), torch.tensor([12.5**0.5, 1e-3]))
    torch.testing.assert_close(_root_mean_square(values), torch.tensor(2.5))
