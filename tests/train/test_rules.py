"""Rules of training that an average run would not show: each case is made so that the wrong rule gives another sign."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.data.items import MotionItem
from intermoe.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.loop import Batch, Objective, Trainer, fit
from intermoe.train.stream import StreamSampler

CPU = torch.device("cpu")
# A token's logits of two experts: above 0 it is taken, for sigmoid(3) - 0.5 > 0.
FIRST, SECOND, BOTH, NONE = (3.0, -3.0), (-3.0, 3.0), (3.0, 3.0), (-3.0, -3.0)


class Constants:
    """Item i is constant i, of ``frames[i]`` frames (4 by default)."""

    def __init__(self, length: int, frames: Sequence[int] | None = None) -> None:
        self.frames = frames or [4] * length

    def __len__(self) -> int:
        return len(self.frames)

    def num_frames(self, index: int) -> int:
        return self.frames[index]

    def draw(self, index: int, epoch: int) -> MotionItem:
        motion = torch.full((2, self.frames[index], 262), float(index))
        return {"name": f"item{index}", "motion": motion, "caption": str(index)}


def config(batch_size: int = 1, run: RunConfig | None = None, **optim: Any) -> TrainConfig:
    values = {"steps": 1, "warmup_steps": 0, "schedule": "constant", "learning_rate": 1e-6, "clip": "none", **optim}
    data = DataConfig(batch_size=batch_size)
    return TrainConfig(data=data, optim=OptimConfig.from_dict(values), run=run or RunConfig())


class Scripted(Objective):
    """One block; its k-th training forward gets the tokens of ``script[k]``, whatever the data."""

    def __init__(self, script: Sequence[Sequence[tuple[float, float]]], pool: str = "batch") -> None:
        super().__init__()
        options = {"cond_dim": None, "norm": "none", "backend": "reference", "bias_rate": 0.01, "pool": pool}
        self.moe = InterMoEBlock(dim=2, num_experts=2, expert_dim=4, **options)
        with torch.no_grad():
            self.moe.motion_router.copy_(torch.eye(2))
        self.script = [torch.tensor(tokens)[None] for tokens in script]
        self.calls = 0
        self.biases: list[list[float]] = []

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        self.biases.append(self.moe.selection_bias.tolist())
        self.calls += 1
        return {"loss": self.moe(self.script[self.calls - 1]).square().mean()}


def bias_after(script: Sequence[Sequence[tuple[float, float]]], path: Path, pool: str = "batch") -> Tensor:
    """In units of the rate, after steps of two micro-steps."""
    objective = Scripted(script, pool)
    settings = config(steps=len(script) // 2, accumulation_steps=2)
    state = fit(Accelerator(), objective, settings, Constants(8), None, path, resume=False)
    assert state is not None
    assert objective.calls == len(script)
    for first, second in zip(objective.biases[::2], objective.biases[1::2], strict=True):
        assert first == second, "the bias moves between steps, not between micro-steps"
    return ((state["moe.selection_bias"] + 0.5) / 0.01).round()


# 7 and 3 of 10 tokens; of the last micro-step alone 1 and 3 of 4, which asks for the opposite
SUM_DECIDES = [[FIRST] * 6, [FIRST, SECOND, SECOND, SECOND]]
# 4 and 6 of 10; added to the step before 11 and 9 of 20, and of the first micro-step alone 3 and 1
OWN_STEP_DECIDES = [[FIRST, FIRST, FIRST, SECOND], [FIRST, *[SECOND] * 5]]


def test_the_bias_moves_by_the_sum_over_micro_steps(tmp_path: Path) -> None:
    assert bias_after(SUM_DECIDES, tmp_path).tolist() == [-1, 1]


def test_every_step_counts_anew(tmp_path: Path) -> None:
    # the second step undoes the first, the third does the same once more
    assert bias_after([*SUM_DECIDES, *OWN_STEP_DECIDES], tmp_path / "two").tolist() == [0, 0]
    assert bias_after([*SUM_DECIDES, *OWN_STEP_DECIDES, *OWN_STEP_DECIDES], tmp_path / "three").tolist() == [1, -1]


def test_tokens_without_an_expert_count_as_tokens(tmp_path: Path) -> None:
    """3 and 2 of 8 tokens, where 4 are due: both move up. Without the idle tokens 2.5 would be due."""
    assert bias_after([[FIRST] * 3 + [NONE], [SECOND] * 2 + [NONE] * 2], tmp_path).tolist() == [1, 1]


def test_what_is_logged_is_of_all_micro_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}
    monkeypatch.setattr(Accelerator, "log", lambda _, values, step=None, **__: seen.update(values))
    objective = Scripted([[FIRST] * 3 + [NONE], [SECOND, BOTH, NONE, NONE]])
    settings = config(run=RunConfig(log_every=1), accumulation_steps=2)
    fit(Accelerator(), objective, settings, Constants(8), None, tmp_path, resume=False)
    assert (seen["routing/moe/expert0"], seen["routing/moe/expert1"]) == (4, 2)
    assert seen["routing/moe/experts_per_token"] == pytest.approx(6 / 8)
    assert seen["routing/moe/tokens_without_expert"] == pytest.approx(3 / 8)


def test_what_is_logged_of_routing_is_of_the_step_that_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second step and the last; of each its own tokens, with one expert or none, and not those in between."""
    seen: dict[int, dict[str, float]] = {}

    def log(_: Accelerator, values: dict[str, float], step: int, **__: Any) -> None:
        seen.setdefault(step, {}).update(values)

    monkeypatch.setattr(Accelerator, "log", log)
    objective = Scripted([[FIRST] * taken + [NONE] * (8 - taken) for taken in (7, 6, 5, 3, 2)])
    settings = config(run=RunConfig(log_every=2), steps=5)
    fit(Accelerator(), objective, settings, Constants(8), None, tmp_path, resume=False)
    assert list(seen) == [2, 4, 5]
    for step, taken in ((2, 6), (4, 3), (5, 2)):
        assert seen[step]["routing/moe/tokens_without_expert"] == pytest.approx(1 - taken / 8)
        assert seen[step]["routing/moe/experts_per_token"] == pytest.approx(taken / 8)
        assert (seen[step]["routing/moe/expert0"], seen[step]["routing/moe/expert1"]) == (taken, 0)


