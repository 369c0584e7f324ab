"""The training loop that VAE and denoiser share, on accelerate.

Step s takes the next items of an endless stream of shuffled epochs (see ``StreamSampler``), and what is drawn for the
k-th of them depends on (seed, s, k) alone (see ``ItemDraws``); dropout depends on (seed, s, rank). So a run's position,
its data order and its noise are all functions of the step number: a resumed run continues bit for bit without saved
generator states, and without dropout a step is the same however many processes and micro-steps share it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR

from intermoe.data.batching import collate
from intermoe.files import require_finite
from intermoe.train import checkpoint
from intermoe.train.config import OptimConfig, TrainConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.ema import WeightAverage
from intermoe.train.graphs import check_graphs
from intermoe.train.loading import Batch, batches
from intermoe.train.progress import RunProgress
from intermoe.train.routing import Routing
from intermoe.train.stream import DrawnDataset, StreamSampler

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Objective(nn.Module):
    """What a run optimises: the trained modules, and their loss as ``forward``, so that wrappers (DDP, FSDP) apply."""

    generates = False
    """Whether ``forward`` also takes ``generating`` and then returns features of what it generates, for the FID."""
    replays = False
    """Whether forwards in training replay captured ones, which call no hooks (``run.cuda_graphs``)."""

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """Scalars by name, drawing from the generators of the items in ``draws``.

        In training ``"loss"``, a mean over frames, is minimised; in validation every value is a mean over the batch.
        """
        raise NotImplementedError

    @staticmethod
    def collate(items: Sequence[Any]) -> Batch:
        """The items of a batch as ``forward`` takes them."""
        return collate(items)

    def repeated_parts(self) -> list[nn.Module]:
        """Modules that make up most of the work and are compiled one by one."""
        return []


def fit(
    accelerator: Accelerator,
    objective: Objective,
    config: TrainConfig,
    train: DrawnDataset,
    validation: DrawnDataset | None,
    output_dir: Path,
    *,
    resume: bool,
) -> dict[str, Tensor] | None:
    """Train ``objective`` and return its state dict with averaged weights (on the main process; ``None`` elsewhere).

    Checkpoints go to ``output_dir/checkpoints``; ``accelerator`` is from ``intermoe.train.run.start``.

    Raises:
        FloatingPointError: at a non-finite loss, naming the step and the items of the batch, or weight, naming it.
        ValueError: if ``train`` is empty, or on ``resume`` from a checkpoint that does not fit.
    """
    return Trainer(accelerator, objective, config, train, validation, output_dir).run(resume)


class Trainer:
    """State of one run on one process."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        config: TrainConfig,
        train: DrawnDataset,
        validation: DrawnDataset | None,
        output_dir: Path,
    ) -> None:
        if len(train) == 0:
            raise ValueError("data: expected usable items in the training split, got none")
        self.global_batch = config.data.batch_size * config.optim.accumulation_steps * accelerator.num_processes
        self.optim = config.optim.in_steps(len(train), self.global_batch)
        self.config, self.folder = config, output_dir / "checkpoints"
        self.accelerator, self.train, self.validation = accelerator, train, validation
        if config.run.fid_clips and not objective.generates:
            raise ValueError(
                f"run.fid_clips: expected 0 for a model that generates nothing, got {config.run.fid_clips}"
            )
        if config.run.compile is not None:
            for part in objective.repeated_parts():
                # Lengths differ from batch to batch. Whole graphs: only in those does torch trace operators whose
                # results' size depends on the data, such as the block's.
                part.compile(backend=config.run.compile, dynamic=True, fullgraph=True)
        if config.run.cuda_graphs:
            check_graphs(accelerator, objective)
        self.objective, self.collate = objective, objective.collate
        parameters = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.optim.learning_rate,
            weight_decay=self.optim.weight_decay,
            betas=(self.optim.betas[0], self.optim.betas[1]),
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.average = WeightAverage(self.parameters, self.optim.ema_decay)
        self.scheduler = warmup_schedule(self.optimizer.optimizer, self.optim)
        self.routing = Routing(objective)
        self.step = 0
        self.unread: list[tuple[int, dict[str, Tensor], list[str]]] = []  # steps, their losses and items

    def run(self, resume: bool) -> dict[str, Tensor] | None:
        if resume and (path := checkpoint.latest_checkpoint(self.folder)):
            self._load(path)
        main = self.accelerator.is_main_process
        with RunProgress(self.optim.steps, self.step, self.global_batch, shown=main) as progress:
            progress.say(self._begun())
            if self.step < self.optim.steps:
                self._train(progress)
        with self.average.applied():
            state = self._weights()
        if not main:
            return None
        require_finite("model", state)
        return state

    def _begun(self) -> str:
        """What is about to be trained on what, or that nothing is left to do."""
        if self.step == self.optim.steps:
            return f"finished already, at step {self.step} of optim.steps={self.optim.steps}; ask for more to go on"
        weights = sum(parameter.numel() for parameter in self.parameters) / 1e6
        validated = 0 if self.validation is None else len(self.validation)
        return (
            f"{weights:.1f} million weights, {len(self.train)} items to train on, {validated} to validate, "
            f"{self.global_batch} a step, steps {self.step} to {self.optim.steps}, "
            f"{self.accelerator.num_processes} x {self.accelerator.device}"
        )

    def _train(self, progress: RunProgress) -> None:
        self.accelerator.init_trackers("logs")
        batches = self._batches()
        try:
            started, done, balance = time.perf_counter(), 0, ""
            while self.step < self.optim.steps:
                losses = self._optimise(batches)
                self.step, done = self.step + 1, done + 1
                if self._reads_losses():
                    self._require_finite()
                    rate = done * self.global_batch / (time.perf_counter() - started)
                    if logged := self._due(self.config.run.log_every):
                        self._log_training(losses, rate)
                        balance = self._balance()
                    progress.advance(self.step, losses["loss"].item(), rate, balance, logged=logged)
                if self.validation is not None and self._due(self.config.run.validate_every):
                    values = self._validate(self.validation)
                    self._log("validation", values)
                    progress.validated(self.step, values)
                    started, done = time.perf_counter(), 0
                if self._due(self.config.run.checkpoint_every):
                    self._save()
                    progress.note(f"checkpoint at step {self.step} in {self.folder}")
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _optimise(self, batches: Iterator[tuple[Batch, float]]) -> dict[str, Tensor]:
        """One optimiser step; returns the losses, averaged over its micro-steps."""
        self._seed(2, self.step)  # not 0, as items: numpy takes (seed, 0, step) and (seed, 0, step, rank 0) for one key
        self.model.train()
        probe = self._due(self.config.run.log_every, self.step + 1)
        self.routing.start(probe=probe)
        self.objective.replays = self.config.run.cuda_graphs and not probe
        self.optimizer.zero_grad()
        micro_steps = self.optim.accumulation_steps
        totals: dict[str, Tensor] = {}
        for micro in range(micro_steps):
            batch, share = next(batches)
            draws = self._draws(0, self.step, first=micro * self.accelerator.num_processes)
            last = micro == micro_steps - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.model(batch, draws)
                self.unread.append((self.step + 1, {k: v.detach() for k, v in losses.items()}, batch["names"]))
                self.accelerator.backward(share * losses["loss"] / micro_steps)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + share * value.detach() / micro_steps
            self.routing.count()
        self._clip()
        self.optimizer.step()
        self.scheduler.step()
        self.routing.update()
        self.average.update()
        return totals

    def _clip(self) -> None:
        if self.optim.clip == "norm":
            self.accelerator.clip_grad_norm_(self.parameters, self.optim.clip_limit)
        elif self.optim.clip == "value":
            self.accelerator.unscale_gradients()
            nn.utils.clip_grad_value_(self.parameters, self.optim.clip_limit)

    def _reads_losses(self) -> bool:
        """Whether the losses of the steps so far are read now. A GPU would have to be waited for at each of them."""
        due = (self.config.run.log_every, self.config.run.validate_every, self.config.run.checkpoint_every)
        return self.accelerator.device.type == "cpu" or any(map(self._due, due))

    def _require_finite(self) -> None:
        finite = torch.stack([losses["loss"] for _, losses, _ in self.unread]).isfinite().tolist()
        for (step, losses, names), ok in zip(self.unread, finite, strict=True):
            if not ok:
                parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
                raise FloatingPointError(
                    f"non-finite loss at step {step} ({parts}); items of the batch: {', '.join(names)}"
                )
        self.unread.clear()

    @torch.no_grad()
    def _validate(self, dataset: DrawnDataset) -> dict[str, float]:
        """Means over ``dataset`` with averaged weights. Every rank takes every n-th batch."""
        size, ranks = self.config.data.batch_size, self.accelerator.num_processes
        starts = list(range(0, len(dataset), size))
        sums: dict[str, float] = {}
        features: list[Any] = []  # pairs of arrays: of generated and of real motion
        self.model.eval()
        with self.average.applied():
            for turn in range(0, len(starts), ranks):
                # a sharded model needs every rank in every call: ranks without a batch of their own repeat the last
                number = turn + self.accelerator.process_index
                start = starts[min(number, len(starts) - 1)]
                items = [dataset.draw(i, 0) for i in range(start, min(start + size, len(dataset)))]
                draws = ItemDraws((self.config.seed, 1), range(start, start + len(items)), self.accelerator.device)
                # the same on all ranks, which a sharded model keeps in step
                generating = {"generating": True} if starts[turn] < self.config.run.fid_clips else {}
                values = self.model(self._on_device(self.collate(items)), draws, validating=True, **generating)
                if generating:
                    pair = tuple(values.pop(name).float().cpu().numpy() for name in ("generated", "real"))
                    features += [pair] if number < len(starts) else []
                weight = float(len(items) if number < len(starts) else 0)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + weight * value.item()
        totals = self.accelerator.reduce(torch.tensor(list(sums.values()), device=self.accelerator.device)).tolist()
        means = {name: total / len(dataset) for name, total in zip(sums, totals, strict=True)}
        return means | self._fid(features)

    def _fid(self, features: list[Any]) -> dict[str, float]:
        if not self.config.run.fid_clips:
            return {}
        from intermoe.metrics.distribution import frechet_distance

        if self.accelerator.num_processes > 1:
            features = gather_object(features)
        generated, real = (np.concatenate(rows) for rows in zip(*features, strict=True))
        return {"fid": frechet_distance(generated, real)} if len(real) > 1 else {}

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """The batches of this process, and what each counts in its step."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        micro_steps, size = self.optim.accumulation_steps, self.config.data.batch_size
        micro_batches = range(self.step * micro_steps * ranks + rank, self.optim.steps * micro_steps * ranks, ranks)
        lengths = [self.train.num_frames(i) for i in range(len(self.train))]
        sampler = StreamSampler(lengths, size, micro_batches, self.config.seed, parts=micro_steps * ranks)
        # now: it draws a seed, which a step's dropout must not hear of
        loaded = batches(self.train, sampler, self.collate, self.config.data.num_workers)
        return ((self._on_device(batch), share) for batch, share in zip(loaded, sampler.shares(), strict=True))

    def _on_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _seed(self, *key: int) -> None:
        """Seed torch, whose generator dropout takes, from (the run's seed, ``key``, this rank)."""
        key = (self.config.seed, *key, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def _draws(self, *key: int, first: int) -> ItemDraws:
        """What is drawn for this process's items of a step; ``first`` is the number of the first process's batch."""
        size = self.config.data.batch_size
        start = (first + self.accelerator.process_index) * size
        return ItemDraws((self.config.seed, *key), range(start, start + size), self.accelerator.device)

    def _due(self, every: int, step: int | None = None) -> bool:
        step = self.step if step is None else step
        return step % every == 0 or step == self.optim.steps

    def _log_training(self, losses: dict[str, Tensor], rate: float) -> None:
        means = self.accelerator.reduce(torch.stack(list(losses.values())), "mean").tolist()
        values = dict(zip(losses, means, strict=True))
        self._log("train", values | {"items_per_second": rate, "learning_rate": self.scheduler.get_last_lr()[0]})
        if self.routing.blocks:
            self._log("routing", self.routing.health(self.accelerator.reduce))

    def _balance(self) -> str:
        if not self.routing.blocks:
            return ""
        smallest, largest = self.routing.balance()
        return f"expert load {smallest:.2f} to {largest:.2f}"

    def _log(self, group: str, values: Mapping[str, float]) -> None:
        self.accelerator.log({f"{group}/{name}": value for name, value in values.items()}, step=self.step)

    def _save(self) -> None:
        model = self._weights()
        with self.average.applied():
            average = self._weights()
        optimizer = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=FULL_STATE)
        if self.accelerator.is_main_process:
            checkpoint.write_checkpoint(
                self.folder,
                self.step,
                model=model,
                average=average,
                optimizer=optimizer,
                state=self._counters(),
                keep=self.config.run.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def _counters(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "updates": self.average.updates,
            "global_batch": self.global_batch,
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _load(self, path: Path) -> None:
        state = checkpoint.read_state(path)
        if state["global_batch"] != self.global_batch:
            raise ValueError(
                f"resume: expected {state['global_batch']} items per step over all processes, as {path} was written "
                f"with, got {self.global_batch}"
            )
        model, average = checkpoint.read_weights(path)
        self._set_weights(average, path)
        self.average = WeightAverage(self.parameters, self.optim.ema_decay, updates=state["updates"])
        self._set_weights(model, path)
        optimizer = self.optimizer.optimizer
        set_optimizer_state_dict(self.model, optimizer, checkpoint.read_optimizer(path), options=FULL_STATE)
        self.scheduler.load_state_dict(state["scheduler"])
        # the rate of the next step as this run has it: with another number of steps it is another
        schedule = zip(optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        for group, base, factor in schedule:
            group["lr"] = base * factor(self.scheduler.last_epoch)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        if self.step > self.optim.steps:
            raise ValueError(f"resume: expected a checkpoint of at most optim.steps={self.optim.steps}, got {path}")

    def _weights(self) -> dict[str, Tensor]:
        """A copy of all weights and buffers on the CPU; empty on other ranks where the model is sharded."""
        state = get_model_state_dict(self.model, options=FULL_STATE)
        return {key: value.detach().clone().contiguous() for key, value in state.items() if isinstance(value, Tensor)}

    def _set_weights(self, weights: dict[str, Tensor], path: Path) -> None:
        expected = get_model_state_dict(self.model).keys()
        if weights.keys() != expected:
            raise ValueError(
                f"resume: expected the weights of this model in {path}, got others: {sorted(weights.keys() ^ expected)}"
            )
        set_model_state_dict(self.model, dict[str, Any](weights), options=FULL_STATE)


def warmup_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig) -> LambdaLR:
    """Linear rise over ``warmup_steps``, then half a cosine to 0 at ``steps``, or constant, or falling in steps."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        if config.schedule != "cosine":
            return config.decay ** sum(step >= share * config.steps for share in config.decay_at)
        done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return LambdaLR(optimizer, factor)
