"""What each value of a training configuration changes: in the run that it starts, or in the numbers of one step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from intermoe.data import InterHumanDataset, collate
from intermoe.diffusion import DiffusionConfig, build_scheduler, scaled_input
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.systems.intermoe.config import PipelineConfig
from intermoe.train import load_vae_folder, run_denoiser, run_vae
from intermoe.train.condition import training_captions
from intermoe.train.config import DataConfig, DenoiserTrainConfig, OptimConfig, RunConfig, TrainConfig, VAETrainConfig
from intermoe.train.denoiser import DenoiserObjective
from intermoe.train.draws import ItemDraws
from intermoe.train.latents import LatentEncoder
from intermoe.train.run import open_split, start
from intermoe.train.text import pretrain_text

CPU = torch.device("cpu")


@pytest.fixture
def started(
    write_config: Callable[..., Path], pairs: Path, trained_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """``started("vae", window=16)``: what a run with these values hands to the training loop; nothing is trained."""

    def start_run(kind: str, **changes: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def caught(
            accelerator: Any, objective: Any, config: Any, train: Any, validation: Any, *_: Any, **__: Any
        ) -> None:
            seen.update(objective=objective, config=config, train=train, validation=validation)

        monkeypatch.setattr(f"intermoe.train.{kind}.fit", caught)
        path, output = write_config(kind, **changes), tmp_path / str(len(list(tmp_path.iterdir())))
        if kind == "vae":
            run_vae(path, output, data=pairs)
        else:
            run_denoiser(path, output, vae=trained_vae / "model", data=pairs)
        return seen

    return start_run


@pytest.mark.parametrize(("mirror", "swap"), [(False, False), (True, False), (False, True), (True, True)])
def test_augmentation_is_of_the_training_split_and_as_configured(pairs: Path, mirror: bool, swap: bool) -> None:
    data = DataConfig(root=str(pairs), mirror=mirror, swap_persons=swap, min_frames=16)
    config = TrainConfig(data=data, seed=3)
    train, val = (open_split(config, split, min_frames=16) for split in ("train", "val"))
    choices = [train.choose(index, epoch)[0] for index in range(len(train)) for epoch in range(20)]
    assert {choice.mirrored for choice in choices} == ({True, False} if mirror else {False})
    assert {choice.swapped for choice in choices} == ({True, False} if swap else {False})
    assert not any(val.choose(index, epoch)[0].mirrored for index in range(len(val)) for epoch in range(20))
    assert not any(val.choose(index, epoch)[0].swapped for index in range(len(val)) for epoch in range(20))
    other = open_split(TrainConfig(data=data, seed=4), "train", min_frames=16)
    drawn = [[d.choose(i, e) for i in range(len(train)) for e in range(20)] for d in (train, other)]
    assert drawn[0] != drawn[1], "captions at least are drawn by the run's seed"


def test_lengths_strictness_and_representation_of_the_data(pairs: Path, tmp_path: Path) -> None:
    """Items of 40, 29, 33, 26 and 30 frames."""

    def split(min_frames: int = 16, **values: Any) -> Any:
        return open_split(TrainConfig(data=DataConfig(root=str(pairs), **values)), "train", min_frames=min_frames)

    assert sorted(split(max_frames=30).draw(index, 0)["motion"].shape[1] for index in range(5)) == [26, 29, 30, 30, 30]
    with pytest.warns(UserWarning, match="2 of 5 items cannot be used"):
        assert len(split(30)) == 3
    with pytest.raises(ValueError, match="2 of 5 items cannot be used"):
        split(30, strict=True)
    folder = tmp_path / "humanml3d"
    (folder / "new_joint_vecs").mkdir(parents=True)
    (folder / "texts").mkdir()
    (folder / "train.txt").write_text("a")
    (folder / "texts" / "a.txt").write_text("a man walks#a/DET#0#0\n")
    np.save(folder / "new_joint_vecs" / "a.npy", np.zeros((60, 263), np.float32))
    data = DataConfig(representation="humanml3d", root=str(folder), mirror=False, swap_persons=False)
    assert open_split(TrainConfig(data=data), "train", min_frames=16)[0]["motion"].shape == (1, 60, 263)


def test_the_shortest_item_of_a_run(started: Callable[..., dict[str, Any]]) -> None:
    with pytest.warns(UserWarning, match="items cannot be used"):
        seen = started("vae", **{"data.min_frames": 30})
    assert len(seen["train"]) == 3
    assert len(seen["validation"]) == 1


def test_values_of_the_autoencoders_training(started: Callable[..., dict[str, Any]]) -> None:
    seen = started(
        "vae", window=20, latent_noise=0.25, **{"losses.bone": 0.5, "model.num_blocks": 2, "model.latent_dim": 6}
    )
    assert len(seen["train"]) == 5
    assert seen["train"].draw(0, 0)["motion"].shape == (2, 20, 262)
    strided = started("vae", window=20, window_stride=5)["train"]
    assert len(strided) == sum((frames - 20) // 5 + 1 for frames in (40, 29, 33, 26, 30))
    objective = seen["objective"]
    assert objective.latent_noise == 0.25
    assert objective.weights.bone == 0.5
    assert (objective.vae.config.latent_dim, len(objective.vae.encoder[0])) == (6, 2)
    batch = collate([seen["train"].draw(index, 0) for index in range(2)])
    terms = objective(batch, ItemDraws((0,), range(2), CPU))
    weights = VAETrainConfig().losses
    expected = sum(getattr(weights, name) * value for name, value in terms.items() if name != "loss")
    torch.testing.assert_close(terms["loss"], expected + 0.5 * terms["bone"])


def test_workers_are_as_many_as_configured(
    started: Callable[..., dict[str, Any]], monkeypatch: Any, tmp_path: Path
) -> None:
    from accelerate import Accelerator

    from intermoe.train import loading, loop

    seen: list[int] = []
    monkeypatch.setattr(loading, "DataLoader", lambda *_, num_workers=0, **__: seen.append(num_workers) or [])
    for workers in (0, 3):
        run = started("vae", **{"data.num_workers": workers, "data.batch_size": 2})
        parts = (Accelerator(), run["objective"], run["config"], run["train"], None)
        loop.Trainer(*parts, tmp_path)._batches()
    assert seen == [0, 3]


def test_a_batch_has_as_many_items_as_configured(started: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from accelerate import Accelerator

    from intermoe.train.loop import Trainer

    for size in (1, 3):
        run = started("vae", **{"data.batch_size": size})
        trainer = Trainer(Accelerator(), run["objective"], run["config"], run["train"], None, tmp_path)
        assert len(next(trainer._batches())[0]["names"]) == size


@pytest.fixture
def objective(trained_vae: Path, tiny_pipeline: Any) -> Callable[..., DenoiserObjective]:
    """``objective({"diffusion": {...}})``: a fresh objective of the tiny denoiser."""

    def build(changes: dict[str, Any]) -> DenoiserObjective:
        denoiser = {
            "input_dim": 28, "text_dim": 8, "dim": 8, "num_layers": 1, "num_heads": 2, "num_experts": 3,
            "expert_dim": 4, "dropout": 0.0, **changes.get("denoiser", {}),
        }  # fmt: skip
        text = {"kind": "wordpiece", "output_dim": 8, "width": 8, "num_heads": 2, "vocab_size": 60}
        config = DenoiserTrainConfig.from_dict({"text": text, **changes, "denoiser": denoiser})
        torch.manual_seed(0)
        built = DenoiserObjective(
            config, LatentEncoder(LatentCodec(*load_vae_folder(trained_vae / "model"))), tiny_pipeline.text_encoder
        )
        torch.nn.init.normal_(built.denoiser.out.weight)
        return built

    return build


@pytest.fixture
def batch(pairs: Path) -> Any:
    dataset = InterHumanDataset(pairs, "train", min_frames=16, training=False)
    items = [dataset[index % 5] for index in range(40)]
    return collate([{**item, "name": str(number)} for number, item in enumerate(items)])


def seen_by_the_denoiser(objective: DenoiserObjective, batch: Any, **options: Any) -> tuple[Any, ...]:
    seen: list[tuple[Any, ...]] = []
    objective.denoiser.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    with torch.no_grad():
        objective(batch, ItemDraws((0, 1), range(40), CPU), **options)
    return seen[0]


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_text_is_dropped_with_its_probability_in_training_alone(
    objective: Callable[..., DenoiserObjective], batch: Any, probability: float
) -> None:
    built = objective({"diffusion": {"condition_dropout": probability}})
    text = seen_by_the_denoiser(built, batch)[2]
    dropped = (text == 0).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(probability, abs=0.15)
    kept = built._condition(batch["captions"])
    torch.testing.assert_close(text[~dropped], kept[~dropped])
    assert not (seen_by_the_denoiser(built, batch, validating=True)[2] == 0).all(dim=1).any()


@pytest.mark.parametrize(("shift", "share"), [(1.0, 0.5), (4.0, 0.8)])
def test_timesteps_are_drawn_from_the_whole_schedule_and_shifted(
    objective: Callable[..., DenoiserObjective], batch: Any, shift: float, share: float
) -> None:
    """Half of the shares lie above s / (1 + s) of the schedule."""
    built = objective({"diffusion": {"timestep_shift": shift, "num_train_timesteps": 100}})
    timesteps = seen_by_the_denoiser(built, batch)[1]
    assert timesteps.min() >= 0
    assert timesteps.max() < 100
    assert len(set(timesteps.tolist())) > 15
    assert (timesteps >= 100 * share).float().mean().item() == pytest.approx(0.5, abs=0.2)
    assert seen_by_the_denoiser(built, batch, validating=True)[1].unique().tolist() == [10]


def test_the_latents_under_the_noise_are_scaled(objective: Callable[..., DenoiserObjective], batch: Any) -> None:
    """Twice the scale adds as much again of the latents, whatever the noise."""
    noisy = [
        seen_by_the_denoiser(objective({"diffusion": {"latent_scale": scale, "max_beta": 0.01}}), batch)[0]
        for scale in (0.5, 1.0, 1.5)
    ]
    torch.testing.assert_close(noisy[2] - noisy[1], noisy[1] - noisy[0], rtol=1e-4, atol=1e-4)
    assert (noisy[1] - noisy[0]).abs().max() > 0.05
    values = {"latent_scale": 0.5, "max_beta": 0.01}
    scaled, timesteps = seen_by_the_denoiser(objective({"diffusion": {**values, "scale_input": True}}), batch)[:2]
    scheduler = build_scheduler("ddpm", DiffusionConfig(max_beta=0.01))
    torch.testing.assert_close(scaled, scaled_input(scheduler, noisy[0], timesteps, 0.5))
    assert not torch.allclose(scaled, noisy[0], atol=0.05)


def losses(objective: DenoiserObjective, batch: Any, **options: Any) -> dict[str, float]:
    found = objective(batch, ItemDraws((0, 1), range(40), CPU), **options)  # with gradients, as in training
    return {name: value.item() for name, value in found.items()}


def test_weights_of_the_loss_count_in_training_alone(objective: Callable[..., DenoiserObjective], batch: Any) -> None:
    plain, weighted = objective({}), objective({"diffusion": {"snr_gamma": 5.0}})
    assert losses(weighted, batch)["loss"] > 1.2 * losses(plain, batch)["loss"]
    assert losses(weighted, batch, validating=True) == losses(plain, batch, validating=True)


def test_load_balance_is_added_with_its_weight(objective: Callable[..., DenoiserObjective], batch: Any) -> None:
    values = {"denoiser": {"routing": "token_choice", "top_k": 1}}
    found = {weight: losses(objective({**values, "load_balance": weight}), batch)["loss"] for weight in (0.0, 1.0, 3.0)}
    assert found[1.0] - found[0.0] >= 0.9  # 1 where the experts are even
    assert found[3.0] - found[0.0] == pytest.approx(3 * (found[1.0] - found[0.0]), rel=1e-3)


def test_the_routers_z_loss_is_added_with_its_weight(objective: Callable[..., DenoiserObjective], batch: Any) -> None:
    """Of routers whose logits are all 0 it is log(E)^2 a layer; of the others' weights it changes nothing."""
    found = {}
    for weight in (0.0, 0.5, 2.0):
        made = objective({"router_z": weight})
        for block in made.denoiser.moe_blocks():
            torch.nn.init.zeros_(block.motion_router)
            torch.nn.init.zeros_(block.text_router)
        found[weight] = losses(made, batch)
    blocks = made.denoiser.moe_blocks()
    z = len(blocks) * float(np.log(blocks[0].num_experts)) ** 2
    assert "router_z" not in found[0.0]
    assert found[2.0]["router_z"] == pytest.approx(z, rel=1e-5)
    assert found[0.5]["loss"] - found[0.0]["loss"] == pytest.approx(0.5 * z, rel=1e-4)
    assert found[2.0]["loss"] - found[0.0]["loss"] == pytest.approx(2 * z, rel=1e-4)
    assert "router_z" not in losses(made, batch, validating=True)
    # it reaches the routers, and holds the shift of all experts that the gates do not see
    made(batch, ItemDraws((0, 1), range(40), CPU))["router_z"].backward()
    assert blocks[0].motion_router.grad is not None
    assert blocks[0].motion_router.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="router_z"):
        DenoiserTrainConfig.from_dict({"router_z": 0.1, "run": {"compile": "inductor"}})


