from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from intermoe import InterMoEPipeline
from intermoe.data import InterHumanDataset, collate
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.systems.intermoe.vae import CausalSkeletalVAE
from intermoe.train import denoiser as module
from intermoe.train import load_vae_folder, run_denoiser
from intermoe.train.condition import training_captions
from intermoe.train.config import DenoiserTrainConfig
from intermoe.train.denoiser import DenoiserObjective, _fit_positions
from intermoe.train.draws import ItemDraws
from intermoe.train.latents import LatentDataset, LatentEncoder, write_metric


@pytest.fixture
def vae(trained_vae: Path) -> tuple[CausalSkeletalVAE, Statistics]:
    return load_vae_folder(trained_vae / "model")


def test_the_model_is_a_pipeline(trained_denoiser: Path, trained_vae: Path) -> None:
    pipeline = InterMoEPipeline.from_pretrained(trained_denoiser / "model")
    assert pipeline.config.name == "tiny"
    assert json.loads((trained_denoiser / "model" / "training.json").read_text())["data"]["root"] is None
    vae, statistics = load_vae_folder(trained_vae / "model")
    for key, value in vae.state_dict().items():
        assert torch.equal(pipeline.vae.state_dict()[key], value)
    assert (pipeline.statistics.std == statistics.std).all()
    result = pipeline(["two people dance"], num_frames=17, num_inference_steps=2)
    assert result.joints.shape == (1, 2, 17, 22, 3)
    assert torch.isfinite(result.joints).all()


def test_the_model_holds_the_averaged_weights(trained_denoiser: Path) -> None:
    from safetensors.torch import load_file

    model = load_file(trained_denoiser / "model" / "model.safetensors")
    last = trained_denoiser / "checkpoints" / "step-00000006"
    average, raw = load_file(last / "average.safetensors"), load_file(last / "model.safetensors")
    assert all(torch.equal(model[key], value) for key, value in average.items())
    assert not torch.equal(average["denoiser.embed_motion.weight"], raw["denoiser.embed_motion.weight"])
    assert not any(key.startswith(("vae", "encoder")) for key in average), "the frozen VAE is saved once, at the end"


def test_training_moves_the_selection_bias(trained_denoiser: Path) -> None:
    pipeline = InterMoEPipeline.from_pretrained(trained_denoiser / "model")
    for block in pipeline.denoiser.moe_blocks():
        steps = (block.selection_bias + 0.5) / block.bias_rate
        assert (steps.round().abs() <= 6).all()
        torch.testing.assert_close(steps, steps.round(), atol=1e-2, rtol=0)
    assert any((block.selection_bias != -0.5).any() for block in pipeline.denoiser.moe_blocks())


