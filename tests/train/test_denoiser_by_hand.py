"""What the denoiser's objective asks of its loss and of the sampler, argument by argument, and what starts a run."""

from __future__ import annotations

import dataclasses
import filecmp
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.checkpoints import load_safetensors
from intermoe.diffusion import DiffusionConfig
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import denoiser as module
from intermoe.train.config import (
    DataConfig,
    DenoiserTrainConfig,
    LevelMixConfig,
    RunConfig,
    TextPretrainingConfig,
)
from intermoe.train.denoiser import DenoiserObjective
from intermoe.train.draws import ItemDraws
from intermoe.train.latents import LatentEncoder

CPU = torch.device("cpu")
FRAMES = [5, 2, 4]


def objective(
    pipeline: InterMoEPipeline, error: Tensor | None = None, positions: Tensor | None = None, **changes: Any
) -> DenoiserObjective:
    values = {"denoiser": pipeline.config.denoiser, "text": pipeline.config.text, "trainer": "denoiser", **changes}
    config = DenoiserTrainConfig(**values)
    return DenoiserObjective(config, LatentEncoder(pipeline.codec), pipeline.text_encoder, error, positions)


def batch() -> dict[str, Any]:
    """Posteriors of deviation 1/2 for three items of five, two and four latent frames; padding is not a number."""
    generator = torch.Generator().manual_seed(0)
    posterior = torch.randn(3, 2, 2, 5, 28, generator=generator)
    posterior[:, 1] = 2 * math.log(0.5)
    mask = torch.arange(5) < torch.tensor(FRAMES)[:, None]
    posterior.masked_fill_(~mask[:, None, None, :, None], torch.nan)
    return {
        "names": ["a", "b", "c"], "captions": ["two people bow", "one turns", "two people bow"],
        "posterior": posterior, "mask": mask, "frames": FRAMES,
    }  # fmt: skip