def test_values_of_the_denoisers_training(started: Callable[..., dict[str, Any]]) -> None:
    seen = started("denoiser", **{"denoiser.num_experts": 4, "text.num_layers": 2, "diffusion.num_train_timesteps": 50})
    built = seen["objective"]
    assert built.denoiser.moe_blocks()[0].num_experts == 4
    assert len(built.text.transformer.layers) == 2
    assert built.scheduler.config.num_train_timesteps == 50


def test_name_and_cleaning_are_saved_with_the_model(
    write_config: Callable[..., Path], pairs: Path, trained_vae: Path, tmp_path: Path
) -> None:
    changes = {"name": "dancers", "rigid_bones": True, "planted_feet": True, "on_floor": True, "data.max_frames": 250}
    changes |= {"smooth": True, "bodies_apart": True}
    config = write_config("denoiser", **changes, **{"optim.steps": 1, "optim.warmup_steps": 0, "data.min_frames": 18})
    folder = run_denoiser(config, tmp_path / "run", vae=trained_vae / "model", data=pairs)
    saved = PipelineConfig.load(folder / "config.json")
    cleaned = (saved.rigid_bones, saved.planted_feet, saved.on_floor, saved.bodies_apart, saved.smooth)
    assert (saved.name, *cleaned) == ("dancers", True, True, True, True, True)
    assert (saved.fps, saved.min_frames, saved.max_frames) == (30, 18, 250)
    assert (saved.vae.latent_dim, saved.denoiser.num_experts) == (4, 3)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["name"] == "dancers"


