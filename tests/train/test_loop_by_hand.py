"""What the loop hands on: to the optimiser, to other processes, to the log, and whose numbers are whose."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.data.items import MotionItem
from intermoe.metrics.distribution import frechet_distance
from intermoe.train import loop
from intermoe.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.loop import Batch, Objective, Trainer, fit

CPU = torch.device("cpu")


class Numbers:
    """Item i is constant i, of four frames; item ``broken`` is not a number. Writes down what it is asked for."""

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length, self.broken = length, broken
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.length

    def num_frames(self, index: int) -> int:
        return 4

    def draw(self, index: int, epoch: int) -> MotionItem:
        self.asked.append((index, epoch))
        value = float("nan") if index == self.broken else float(index)
        return {"name": f"item{index}", "motion": torch.full((1, 4, 3), value), "caption": ""}


class Weighed(Objective):
    """Two weights of which one is frozen; the loss is the mean of the data times the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.fixed = nn.Parameter(torch.ones(1000)), nn.Parameter(torch.ones(60_000))
        self.fixed.requires_grad_(False)
        self.drawn: list[tuple[bool, list[float]]] = []
        self.dropout: list[float] = []

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        self.dropout.append(torch.rand(()).item())
        self.drawn.append((validating, draws.uniform().tolist()))
        value = batch["motion"].mean()
        return {"loss": value * self.weight.mean(), "value": value}


def settings(batch_size: int = 2, run: RunConfig | None = None, seed: int = 0, **optim: Any) -> TrainConfig:
    values = {"steps": 4, "warmup_steps": 0, "schedule": "constant", "learning_rate": 1e-9, "clip": "none", **optim}
    data = DataConfig(batch_size=batch_size)
    return TrainConfig(seed=seed, data=data, optim=OptimConfig.from_dict(values), run=run or RunConfig())


class Two:
    """An accelerator as one of two processes sees it, whose sums are twice its own and whose means 1 more."""

    num_processes = 2

    def __init__(self, process_index: int = 0) -> None:
        self.accelerator, self.process_index, self.unsynced = Accelerator(), process_index, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        return {"sum": 2 * tensor, "mean": tensor + 1}[reduction]

    @contextlib.contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        self.unsynced += 1
        yield


def trainer(accelerator: Any, objective: Objective, config: TrainConfig, path: Path, train: Any = None) -> Trainer:
    return Trainer(accelerator, objective, config, train or Numbers(8), None, path)


def test_the_optimizer_has_what_is_trained_and_its_values(tmp_path: Path) -> None:
    objective = Weighed()
    config = settings(learning_rate=3e-3, weight_decay=0.25, betas=[0.5, 0.75])
    made = trainer(Accelerator(), objective, config, tmp_path)
    (group,) = made.optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(objective.weight)]
    assert (group["lr"], group["weight_decay"], group["betas"], group["fused"]) == (3e-3, 0.25, (0.5, 0.75), True)
    assert type(made.optimizer.optimizer) is torch.optim.AdamW
    assert [id(parameter) for parameter in made.average.parameters] == [id(objective.weight)]


def test_what_is_begun_is_told_in_numbers(tmp_path: Path) -> None:
    """Weights that are trained, items, and the steps that are left."""
    config = settings(3, steps=9, accumulation_steps=2)
    objective = Weighed()
    objective.weight = nn.Parameter(torch.ones(1_260_000))
    made = Trainer(Two(), objective, config, Numbers(8), Numbers(5), tmp_path)  # type: ignore[arg-type]
    made.step = 4
    assert made._begun() == "1.3 million weights, 8 items to train on, 5 to validate, 12 a step, steps 4 to 9, 2 x cpu"
    made.validation = None
    assert ", 0 to validate," in made._begun()
    made.step = 9
    assert made._begun() == "finished already, at step 9 of optim.steps=9; ask for more to go on"
    assert trainer(Accelerator(), Weighed(), config, tmp_path)._begun().startswith("0.0 million weights,")


