"""How many experts take a token while motion is sampled: by noise level, layer and person, and where people touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intermoe.data.interhuman import InterHumanDataset
from intermoe.files import write_json
from intermoe.motion.skeleton import JOINT_NAMES
from intermoe.nn.moe import InterMoEBlock
from intermoe.routing.record import record_routing
from intermoe.routing.trace import denoiser_of, watched_timesteps

if TYPE_CHECKING:
    from intermoe.pipeline import MotionPipeline

Floats = npt.NDArray[np.floating]
Row = tuple[str, float | None, float | None, float | None]
"""What is measured, its mean, and the least and the most that it is a mean of."""

TOUCH = 0.2
"""Metres between a wrist and the other's upper body below which a group of frames is one of contact."""
_WRISTS = [JOINT_NAMES.index(f"{side}_wrist") for side in ("left", "right")]
_UPPER = [JOINT_NAMES.index(f"{side}_{part}") for part in ("shoulder", "elbow", "wrist") for side in ("left", "right")]


@dataclass(frozen=True)
class RoutingReport:
    """``rows`` of experts a token; the last ones are the blocks' selection biases."""

    rows: tuple[Row, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [dict(zip(("of", "mean", "least", "most"), row, strict=True)) for row in self.rows]
        return {"settings": self.settings, "rows": rows}

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. Raises ``FileExistsError`` if there is one."""
        write_json(path, self.to_dict(), exclusive=True)

    def table(self) -> list[list[str]]:
        """Header and a line each."""
        lines = [[name, *("–" if value is None else f"{value:.3f}" for value in values)] for name, *values in self.rows]
        return [["experts a token", "mean", "least", "most"], *lines]


def evaluate_routing(
    pipeline: MotionPipeline,
    dataset: InterHumanDataset,
    *,
    limit: int = 12,
    num_frames: int = 96,
    seed: int = 0,
    num_inference_steps: int = 50,
    guidance_scale: float = 3.5,
    progress: Callable[[int, int], None] | None = None,
) -> RoutingReport:
    """Generate motion for the first caption of the first ``limit`` items and count the experts of each token.

    Of guided steps the conditional half counts.

    Args:
        num_frames: of each motion.
        progress: called as ``progress(steps_done, steps)``.

    Raises:
        ValueError: a model without InterMoE blocks or without a denoiser, or what the pipeline refuses.
    """
    if limit < 1:
        raise ValueError(f"limit: expected >= 1, got {limit}")
    denoiser = denoiser_of(pipeline)
    prompts = [dataset.captions(index)[0] for index in range(min(limit, len(dataset)))]
    timesteps: list[int] = []
    with record_routing(denoiser) as record, watched_timesteps(denoiser, timesteps):
        result = pipeline(prompts, num_frames, num_inference_steps, guidance_scale, seed, progress=progress)
    for calls in record.calls.values():
        calls[:] = [call[: len(prompts)] for call in calls]  # guided calls hold the unconditional half too
    chosen = record.stacked()  # (N, L, B, P T', E)
    persons = result.joints.shape[1]
    experts = chosen.sum(axis=-1).reshape(*chosen.shape[:3], persons, -1).astype(np.float64)  # (N, L, B, P, T')
    rows = [*_counts(experts, timesteps), *_moments(experts.mean(axis=(0, 1, 3)), result.joints.numpy())]
    blocks = [module for module in denoiser.modules() if isinstance(module, InterMoEBlock)]
    for number, bias in enumerate((block.selection_bias.detach().float().cpu() for block in blocks), start=1):
        rows.append((f"selection bias of layer {number}", float(bias.mean()), float(bias.min()), float(bias.max())))
    return RoutingReport(
        tuple(rows),
        {
            "split": dataset.split,
            "prompts": len(prompts),
            "num_frames": num_frames,
            "seed": seed,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        },
    )


def _counts(experts: Floats, timesteps: Sequence[int]) -> list[Row]:
    """Means over experts of each token (N, L, B, P, T'); least and most are of layers, steps or both."""
    cells = experts.mean(axis=(2, 3, 4))  # (N, L)
    rows: list[Row] = [("all; of a step and layer", *_spread(cells))]
    for timestep, row in zip(timesteps, cells, strict=True):
        rows.append((f"noise level {timestep}; of a layer", *_spread(row)))
    for number, column in enumerate(cells.T, start=1):
        rows.append((f"layer {number}; of a step", *_spread(column)))
    for number, person in enumerate(np.moveaxis(experts, 3, 0).mean(axis=(3, 4)), start=1):
        rows.append((f"person {number}; of a step and layer", *_spread(person)))
    without = (experts == 0).mean(axis=(2, 3, 4))
    return [*rows, ("share of tokens without; of a step and layer", *_spread(without))]


def _spread(values: Floats) -> tuple[float, float, float]:
    return float(values.mean()), float(values.min()), float(values.max())


def _moments(experts: Floats, joints: Floats) -> list[Row]:
    """Experts (B, T') where people touch or move fast, and elsewhere, of joints (B, P, T, 22, 3).

    Least and most are of the motions.
    """
    groups = experts.shape[1]
    touching = np.stack([_by_group(_reach(each), groups, np.min) < TOUCH for each in joints])
    speed = np.linalg.norm(np.diff(joints, axis=2, append=joints[:, :, -1:]), axis=-1).mean(axis=(1, 3))
    speed = np.stack([_by_group(each, groups, np.mean) for each in speed])
    slow, fast = np.quantile(speed, [0.25, 0.75])
    return [
        _where("frames of contact; of a motion", experts, touching),
        _where("frames without contact; of a motion", experts, ~touching),
        _where("the fastest quarter of frames; of a motion", experts, speed > fast),
        _where("the slowest quarter of frames; of a motion", experts, speed < slow),
    ]


def _reach(joints: Floats) -> Floats:
    """Smallest distance (T,) of a wrist of anybody from the upper body of anybody else, of joints (P, T, 22, 3)."""
    nearest = np.full(joints.shape[1], np.inf)
    for one, person in enumerate(joints):
        for other, body in enumerate(joints):
            if one != other:
                between = np.linalg.norm(person[:, _WRISTS, None] - body[:, None, _UPPER], axis=-1)
                nearest = np.minimum(nearest, between.min(axis=(1, 2)))
    return nearest


def _by_group(values: Floats, groups: int, reduce: Callable[..., Any]) -> Floats:
    """Values (T,) of frames as those of ``groups`` groups that are decoded together, the last one filled up."""
    size = -(-len(values) // groups)
    filled = np.pad(values, (0, groups * size - len(values)), mode="edge")
    reduced: Floats = reduce(filled.reshape(groups, size), axis=1)
    return reduced


def _where(name: str, experts: Floats, where: npt.NDArray[np.bool_]) -> Row:
    if not where.any():
        return name, None, None, None
    means = [float(row[chosen].mean()) for row, chosen in zip(experts, where, strict=True) if chosen.any()]
    return name, float(experts[where].mean()), min(means), max(means)