def test_mixed_levels_change_the_loss_and_are_saved_with_the_model(
    write_config: Callable[..., Path], pairs: Path, trained_vae: Path, tmp_path: Path
) -> None:
    changes = {"optim.steps": 1, "optim.warmup_steps": 0, "levels.one_level": 0.0, "levels.prefix": 1.0}
    seen: list[torch.Tensor] = []
    forward = DenoiserObjective._loss

    def watched(self: Any, latents: Any, condition: Any, mask: Any, timesteps: Any, *args: Any, **options: Any) -> Any:
        seen.append(timesteps)
        return forward(self, latents, condition, mask, timesteps, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenoiserObjective, "_loss", watched)
        folder = run_denoiser(write_config("denoiser", **changes), tmp_path / "run", trained_vae / "model", data=pairs)
    assert seen[0].dim() == 3
    assert (seen[0][:, 0].diff(dim=1) >= 0).all()  # clean, then one level
    assert PipelineConfig.load(folder / "config.json").levels
    assert not PipelineConfig().levels


class Words(torch.nn.Module):
    """A text encoder of one weight that writes down how many captions it saw."""

    output_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.sizes: list[int] = []

    def forward(self, captions: list[str]) -> torch.Tensor:
        self.sizes.append(len(captions))
        return self.weight.expand(len(captions), 2)