def test_votes_of_samples_add_up_over_micro_steps(tmp_path: Path) -> None:
    """Three samples (one a micro-step and one that has no say) vote; counts alone would decide otherwise."""
    # sample 1: 2 and 1 of 3, 1.5 due: +1, -1; sample 2: 0 and 9 of 9: -1, +1 -> 0, 0. By counts: 2 and 10 of 12.
    assert bias_after([[FIRST, FIRST, SECOND], [SECOND] * 9], tmp_path / "even", pool="sample").tolist() == [0, 0]
    # sample 2 again, but with 5 of 9 and 9 of 9: +1, +1. By counts: 7 and 10 of 12.
    script = [[FIRST, FIRST, SECOND], [BOTH] * 5 + [SECOND] * 4]
    assert bias_after(script, tmp_path / "odd", pool="sample").tolist() == [-1, 0]


def test_validation_moves_no_bias_and_counts_nothing(tmp_path: Path) -> None:
    class Validated(Scripted):
        def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
            if validating:  # everything to the second expert
                return {"loss": self.moe(torch.tensor([[SECOND] * 50])).mean()}
            return super().forward(batch, draws)

    run = RunConfig(validate_every=1)
    objective = Validated([*SUM_DECIDES, *SUM_DECIDES])
    settings = config(run=run, steps=2, accumulation_steps=2)
    state = fit(Accelerator(), objective, settings, Constants(8), Constants(2), tmp_path, resume=False)
    assert state is not None
    assert ((state["moe.selection_bias"] + 0.5) / 0.01).round().tolist() == [-2, 2]


class Rank:
    """An accelerator as process ``process_index`` of two sees it; a sum over processes is left to the test."""

    def __init__(self, process_index: int) -> None:
        self.accelerator, self.process_index, self.num_processes = Accelerator(), process_index, 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        return tensor