def test_dropout_shares_its_numbers_with_no_item(tmp_path: Path) -> None:
    """Noise and dropout that came from one seed would be drawn alike."""
    objective = Weighed()
    made = trainer(Accelerator(), objective, settings(seed=3), tmp_path)
    batches = made._batches()
    for made.step in range(3):
        made._optimise(batches)
    items = {value for _, values in objective.drawn for value in values}
    assert len({*objective.dropout, *items}) == 3 + 6


def test_gradients_are_exchanged_in_the_last_micro_step_alone(tmp_path: Path) -> None:
    for micro_steps in (1, 3):
        accelerator = Two()
        made = trainer(accelerator, Weighed(), settings(1, accumulation_steps=micro_steps), tmp_path)
        made._optimise(made._batches())
        assert accelerator.unsynced == micro_steps - 1


def test_what_is_logged_is_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are means over processes, counts and validation sums over them."""
    seen: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(Accelerator, "log", lambda _, values, step, **__: seen.append((step, values)))

    class Routed(Weighed):
        def __init__(self) -> None:
            super().__init__()
            self.moe = InterMoEBlock(3, 2, 4, None, norm="none", backend="reference")

    made = trainer(Two(), Routed(), settings(2), tmp_path)
    made.step, block = 3, made.objective.moe
    block.expert_counts, block.token_count = torch.tensor([3, 5]), torch.tensor(16)
    made._log_training({"loss": torch.tensor(0.5), "other": torch.tensor(4.0)}, rate=7.0)
    (first, training), (second, routing) = seen
    assert first == second == 3
    assert training == {
        "train/loss": 1.5, "train/other": 5.0, "train/items_per_second": 7.0, "train/learning_rate": 1e-9,
    }  # fmt: skip
    assert (routing["routing/moe/expert0"], routing["routing/moe/expert1"]) == (6.0, 10.0)
    assert routing["routing/moe/experts_per_token"] == pytest.approx(8 / 16)
    assert made._balance() == "expert load 0.38 to 0.62"
    # of five items the first of two processes has items 0 and 1, then 4: twice their sum over five
    assert made._validate(Numbers(5))["value"] == pytest.approx(2 * (0 + 1 + 4) / 5)
    assert trainer(Two(), Weighed(), settings(2), tmp_path)._balance() == ""


def test_validation_draws_each_item_as_it_is_at_first_and_with_its_own_numbers(tmp_path: Path) -> None:
    """In every validation alike, and not with the numbers of a training step."""
    objective, items = Weighed(), Numbers(5)
    made = trainer(Accelerator(), objective, settings(2, seed=9), tmp_path)
    for made.step in (0, 3):
        made._validate(items)
    assert items.asked == 2 * [(index, 0) for index in range(5)]
    own = ItemDraws((9, 1), range(5), CPU).uniform().tolist()
    expected = [own[:2], own[2:4], own[4:]]
    assert objective.drawn == [(True, values) for values in 2 * expected]


def test_a_loss_that_is_read_late_is_told_with_its_own_step_and_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device, where losses are read when something is due."""
    monkeypatch.setattr(Trainer, "_reads_losses", lambda self: self._due(3))
    made = trainer(Accelerator(), Weighed(), settings(1, steps=8), tmp_path, Numbers(8, broken=5))
    batches = made._batches()
    found: list[str] = []
    while made.step < 8 and not found:
        made._optimise(batches)
        made.step += 1
        if made._reads_losses():
            try:
                made._require_finite()
            except FloatingPointError as error:
                found.append(str(error))
            else:
                assert made.unread == []
    steps = [step for step, _, names in made.unread if "item5" in names]
    assert found == [f"non-finite loss at step {steps[0]} (loss nan, value nan); items of the batch: item5"]
    # the stream of eight items, one a step: the step is that in which the item came
    again = trainer(Accelerator(), Weighed(), settings(1, steps=8), tmp_path)
    assert [batch["names"] for batch, _ in again._batches()].index(["item5"]) + 1 == steps[0]


