"""Training of what fills gaps: they are cut out of the data, and nothing but what fills them is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.checkpoints import load_safetensors
from intermoe.data import InterHumanDataset
from intermoe.systems.intermoe.between import SEEN, Between, Ends, seen
from intermoe.systems.intermoe.config import BetweenConfig
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import between as module
from intermoe.train.between import FRAMES, BetweenObjective, Gaps, run_between, write_seen
from intermoe.train.config import BetweenTrainConfig
from intermoe.train.draws import ItemDraws

VALUES: dict[str, Any] = {
    "trainer": "between",
    "gaps": 3,
    "between": {"width": 16, "code": 6, "waves": 3, "max_frames": 8},
    "data": {"batch_size": 3, "min_frames": 16, "max_frames": 40},
    "optim": {"steps": 4, "warmup_steps": 1, "learning_rate": 1e-2, "ema_decay": 0.5},
    "run": {"log_every": 2, "validate_every": 2, "checkpoint_every": 2},
}


def recipe(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "between.json"
    path.write_text(json.dumps({**VALUES, **changes}))
    return path


@pytest.fixture
def model(tiny_pipeline: InterMoEPipeline, tmp_path: Path) -> Path:
    tiny_pipeline.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def dataset(pairs: Path) -> InterHumanDataset:
    return InterHumanDataset(pairs, "train", min_frames=16, max_frames=40, mirror=True, seed=3)


def test_gaps_are_cut_out_of_the_clips_in_both_directions(dataset: InterHumanDataset) -> None:
    gaps, found = Gaps(dataset, 12, 8), []
    assert len(gaps) == len(dataset)
    for index in range(len(dataset)):
        item = gaps.draw(index, 2)
        joints = joints_of(dataset.draw(index, 2)["motion"])
        assert item["name"] == dataset.names[index]
        for row in range(12):
            ends = [
                tuple(int(n) for n in (joints == item[key][row, 0]).flatten(2).all(dim=2).nonzero()[0])
                for key in ("before", "after")
            ]
            (person, one), (other, two) = ends
            frames, way = int(item["frames"][row]), 1 if one < two else -1
            assert person == other
            assert abs(two - one) == frames + 1
            last = joints.shape[1] - 1
            for key, at, step in (("before", one, -way), ("after", two, way)):
                places = [min(max(at + step * distance, 0), last) for distance in SEEN]
                assert torch.equal(item[key][row], joints[person, places])
            places = item["places"][row].long()
            assert places.shape == (FRAMES,)
            assert ((places >= 0) & (places < frames)).all()
            assert torch.equal(item["joints"][row], joints[person, one + way * (places + 1)])
            found.append((frames, way, person))
    assert {frames for frames, _, _ in found} == set(range(1, 9))
    assert {(way, person) for _, way, person in found} == {(1, 0), (1, 1), (-1, 0), (-1, 1)}


def joints_of(motion: torch.Tensor) -> torch.Tensor:
    return motion[..., :66].unflatten(-1, (22, 3))


def test_an_epoch_draws_the_same_again_and_another_others(dataset: InterHumanDataset) -> None:
    first, again, other = Gaps(dataset, 3, 8).draw(1, 0), Gaps(dataset, 3, 8).draw(1, 0), Gaps(dataset, 3, 8).draw(1, 1)
    assert all(torch.equal(first[key], again[key]) for key in first if key != "name")
    assert not torch.equal(first["before"], other["before"])
    assert not torch.equal(first["places"], Gaps(dataset, 3, 8).draw(2, 0)["places"])


def test_the_shortest_clip_has_a_gap_of_one_frame(dataset: InterHumanDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "motion", lambda choice: torch.arange(3.0)[None, :, None].expand(2, 3, 262))
    item = Gaps(dataset, 6, 8).draw(0, 0)
    assert item["frames"].tolist() == [1.0] * 6
    assert (item["joints"] == 1.0).all()
    assert {item["before"][row, 0, 0, 0].item() for row in range(6)} == {0.0, 2.0}


def test_a_clip_is_converted_once_for_each_choice(dataset: InterHumanDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    motion = dataset.motion
    monkeypatch.setattr(dataset, "motion", lambda choice: (asked.append(choice), motion(choice))[1])
    gaps = Gaps(dataset, 3, 8)
    for epoch in range(12):
        gaps.draw(0, epoch)
    assert len(asked) == len(set(asked)) == len({dataset.choose(0, epoch)[0] for epoch in range(12)})
    room = gaps.free
    gaps.free = 0
    gaps.kept.clear()
    gaps.draw(0, 0), gaps.draw(0, 0)
    assert asked[-1] == asked[-2]
    assert room < module.CACHE_BYTES


def objective_of(noise: float = 0.0) -> BetweenObjective:
    torch.manual_seed(0)
    between = Between(BetweenConfig(width=16, code=6, waves=3, max_frames=8))
    torch.nn.init.normal_(between.joints.weight, std=0.05)
    return BetweenObjective(between, noise)


def test_the_error_is_the_distance_of_joints(dataset: InterHumanDataset) -> None:
    gaps, objective = Gaps(dataset, 3, 8), objective_of()
    items = [gaps.draw(index, 0) for index in range(4)]
    batch = objective.collate(items)
    assert batch["names"] == [item["name"] for item in items]
    assert objective.noise == 0.0
    distances: dict[str, list[torch.Tensor]] = {"one": [], "four": [], "line": []}
    for item in items:
        ends = Ends(item["before"], item["after"], item["frames"])
        share = ((item["places"] + 1) / (item["frames"][:, None] + 1))[..., None, None]
        line = (1 - share) * item["before"][:, :1] + share * item["after"][:, :1]
        for key, made in (
            ("one", objective.between(ends, item["places"])),
            ("four", objective.between.estimate(ends, item["places"])),
            ("line", line),
        ):
            distances[key].append((made - item["joints"]).square().sum(dim=-1).sqrt())
    expected = {key: torch.stack(values).mean().item() for key, values in distances.items()}
    trained = objective(batch, ItemDraws((0, 0), range(4), torch.device("cpu")))
    assert trained["loss"].item() == pytest.approx(expected["one"], rel=1e-4)
    judged = objective(batch, ItemDraws((0, 0), range(4), torch.device("cpu")), validating=True)
    assert judged["loss"].item() == pytest.approx(expected["four"], rel=1e-4)
    assert judged["line"].item() == pytest.approx(expected["line"], rel=1e-4)


def test_noise_on_what_is_seen_is_the_items_own(dataset: InterHumanDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    gaps, objective = Gaps(dataset, 3, 8), objective_of(0.25)
    batch = objective.collate([gaps.draw(index, 0) for index in range(4)])
    seen_noise: list[torch.Tensor] = []
    forward = objective.between.forward

    def watched(ends: Ends, frames: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen_noise.append(noise)
        return forward(ends, frames, noise)

    monkeypatch.setattr(objective.between, "forward", watched)
    for numbers in (range(4), range(4), range(4, 8)):
        objective(batch, ItemDraws((0, 0), numbers, torch.device("cpu")))
    assert seen_noise[0].shape == (12, 10, 66)
    assert seen_noise[0].std().item() == pytest.approx(0.25, rel=0.05)
    assert torch.equal(seen_noise[0], seen_noise[1])
    assert not torch.equal(seen_noise[0], seen_noise[2])
    assert len({row.sum().item() for row in seen_noise[0]}) == 12


def test_what_is_seen_has_unit_variance(dataset: InterHumanDataset, tmp_path: Path) -> None:
    gaps = Gaps(dataset, 3, 8)
    write_seen(gaps, tmp_path / "seen.safetensors")
    tensors = load_safetensors(tmp_path / "seen.safetensors")
    items = [gaps.draw(index, 0) for index in range(len(gaps))]
    every = torch.cat([seen(Ends(item["before"], item["after"], item["frames"])) for item in items]).numpy()
    np.testing.assert_allclose(tensors["mean"], every.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(tensors["std"], every.std(axis=0) + 0.02, rtol=1e-4)


def test_a_model_learns_to_fill_gaps_and_stays_what_it_was(
    model: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    optim = {**VALUES["optim"], "steps": 150, "ema_decay": 0.9}
    between = {"width": 16, "code": 6, "waves": 3, "max_frames": 20}
    often = {"log_every": 50, "validate_every": 150, "checkpoint_every": 150}
    path = recipe(tmp_path, optim=optim, run=often, between=between, gaps=20)
    made = InterMoEPipeline.from_pretrained(run_between(path, tmp_path / "run", model=model, data=pairs))
    start = InterMoEPipeline.from_pretrained(model)
    assert made.config.between == BetweenConfig(width=16, code=6, waves=3, max_frames=20)
    before, after = (load_safetensors(each / "model.safetensors") for each in (model, tmp_path / "run" / "model"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {key.partition(".")[0] for key in after.keys() - before.keys()} == {"between"}
    call: dict[str, Any] = {"num_frames": 24, "seed": 5, "num_inference_steps": 2}
    assert torch.equal(made("two people bow", **call).motion, start("two people bow", **call).motion)
    statistics = load_safetensors(tmp_path / "run" / "seen.safetensors")
    assert made.between is not None
    assert torch.equal(made.between.mean, statistics["mean"])
    assert torch.equal(made.between.std, statistics["std"])
    others = Gaps(InterHumanDataset(pairs, "train", min_frames=16, max_frames=40, seed=3), 20, 20)
    objective = BetweenObjective(made.between, 0.0)
    batch = objective.collate([others.draw(index, 999) for index in range(len(others))])
    judged = objective(batch, None, validating=True)  # type: ignore[arg-type]
    assert judged["loss"] < 0.8 * judged["line"]
    assert "line" in capfd.readouterr().err


def test_a_run_goes_on_bit_for_bit(model: Path, pairs: Path, tmp_path: Path) -> None:
    whole = run_between(recipe(tmp_path), tmp_path / "whole", model=model, data=pairs)
    forward, calls = BetweenObjective.forward, []

    def stopped(self: BetweenObjective, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BetweenObjective, "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_between(recipe(tmp_path), tmp_path / "part", model=model, data=pairs)
    resumed = run_between(recipe(tmp_path), tmp_path / "part", model=model, data=pairs, resume=True)
    first, second = (load_safetensors(each / "model.safetensors") for each in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(FileExistsError):
        run_between(recipe(tmp_path), tmp_path / "part", model=model, data=pairs)


def test_each_value_of_the_recipe_counts(pairs: Path, dataset: InterHumanDataset, tmp_path: Path, model: Path) -> None:
    kept: list[Any] = []

    def fit(accelerator: Any, objective: Any, config: Any, train: Any, validation: Any, *_: Any, **__: Any) -> None:
        kept.append((objective, train, validation))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", fit)
        run_between(recipe(tmp_path, gaps=2, noise=0.125), tmp_path / "run", model=model, data=pairs)
    ((objective, train, validation),) = kept
    assert objective.noise == 0.125
    assert (train.count, train.max_frames, train.dataset.split) == (2, 8, "train")
    assert (validation.count, validation.max_frames, validation.dataset.split) == (2, 8, "val")
    assert train.draw(0, 0)["frames"].shape == (2,)
    assert [train.num_frames(index) for index in range(2)] == [2 * FRAMES] * 2
    assert objective.between.config.width == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gaps": 0}, "gaps: expected >= 1, got 0"),
        ({"noise": -0.1}, r"noise: expected >= 0, got -0.1"),
        ({"between": {"width": 0}}, r"between.width: expected >= 1, got 0"),
        ({"data": {"representation": "interx", "mirror": False}}, "data.representation: expected 'interhuman'"),
    ],
)
def test_values_that_are_none_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BetweenTrainConfig.from_dict({**VALUES, **changes})


def test_a_model_of_another_system_or_motion_is_refused(
    tiny_pipeline: InterMoEPipeline, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    values = json.loads((model / "config.json").read_text())
    values["system"] = "mdm"
    (model / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="model: expected one of InterMoEPipeline"):
        run_between(recipe(tmp_path), tmp_path / "run", model=model, data=pairs)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(InterMoEPipeline, "from_pretrained", lambda path: tiny_pipeline)
    object.__setattr__(tiny_pipeline.config.vae, "representation", "interx")
    try:
        with pytest.raises(ValueError, match=r"data.representation: expected 'interx', which this model is for"):
            run_between(recipe(tmp_path), tmp_path / "run", model=model, data=pairs)
    finally:
        object.__setattr__(tiny_pipeline.config.vae, "representation", "interhuman")
