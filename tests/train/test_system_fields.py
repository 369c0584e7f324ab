"""What each value of the training configurations of MDM, ComMDM, InterGen, TIMotion and InterMask changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intermoe.data import InterHumanDataset, collate
from intermoe.data.sets import train_statistics
from intermoe.motion.statistics import Statistics
from intermoe.train.draws import ItemDraws
from intermoe.train.intermask import run_intermask, run_tokenizer
from intermoe.train.mdm import run_commdm, run_mdm
from intermoe.train.motion import run_motion

CPU = torch.device("cpu")
TEXT = {"output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 8, "vocab_size": 60}
SIZES = {"text_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16}
SHARED = {
    "data": {"batch_size": 2, "max_frames": 44},
    "optim": {"steps": 1, "warmup_steps": 0},
    "run": {"validate_every": 1, "checkpoint_every": 1},
}
MDM = {**SHARED, "model": {**SIZES, "input_dim": 262}, "text": TEXT, "diffusion": {"num_train_timesteps": 20}}
COMMDM = {
    **SHARED,
    "model": {"backbone": MDM["model"], "split": 1, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16},
}
MOTION = {**SHARED, "network": SIZES, "text": TEXT, "diffusion": {"num_train_timesteps": 20}}
TOKENIZER = {**SHARED, "window": 16, "model": {"num_codes": 12, "code_dim": 6, "width": 8, "num_blocks": 1}}
INTERMASK = {**SHARED, "model": {**SIZES, "num_codes": 12, "code_dim": 8}, "text": TEXT}


def changed(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """``changed(MDM, **{"model.dim": 8})``."""
    made = json.loads(json.dumps(values))
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = made
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return made


def one_step(run: Any, values: dict[str, Any], pairs: Path, folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    made: Path = run(folder / "config.json", folder / "run", data=pairs)
    return made


@pytest.fixture(scope="module")
def single(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder of an MDM."""
    return one_step(run_mdm, MDM, pairs, tmp_path_factory.mktemp("mdm"))


