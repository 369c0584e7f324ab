from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from intermoe.data.items import MotionItem
from intermoe.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.loop import Batch, Objective, Trainer, fit, warmup_schedule
from intermoe.train.progress import RunProgress


class Constants:
    """Item i is constant i; item ``broken`` is not a number."""

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def num_frames(self, index: int) -> int:
        return 8

    def draw(self, index: int, epoch: int) -> MotionItem:
        value = math.nan if index == self.broken else float(index)
        return {"name": f"item{index}", "motion": torch.full((2, 8, 262), value), "caption": ""}


class MeanOfData(Objective):
    """One vector that should become the mean of the data, pulled with a strength of 100."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.drawn: list[Tensor] = []

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        self.drawn.append(torch.cat([torch.rand(1), draws.uniform()]))
        errors = self.weight - batch["motion"].mean(dim=(1, 2, 3))[:, None]
        return {"loss": 100 * errors.square().mean(), "error": errors.abs().mean()}


def _config(batch_size: int = 4, **optim: object) -> TrainConfig:
    values = {"steps": 3, "warmup_steps": 0, "schedule": "constant", "learning_rate": 0.1, **optim}
    run = RunConfig(log_every=1, validate_every=2, checkpoint_every=2)
    return TrainConfig(data=DataConfig(batch_size=batch_size), optim=OptimConfig.from_dict(values), run=run)


def _gradient(tmp_path: Path, config: TrainConfig) -> Tensor:
    """Of the first step, as it went into the optimiser."""
    objective = MeanOfData()
    trainer = Trainer(Accelerator(), objective, config, Constants(8), None, tmp_path)
    trainer._optimise(trainer._batches())
    assert objective.weight.grad is not None
    return objective.weight.grad.clone()


def test_gradients_are_clipped(tmp_path: Path) -> None:
    free = _gradient(tmp_path, _config(clip="none"))
    assert free.abs().min() > 1
    torch.testing.assert_close(_gradient(tmp_path, _config(clip="value", clip_limit=0.5)), 0.5 * free.sign())
    by_norm = _gradient(tmp_path, _config(clip="norm", clip_limit=0.5))
    torch.testing.assert_close(by_norm, 0.5 * free / free.norm())


def test_accumulated_gradient_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    whole = _gradient(tmp_path, _config(clip="none", batch_size=6))
    torch.testing.assert_close(_gradient(tmp_path, _config(clip="none", batch_size=2, accumulation_steps=3)), whole)


def test_non_finite_loss_stops_with_step_and_items(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"step 1 \(loss nan, error nan\); items of the batch: .*item2"):
        fit(Accelerator(), MeanOfData(), _config(), Constants(4, broken=2), None, tmp_path, resume=False)


def test_weights_that_are_not_finite_are_neither_saved_nor_returned(tmp_path: Path) -> None:
    """The loss of the last step is that of the weights before it."""
    with pytest.raises(FloatingPointError, match="expected finite numbers, got others in 'weight'"):
        fit(
            Accelerator(),
            MeanOfData(),
            _config(steps=1, learning_rate=1e39),
            Constants(8),
            None,
            tmp_path,
            resume=False,
        )
    assert not list((tmp_path / "checkpoints").iterdir())


class Unlucky(Constants):
    """Item 3 cannot be drawn: it says why, or its process is killed."""

    def draw(self, index: int, epoch: int) -> MotionItem:
        if index == 3:
            if self.broken is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("item3: broken file")
        return super().draw(index, epoch)


@pytest.mark.parametrize(
    ("broken", "kind", "told"),
    [
        (3, ValueError, "^item3: broken file$"),
        (None, ChildProcessError, r"^data\.num_workers: DataLoader worker "),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told_in_one_line(
    tmp_path: Path, broken: int | None, kind: type[Exception], told: str
) -> None:
    config = _config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=1))
    with pytest.raises(kind, match=told) as caught:
        fit(Accelerator(), MeanOfData(), config, Unlucky(8, broken), None, tmp_path, resume=False)
    assert "\n" not in str(caught.value)


def test_empty_training_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected usable items in the training split, got none"):
        fit(Accelerator(), MeanOfData(), _config(), Constants(0), None, tmp_path, resume=False)


def test_fid_of_a_model_that_generates_nothing_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(_config(), run=RunConfig(fid_clips=4))
    with pytest.raises(ValueError, match=r"run\.fid_clips: expected 0 for a model that generates nothing, got 4"):
        Trainer(Accelerator(), MeanOfData(), config, Constants(8), None, tmp_path)


def test_randomness_of_a_step_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    whole, resumed = MeanOfData(), MeanOfData()
    fit(Accelerator(), whole, _config(steps=4), Constants(8), None, tmp_path / "whole", resume=False)
    trainer = Trainer(Accelerator(), resumed, _config(steps=4), Constants(8), None, tmp_path / "resumed")
    trainer.step = 2
    torch.manual_seed(99)
    trainer.run(resume=False)
    assert torch.equal(torch.stack(whole.drawn[2:]), torch.stack(resumed.drawn))
    assert len({tuple(d.tolist()) for d in whole.drawn}) == 4


def test_validation_averages_over_items_with_averaged_weights(tmp_path: Path) -> None:
    trainer = Trainer(Accelerator(), MeanOfData(), _config(batch_size=4), Constants(8), Constants(6), tmp_path)
    trainer.average.shadow[0].fill_(2.0)
    # items 0..5 in batches of 4 and 2: the mean over items, not over batches
    assert trainer._validate(Constants(6))["error"] == pytest.approx((2 + 1 + 0 + 1 + 2 + 3) / 6)
    assert torch.equal(trainer.parameters[0], torch.zeros(3))


def test_resuming_with_another_global_batch_is_refused(tmp_path: Path) -> None:
    fit(Accelerator(), MeanOfData(), _config(), Constants(8), None, tmp_path, resume=False)
    with pytest.raises(ValueError, match=r"expected 4 items per step over all processes, .*, got 5"):
        fit(Accelerator(), MeanOfData(), _config(batch_size=5), Constants(8), None, tmp_path, resume=True)


def test_resuming_another_model_is_refused(tmp_path: Path) -> None:
    class Other(MeanOfData):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(1))

    fit(Accelerator(), MeanOfData(), _config(), Constants(8), None, tmp_path, resume=False)
    with pytest.raises(ValueError, match=r"expected the weights of this model .*extra"):
        fit(Accelerator(), Other(), _config(), Constants(8), None, tmp_path, resume=True)


def test_learning_rate_rises_and_falls() -> None:
    def rates(config: OptimConfig) -> list[float]:
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
        scheduler = warmup_schedule(optimizer, config)
        values = []
        for _ in range(config.steps):
            values.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return values

    cosine = rates(OptimConfig(steps=13, warmup_steps=3, learning_rate=1.0))
    assert cosine[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert cosine[8] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(cosine[3:]))
    assert cosine[-1] > 0
    assert rates(OptimConfig(steps=4, warmup_steps=1, schedule="constant", learning_rate=1.0)) == [0.5, 1, 1, 1]
    stairs = OptimConfig(steps=10, warmup_steps=1, schedule="steps", decay=0.5, decay_at=(0.6, 0.8), learning_rate=1.0)
    assert rates(stairs) == [0.5, 1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_mixed_precision_keeps_weights_in_float32(tmp_path: Path) -> None:
    class Half(MeanOfData):
        def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
            self.product = self.weight[None] @ torch.ones(3, 1)
            return super().forward(batch, draws, validating)

    AcceleratorState._reset_state()
    try:
        objective = Half()
        fit(
            Accelerator(mixed_precision="bf16"),
            objective,
            _config(mixed_precision="bf16"),
            Constants(8),
            None,
            tmp_path,
            resume=False,
        )
        assert objective.product.dtype == torch.bfloat16
        assert objective.weight.dtype == torch.float32
    finally:
        AcceleratorState._reset_state()


def test_progress_shows_loss_throughput_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log, which is no terminal, a plain line for each step that is logged."""
    with RunProgress(10, 2, 4, shown=True) as progress:
        progress.say("begun")
        progress.advance(4, 0.5, 12.5, "", logged=False)
        progress.advance(5, 0.25, 0.5, "expert load 0.90 to 1.10", logged=True)
        progress.validated(5, {"loss": 0.125})
        progress.note("checkpoint")
    assert capsys.readouterr().err.splitlines() == [
        "begun",
        "step 5/10, loss 0.2500, 0.5 items/s, expert load 0.90 to 1.10, 0:00:40 left",
        "validation at step 5: loss 0.1250",
        "checkpoint",
    ]
    with RunProgress(10, 2, 4, shown=False) as progress:
        progress.say("begun")
        progress.advance(5, 0.25, 12.5, "", logged=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_no_lines_of_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bar has the numbers of every step, also of those that a log would leave out."""
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    progress = RunProgress(10, 2, 4, shown=True)
    assert not progress.bar.disable
    (task,) = progress.bar.tasks
    assert (task.total, task.completed) == (10, 2)
    progress.advance(4, 0.5, 12.5, "expert load 0.90 to 1.10", logged=False)
    assert (task.completed, task.fields) == (4, {"loss": 0.5, "rate": 12.5, "note": "expert load 0.90 to 1.10"})
    progress.advance(5, 0.25, 2.5, "", logged=True)
    progress.validated(5, {"loss": 0.5})
    assert (task.completed, task.fields) == (5, {"loss": 0.25, "rate": 2.5, "note": ""})
    progress.say("[begun]")
    assert capsys.readouterr().err.split() == ["[begun]"]
    assert RunProgress(10, 2, 4, shown=False).bar.disable
