"""Recomputation, torch.compile, epochs, FID while training, the experts' balance, and the smoke recipe."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import intermoe.train
from intermoe import InterMoEBlock, InterMoEPipeline
from intermoe.data import InterHumanDataset
from intermoe.metrics.distribution import frechet_distance
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.train import denoiser as denoiser_training
from intermoe.train import run_denoiser, run_vae
from intermoe.train.config import OptimConfig, RunConfig, TrainConfig
from intermoe.train.loop import Objective, Trainer
from intermoe.train.routing import Routing
from intermoe.train.vae import Windows

CONFIGS = Path(intermoe.train.__file__).parent / "configs"
TINY = DenoiserConfig(input_dim=6, text_dim=5, dim=8, num_layers=2, num_heads=2, num_experts=3, expert_dim=4)


def test_recomputation_changes_neither_gradients_nor_biases_nor_counts() -> None:
    torch.manual_seed(0)
    plain = Denoiser(dataclasses.replace(TINY, dropout=0.1))
    torch.nn.init.normal_(plain.out.weight)
    saving = Denoiser(dataclasses.replace(TINY, dropout=0.1, recompute=True))
    saving.load_state_dict(plain.state_dict())
    x, text, timesteps = torch.randn(2, 2, 5, 6), torch.randn(2, 5), torch.tensor([3, 700])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    forwards, results = [], []
    for denoiser in (plain, saving):
        routing = Routing(denoiser)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        # before the forward: computing again stops as soon as the backward has what it needs
        denoiser.layers[0].moe.register_forward_pre_hook(count)
        routing.start(probe=True)
        torch.manual_seed(1)
        denoiser(x, timesteps, text, mask).square().mean().backward()
        routing.count()
        routing.update()
        forwards.append(calls)
        results.append((denoiser, routing.health(lambda total: total)))
    assert forwards == [1, 2]
    assert results[0][1] == results[1][1]
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for one, other in zip(plain.moe_blocks(), saving.moe_blocks(), strict=True):
        assert torch.equal(one.selection_bias, other.selection_bias)
        assert (one.selection_bias != -0.5).any()


def test_balance_is_the_load_relative_to_the_capacity() -> None:
    block = InterMoEBlock(dim=4, num_experts=2, expert_dim=4, cond_dim=None, norm="none", capacity=2.0)
    routing = Routing(torch.nn.ModuleDict({"moe": block}))
    block.expert_counts.copy_(torch.tensor([6, 3]))
    block.token_count.fill_(8)
    assert routing.balance() == (3 / 8, 6 / 8)


FULL, SHORT = {}, {"denoiser.num_layers": 1, "optim.steps": 2, "run.validate_every": 2}


@pytest.mark.parametrize("changes", [SHORT, pytest.param(FULL, marks=pytest.mark.slow)], ids=["short", "full"])
def test_compiled_parts_train_as_plain_ones(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path, changes: dict[str, int]
) -> None:
    """With a backend that traces but generates no code: what dynamo does to the model, without a compiler's minutes."""
    plain, model = (
        run_denoiser(
            write_config("denoiser", **changes, **{"run.compile": backend}),
            tmp_path / str(backend),
            vae=trained_vae / "model",
            data=pairs,
        )
        for backend in (None, "aot_eager")
    )
    _same_weights(model, plain)