class Errors(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.drawn: dict[str, float] = {}

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        values = batch["motion"].mean(dim=(1, 2, 3))
        self.drawn |= dict(zip(batch["names"], draws.uniform().tolist(), strict=True))
        return {"loss": self.weight.mean() + values.mean()}


@pytest.mark.parametrize("items", [3, 5, 6])
def test_ranks_without_a_batch_of_their_own_add_nothing_to_validation(items: int, tmp_path: Path) -> None:
    """Batches of two over two ranks: 2 and 1 items; 2, 2 and 1; 2, 2 and 2, the last rank idle in the second turn."""
    objectives = [Errors() for _ in range(2)]
    means = []
    for rank, objective in enumerate(objectives):
        trainer = Trainer(Accelerator(), objective, config(2), Constants(8), None, tmp_path)
        trainer.accelerator = Rank(rank)  # type: ignore[assignment]
        means.append(trainer._validate(Constants(items))["loss"])
    assert sum(means) == pytest.approx(sum(range(items)) / items)
    alone = Errors()
    trainer = Trainer(Accelerator(), alone, config(2), Constants(8), None, tmp_path)
    assert trainer._validate(Constants(items))["loss"] == pytest.approx(sum(range(items)) / items)
    for objective in objectives:  # what is drawn for an item does not depend on the ranks
        assert objective.drawn.items() <= alone.drawn.items()
    assert len(set(alone.drawn.values())) == items


class Line(Objective):
    """A loss of constant slope: AdamW moves the weight by the learning rate in every step."""

    def __init__(self, slope: float, start: float = 1.0) -> None:
        super().__init__()
        self.weight, self.slope = nn.Parameter(torch.full((1,), start)), slope
        self.seen: list[float] = []

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        self.seen.append(self.weight.item())
        return {"loss": self.slope * self.weight.sum()}


def line(path: Path, slope: float, **optim: Any) -> list[float]:
    """The weight before each step and, last, after all."""
    objective = Line(slope)
    values = {"weight_decay": 0.0, "learning_rate": 0.1, "ema_decay": 0.0, **optim}
    fit(Accelerator(), objective, config(**values), Constants(8), None, path, resume=False)
    return [*objective.seen, objective.weight.item()]


def test_weight_decay_shrinks_weights_without_a_gradient(tmp_path: Path) -> None:
    assert line(tmp_path / "a", 0.0, steps=2, weight_decay=0.5) == pytest.approx([1, 0.95, 0.95**2])
    assert line(tmp_path / "b", 0.0, steps=2) == [1, 1, 1]


def test_the_learning_rate_follows_its_schedule_step_by_step(tmp_path: Path) -> None:
    constant = line(tmp_path / "a", 5.0, steps=3)
    assert constant == pytest.approx([1, 0.9, 0.8, 0.7], abs=1e-5)
    cosine = line(tmp_path / "b", 5.0, steps=6, warmup_steps=2, schedule="cosine")
    rates = [0.1 / 3, 0.2 / 3, *(0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(4))]
    assert [a - b for a, b in itertools.pairwise(cosine)] == pytest.approx(rates, abs=1e-5)


def test_the_learning_rate_falls_in_steps_where_it_is_said(tmp_path: Path) -> None:
    weights = line(tmp_path, 5.0, steps=5, schedule="steps", decay=0.25, decay_at=[0.4, 0.8])
    moved = [a - b for a, b in itertools.pairwise(weights)]
    assert moved == pytest.approx([0.1, 0.1, 0.025, 0.025, 0.00625], abs=1e-5)


def test_gradients_are_clipped_as_they_are_without_a_loss_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale of 1000, as float16 has one: gradients of 0.4 stay, those of 5 are clipped at 1."""

    def unscale(accelerator: Accelerator, optimizer: Any = None) -> None:
        objective.weight.grad.div_(1000)

    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)
    for slope, clipped in ((0.4, 0.4), (5.0, 1.0)):
        objective = Line(1000 * slope)
        trainer = Trainer(Accelerator(), objective, config(clip="value"), Constants(8), None, tmp_path)
        trainer._optimise(trainer._batches())
        assert objective.weight.grad.item() == pytest.approx(clipped)


def test_the_loss_scale_of_float16_goes_on_where_it_was(tmp_path: Path) -> None:
    def trainer(scaler: Any) -> Trainer:
        made = Trainer(Accelerator(), Line(1.0), config(steps=3), Constants(8), None, tmp_path)
        made._optimise(made._batches())
        made.step, made.accelerator.scaler = 1, scaler
        return made

    trainer(SimpleNamespace(state_dict=lambda: {"scale": 512.0}))._save()
    found: list[dict[str, float]] = []
    (path,) = (tmp_path / "checkpoints").iterdir()
    trainer(SimpleNamespace(load_state_dict=found.append))._load(path)
    assert found == [{"scale": 512.0}]


def test_betas_are_those_of_the_moments(tmp_path: Path) -> None:
    """Slopes 1 and then -2: m = ((1 - b1) (b1 - 2)) / (1 - b1^2), v = ((1 - b2) (b2 + 4)) / (1 - b2^2)."""

    class Turning(Line):
        def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
            self.slope = (1.0, -2.0)[len(self.seen)]
            return super().forward(batch, draws)

    for first, second in ((0.9, 0.999), (0.5, 0.8)):
        objective = Turning(1.0)
        settings = config(steps=2, betas=[first, second], learning_rate=0.1, weight_decay=0.0)
        fit(Accelerator(), objective, settings, Constants(8), None, tmp_path / str(first), resume=False)
        m = (1 - first) * (first - 2) / (1 - first**2)
        v = (1 - second) * (second + 4) / (1 - second**2)
        assert objective.weight.item() == pytest.approx(1 - 0.1 - 0.1 * m / math.sqrt(v), abs=1e-5)


def test_the_average_that_is_kept_warms_up(tmp_path: Path) -> None:
    """Weights 0.9, 0.8, 0.7; decays 1/10, 2/11, 3/12, and at most what was asked for."""
    for decay in (0.999, 0.15):
        expected = 1.0
        for n, weight in enumerate((0.9, 0.8, 0.7)):
            share = min(decay, (1 + n) / (10 + n))
            expected = share * expected + (1 - share) * weight
        settings = config(steps=3, ema_decay=decay, learning_rate=0.1, weight_decay=0.0)
        state = fit(Accelerator(), Line(5.0), settings, Constants(8), None, tmp_path / str(decay), resume=False)
        assert state is not None
        assert state["weight"].item() == pytest.approx(expected, abs=1e-5)


class Drawing(Line):
    """Writes down what it draws: for each item, and for dropout."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.items: list[float] = []
        self.dropout: list[float] = []
        self.names: list[str] = []

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        self.items += draws.uniform().tolist()
        self.dropout.append(torch.rand(()).item())
        self.names += batch["names"]
        return super().forward(batch, draws)


def drawn(path: Path, seed: int = 0, *, batch_size: int = 2, micro_steps: int = 2) -> Drawing:
    objective = Drawing()
    settings = config(batch_size, steps=3, accumulation_steps=micro_steps)
    settings = TrainConfig(seed=seed, data=settings.data, optim=settings.optim, run=settings.run)
    fit(Accelerator(), objective, settings, Constants(40), None, path, resume=False)
    return objective


def test_numbers_of_an_item_depend_on_seed_step_and_place_in_the_step(tmp_path: Path) -> None:
    whole, parts, other = (
        drawn(tmp_path / "whole", batch_size=4, micro_steps=1), drawn(tmp_path / "parts"), drawn(tmp_path / "other", 1)
    )  # fmt: skip
    assert whole.items == parts.items, "however a step is shared"
    assert whole.names == parts.names
    assert len(set(whole.items)) == 12
    assert len(set(parts.dropout)) >= 3, "dropout is drawn anew in every step"
    for name in ("items", "dropout"):
        assert not set(getattr(parts, name)) & set(getattr(other, name)), "and by the run's seed"
    assert parts.names != other.names


def test_a_step_is_of_the_items_of_all_ranks(tmp_path: Path) -> None:
    """Two ranks of two micro-steps of two items each: 8 a step, which is what epochs are counted in."""
    settings = config(2, accumulation_steps=2, epochs=3, warmup_epochs=1.0)
    ranks = []
    for rank in range(2):
        objective = Drawing()
        trainer = Trainer(Rank(rank), objective, settings, Constants(40), None, tmp_path)  # type: ignore[arg-type]
        assert trainer.global_batch == 8
        assert (trainer.optim.steps, trainer.optim.warmup_steps) == (15, 5)
        trainer._optimise(trainer._batches())
        ranks.append(objective)
    whole = drawn(tmp_path / "whole", batch_size=8, micro_steps=1)
    first, second = (sorted(zip(rank.names, rank.items, strict=True)) for rank in ranks)
    assert sorted(first + second) == sorted(zip(whole.names[:8], whole.items[:8], strict=True))
    assert len({*ranks[0].dropout, *ranks[1].dropout}) == 4, "dropout of every rank and micro-step is its own"


def test_accumulated_losses_weigh_every_frame_alike(tmp_path: Path) -> None:
    """Two micro-batches of 18 and 4 frames whose mean losses have slopes of their own."""

    class Slopes(Line):
        def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
            return {"loss": batch["motion"].mean() * self.weight.sum()}

    frames, steps = [18, 4, 4], 30  # 4, 1 and 1 whole groups of 4, which is what latents have
    draws = list(StreamSampler(frames, 1, range(2 * steps), seed=0, parts=2))
    items = [[index for (index, _), *_ in draws[2 * step : 2 * step + 2]] for step in range(steps)]
    objective = Slopes(0.0)
    settings = config(accumulation_steps=2, steps=steps)
    trainer = Trainer(Accelerator(), objective, settings, Constants(3, frames), None, tmp_path)
    trainer.step = next(step for step, pair in enumerate(items) if 0 in pair and max(pair) > 0)
    losses = trainer._optimise(trainer._batches())
    expected = (4 * 0.0 + 1 * max(items[trainer.step])) / 5
    assert objective.weight.grad is not None
    assert objective.weight.grad.item() == pytest.approx(expected)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("every", [1, 3])
def test_logging_validation_and_checkpoints_come_when_they_are_due(every: int, tmp_path: Path) -> None:
    seen: list[bool] = []

    class Watched(Line):
        def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
            seen.append(validating)
            assert self.training is not validating
            return super().forward(batch, draws)

    run = RunConfig(log_every=2, validate_every=every, checkpoint_every=every, keep_checkpoints=2)
    settings = config(steps=7, run=run)
    fit(Accelerator(), Watched(1.0), settings, Constants(8), Constants(1), tmp_path, resume=False)
    due = {1: list(range(1, 8)), 3: [3, 6, 7]}[every]
    expected = [value for step in range(1, 8) for value in ([False, True] if step in due else [False])]
    assert seen == expected
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in due[-2:]]