def draws() -> ItemDraws:
    return ItemDraws((0, 1), range(3), CPU)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``training_loss`` is called with; its k-th value is k."""
    calls: list[dict[str, Any]] = []

    def loss(**options: Any) -> Tensor:
        calls.append(options)
        options["denoiser"](torch.zeros(3, 2, 5, 28), torch.tensor([1, 2, 3]), torch.zeros(3, 8), options["mask"])
        return torch.tensor(float(len(calls)))

    monkeypatch.setattr(module, "training_loss", loss)
    return calls


def test_what_the_loss_is_asked_in_training(tiny_pipeline: InterMoEPipeline, asked: list[dict[str, Any]]) -> None:
    """Drawn latents with noise of their own, zero in padding; no text where it is dropped; both metrics."""
    error, positions = torch.randn(28, 28), torch.randn(28, 7)
    diffusion = DiffusionConfig(condition_dropout=0.5, snr_gamma=5.0, timestep_shift=2.0)
    levels = LevelMixConfig(positions=9.0)
    made = objective(tiny_pipeline, error, positions, diffusion=diffusion, levels=levels).train()
    given = batch()
    made(given, draws())
    (call,) = asked
    valid = given["mask"][:, None, :, None].expand(3, 2, 5, 28)
    sampled = (call["latents"] - given["posterior"][:, 0].nan_to_num()) / 0.5
    for noise in (sampled, call["noise"]):
        assert not noise[~valid].any()
        assert noise[valid].std().item() == pytest.approx(1, abs=0.1)
        assert noise[valid].mean().item() == pytest.approx(0, abs=0.1)
    pair = torch.stack([sampled[valid], call["noise"][valid]])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.15, "what samples the latents is not what is added to them"
    assert call["mask"] is given["mask"]
    assert call["diffusion"] == dataclasses.replace(diffusion, condition_dropout=0.0)
    assert call["metrics"].every is made.error_metric
    torch.testing.assert_close(call["metrics"].every, error)
    torch.testing.assert_close(call["metrics"].known, 3.0 * positions)  # whose square is weighed by 9
    whole = tiny_pipeline.text_encoder(given["captions"])
    rows = [bool(row.any()) for row in call["text_condition"]]
    for row, kept, text in zip(call["text_condition"], rows, whole, strict=True):
        torch.testing.assert_close(row, text if kept else torch.zeros(8))
    assert call["timesteps"].shape == (3,)
    assert call["scheduler"] is made.scheduler


def test_what_the_loss_is_asked_in_validation(tiny_pipeline: InterMoEPipeline, asked: list[dict[str, Any]]) -> None:
    """Five noise levels for all items, with all texts, weighed alike, and no metric; the loss is the mean."""
    diffusion = DiffusionConfig(condition_dropout=0.5, snr_gamma=5.0, num_train_timesteps=40)
    made = objective(tiny_pipeline, torch.randn(28, 28), diffusion=diffusion).eval()
    given = batch()
    values = made(given, draws(), validating=True)
    assert {name: value.item() for name, value in values.items()} == {
        "loss": 3.0, "loss_t4": 1.0, "loss_t12": 2.0, "loss_t20": 3.0, "loss_t28": 4.0, "loss_t36": 5.0,
    }  # fmt: skip
    for call, timestep in zip(asked, (4, 12, 20, 28, 36), strict=True):
        assert call["timesteps"].tolist() == [timestep] * 3
        assert call["diffusion"] == dataclasses.replace(diffusion, condition_dropout=0.0, snr_gamma=0.0)
        assert "metrics" not in call
        assert call["denoiser"] is made.denoiser
        torch.testing.assert_close(call["text_condition"], tiny_pipeline.text_encoder(given["captions"]))
        for name in ("latents", "noise"):
            assert torch.equal(call[name], asked[0][name]), "noise is the same at all levels"


def test_the_loss_is_the_denoisers_with_its_experts_balance(
    tiny_pipeline: InterMoEPipeline, asked: list[dict[str, Any]]
) -> None:
    """``training_loss`` gives the estimate alone; the balance of the same call is added with its weight."""
    made = objective(tiny_pipeline, load_balance=0.25).train()
    made.denoiser.forward = lambda *given, balance: (torch.zeros(3, 2, 5, 28), torch.tensor(8.0))  # type: ignore[method-assign]
    assert {name: value.item() for name, value in made(batch(), draws()).items()} == {"loss": 1 + 0.25 * 8}


def test_z_losses_of_all_blocks_are_added_up_and_told_without_their_weight(
    tiny_pipeline: InterMoEPipeline, asked: list[dict[str, Any]]
) -> None:
    made = objective(tiny_pipeline, router_z=0.5, load_balance=0.0).train()

    def forward(*given: Any, balance: bool) -> tuple[Tensor, Tensor]:
        made.router_z_losses.losses += [torch.tensor(3.0), torch.tensor(5.0)]
        return torch.zeros(3, 2, 5, 28), torch.tensor(8.0)

    made.denoiser.forward = forward  # type: ignore[method-assign]
    assert {name: value.item() for name, value in made(batch(), draws()).items()} == {"loss": 5.0, "router_z": 8.0}


def test_several_levels_are_told_by_as_few_runs_as_can_tell_them(
    tiny_pipeline: InterMoEPipeline, asked: list[dict[str, Any]]
) -> None:
    """One for each person here, where all frames of a person have one; and of every frame for a captured call."""
    levels = LevelMixConfig(one_level=0.0, person=1.0)
    for run, runs in ((RunConfig(), 1), (RunConfig(cuda_graphs=True), 5)):
        made = objective(tiny_pipeline, levels=levels, run=run, data=DataConfig(max_frames=20)).train()
        made(batch(), draws())
        timesteps = asked[-1]["timesteps"]
        assert timesteps.shape == (3, 2, runs)
        assert ((timesteps == 0).all(dim=2).sum(dim=1) == 1).all()


def test_a_captured_call_gets_all_frames_that_there_can_be(tiny_pipeline: InterMoEPipeline) -> None:
    """Padding has no noise level, no motion and is not valid; of the estimate its frames are cut off."""
    run = RunConfig(cuda_graphs=True)
    made = objective(tiny_pipeline, run=run, data=DataConfig(max_frames=35)).train()
    seen: list[tuple[str, tuple[Tensor, ...]]] = []

    def call(name: str) -> Any:
        def answer(*given: Tensor) -> tuple[Tensor, Tensor]:
            seen.append((name, given))
            return given[0] + 1, torch.tensor(7.0)

        return answer

    made.graph, made._estimates = call("replayed"), call("run")  # type: ignore[method-assign, assignment]
    x, text = torch.randn(3, 2, 5, 28), torch.randn(3, 8)
    mask, timesteps = batch()["mask"], torch.tensor([3, 5, 7])
    for replays, name in ((True, "replayed"), (False, "run")):
        made.replays = replays
        for levels in (timesteps, timesteps[:, None, None].expand(3, 2, 5)):
            estimate, balance = made._network(x, levels, text, mask)
            assert torch.equal(estimate, x + 1)
            assert balance == 7
            called, (padded, told, seen_text, valid) = seen[-1]
            assert called == name
            assert padded.shape == (3, 2, 8, 28)  # 35 frames are eight groups of four
            assert torch.equal(padded[:, :, :5], x)
            assert not padded[:, :, 5:].any()
            assert torch.equal(valid[:, :5], mask)
            assert not valid[:, 5:].any()
            assert seen_text is text
            assert told.shape == ((3,) if levels.dim() == 1 else (3, 2, 8))
            assert torch.equal(told[..., :5] if levels.dim() == 3 else told, levels)


def test_what_the_sampler_is_asked_for_the_distance_of_what_is_generated(
    tiny_pipeline: InterMoEPipeline, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def sample(*given: Any, **options: Any) -> Tensor:
        seen.append((given, options))
        return torch.full((3, 2, 5, 28), 2.0)

    monkeypatch.setattr(module, "sample", sample)
    diffusion = DiffusionConfig(latent_scale=0.5)
    made = objective(tiny_pipeline, diffusion=diffusion, run=RunConfig(fid_clips=2, fid_steps=7)).eval()
    given = batch()
    with torch.no_grad():
        values = made(given, draws(), validating=True, generating=True)
    (((denoiser, condition, shape, sampler), options),) = seen
    assert denoiser is made.denoiser
    torch.testing.assert_close(condition, tiny_pipeline.text_encoder(given["captions"]))
    assert shape == (3, 2, 5, 28)
    assert (sampler.diffusion, sampler.scheduler, sampler.num_inference_steps) == (diffusion, "ddim", 7)
    assert options["mask"] is given["mask"]
    valid = given["mask"][:, None, :, None].expand(3, 2, 5, 28)
    assert not options["noise"][~valid].any()
    assert options["noise"][valid].std().item() == pytest.approx(1, abs=0.1)
    assert not (options["noise"][valid] == asked[0]["noise"][valid]).any(), "noise that no loss has seen"
    torch.testing.assert_close(values["generated"], torch.full((3, 2 * 28), 2.0))
    means = torch.stack([given["posterior"][i, 0, :, :count].mean(dim=1) for i, count in enumerate(FRAMES)])
    torch.testing.assert_close(values["real"], means.flatten(1))


def test_what_is_generated_for_an_item_does_not_depend_on_its_batch(tiny_pipeline: InterMoEPipeline) -> None:
    made = objective(tiny_pipeline, run=RunConfig(fid_clips=2, fid_steps=2)).eval()
    given = batch()
    alone = {
        "names": ["b"], "captions": ["one turns"], "frames": [2], "mask": given["mask"][1:2, :2],
        "posterior": given["posterior"][1:2, :, :, :2],
    }  # fmt: skip
    with torch.no_grad():
        together = made(given, draws(), validating=True, generating=True)
        single = made(alone, ItemDraws((0, 1), [1], CPU), validating=True, generating=True)
    for name in ("generated", "real"):
        torch.testing.assert_close(together[name][1:2], single[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighed", [False, True])
def test_the_text_is_trained_first_on_latents_as_the_loss_weighs_them(
    weighed: bool, tiny_pipeline: InterMoEPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, metric = LatentEncoder(tiny_pipeline.codec), torch.randn(28, 28) if weighed else None
    motion = torch.randn(2, 18, 262)
    mean = encoder.posterior(motion).mean
    expected = mean if metric is None else torch.einsum("bptx,xy->bpty", mean, metric)
    seen: list[Any] = []

    def pretrain(text: Any, train: Any, encode: Any, config: Any, *, seed: int) -> None:
        torch.testing.assert_close(encode(motion), expected, rtol=1e-4, atol=1e-4)
        seen.extend((text, train, config, seed))
        text.weight.data.fill_(3.0)

    monkeypatch.setattr(module, "pretrain_text", pretrain)
    first = TextPretrainingConfig(steps=5)
    config = DenoiserTrainConfig(text_pretraining=first, seed=6)
    text, train = torch.nn.Linear(2, 2), SimpleNamespace()
    path = tmp_path / "text.safetensors"
    module._pretrain(config, text, train, encoder, metric, path)  # type: ignore[arg-type]
    assert seen == [text, train, first, 6]
    written = load_safetensors(path)
    assert torch.equal(written["weight"], torch.full((2, 2), 3.0))
    assert torch.equal(written["bias"], text.bias)


def test_an_autoencoder_of_the_same_size_and_time_is_still_another(tmp_path: Path) -> None:
    """On resume what decides is the content of its weights."""
    run, source = tmp_path / "run", tmp_path / "source"
    for folder, content in ((run / "vae", b"one"), (source, b"two")):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(content)
        os.utime(folder / "model.safetensors", (1, 1))
    filecmp.clear_cache()
    assert module._vae_of_run(source, run, resume=False) == source
    with pytest.raises(ValueError, match=r"vae: expected the weights of .*run/vae, .*, got others in .*source"):
        module._vae_of_run(source, run, resume=True)
    assert module._vae_of_run(None, run, resume=True) == run / "vae"
    shutil.copy(run / "vae" / "model.safetensors", source)
    assert module._vae_of_run(source, run, resume=True) == run / "vae"
    assert module._vae_of_run(source, tmp_path / "new", resume=True) == source
    with pytest.raises(ValueError, match="vae: expected the folder of a trained VAE to start a run, got None"):
        module._vae_of_run(None, tmp_path / "new", resume=True)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_text_encoder_that_is_not_trained_drops_nothing(frozen: bool, tiny_pipeline: InterMoEPipeline) -> None:
    made = objective(tiny_pipeline)
    made.text = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).requires_grad_(not frozen)
    made.train()
    assert made.denoiser.training
    assert [module.training for module in made.text.modules()] == [not frozen] * 3
    made.eval()
    assert not any(module.training for module in made.modules())


def test_an_evaluator_that_is_not_there_is_told_before_anything_is_made(
    write_config: Callable[..., Path], trained_vae: Path, pairs: Path, tmp_path: Path
) -> None:
    config = write_config("denoiser", **{"run.fid_clips": 2, "run.fid_evaluator": str(tmp_path / "absent")})
    with pytest.raises(FileNotFoundError, match="absent"):
        module.run_denoiser(config, tmp_path / "run", vae=trained_vae / "model", data=pairs)
    assert not (tmp_path / "run").exists()