@pytest.mark.slow
def test_a_compiled_vae_trains_as_a_plain_one(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    vae = run_vae(write_config("vae", **{"run.compile": "aot_eager"}), tmp_path / "vae", data=pairs)
    _same_weights(vae, trained_vae / "model")


def _same_weights(folder: Path, expected_folder: Path) -> None:
    from safetensors.torch import load_file

    weights, expected = (load_file(path / "model.safetensors") for path in (folder, expected_folder))
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("backend", [None, "eager"])
def test_compiled_parts_are_those_of_the_configuration(
    backend: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parts(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))

        def repeated_parts(self) -> list[torch.nn.Module]:
            return list(self.parts)[:2]

    seen: list[tuple[torch.nn.Module, object]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *, backend, **_: seen.append((module, backend)))
    config = TrainConfig(run=RunConfig(compile=backend))
    objective = Parts()
    Trainer(Accelerator(), objective, config, StubItems(), None, tmp_path)
    assert seen == ([] if backend is None else [(part, backend) for part in list(objective.parts)[:2]])


class StubItems:
    def __len__(self) -> int:
        return 1

    def num_frames(self, index: int) -> int:
        return 4

    def draw(self, index: int, epoch: int) -> dict[str, object]:
        return {}


def test_epochs_are_counted_in_steps() -> None:
    config = OptimConfig(epochs=10, warmup_epochs=2)
    counted = config.in_steps(25, 4)
    assert (counted.steps, counted.warmup_steps) == (math.ceil(10 * 25 / 4), math.ceil(2 * 25 / 4))
    assert OptimConfig(epochs=2, warmup_steps=1000).in_steps(8, 4).warmup_steps == 3
    assert OptimConfig(steps=7, warmup_steps=1).in_steps(25, 4).steps == 7
    for values, named in (({"epochs": 0}, "epochs"), ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs")):
        with pytest.raises(ValueError, match=named):
            OptimConfig.from_dict(values)
    with pytest.raises(ValueError, match="warmup_epochs"):
        OptimConfig(warmup_epochs=1)


def test_windows_at_every_stride(pairs: Path) -> None:
    dataset = InterHumanDataset(pairs, "train", min_frames=16)
    windows = Windows(dataset, 16, stride=4)
    lengths = [dataset.num_frames(i) for i in range(len(dataset))]
    assert len(windows) == sum((length - 16) // 4 + 1 for length in lengths)
    whole = dataset.draw(0, 3)["motion"]
    for number in range((lengths[0] - 16) // 4 + 1):
        assert torch.equal(windows.draw(number, 3)["motion"], whole[:, 4 * number : 4 * number + 16])


def _scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_smoke_recipe(dancers: Path, tmp_path: Path) -> None:
    """The shipped files with fewer steps: losses fall, FID is there, the result generates."""
    paths = {}
    for name in ("salsa_smoke_vae", "salsa_smoke_denoiser"):
        values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        values["optim"]["steps"] = 6
        values["run"] |= {"log_every": 1, "validate_every": 6, "checkpoint_every": 6}
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps(values), encoding="utf-8")
    vae = run_vae(paths["salsa_smoke_vae"], tmp_path / "vae", data=dancers)
    model = run_denoiser(paths["salsa_smoke_denoiser"], tmp_path / "denoiser", vae=vae, data=dancers)
    losses = _scalars(tmp_path / "vae")["train/reconstruction"]
    assert losses[-1] < losses[0]
    found = _scalars(tmp_path / "denoiser")
    assert len(found["train/loss"]) == 6
    assert found["validation/fid"][0] > 0
    result = InterMoEPipeline.from_pretrained(model)(["two people dance"], num_frames=40, num_inference_steps=2)
    assert torch.isfinite(result.joints).all()


def test_fid_is_that_of_the_features(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Of an evaluator that embeds motion as its mean joint: what is measured is motion as it would be generated."""
    seen: list[torch.Tensor] = []

    class Mean(torch.nn.Module):
        def embed_motion(self, motion: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            assert (motion.shape[1], motion.shape[3]) == (2, 262)
            seen.append(torch.stack([row[:n, :, :3].mean(dim=(0, 1)) for row, n in zip(motion, lengths, strict=True)]))
            return seen[-1]

    steps: list[int] = []
    make = denoiser_training.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intermoe.train.denoiser.load_evaluator", lambda folder: Mean())
        patch.setattr(
            denoiser_training,
            "sample",
            lambda denoiser, condition, shape, sampler, **options: (
                steps.append(sampler.num_inference_steps) or make(denoiser, condition, shape, sampler, **options)
            ),
        )
        config = write_config(
            "denoiser", **{"run.fid_clips": 2, "run.fid_steps": 3, "run.fid_evaluator": "folder", "data.batch_size": 1}
        )
        run_denoiser(config, tmp_path / "run", vae=trained_vae / "model", data=pairs)
    generated, real = torch.cat(seen[::2]).numpy(), torch.cat(seen[1::2]).numpy()
    assert len(real) == 2
    assert steps == [3, 3]
    expected = frechet_distance(generated, real)
    assert _scalars(tmp_path / "run")["validation/fid"] == pytest.approx([expected], rel=1e-4)