@pytest.mark.parametrize("values", [{"steps": 3, "batch_size": 5}, {"steps": 2, "batch_size": 1, "learning_rate": 0.1}])
def test_text_is_trained_first_by_its_own_values(pairs: Path, trained_vae: Path, values: dict[str, Any]) -> None:
    from intermoe.train.config import TextPretrainingConfig

    encoder = LatentEncoder(LatentCodec(*load_vae_folder(trained_vae / "model")))
    dataset = InterHumanDataset(pairs, "train", min_frames=16)
    moved = {}
    for rate in (1e-3, values.get("learning_rate", 1e-3)):
        words = Words()
        config = TextPretrainingConfig(**{**values, "learning_rate": rate})
        pretrain_text(words, dataset, lambda motion: encoder.posterior(motion).mean, config, seed=0)  # type: ignore[arg-type]
        assert words.sizes == [values["batch_size"]] * values["steps"]
        moved[rate] = (words.weight - 1).abs().max().item()
    if len(moved) == 2:
        assert moved[0.1] == pytest.approx(100 * moved[1e-3], rel=0.1)


def test_precision_of_a_run(tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()
        try:
            config = TrainConfig(optim=OptimConfig(mixed_precision=precision), run=RunConfig())
            assert start(config, tmp_path / precision).mixed_precision == precision
        finally:
            AcceleratorState._reset_state()


@pytest.mark.parametrize(("tf32", "precision"), [(False, "highest"), (True, "high")])
def test_tf32_is_of_devices_that_have_it(
    tf32: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intermoe.train import run

    class OnDevice(run.Accelerator):  # type: ignore[misc, name-defined]
        device = torch.device("cuda")

    seen: list[str] = []
    monkeypatch.setattr(run, "Accelerator", OnDevice)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    start(TrainConfig(optim=OptimConfig(tf32=tf32)), tmp_path)
    assert seen == [precision]


def test_base_and_steps_of_an_ablation(write_config: Callable[..., Path], tmp_path: Path) -> None:
    from intermoe.train.ablate import AblationConfig, AblationReport, variant_configs

    base = write_config(
        "denoiser", **{"denoiser.num_experts": 5, "optim.warmup_steps": 3, "text_pretraining.steps": 50}
    )
    (tmp_path / "base.json").write_bytes(base.read_bytes())
    variants = [{"name": "a", "title": "A", "changes": {"denoiser.capacity": 2.0}}, {"name": "b", "title": "B"}]
    matrix = tmp_path / "matrix.json"
    matrix.write_text(json.dumps({"base": "base.json", "variants": variants, "published_on": "Elsewhere"}))
    found = variant_configs(matrix, steps=20)
    assert {name: own.denoiser.capacity for name, own in found.items()} == {"a": 2.0, "b": 1.0}
    for own in found.values():
        assert own.denoiser.num_experts == 5
        assert (own.optim.steps, own.optim.warmup_steps, own.text_pretraining.steps) == (20, 2, 20)
    assert variant_configs(matrix)["a"].optim.steps == DenoiserTrainConfig.load(base).optim.steps
    report = AblationReport(AblationConfig.load(matrix), {}, {"a": {"fid": 1.0}})
    assert report.table()[0][-2:] == ["published FID (Elsewhere)", "published R@1 (Elsewhere)"]


def test_settings_of_an_ablation_reach_the_generation(
    pairs: Path, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intermoe.train import ablate

    seen: list[dict[str, Any]] = []

    def generate(pipeline: Any, prompts: Any, lengths: Any, seeds: Any, **options: Any) -> list[torch.Tensor]:
        seen.append({"seeds": seeds, "prompts": prompts, "lengths": lengths, **options})
        return [torch.full((2, length, 262), float(length)) for length in lengths]

    monkeypatch.setattr(type(tiny_pipeline), "sample", generate)
    dataset = InterHumanDataset(pairs, "val", training=False)  # two items of 31 and 24 frames, three captions each
    settings = ablate.AblationSettings(seeds=(2, 5), num_inference_steps=7, guidance_scale=1.5)
    made = ablate._generate(tiny_pipeline, dataset, settings, batch_size=1)
    assert len(made) == len(seen) == 2 * 3 * 2
    assert all((call["num_inference_steps"], call["guidance_scale"]) == (7, 1.5) for call in seen)
    seeds = [seed for call in seen for seed in call["seeds"]]
    assert sorted(seeds) == [*range(2 * 6, 3 * 6), *range(5 * 6, 6 * 6)]
    assert [motion.shape[1] for motion, _ in made] == [dataset.num_frames(i % 2) for i in range(12)]
    assert [caption for _, caption in made[:4]] == [dataset.captions(i % 2)[i // 2] for i in range(4)]


@pytest.mark.parametrize(("mirror", "swap"), [(False, False), (True, False), (False, True), (True, True)])
def test_word_pieces_are_made_of_every_caption_that_training_can_show(mirror: bool, swap: bool) -> None:
    class Two:
        lines = (("the first goes left", "a bow"), ("the second waits",))

        def __len__(self) -> int:
            return len(self.lines)

        def captions(self, index: int) -> tuple[str, ...]:
            return self.lines[index]

    sides, ways = ("left", "right")[: 1 + mirror], (("first", "second"), ("second", "first"))[: 1 + swap]
    expected = {"a bow"}
    for one, other in ways:
        expected |= {f"the {one} goes {side}" for side in sides} | {f"the {other} waits"}
    config = TrainConfig(data=DataConfig(mirror=mirror, swap_persons=swap))
    found = training_captions(config, Two())
    assert set(found) == expected
    assert len(found) == 3 * len(sides) * len(ways), "each as often as it is drawn"


def test_a_text_encoder_is_drawn_from_the_run_s_seed(started: Callable[..., dict[str, Any]]) -> None:
    first, again, other = (started("denoiser", seed=seed)["objective"].text.state_dict().values() for seed in (4, 4, 5))
    assert all(map(torch.equal, first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.numel() > 100)
