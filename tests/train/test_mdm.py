"""Training of MDM and of ComMDM's block on it: losses fall, what is frozen stays, an item is the same in any batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from intermoe.data import InterHumanDataset
from intermoe.diffusion import DiffusionConfig
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import MotionPipeline
from intermoe.systems.mdm.canonical import placement, to_common_frame
from intermoe.systems.mdm.config import ComMDMConfig, MDMConfig
from intermoe.systems.mdm.network import ComMDM
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train.config import DataConfig, OptimConfig, RunConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.mdm import ComMDMTrainConfig, MDMObjective, MDMTrainConfig, OwnFrames, run_commdm, run_mdm
from intermoe.train.run import write_config

CPU = torch.device("cpu")
DIFFUSION = DiffusionConfig(num_train_timesteps=50)
TEXT = TextConfig(output_dim=8, width=8, num_layers=1, num_heads=2, feedforward_dim=8, vocab_size=60, dropout=0.0)


@pytest.fixture
def items(pairs: Path) -> OwnFrames:
    return OwnFrames(InterHumanDataset(pairs, "train", min_frames=16, training=True, swap_persons=True))


def objective(two_persons: bool, statistics: Statistics, dropout: float = 0.0) -> MDMObjective:
    torch.manual_seed(0)
    backbone = MDMConfig(262, text_dim=8, dim=16, num_layers=2, num_heads=2, feedforward_dim=16, dropout=dropout)
    whole = ComMDM(ComMDMConfig(backbone, split=1, num_layers=1, num_heads=2, feedforward_dim=16))
    network = whole if two_persons else whole.backbone
    tokenizer = WordPieceTextEncoder.train_tokenizer(["two people dance", "the first dancer turns to the left"], 60)
    return MDMObjective(network, WordPieceTextEncoder(TEXT, tokenizer), DIFFUSION, statistics)


def test_items_are_in_their_own_frames_and_say_where_they_stood(items: OwnFrames, pairs: Path) -> None:
    for epoch in range(4):
        item, source = items.draw(2, epoch), items.dataset.draw(2, epoch)
        assert item["caption"] == source["caption"]
        torch.testing.assert_close(item["motion"][0], source["motion"][0])  # person 1 has the common frame
        moved = placement(item["entries"][0], item["entries"][1])
        back = to_common_frame(item["motion"][1], *moved)
        torch.testing.assert_close(back, source["motion"][1], rtol=1e-4, atol=1e-5)
        assert item["motion"][1, 0, [0, 2]].abs().max() < 1e-5
    statistics = items.statistics()
    assert abs(statistics.mean[0]) < abs(items.dataset.draw(2, 0)["motion"][1, :, 0].mean())
    augmented = OwnFrames(InterHumanDataset(pairs, "train", min_frames=16, training=True, mirror=True))
    drawn = [augmented.draw(index, epoch)["motion"].flatten(0, 1) for epoch in range(4) for index in range(5)]
    torch.testing.assert_close(torch.tensor(augmented.statistics().mean), torch.cat(drawn).double().mean(dim=0).float())


@torch.no_grad()
def validated(trained: MDMObjective, batch: Any) -> float:
    """The loss with the same draws every time."""
    value = trained.eval()(batch, ItemDraws((1,), range(3), CPU), validating=True)["loss"].item()
    trained.train()
    return value


@pytest.mark.parametrize("two_persons", [False, True])
def test_a_few_steps_lower_the_loss(items: OwnFrames, two_persons: bool) -> None:
    trained = objective(two_persons, items.statistics()).train()
    batch = trained.collate([items.draw(index, 0) for index in range(3)])
    frozen = {name: value.clone() for name, value in trained.named_parameters() if not value.requires_grad}
    assert bool(frozen) == two_persons
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-2)
    before = validated(trained, batch)
    for step in range(30):
        loss = trained(batch, ItemDraws((0, step), range(3), CPU))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert validated(trained, batch) < 0.95 * before  # of ComMDM a small part learns, on a random backbone
    assert all(torch.equal(value, frozen[name]) for name, value in trained.named_parameters() if name in frozen)
    if two_persons:
        parts = [name for name, _ in trained.named_parameters() if name.startswith(("network.backbone.", "text."))]
        assert list(frozen) == parts
        assert {name.split(".")[0] for name in parts} == {"network", "text"}


def test_the_frozen_backbone_stays_without_dropout(items: OwnFrames) -> None:
    trained = objective(True, items.statistics(), dropout=0.5).train()
    x, timesteps, text = torch.randn(2, 2, 5, 262), torch.tensor([1, 40]), torch.randn(2, 8)
    backbone = trained.network.backbone
    assert torch.equal(backbone(x, timesteps, text), backbone(x, timesteps, text))
    assert not torch.equal(trained.network(x, timesteps, text), trained.network(x, timesteps, text))


@torch.no_grad()
@pytest.mark.parametrize("two_persons", [False, True])
@pytest.mark.parametrize("validating", [False, True])
def test_an_items_loss_does_not_depend_on_its_batch(items: OwnFrames, two_persons: bool, validating: bool) -> None:
    evaluated = objective(two_persons, items.statistics()).eval()
    batch = [items.draw(index, 0) for index in range(3)]
    alone = [
        evaluated(evaluated.collate([item]), ItemDraws((7,), [number], CPU), validating)["loss"]
        for number, item in enumerate(batch)
    ]
    padded = evaluated.collate(batch)
    places = torch.arange(padded["motion"].shape[2])
    beyond = places >= padded["lengths"][:, None]
    padded["motion"] = padded["motion"].masked_fill(beyond[:, None, :, None], torch.nan)  # whatever padding holds
    together = evaluated(padded, ItemDraws((7,), range(3), CPU), validating)
    torch.testing.assert_close(together["loss"], torch.stack(alone).mean())
    if validating:
        assert together.keys() == {"loss", "loss_t5", "loss_t15", "loss_t25", "loss_t35", "loss_t45"}


def test_both_stages_run_one_after_the_other_and_resume(pairs: Path, tmp_path: Path) -> None:
    optim = OptimConfig(steps=4, learning_rate=1e-3, warmup_steps=1, ema_decay=0.9)
    every = RunConfig(log_every=2, validate_every=4, checkpoint_every=2)
    shared: dict[str, Any] = {"data": DataConfig(batch_size=2), "optim": optim, "run": every, "diffusion": DIFFUSION}
    backbone = MDMConfig(262, text_dim=8, dim=16, num_layers=2, num_heads=2, feedforward_dim=16)
    write_config(tmp_path / "mdm.json", MDMTrainConfig(name="alone", model=backbone, text=TEXT, **shared))
    mdm = run_mdm(tmp_path / "mdm.json", tmp_path / "mdm", data=pairs)
    single: Any = MotionPipeline.from_pretrained(mdm)
    assert (single.config.system, single.config.representation, single.config.fps) == ("mdm", "interhuman", 30)
    assert single.config.name == "alone"
    assert Statistics.load(tmp_path / "mdm" / "statistics.json").digest() == single.statistics.digest()
    average = load_file(tmp_path / "mdm" / "checkpoints" / "step-00000004" / "average.safetensors")
    weights = load_file(mdm / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    assert single("two people dance", num_frames=20, num_inference_steps=2).motion.shape == (1, 1, 20, 262)

    model = ComMDMConfig(backbone, split=1, num_layers=1, num_heads=2, feedforward_dim=16)
    write_config(tmp_path / "commdm.json", ComMDMTrainConfig(name="both", model=model, **shared))
    first = run_commdm(tmp_path / "commdm.json", tmp_path / "one", mdm, data=pairs)
    pair: Any = MotionPipeline.from_pretrained(first)
    assert (pair.config.system, pair.config.name) == ("commdm", "both")
    assert pair.config.text == single.config.text
    for name, value in single.network.state_dict().items():
        assert torch.equal(pair.network.get_parameter(f"backbone.{name}"), value), name
    assert pair("two people dance", num_frames=20, num_inference_steps=2).joints.shape == (1, 2, 20, 22, 3)
    run_commdm(tmp_path / "commdm.json", tmp_path / "two", mdm, data=pairs)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000004")
    shutil.rmtree(tmp_path / "two" / "model")
    again = run_commdm(tmp_path / "commdm.json", tmp_path / "two", mdm, data=pairs, resume=True)
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert json.loads((again / "training.json").read_text())["data"]["root"] is None

    write_config(tmp_path / "other.json", ComMDMTrainConfig(model=ComMDMConfig(MDMConfig(262)), **shared))
    with pytest.raises(ValueError, match=r"model.backbone: expected that of the MDM"):
        run_commdm(tmp_path / "other.json", tmp_path / "three", mdm, data=pairs)
    with pytest.raises(ValueError, match="model: expected one of MDMPipeline, got one of ComMDMPipeline"):
        run_commdm(tmp_path / "commdm.json", tmp_path / "three", first, data=pairs)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (MDMTrainConfig, {}, "model.input_dim: expected 262 for interhuman, got 263"),
        (MDMTrainConfig, {"data": DataConfig("interx", mirror=False)}, "data.representation: expected one of"),
        (
            ComMDMTrainConfig,
            {"data": DataConfig("humanml3d", mirror=False, swap_persons=False)},
            "data.representation: expected",
        ),
        (MDMTrainConfig, {"model": MDMConfig(262, text_dim=8)}, "text.output_dim: expected model.text_dim=8, got 512"),
    ],
)
def test_wrong_configurations_are_refused(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