def test_the_learning_rate_that_is_logged_is_the_next_step_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, float] = {}

    def log(_: Accelerator, values: dict[str, float], step: int, **__: Any) -> None:
        if "train/learning_rate" in values:
            seen[step] = values["train/learning_rate"]

    monkeypatch.setattr(Accelerator, "log", log)
    settings = config(run=RunConfig(log_every=1), steps=4, warmup_steps=2, learning_rate=3e-6)
    fit(Accelerator(), Scripted([[FIRST]] * 4), settings, Constants(8), None, tmp_path, resume=False)
    assert seen == pytest.approx({1: 2e-6, 2: 3e-6, 3: 3e-6, 4: 3e-6})


def test_losses_are_read_on_a_device_when_something_is_due() -> None:
    """To read them a device has to be waited for; on a CPU they are there at once."""
    run = RunConfig(log_every=4, validate_every=6, checkpoint_every=5)

    def read(device: str) -> list[int]:
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(device=torch.device(device)),
            config=config(run=run),
            optim=OptimConfig(steps=11, warmup_steps=0),
        )
        trainer._due = lambda every: Trainer._due(trainer, every)  # type: ignore[arg-type]
        return [step for trainer.step in range(1, 12) for step in [trainer.step] if Trainer._reads_losses(trainer)]

    assert read("cuda") == [4, 5, 6, 8, 10, 11]
    assert read("cpu") == list(range(1, 12))


def test_the_rate_is_of_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of which a step takes 1 second and a validation 100: two items a second, before and after it."""
    clock = [0.0]
    rates: list[float] = []

    def passing(name: str, seconds: float) -> None:
        original = getattr(Trainer, name)

        def timed(self: Any, *arguments: Any) -> Any:
            clock[0] += seconds
            return original(self, *arguments)

        monkeypatch.setattr(Trainer, name, timed)

    passing("_optimise", 1.0)
    passing("_validate", 100.0)
    monkeypatch.setattr(Trainer, "_log_training", lambda self, losses, rate: rates.append(rate))
    monkeypatch.setattr("intermoe.train.loop.time.perf_counter", lambda: clock[0])
    run = RunConfig(log_every=1, validate_every=2, checkpoint_every=100)
    objective = Scripted([[FIRST]] * 100)
    fit(Accelerator(), objective, config(2, run, steps=4), Constants(8), Constants(2), tmp_path, resume=False)
    assert rates == [2.0] * 4
