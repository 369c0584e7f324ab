"""Training of what fills short gaps: a network that learns where joints are between frames that are known.

Gaps are cut out of the clips of the training data, a person's at a time, forward and backward in time. The error is the
distance of joints at a few frames of each gap, which the mean of many clips makes least; beside it stands that of the
straight line. The rest of the model is not looked at and stays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intermoe.data.dataset import MotionChoice, MotionDataset
from intermoe.files import replacing_folder, write_tensors
from intermoe.systems.intermoe.between import SEEN, Between, Ends, seen
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import run
from intermoe.train.config import BetweenTrainConfig
from intermoe.train.distill import model_of
from intermoe.train.draws import ItemDraws
from intermoe.train.latents import read_fitted
from intermoe.train.loading import Batch
from intermoe.train.loop import Objective, fit

SEEN_FILE = "seen.safetensors"
FRAMES = 10
"""Frames of a gap whose error is looked at."""
CACHE_BYTES = 2**30
_KEY = 31  # of what is drawn here, beside the windows and captions of the same data
_LEAST_STD = 0.02


class Gaps:
    """Gaps of the clips of a data set, ``count`` of each clip and epoch, by (seed, epoch, index).

    Args:
        dataset: of InterHuman's layout; its mirror images and windows are as drawn there.
        count: of each clip.
        max_frames: of the longest gap; a clip of three frames has one of one.
    """

    def __init__(self, dataset: MotionDataset, count: int, max_frames: int) -> None:
        self.dataset, self.count, self.max_frames = dataset, count, max_frames
        self.kept: dict[MotionChoice, Tensor] = {}
        self.free = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.dataset)

    def num_frames(self, index: int) -> int:
        """The same of all clips: each counts alike, however long it is."""
        return self.count * FRAMES

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """Of G gaps ``before`` and ``after`` (G, 5, 22, 3), ``frames`` (G,), ``places`` (G, n) and ``joints``
        (G, n, 22, 3) there; half of them backward in time.
        """
        choice, _ = self.dataset.choose(index, epoch)
        joints = self._joints(choice)
        persons, length = joints.shape[:2]
        draws = np.random.default_rng((self.dataset.seed, epoch, index, _KEY))
        person = draws.integers(persons, size=(self.count, 1))
        frames = draws.integers(1, min(self.max_frames, length - 2), size=(self.count, 1), endpoint=True)
        begin = draws.integers(1, length - frames)
        place = draws.integers(0, frames, size=(self.count, FRAMES))
        backward = draws.random((self.count, 1)) < 0.5
        distance = np.array(SEEN)
        before, after = np.maximum(begin - 1 - distance, 0), np.minimum(begin + frames + distance, length - 1)
        return {
            "name": self.dataset.names[index],
            "before": joints[person, np.where(backward, after, before)],
            "after": joints[person, np.where(backward, before, after)],
            "frames": torch.from_numpy(frames[:, 0]).to(joints),
            "places": torch.from_numpy(np.where(backward, frames - 1 - place, place)).to(joints),
            "joints": joints[person, begin + place],
        }

    def _joints(self, choice: MotionChoice) -> Tensor:
        if choice in self.kept:
            return self.kept[choice]
        joints = self.dataset.data_set.representation.joints(self.dataset.motion(choice)).contiguous()
        if joints.nbytes <= self.free:
            self.free -= joints.nbytes
            self.kept[choice] = joints
        return joints


class BetweenObjective(Objective):
    """A network between, and how far its joints are from those that were there, in metres."""

    def __init__(self, between: Between, noise: float) -> None:
        super().__init__()
        self.between, self.noise = between, noise

    @staticmethod
    def collate(items: Sequence[Any]) -> Batch:
        """The items, stacked."""
        names = [item["name"] for item in items]
        tensors = {key: torch.stack([item[key] for item in items]) for key in items[0] if key != "name"}
        return {"names": names, **tensors}

    def forward(self, batch: Batch, draws: ItemDraws, validating: bool = False) -> dict[str, Tensor]:
        """Training: the error of one estimate with noise on what is seen. Validation: that of ``Between.estimate``,
        and ``line``, that of the straight way.
        """
        before, after, frames, places, wanted = (
            batch[key].flatten(0, 1) for key in ("before", "after", "frames", "places", "joints")
        )
        ends = Ends(before, after, frames)
        if not validating:
            noise = self.noise * draws.normal(1, batch["frames"].shape[1], *self.between.mean.shape)[:, 0].flatten(0, 1)
            return {"loss": _apart(self.between(ends, places, noise), wanted)}
        share = ((places + 1) / (frames[:, None] + 1))[..., None, None]
        line = torch.lerp(before[:, :1], after[:, :1], share)
        return {"loss": _apart(self.between.estimate(ends, places), wanted), "line": _apart(line, wanted)}


def _apart(joints: Tensor, others: Tensor) -> Tensor:
    return torch.linalg.vector_norm(joints - others, dim=-1).mean()


def write_seen(gaps: Gaps, path: Path) -> None:
    """Write ``mean`` and ``std`` of what is seen beside the gaps of the first epoch."""
    told = []
    for index in range(len(gaps)):
        item = gaps.draw(index, 0)
        told.append(seen(Ends(item["before"], item["after"], item["frames"])))
    every = torch.cat(told)
    write_tensors(path, {"mean": every.mean(dim=0), "std": every.std(dim=0, correction=0) + _LEAST_STD})


def run_between(
    config_path: str | Path,
    output_dir: str | Path,
    model: str | Path,
    resume: bool = False,
    data: str | Path | None = None,
) -> Path:
    """Teach a model of InterMoE to fill short gaps; returns ``output_dir/model``, the same model with that beside it.

    Args:
        config_path: YAML or JSON of ``BetweenTrainConfig``.
        output_dir: gets ``config.json``, ``seen.safetensors``, ``checkpoints``, ``logs`` and ``model``.
        model: the model's folder or name; on ``resume`` the one that the run was started with.
        resume: go on from the newest complete checkpoint in ``output_dir``.
        data: folder of the data in place of the configured one.

    Raises:
        FileExistsError, ValueError, FileNotFoundError: as ``run_denoiser``; also if ``model`` is none of InterMoE, or
            has other motion than the data.
    """
    config = run.with_data(BetweenTrainConfig.load(config_path), data)
    output_dir = Path(output_dir)
    pipeline = model_of(model, config)
    made = dataclasses.replace(pipeline.config, between=config.between)
    splits = {name: run.open_split(config, name, min_frames=config.data.min_frames) for name in ("train", "val")}
    with run.claimed(config, output_dir, resume=resume, splits=splits) as accelerator:
        train, val = (Gaps(split, config.gaps, config.between.max_frames) for split in splits.values())
        write = functools.partial(write_seen, train)
        path = run.once(accelerator, output_dir / SEEN_FILE, write, resume=resume)
        torch.manual_seed(config.seed)
        between = Between(config.between)
        between.mean.copy_(read_fitted(path, "mean"))
        between.std.copy_(read_fitted(path, "std"))
        objective = BetweenObjective(between, config.noise)
        state = fit(accelerator, objective, config, train, val, output_dir, resume=resume)
        if state is not None:
            between.cpu().load_state_dict({key.removeprefix("between."): value for key, value in state.items()})
            parts = (pipeline.vae, pipeline.denoiser, pipeline.text_encoder, pipeline.statistics)
            with replacing_folder(output_dir / "model") as temporary:
                InterMoEPipeline(made, *parts, between=between).save_pretrained(temporary)
                run.write_config(temporary / "training.json", run.without_paths(config))
    return output_dir / "model"


TRAINER = run.Training(BetweenTrainConfig, run_between, start="model", needs_start=True)
