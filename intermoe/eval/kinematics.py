"""The kinematic evaluation of a model: ground truth, reconstruction and generation side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from intermoe.data.activities import activities
from intermoe.data.interhuman import InterHumanDataset
from intermoe.files import write_json
from intermoe.metrics.clips import METRICS, Clip, Numbers, measure
from intermoe.motion.interhuman import joints as motion_joints

if TYPE_CHECKING:
    from intermoe.pipeline import MotionPipeline


@dataclass(frozen=True)
class KinematicReport:
    """Metrics of each row, and of the generation with each seed alone, which shows how far chance moves a number."""

    rows: dict[str, Numbers]
    generation_by_seed: dict[int, Numbers]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "settings": self.settings,
            "rows": self.rows,
            "generation_by_seed": {str(seed): row for seed, row in self.generation_by_seed.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. Raises ``FileExistsError`` if there is one."""
        write_json(path, self.to_dict(), exclusive=True)

    def table(self) -> list[list[str]]:
        """See ``metric_table``."""
        return metric_table(self.rows)

    def markdown(self) -> str:
        """``table`` in Markdown."""
        header, *lines = self.table()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def metric_table(rows: Mapping[str, Numbers]) -> list[list[str]]:
    """Header and one line a metric, a column for each row; the number of captions is in the title."""
    lines = [["metric", *rows]]
    for key, title in (pair for name in METRICS for pair in METRICS[name].titles.items()):
        counts = sorted({int(row[of] or 0) for row in rows.values() if (of := f"{key}_captions") in row})
        suffix = f", of {' / '.join(map(str, counts))}" if counts else ""
        values = [row[key] for row in rows.values()]
        lines.append([title + suffix, *("–" if value is None else f"{value:.2f}" for value in values)])
    return lines


@torch.no_grad()
def evaluate_kinematics(
    pipeline: MotionPipeline,
    dataset: InterHumanDataset,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_inference_steps: int = 50,
    guidance_scale: float = 3.5,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> KinematicReport:
    """Measure the data, their reconstruction, and motion generated from every one of their captions.

    There is no reconstruction of a system without latents.

    Args:
        dataset: evaluation items (``training=False``, no augmentation).
        progress: called as ``progress(clips_done, clips)`` during generation.

    Raises:
        ValueError: a data set whose items are random, or as ``generate_clips``; before anything is measured.
    """
    if dataset.training or dataset.mirror or dataset.swap_persons:
        raise ValueError(
            "dataset: expected training=False and no augmentation, as captions have to fit the motion, got random items"
        )
    check_generation(pipeline, dataset, seeds, batch_size)
    truth = real_clips(dataset)
    rows = {"ground truth": measure(truth, truth, paired=True)}
    if pipeline.has_latents:
        rows["reconstruction"] = measure(reconstructed(pipeline, dataset), truth, paired=True)
    generated = generate_clips(
        pipeline,
        dataset,
        seeds=seeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        progress=progress,
    )
    rows["generation"] = measure([clip for seed in seeds for clip in generated[seed]], truth, paired=False)
    return KinematicReport(
        rows,
        {seed: measure(clips, truth, paired=False) for seed, clips in generated.items()},
        {
            "split": dataset.split,
            "items": len(dataset),
            "captions": sum(len(clip.captions) for clip in truth),
            "seeds": list(seeds),
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        },
    )


def generate_clips(
    pipeline: MotionPipeline,
    dataset: InterHumanDataset,
    *,
    seeds: Sequence[int],
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, list[Clip]]:
    """Motion from every caption of ``dataset``, with each seed.

    Generated clips are as long as the item of their caption; captions of items of one length are generated together.
    Caption i of n is drawn with seed ``seeds[k] * n + i``, so that no two clips share their noise.

    Raises:
        ValueError: a model of one person, no seed, seeds that repeat or are too large, a batch size below 1, or a
            caption that the model refuses; names its item.
    """
    check_generation(pipeline, dataset, seeds, batch_size)
    by_length: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for index, activity in enumerate(activities(dataset.root, dataset.names)):
        by_length[dataset.num_frames(index)].extend((caption, activity) for caption in dataset.captions(index))
    total = sum(map(len, by_length.values()))
    generated: dict[int, list[Clip]] = {seed: [] for seed in seeds}
    for k, seed in enumerate(seeds):
        for frames, prompts in by_length.items():
            for start in range(0, len(prompts), batch_size):
                batch = prompts[start : start + batch_size]
                result = pipeline(
                    [caption for caption, _ in batch],
                    num_frames=frames,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    seed=seed * total + len(generated[seed]),
                )
                generated[seed] += [Clip(j.numpy(), (c,), a) for j, (c, a) in zip(result.joints, batch, strict=True)]
                if progress is not None:
                    progress(k * total + len(generated[seed]), len(seeds) * total)
    return generated


def check_generation(
    pipeline: MotionPipeline, dataset: InterHumanDataset, seeds: Sequence[int], batch_size: int = 16
) -> None:
    """Raise ``ValueError`` for what ``generate_clips`` would refuse, before any work."""
    check_two(pipeline)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: expected at least one, none twice, got {tuple(seeds)}")
    total = sum(len(dataset.captions(index)) for index in range(len(dataset)))
    if not 0 <= min(seeds) <= max(seeds) < 2**63 // total - 1:  # each is multiplied by the number of captions
        raise ValueError(f"seeds: expected numbers in [0, {2**63 // total - 1}), got {tuple(seeds)}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected >= 1, got {batch_size}")
    for index, name in enumerate(dataset.names):
        try:
            pipeline.check(dataset.captions(index), dataset.num_frames(index))
        except ValueError as error:
            raise ValueError(f"{dataset.root}: split {dataset.split!r}, item {name!r}: {error}") from error


def check_two(pipeline: MotionPipeline) -> None:
    """Raise ``ValueError`` for a model of other than two persons, whom the data have."""
    persons = pipeline.representation.persons
    if persons != 2:
        raise ValueError(
            f"model: expected one that makes two persons, got {pipeline.config.system}, which makes {persons}"
        )


def reconstruct(pipeline: MotionPipeline, motion: torch.Tensor) -> torch.Tensor:
    """Motion (P, T, ...) through the autoencoder. The last frame fills the last group up."""
    frames = motion.shape[1]
    last = motion[:, -1:].repeat_interleave(-frames % pipeline.frame_multiple, dim=1)
    padded = torch.cat([motion, last], dim=1)
    return pipeline.decode(pipeline.encode(padded[None].to(pipeline.device)))[0, :, :frames]


def real_clips(dataset: InterHumanDataset) -> list[Clip]:
    """The items of ``dataset`` as they are, each with all its captions and what is done in it."""
    done = activities(dataset.root, dataset.names)
    return [Clip(_joints(dataset[i]["motion"]), dataset.captions(i), done[i]) for i in range(len(dataset))]


@torch.no_grad()
def reconstructed(pipeline: MotionPipeline, dataset: InterHumanDataset) -> list[Clip]:
    """``real_clips`` through the autoencoder."""
    clips = real_clips(dataset)
    made = (_joints(reconstruct(pipeline, dataset[index]["motion"])) for index in range(len(dataset)))
    return [Clip(joints, clip.captions, clip.activity) for clip, joints in zip(clips, made, strict=True)]


def _joints(motion: torch.Tensor) -> npt.NDArray[np.float32]:
    joints: npt.NDArray[np.float32] = motion_joints(motion).float().numpy()
    return joints