def test_what_is_told_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    class Progress:
        def __init__(self, *arguments: Any, shown: bool) -> None:
            told.append(("begun", *arguments, shown))

        def __enter__(self) -> Progress:
            return self

        def __exit__(self, *_: object) -> None:
            told.append(("ended",))

        def say(self, line: str) -> None:
            pass

        def note(self, line: str) -> None:
            told.append(("note", line))

        def advance(self, step: int, loss: float, rate: float, balance: str, *, logged: bool) -> None:
            told.append((step, loss, balance, logged))

        def validated(self, step: int, values: dict[str, float]) -> None:
            told.append(("validated", step, values["value"]))

    monkeypatch.setattr(loop, "RunProgress", Progress)
    balances = iter(["even", "uneven"])
    monkeypatch.setattr(Trainer, "_balance", lambda self: next(balances))
    ended: list[int] = []
    tracker = SimpleNamespace(name="kept", finish=lambda: ended.append(1), log=lambda *_, **__: None)
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name: setattr(self, "trackers", [tracker]))
    run = RunConfig(log_every=2, validate_every=3, checkpoint_every=3, keep_checkpoints=1)
    made = Trainer(Accelerator(), Weighed(), settings(2, run, steps=4), Numbers(8), Numbers(3), tmp_path)
    losses = iter([4.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(Trainer, "_optimise", lambda self, batches: {"loss": torch.tensor(next(losses))})
    monkeypatch.setattr(Trainer, "_require_finite", lambda self: None)
    made.run(resume=False)
    folder = tmp_path / "checkpoints"
    assert told == [
        ("begun", 4, 0, 2, True),
        (1, 4.0, "", False), (2, 3.0, "even", True), (3, 2.0, "even", False),
        ("validated", 3, 1.0), ("note", f"checkpoint at step 3 in {folder}"),
        (4, 1.0, "uneven", True), ("validated", 4, 1.0), ("note", f"checkpoint at step 4 in {folder}"),
        ("ended",),
    ]  # fmt: skip
    assert ended == [1]
    made.step = 0
    monkeypatch.setattr(Trainer, "_optimise", lambda self, batches: pytest.fail("an error"))
    with pytest.raises(pytest.fail.Exception, match="an error"):
        made.run(resume=False)
    assert ended == [1, 1], "what was logged is on disk when a run fails"


class Generating(Objective):
    """Features of an item: its number and 1 as they are, its number's square and 2 as they are made."""

    generates = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.asked: list[tuple[list[str], bool]] = []

    def forward(
        self, batch: Batch, draws: ItemDraws, validating: bool = False, generating: bool = False
    ) -> dict[str, Tensor]:
        self.asked.append((batch["names"], generating))
        value = batch["motion"].mean(dim=(1, 2, 3))
        features = {
            "generated": torch.stack([value**2, torch.full_like(value, 2)], dim=1),
            "real": torch.stack([value, torch.ones_like(value)], dim=1),
        }
        return {"loss": value.mean()} | (features if generating else {})


def made_for(clips: int, accelerator: Any, path: Path) -> tuple[Generating, Trainer]:
    objective = Generating()
    return objective, trainer(accelerator, objective, settings(2, RunConfig(fid_clips=clips)), path)


@pytest.mark.parametrize(("clips", "items"), [(2, 2), (3, 4), (4, 4), (9, 7)])
def test_as_many_clips_are_generated_as_asked_for_in_whole_batches(clips: int, items: int, tmp_path: Path) -> None:
    """Batches of two of seven items, as long as their first one is among the clips."""
    objective, made = made_for(clips, Accelerator(), tmp_path)
    values = made._validate(Numbers(7))
    assert [names for names, generating in objective.asked if generating] == [
        [f"item{index}" for index in range(start, min(start + 2, 7))] for start in range(0, items, 2)
    ]
    numbers = np.arange(items, dtype=np.float64)
    generated, real = np.stack([numbers**2, 0 * numbers + 2], axis=1), np.stack([numbers, 0 * numbers + 1], axis=1)
    assert values["fid"] == pytest.approx(frechet_distance(generated, real), rel=1e-4)
    assert values["loss"] == pytest.approx(3.0)
    assert set(values) == {"loss", "fid"}


def test_clips_of_all_processes_are_compared_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of two over two processes: the second repeats the last one in the second turn, for nothing."""
    parts: list[list[Any]] = []
    monkeypatch.setattr(loop, "gather_object", lambda features: parts.append(features) or features)
    for rank in (0, 1):
        objective, made = made_for(6, Two(rank), tmp_path)
        made._validate(Numbers(6))
        assert [generating for _, generating in objective.asked] == [True, True]
    reals = [[pair[1][:, 0].tolist() for pair in part] for part in parts]
    assert reals == [[[0, 1], [4, 5]], [[2, 3]]]
    everything = [*parts[0], *parts[1]]
    monkeypatch.setattr(loop, "gather_object", lambda features: everything)
    _, made = made_for(6, Two(), tmp_path)
    generated, real = (np.concatenate(rows) for rows in zip(*everything, strict=True))
    assert made._validate(Numbers(6))["fid"] == pytest.approx(frechet_distance(generated, real))


def test_all_processes_generate_in_the_same_turns(tmp_path: Path) -> None:
    """Two clips lie in the first batch, whose turn is that of the second process, too."""
    for rank in (0, 1):
        objective, made = made_for(2, Two(rank), tmp_path)
        made._validate(Numbers(6))
        assert [generating for _, generating in objective.asked] == [True, False]


def test_one_clip_alone_has_no_distance(tmp_path: Path) -> None:
    _, made = made_for(2, Accelerator(), tmp_path)
    assert set(made._validate(Numbers(1))) == {"loss"}
    assert set(made._validate(Numbers(2))) == {"loss", "fid"}


def test_no_clip_is_generated_that_is_not_asked_for(tmp_path: Path) -> None:
    objective, made = made_for(0, Accelerator(), tmp_path)
    assert set(made._validate(Numbers(3))) == {"loss"}
    assert [generating for _, generating in objective.asked] == [False, False]


class Sliding(Objective):
    """A loss of constant slope: AdamW moves the weight by the rate of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[float] = []

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        self.seen.append(self.weight.item())
        return {"loss": 5 * self.weight.sum()}


def test_a_run_that_goes_on_for_more_steps_has_their_rates_from_the_first_on(tmp_path: Path) -> None:
    """Whatever the rate was at which it ended, which is 0 where it was finished."""
    values = {"schedule": "cosine", "learning_rate": 0.1, "weight_decay": 0.0, "ema_decay": 0.0}
    fit(Accelerator(), Sliding(), settings(steps=4, **values), Numbers(8), None, tmp_path, resume=False)
    longer = Sliding()
    fit(Accelerator(), longer, settings(steps=8, **values), Numbers(8), None, tmp_path, resume=True)
    weights = [*longer.seen, longer.weight.item()]
    rates = [0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(4, 8)]
    assert [a - b for a, b in itertools.pairwise(weights)] == pytest.approx(rates, abs=1e-5)


def test_what_is_read_of_a_run_is_what_it_had(tmp_path: Path) -> None:
    """Counters, rate and optimiser, where nothing of the run changes."""
    config = settings(steps=6, schedule="cosine", warmup_steps=2, learning_rate=0.1)
    before, after = (trainer(Accelerator(), Sliding(), config, tmp_path) for _ in range(2))
    batches = before._batches()
    for before.step in range(3):
        before._optimise(batches)
    before.step = 3
    before._save()
    after._load(tmp_path / "checkpoints" / "step-00000003")
    assert after.step == 3
    assert after._counters() == before._counters()
    one, other = (made.optimizer.optimizer.state_dict() for made in (before, after))
    (group,), (found,) = one["param_groups"], other["param_groups"]
    assert {**found, "betas": tuple(found["betas"])} == group
    assert group["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)))
    for name, value in one["state"][0].items():
        assert torch.equal(value, other["state"][0][name]), name
    assert torch.equal(after.average.shadow[0], before.average.shadow[0])
    assert not torch.equal(after.average.shadow[0], after.parameters[0].detach())