@pytest.fixture(scope="module")
def codes(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder of a tokeniser."""
    return one_step(run_tokenizer, TOKENIZER, pairs, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def caught(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``caught("mdm", MDM, ...)``: what such a run hands to the training loop; nothing is trained."""

    def run(kind: str, values: dict[str, Any], *others: Path, **changes: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def fit(accelerator: Any, objective: Any, config: Any, train: Any, validation: Any, *_: Any, **__: Any) -> None:
            seen.update(objective=objective, config=config, train=train, validation=validation)

        module = {"commdm": "mdm", "tokenizer": "intermask"}.get(kind, kind)
        monkeypatch.setattr(f"intermoe.train.{module}.fit", fit)
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(changed(values, **changes)), encoding="utf-8")
        start: Any = {
            "mdm": run_mdm, "commdm": run_commdm, "motion": run_motion, "tokenizer": run_tokenizer,
            "intermask": run_intermask,
        }[kind]  # fmt: skip
        start(folder / "config.json", folder / "run", *others, data=pairs)
        return seen

    return run


def seen_by(objective: Any, batch: Any, validating: bool = False) -> tuple[Any, ...]:
    """Arguments of the network's first call."""
    seen: list[tuple[Any, ...]] = []
    handle = objective.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    with torch.no_grad():
        objective(batch, ItemDraws((0, 1), range(len(batch["captions"])), CPU), validating)
    handle.remove()
    return seen[0]


def batch_of(objective: Any, items: Any, count: int = 40) -> Any:
    return objective.collate([items.draw(index % len(items), index // len(items)) for index in range(count)])


def text_and_timesteps(objective: Any, items: Any, dropout: float, timesteps: int) -> None:
    batch = batch_of(objective, items)
    _, drawn, text, *_ = seen_by(objective, batch)
    dropped = (text == 0).all(dim=-1).float().mean().item()
    assert dropped == pytest.approx(dropout, abs=0.25)
    assert 0.5 * timesteps < drawn.max() < timesteps
    assert len(drawn.unique()) > timesteps / 3
    _, fixed, text, *_ = seen_by(objective, batch, validating=True)
    assert not (text == 0).all(dim=-1).any()
    assert fixed.unique().tolist() == [timesteps // 10]


@pytest.mark.parametrize(("dropout", "timesteps"), [(0.0, 20), (0.5, 40)])
def test_diffusion_of_mdm_and_commdm(
    caught: Callable[..., dict[str, Any]], single: Path, dropout: float, timesteps: int
) -> None:
    values = {"diffusion.condition_dropout": dropout, "diffusion.num_train_timesteps": timesteps}
    for kind, config, others in (("mdm", MDM, ()), ("commdm", COMMDM, (single,))):
        seen = caught(kind, config, *others, **values)
        text_and_timesteps(seen["objective"].eval(), seen["train"], dropout, timesteps)


def test_model_and_text_of_mdm(caught: Callable[..., dict[str, Any]]) -> None:
    seen = caught("mdm", MDM, **{"model.num_layers": 3, "model.mask_padding": False, "text.num_layers": 2})
    network = seen["objective"].network
    assert (len(network.layers), network.config.mask_padding) == (3, False)
    assert len(seen["objective"].text.transformer.layers) == 2


def test_model_of_commdm(caught: Callable[..., dict[str, Any]], single: Path) -> None:
    network = caught("commdm", COMMDM, single, **{"model.split": 0, "model.num_layers": 3})["objective"].network
    assert (network.config.split, len(network.communication.layers)) == (0, 3)


@pytest.mark.parametrize(("dropout", "timesteps"), [(0.0, 20), (0.5, 40)])
def test_diffusion_of_raw_motion(caught: Callable[..., dict[str, Any]], dropout: float, timesteps: int) -> None:
    values = {"diffusion.condition_dropout": dropout, "diffusion.num_train_timesteps": timesteps}
    seen = caught("motion", MOTION, **values)
    text_and_timesteps(seen["objective"].eval(), seen["train"], dropout, timesteps)


def test_timesteps_of_raw_motion_are_shifted(caught: Callable[..., dict[str, Any]]) -> None:
    """Half of the shares lie above s / (1 + s) of the schedule."""
    for shift, share in ((1.0, 0.5), (4.0, 0.8)):
        values = {"diffusion.timestep_shift": shift, "diffusion.num_train_timesteps": 100}
        seen = caught("motion", MOTION, **values)
        drawn = seen_by(seen["objective"], batch_of(seen["objective"], seen["train"]))[1]
        assert (drawn >= 100 * share).float().mean().item() == pytest.approx(0.5, abs=0.25)


@pytest.mark.parametrize("system", ["intergen", "timotion"])
def test_system_network_text_and_losses_of_raw_motion(caught: Callable[..., dict[str, Any]], system: str) -> None:
    changes = {"system": system, "network.num_layers": 2, "text.num_layers": 2, "diffusion.num_train_timesteps": 1000}
    seen = caught("motion", MOTION, **changes)
    objective = seen["objective"]
    assert type(objective.network).__name__.lower() == system
    assert len(objective.network.layers) == len(objective.text.transformer.layers) == 2
    batch = batch_of(objective.eval(), seen["train"], 6)
    for parameter in objective.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        plain, weighed = (made(batch, ItemDraws((0,), range(6), CPU)) for made in (objective, with_weight(objective)))
    assert plain["bones"] > 0
    torch.testing.assert_close(weighed["bones"], 3 * plain["bones"])
    torch.testing.assert_close(weighed["loss"] - plain["loss"], 2 * plain["bones"], rtol=1e-3, atol=1e-3)


def with_weight(objective: Any) -> Any:
    from intermoe.systems.intergen.config import MotionLossConfig
    from intermoe.train.motion import MotionObjective, MotionTrainConfig

    values = changed(MOTION, system=objective.network.__class__.__name__.lower())
    values["network"] = objective.network.config.to_dict()
    values["diffusion"] = objective.diffusion.to_dict()
    values["losses"] = {"bones": 3 * MotionLossConfig().bones}
    made = MotionObjective(MotionTrainConfig.from_dict(values), objective.text, objective.statistics)
    made.network.load_state_dict(objective.network.state_dict())
    return made.eval()


def test_windows_model_and_losses_of_the_tokenizer(caught: Callable[..., dict[str, Any]]) -> None:
    seen = caught("tokenizer", TOKENIZER, **{"window": 20, "model.width": 10, "losses.commitment": 3.0})
    assert len(seen["train"]) == 5
    assert seen["train"].draw(0, 0)["motion"].shape == (2, 20, 262)
    strided = caught("tokenizer", TOKENIZER, window=20, window_stride=5)["train"]
    assert len(strided) == sum((frames - 20) // 5 + 1 for frames in (40, 29, 33, 26, 30))
    objective = seen["objective"].train()
    assert objective.tokenizer.config.width == 10
    terms = objective(collate([seen["train"].draw(index, 0) for index in range(2)]), ItemDraws((0,), range(2), CPU))
    weights = objective.weights.to_dict()
    assert terms.keys() == {"loss", *weights}
    expected = sum((weights[name] * value for name, value in terms.items() if name != "loss"), torch.zeros(()))
    torch.testing.assert_close(terms["loss"], expected)
    assert weights["commitment"] == 3.0
    assert terms["commitment"] > 0


def test_the_commitment_is_the_distance_to_the_codes_vectors(caught: Callable[..., dict[str, Any]]) -> None:
    """In one call: features, and what the codebook held for their codes before it moved."""
    seen = caught("tokenizer", TOKENIZER, **{"model.dropout": 0.0})
    objective, codebook = seen["objective"].train(), seen["objective"].tokenizer.codebook
    batch = collate([seen["train"].draw(index, 0) for index in range(2)])
    objective(batch, ItemDraws((0,), range(2), CPU))
    before, seen_points = codebook.vectors.clone(), []
    update = codebook.update
    codebook.update = lambda points, codes: seen_points.append((points, codes)) or update(points, codes)
    terms = objective(batch, ItemDraws((1,), range(2), CPU))
    points, codes = seen_points[0]
    assert points.shape == (2 * 2 * 5 * 4, 6)
    torch.testing.assert_close(terms["commitment"], (points - before[codes]).square().mean())
    assert not torch.equal(codebook.vectors, before)


@pytest.mark.parametrize(("person_share", "dropout"), [(0.0, 1.0), (0.5, 0.5)])
def test_shares_of_intermasks_training(
    caught: Callable[..., dict[str, Any]], codes: Path, person_share: float, dropout: float
) -> None:
    """Whole persons are hidden, and texts dropped, as often as configured; in validation no text is."""
    seen = caught("intermask", INTERMASK, codes, person_share=person_share, condition_dropout=dropout)
    objective = seen["objective"].eval()
    batch = batch_of(objective, seen["train"])
    text = seen_by(objective, batch)[1]
    assert (text == 0).all(dim=-1).float().mean().item() == pytest.approx(dropout, abs=0.25)
    assert not (seen_by(objective, batch, validating=True)[1] == 0).all(dim=-1).any()
    assert whole_persons(objective, batch) == pytest.approx(person_share, abs=0.25)


def whole_persons(objective: Any, batch: Any) -> float:
    """Share of the samples in which all of one person, and nothing of the other, is chosen."""
    from intermoe.systems.intermask import losses

    found: list[Tensor] = []
    mask_codes = losses.mask_codes

    def watched(*arguments: Any) -> Any:
        made = mask_codes(*arguments)
        found.append(made.chosen)
        return made

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("intermoe.train.intermask.mask_codes", watched)
        objective(batch, ItemDraws((0, 1), range(len(batch["captions"])), CPU))
    valid = batch["mask"][:, None, None].expand(found[0][:, :1].shape)
    all_of = [(found[0][:, person : person + 1] | ~valid).flatten(1).all(dim=1) for person in range(2)]
    none_of = [~found[0][:, person].flatten(1).any(dim=1) for person in range(2)]
    return ((all_of[0] & none_of[1]) | (all_of[1] & none_of[0])).float().mean().item()


def test_model_and_text_of_intermask(caught: Callable[..., dict[str, Any]], codes: Path) -> None:
    objective = caught("intermask", INTERMASK, codes, **{"model.num_layers": 2, "text.num_layers": 3})["objective"]
    assert len(objective.network.layers) == 2
    assert len(objective.text.transformer.layers) == 3
    assert objective.grid == (2, 5, 11)


def test_a_single_persons_statistics_are_of_their_own_frame(single: Path, pairs: Path) -> None:
    """The first frame's pelvis of every drawn motion is at x = z = 0."""
    mean = Statistics.load(single.parent / "statistics.json").mean
    world = InterHumanDataset(pairs, "train", min_frames=16, swap_persons=True)
    assert abs(mean[0]) < 0.5 * max(abs(float(world.draw(i, 0)["motion"][1, 0, 0])) for i in range(5))


def test_each_description_is_checked_on_its_own(
    caught: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a system encodes them so; elsewhere a caption is one text."""
    seen: list[tuple[int, Callable[[str], list[str]]]] = []

    def check(text: Any, *splits: Any, texts: Callable[[str], list[str]]) -> None:
        seen.append((len(splits), texts))

    monkeypatch.setattr("intermoe.train.motion.run.check_captions", check)
    caption = "they bow | one stands | one walks"
    for system, parts in (("in2in", ["they bow", "one stands", "one walks"]), ("intergen", [caption])):
        caught("motion", MOTION, system=system)
        splits, texts = seen[-1]
        assert (splits, list(texts(caption))) == (2, parts)


def test_statistics_are_of_the_training_data(caught: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """And not of those that validate, which are others."""
    raw, codes = caught("motion", MOTION), caught("tokenizer", TOKENIZER)
    own, others = train_statistics(raw["train"]), train_statistics(raw["validation"])
    assert abs(own.mean - others.mean).max() > 0.01
    np.testing.assert_allclose(raw["objective"].statistics.mean, own.mean)
    np.testing.assert_allclose(raw["objective"].statistics.std, own.std)
    windows = train_statistics(codes["train"].dataset)
    np.testing.assert_allclose(codes["objective"].mean, windows.mean)
    np.testing.assert_allclose(codes["objective"].std, windows.std)


def test_items_that_hold_no_window_are_not_cut(caught: Callable[..., dict[str, Any]]) -> None:
    """Of 40, 29, 33, 26 and 30 frames one is too short for a window of 28; of those that validate none."""
    with pytest.warns(UserWarning, match="1 of 5 items cannot be used"):
        seen = caught("tokenizer", TOKENIZER, window=28)
    assert seen["train"].dataset.names == ["1", "2", "3", "5"]
    assert (seen["train"].dataset.split, seen["validation"].split, len(seen["validation"])) == ("train", "val", 2)


def test_weights_are_drawn_from_the_run_s_seed(caught: Callable[..., dict[str, Any]], single: Path) -> None:
    for kind, values, others in (
        ("tokenizer", TOKENIZER, ()), ("commdm", COMMDM, (single,)),
    ):  # fmt: skip
        first, again, other = (caught(kind, values, *others, seed=seed)["objective"] for seed in (4, 4, 5))
        pairs_of = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
        assert all(torch.equal(one, two) for one, two, _ in pairs_of), kind
        assert any(not torch.equal(one, three) for one, _, three in pairs_of), kind


def test_splits_are_handed_on_in_their_order(caught: Callable[..., dict[str, Any]], single: Path, codes: Path) -> None:
    """Five items to train on, drawn with augmentation, and two to validate with, as they are."""
    for kind, values, others in (
        ("motion", MOTION, ()), ("mdm", MDM, ()), ("commdm", COMMDM, (single,)), ("tokenizer", TOKENIZER, ()),
        ("intermask", INTERMASK, (codes,)),
    ):  # fmt: skip
        seen = caught(kind, values, *others)
        train, validation = (getattr(seen[name], "dataset", seen[name]) for name in ("train", "validation"))
        assert (train.split, len(train), validation.split, len(validation)) == ("train", 5, "val", 2), kind
        assert (train.mirror, train.swap_persons) == (True, True), kind
        assert (validation.mirror, validation.swap_persons) == (False, False), kind
