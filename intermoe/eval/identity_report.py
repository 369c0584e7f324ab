"""The identity evaluation: the data, broken copies of them, and what a model reconstructs and generates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from intermoe.data.interhuman import InterHumanDataset
from intermoe.eval.kinematics import check_generation, generate_clips, reconstruct
from intermoe.files import write_json
from intermoe.metrics import corruptions
from intermoe.metrics.identity import MERGE_DISTANCE, SWAP_THRESHOLD, Floats, IdentityMetrics, measure_identity
from intermoe.motion.interhuman import joints as motion_joints
from intermoe.motion.skeleton import NUM_JOINTS

if TYPE_CHECKING:
    from intermoe.pipeline import MotionPipeline

CORRUPTIONS: dict[str, Callable[[Floats], Floats]] = {
    "swapped midway": corruptions.swap_midway,
    "swapped, blend of 10": partial(corruptions.swap_midway, blend=10),
    "averaged": corruptions.average,
    "averaged in place": corruptions.average_in_place,
    "mirrored midway": corruptions.mirror_midway,
    "mirrored, blend of 10": partial(corruptions.mirror_midway, blend=10),
}
# Limbs a tenth longer on the same trunk: person 2 of the copies on which bones are judged.
LONG_LIMBS = np.where(np.isin(np.arange(NUM_JOINTS), (0, 4, 5, 7, 8, 18, 19, 20, 21)), 1.1, 1.0)
_ROUNDING = 1e-3
_LONG_LIMBED = "person 2 with longer limbs"

_TITLES = {
    "bone_inconsistency": "bones (%)",
    "style_overlap": "style overlap",
    "role_break": "role break",
    "swap_score": "swap score",
    "separation_cm": "separation (cm)",
}


@dataclass(frozen=True)
class IdentityRow:
    """Means over clips of each metric, and the shares of clips, in %, in which a swap or a merge is found."""

    clips: int
    mean: dict[str, float]
    swaps: float
    merges: float


@dataclass(frozen=True)
class IdentityReport:
    """Rows of the data, the model and the broken copies.

    ``ranking[copy][metric]`` is the share of clips, in %, whose metric is worse in the broken copy than in the clip
    itself by more than rounding (``_ROUNDING``, in the metric's unit): higher, or lower for ``separation_cm``.
    """

    rows: dict[str, IdentityRow]
    ranking: dict[str, dict[str, float]]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. Raises ``FileExistsError`` if there is one."""
        write_json(path, self.to_dict(), exclusive=True)

    def table(self) -> list[list[str]]:
        """Header and a line for every row of the report."""
        lines = [["motion", "clips", *_TITLES.values(), "swaps (%)", "merges (%)"]]
        for name, row in self.rows.items():
            values = [*(row.mean[key] for key in _TITLES), row.swaps, row.merges]
            lines.append([name, str(row.clips), *(f"{value:.2f}" for value in values)])
        return lines

    def ranking_table(self) -> list[list[str]]:
        """Header and a line for every broken copy: shares of clips, in %, ranked below the clip itself."""
        lines = [["ranked below clean (%)", *_TITLES.values()]]
        for name, shares in self.ranking.items():
            lines.append([name, *(f"{shares[key]:.0f}" for key in _TITLES)])
        return lines


@torch.no_grad()
def evaluate_identity(
    dataset: InterHumanDataset,
    pipeline: MotionPipeline | None = None,
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float = 3.5,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> IdentityReport:
    """Measure the data and broken copies of them and, given a model, what it generates and, where it has latents,
    reconstructs.

    Every kind of damage is also done to copies in which person 2 has longer limbs (``LONG_LIMBS``), because data whose
    persons share one skeleton say nothing about bones; those are ranked against the undamaged copy.

    Args:
        dataset: evaluation items (``training=False``, no augmentation) long enough for ``style_spectra``.
        seeds, num_inference_steps, guidance_scale, batch_size, progress: as in ``evaluate_kinematics``.

    Raises:
        ValueError: as ``evaluate_kinematics``, or a clip that is too short.
    """
    if dataset.training or dataset.mirror or dataset.swap_persons:
        raise ValueError("dataset: expected training=False and no augmentation, got a random one")
    if pipeline is not None:
        check_generation(pipeline, dataset, seeds, batch_size)
    motions = [dataset[index]["motion"] for index in range(len(dataset))]
    clean = [_joints(motion) for motion in motions]
    measured = {"ground truth": _measure(clean)}
    if pipeline is not None:
        if pipeline.has_latents:
            measured["reconstruction"] = _measure([_joints(reconstruct(pipeline, motion)) for motion in motions])
        generated = generate_clips(
            pipeline,
            dataset,
            seeds=seeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            progress=progress,
        )
        measured["generation"] = _measure([clip.joints for seed in seeds for clip in generated[seed]])
    ranking = {}
    long_limbed = [corruptions.scale_skeleton(clip, LONG_LIMBS) for clip in clean]
    for suffix, bases in (("", clean), (", longer limbs", long_limbed)):
        if suffix:
            measured[_LONG_LIMBED] = _measure(bases)
        reference = measured[_LONG_LIMBED if suffix else "ground truth"]
        for name, corrupt in CORRUPTIONS.items():
            broken = _measure([corrupt(base) for base in bases])
            measured[name + suffix] = broken
            ranking[name + suffix] = _ranking(reference, broken)
    settings: dict[str, Any] = {"split": dataset.split, "items": len(dataset), "model": pipeline is not None}
    if pipeline is not None:
        settings |= {"seeds": list(seeds), "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    return IdentityReport({name: _row(clips) for name, clips in measured.items()}, ranking, settings)


def _joints(motion: torch.Tensor) -> Floats:
    return motion_joints(motion).float().numpy()


def _measure(clips: Sequence[Floats]) -> list[IdentityMetrics]:
    return [measure_identity(clip) for clip in clips]


def _row(clips: Sequence[IdentityMetrics]) -> IdentityRow:
    values = {key: np.array([getattr(clip, key) for clip in clips]) for key in _TITLES}
    return IdentityRow(
        clips=len(clips),
        mean={key: float(each.mean()) for key, each in values.items()},
        swaps=float(100 * (values["swap_score"] > SWAP_THRESHOLD).mean()),
        merges=float(100 * (values["separation_cm"] < 100 * MERGE_DISTANCE).mean()),
    )


def _ranking(clean: Sequence[IdentityMetrics], broken: Sequence[IdentityMetrics]) -> dict[str, float]:
    shares = {}
    for key in _TITLES:
        sign = -1 if key == "separation_cm" else 1
        excess = [sign * (getattr(b, key) - getattr(c, key)) for c, b in zip(clean, broken, strict=True)]
        shares[key] = float(100 * np.mean(np.array(excess) > _ROUNDING))
    return shares