def test_routing_health_and_validation_are_logged(trained_denoiser: Path) -> None:
    events = EventAccumulator(str(trained_denoiser / "logs"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    layer = "routing/denoiser.layers.1.moe"
    assert {f"{layer}/{n}" for n in ("expert0", "expert2", "experts_per_token", "tokens_without_expert")} <= tags
    assert {"validation/loss", "validation/loss_t100", "validation/loss_t900"} <= tags


def test_train_mode_leaves_the_vae_frozen(
    vae: tuple[CausalSkeletalVAE, Statistics], trained_denoiser: Path, pairs: Path
) -> None:
    config = DenoiserTrainConfig.load(trained_denoiser / "config.json")
    pipeline = InterMoEPipeline.from_pretrained(trained_denoiser / "model")
    objective = DenoiserObjective(config, LatentEncoder(LatentCodec(*vae)), pipeline.text_encoder).train()
    assert objective.denoiser.training
    assert not vae[0].training
    assert not any(key.startswith("encoder") for key in objective.state_dict())
    dataset = InterHumanDataset(pairs, "val", min_frames=16)
    objective(collate([dataset[0]]), ItemDraws((0,), [0], torch.device("cpu")))["loss"].backward()
    assert all(p.grad is None for p in vae[0].parameters())
    # the last layer starts at zero, so what feeds it has no gradient before the first step
    assert objective.denoiser.out.weight.grad is not None


def test_tokenizer_knows_mirrored_and_exchanged_captions(pairs: Path, write_config: Callable[..., Path]) -> None:
    config = DenoiserTrainConfig.load(write_config("denoiser"))
    dataset = InterHumanDataset(pairs, "train", min_frames=16)
    captions = training_captions(config, dataset)
    assert "the first dancer turns to the right" in captions
    assert "the second dancer turns to the left" in captions


def test_width_of_the_latents_must_fit(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config("denoiser", **{"denoiser.input_dim": 30})
    with pytest.raises(ValueError, match=r"denoiser\.input_dim: expected 28 for this VAE"):
        run_denoiser(config, tmp_path / "run", vae=trained_vae / "model", data=pairs)
    assert not (tmp_path / "run").exists()


def test_the_loss_takes_its_metric_from_the_training_latents(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    biases = {}
    for floor in (0.0, 0.5):
        config = write_config("denoiser", **{"diffusion.loss_std_floor": floor, "optim.steps": 2})
        output = tmp_path / str(floor)
        run_denoiser(config, output, vae=trained_vae / "model", data=pairs)
        assert (output / "metric.safetensors").exists() == (floor > 0)
        biases[floor] = load_file(output / "model" / "model.safetensors")["denoiser.out.bias"]
    assert load_file(tmp_path / "0.5" / "metric.safetensors")["metric"].shape == (28, 28)
    assert not torch.equal(biases[0.0], biases[0.5])
    with pytest.raises(ValueError, match=r"loss_std_floor: expected >= 0"):
        run_denoiser(write_config("denoiser", **{"diffusion.loss_std_floor": -1.0}), tmp_path / "c", data=pairs)


def test_places_count_where_something_is_known(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    biases = {}
    for weight in (0.0, 4.0):
        changes = {"levels.one_level": 0.0, "levels.prefix": 1.0, "levels.positions": weight, "optim.steps": 2}
        output = tmp_path / str(weight)
        run_denoiser(write_config("denoiser", **changes), output, vae=trained_vae / "model", data=pairs)
        assert (output / "positions.safetensors").exists() == (weight > 0)
        biases[weight] = load_file(output / "model" / "model.safetensors")["denoiser.out.bias"]
    assert not torch.equal(*biases.values())
    assert load_file(tmp_path / "4.0" / "positions.safetensors")["positions"].shape == (28, 4 * 22 * 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_run_of_one_level_is_fitted_to(
    trained_vae: Path,
    pairs: Path,
    write_config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    """Splits in their order, encoded once where one process draws; weighed places are for runs of several levels."""
    fitted: list[tuple[object, ...]] = []
    monkeypatch.setattr(module, "fit", lambda *given, resume: fitted.append(given))
    changes = {"levels.positions": 4.0, "data.num_workers": workers}
    run_denoiser(write_config("denoiser", **changes), tmp_path / "run", vae=trained_vae / "model", data=pairs)
    objective, (train, validation) = fitted[0][1], fitted[0][3:5]
    assert [len(train), len(validation)] == [5, 2]
    assert [isinstance(split, LatentDataset) for split in (train, validation)] == [workers == 0] * 2
    assert objective.known_metric is None
    assert not (tmp_path / "run" / "positions.safetensors").exists()


@pytest.mark.parametrize(("training", "frozen"), [(True, True), (True, False), (False, False), (False, True)])
def test_captions_are_kept_of_a_text_encoder_alone_that_never_changes(
    training: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    class Text(torch.nn.Embedding):
        def forward(self, captions: list[str]) -> torch.Tensor:  # type: ignore[override]
            seen.append(captions)
            return self.weight[[len(caption) for caption in captions]]

    text = Text(5, 2).requires_grad_(not frozen).train(training)
    objective = SimpleNamespace(text=text, embedded={})
    for captions in (["bow", "wave"], ["wave", "bow"]):
        found = DenoiserObjective._condition(objective, captions)  # type: ignore[arg-type]
        assert torch.equal(found, text.weight[[len(caption) for caption in captions]])
    monkeypatch.setattr(module, "CAPTIONS_KEPT", 1)
    kept = frozen and not training
    assert seen == ([["bow"], ["wave"]] if kept else [["bow", "wave"], ["wave", "bow"]])
    DenoiserObjective._condition(objective, ["bow"])  # type: ignore[arg-type]
    assert seen[-1] == ["bow"]  # two are more than are kept now
    assert len(objective.embedded) == kept


def test_where_joints_are_is_fitted_to_whole_latent_frames(tmp_path: Path) -> None:
    """Frames beyond the last group of 4 have no latents; of each group there are four frames, joint by joint."""
    rng = np.random.default_rng(0)
    motion = torch.tensor(rng.normal(size=(2, 47, 262)), dtype=torch.float32)
    joints = motion[:, :44, :66].unflatten(1, (11, 4)).flatten(2)  # (2, 11, 264)
    # latents of which joints are an exact map: some of their numbers
    encoder = SimpleNamespace(
        codec=SimpleNamespace(vae=SimpleNamespace(config=SimpleNamespace(representation="interhuman"))), downsampling=4,
        posterior=lambda motion: SimpleNamespace(mean=joints[None, :, :, :5]),
    )  # fmt: skip

    class Items:
        def __len__(self) -> int:
            return 1

        def choose(self, index: int, epoch: int) -> tuple[int, str]:
            return 0, ""

        def motion(self, choice: int) -> torch.Tensor:
            return motion

    _fit_positions(Items(), encoder, tmp_path / "positions.safetensors")  # type: ignore[arg-type]
    found = load_file(tmp_path / "positions.safetensors")["positions"]
    torch.testing.assert_close(found[:, :5], 10 * torch.eye(5), rtol=0, atol=5e-2)


def test_the_metric_is_of_what_the_first_four_epochs_draw(tmp_path: Path) -> None:
    """Each different draw once, however often it comes: item 0 has a window an epoch, item 1 has one for all."""
    rng = np.random.default_rng(0)
    windows = torch.tensor(rng.normal(size=(6, 5, 3)) * [1.0, 2.0, 4.0], dtype=torch.float32)

    class Items:
        def __len__(self) -> int:
            return 2

        def choose(self, index: int, epoch: int) -> tuple[int, str]:
            return (5 if index else epoch), f"caption of epoch {epoch}"

        def motion(self, choice: int) -> torch.Tensor:
            return windows[choice][None, None]

    encoder = SimpleNamespace(posterior=lambda motion: SimpleNamespace(mean=motion))
    write_metric(0.1, Items(), encoder, tmp_path / "metric.safetensors")  # type: ignore[arg-type]
    metric = load_file(tmp_path / "metric.safetensors")["metric"]
    drawn = windows[[0, 1, 2, 3, 5]].flatten(0, 1).double()
    variances, axes = np.linalg.eigh(np.cov(drawn.numpy().T, bias=True))
    weighed = axes / np.sqrt(variances) @ axes.T  # M M^T, up to its scale: every floor is below these deviations
    weighed *= np.trace(np.cov(drawn.numpy().T, bias=True)) / np.sqrt(variances).sum()
    np.testing.assert_allclose(metric @ metric.T, weighed, rtol=1e-4, atol=1e-5)


def test_a_judge_of_motion_is_told_frames_not_latent_frames() -> None:
    """What is judged is decoded motion, of as many frames as four times the valid latent ones; padding is zero."""
    seen: dict[str, torch.Tensor] = {}

    class Judge:
        def to(self, device: torch.device) -> Judge:
            return self

        def embed_motion(self, motion: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            seen.update(motion=motion, lengths=lengths)
            return lengths[:, None].float()

    codec = SimpleNamespace(decode=lambda latents: latents.repeat_interleave(4, dim=2))
    objective = SimpleNamespace(evaluator=[Judge()], encoder=SimpleNamespace(codec=codec, downsampling=4))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    features = DenoiserObjective._features(objective, torch.ones(2, 2, 3, 5), mask)  # type: ignore[arg-type]
    assert seen["lengths"].tolist() == [12, 4]
    assert seen["motion"].sum(dim=(1, 2, 3)).tolist() == [2 * 12 * 5, 2 * 4 * 5]
    assert features.tolist() == [[12.0], [4.0]]


def test_a_vae_is_needed(pairs: Path, write_config: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vae: expected the folder of a trained VAE"):
        run_denoiser(write_config("denoiser"), tmp_path / "run", data=pairs)
    with pytest.raises(FileNotFoundError, match=r"vae: .*absent holds no config\.json"):
        run_denoiser(write_config("denoiser"), tmp_path / "run", vae=tmp_path / "absent", data=pairs)


def test_resuming_with_another_vae_is_refused(
    trained_denoiser: Path, trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "vae"
    shutil.copytree(trained_vae / "model", other)
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="expected the weights of"):
        run_denoiser(write_config("denoiser"), trained_denoiser, vae=other, resume=True, data=pairs)


def test_features_without_an_evaluator_are_latents_averaged_over_their_time() -> None:
    latents = torch.arange(60.0).view(2, 2, 5, 3)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    latents[1, :, 3:] = torch.nan
    found = DenoiserObjective._features(SimpleNamespace(evaluator=[]), latents, mask)  # type: ignore[arg-type]
    expected = [latents[0].mean(dim=1).flatten(), latents[1, :, :3].mean(dim=1).flatten()]
    torch.testing.assert_close(found, torch.stack(expected))
