"""Several systems measured alike, in one table: what their motion is like, how well it fits the text, what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from intermoe.config import Config, _require
from intermoe.data.batching import pad_motion
from intermoe.data.dataset import MotionDataset
from intermoe.eval.protocol import PROTOCOLS, Published
from intermoe.evaluators.evaluator import Evaluator
from intermoe.files import write_json, write_text
from intermoe.metrics.clips import Clip, measure
from intermoe.metrics.distribution import diversity, frechet_distance, retrieval
from intermoe.metrics.identity import MERGE_DISTANCE, SWAP_THRESHOLD, measure_identity, min_frames
from intermoe.metrics.kinematics import bone_variation, floor_penetration, foot_contact, jitter
from intermoe.nn.moe import InterMoEBlock
from intermoe.routing.record import record_routing
from intermoe.text.protocol import TextEncoder

if TYPE_CHECKING:
    from intermoe.pipeline import MotionPipeline

GROUND_TRUTH = "ground truth"
TABLES = ("comparison.json", "comparison.md")
"""What a report is written to."""
TIMINGS = 3
Numbers = dict[str, float | None]

COLUMNS = {
    "parameters": ("parameters (M)", 2),
    "flops": ("GFLOP per sample", 1),
    "seconds": ("seconds per sample", 2),
    "experts_per_token": ("experts per token", 2),
    "train_steps": ("training steps", 0),
    "train_seconds": ("training (s)", 0),
    "bone_variation": ("bone variation (%)", 2),
    "foot_skating_share": ("sliding feet (%)", 1),
    "jitter": ("jitter (m/s³)", 0),
    "floor_penetration_cm": ("below the floor (cm)", 2),
    "pelvis_wasserstein_cm": ("pelvis distance, Wasserstein (cm)", 1),
    "turn_direction": ("turn direction (%)", 0),
    "bone_inconsistency": ("identity: bones (%)", 2),
    "swaps": ("identity: swaps (%)", 0),
    "merges": ("identity: merges (%)", 0),
    "fid": ("FID", 3),
    "r_precision_1": ("R@1", 3),
    "r_precision_3": ("R@3", 3),
    "mm_dist": ("MM-Dist", 3),
    "diversity": ("Diversity", 3),
}
"""Title and digits of each column; everything measured is in the JSON file."""


@dataclass(frozen=True)
class ComparisonSettings(Config):
    """How every system is measured.

    ``steps`` and ``guidance`` are for all systems; ``None``: each system's own published number. ``captions`` of each
    item are generated from, its first ones. ``batch_size`` motions are generated together.
    """

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    captions: int = 1
    batch_size: int = 8

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", "a value in [0, 2**32)", self.seed)
        _require(self.steps is None or self.steps >= 1, "steps", ">= 1", self.steps)
        ok = self.guidance is None or 1.0 <= self.guidance < math.inf
        _require(ok, "guidance", ">= 1 and finite", self.guidance)
        _require(self.captions >= 1, "captions", ">= 1", self.captions)
        _require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)


@torch.no_grad()
def measure_system(
    pipeline: MotionPipeline, dataset: MotionDataset, settings: ComparisonSettings, evaluator: Evaluator | None = None
) -> Numbers:
    """All numbers of one system on the items of ``dataset``, an evaluation split without augmentation.

    A system of one person is measured on data of several as well: each person of the data is then a motion of their
    own, and what needs two persons is left out.

    Raises:
        ValueError: as ``check_system``.
    """
    check_system(pipeline, dataset, settings)
    steps = _steps(pipeline, settings)
    guidance = pipeline.config.default_guidance if settings.guidance is None else settings.guidance
    prompts = prompts_of(dataset, settings.captions)
    order = sorted(range(len(prompts)), key=lambda place: dataset.num_frames(prompts[place][0]))
    made: dict[int, Tensor] = {}
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        motions = pipeline.sample(
            [prompts[place][1] for place in batch],
            [dataset.num_frames(prompts[place][0]) for place in batch],
            [settings.seed * len(prompts) + place for place in batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
        )
        made |= zip(batch, motions, strict=True)
    pairs = [(made[place], caption) for place, (_, caption) in enumerate(prompts)]
    return {**cost(pipeline, dataset, steps, guidance), **_judged(pairs, pipeline, dataset, evaluator)}


def check_system(pipeline: MotionPipeline, dataset: MotionDataset, settings: ComparisonSettings) -> None:
    """Raise ``ValueError`` for a system that cannot be measured on ``dataset``, before any work.

    One of other motion or of more persons than the data, steps that it does not have, or a caption or length that it
    refuses; names the item.
    """
    makes, has = pipeline.representation, dataset.data_set.representation
    if makes.name != has.name or makes.persons not in (1, has.persons):
        expected = f"motion of {has.name} of {has.persons} persons, as the data, or of one of them"
        raise ValueError(f"model: expected {expected}, got of {makes.name} of {makes.persons}")
    pipeline.config.check_steps(_steps(pipeline, settings))
    for index, caption in prompts_of(dataset, settings.captions):
        try:
            pipeline.check([caption], dataset.num_frames(index))
        except ValueError as error:
            name = dataset.names[index]
            raise ValueError(f"{dataset.root}: split {dataset.split!r}, item {name!r}: {error}") from error


def _steps(pipeline: MotionPipeline, settings: ComparisonSettings) -> int:
    return pipeline.config.default_steps if settings.steps is None else settings.steps


@torch.no_grad()
def measure_truth(dataset: MotionDataset, settings: ComparisonSettings, evaluator: Evaluator | None = None) -> Numbers:
    """The numbers of the data themselves, without a FID, which would be of the data against themselves."""
    pairs = [(dataset[index]["motion"], caption) for index, caption in prompts_of(dataset, settings.captions)]
    found = _of_motion(pairs, dataset) | (_of_embeddings(pairs, dataset, evaluator) if evaluator else {})
    found.pop("fid", None)
    return found


def prompts_of(dataset: MotionDataset, captions: int) -> list[tuple[int, str]]:
    """Item and caption: the first captions of all items, then the second ones, as far as every item has one."""
    columns = list(zip(*(dataset.captions(index)[:captions] for index in range(len(dataset))), strict=False))
    return [(index, caption) for column in columns for index, caption in enumerate(column)]


def cost(pipeline: MotionPipeline, dataset: MotionDataset, steps: int, guidance: float) -> Numbers:
    """Of one motion of the data's middle length, alone: operations, seconds (median of ``TIMINGS``), experts a token.

    Parameters are in millions, the text encoder's left out; operations in units of 10^9, two for each multiply-add. The
    model's parameters ask for no gradient afterwards.
    """
    frames = int(np.median([dataset.num_frames(index) for index in range(len(dataset))]))
    caption = dataset.captions(0)[0]
    parts = nn.ModuleDict(pipeline.modules).requires_grad_(False)  # views of parameters would trip the counter

    def make() -> None:
        pipeline.sample([caption], [frames], [0], num_inference_steps=steps, guidance_scale=guidance)

    with FlopCounterMode(display=False) as counter:
        make()
    seconds = []
    for _ in range(TIMINGS):
        started = time.perf_counter()
        make()
        seconds.append(time.perf_counter() - started)
    return {
        "parameters": sum(p.numel() for m in parts.values() if not isinstance(m, TextEncoder) for p in m.parameters())
        / 1e6,
        "flops": counter.get_total_flops() / 1e9,
        "seconds": float(np.median(seconds)),
        "experts_per_token": _experts_per_token(parts, make),
    }


def _experts_per_token(parts: nn.ModuleDict, make: Any) -> float | None:
    if not any(isinstance(module, InterMoEBlock) for module in parts.modules()):
        return None
    with record_routing(parts) as record:
        make()
    calls = [call for of_block in record.calls.values() for call in of_block]
    return float(sum(call.sum() for call in calls) / sum(call[..., 0].size for call in calls))


def _judged(
    pairs: Sequence[tuple[Tensor, str]], pipeline: MotionPipeline, dataset: MotionDataset, evaluator: Evaluator | None
) -> Numbers:
    found = _of_motion(pairs, dataset)
    whole = pipeline.representation.persons == dataset.data_set.representation.persons
    return found | (_of_embeddings(pairs, dataset, evaluator) if evaluator is not None and whole else {})


def _of_motion(pairs: Sequence[tuple[Tensor, str]], dataset: MotionDataset) -> Numbers:
    representation = dataset.data_set.representation
    joints = [representation.joints(motion).float().numpy() for motion, _ in pairs]
    if joints[0].shape[0] != 2:
        return _of_each_person(joints, representation.fps)
    truth = [Clip(representation.joints(dataset[index]["motion"]).float().numpy()) for index in range(len(dataset))]
    clips = [Clip(each, (caption,)) for each, (_, caption) in zip(joints, pairs, strict=True)]
    found = measure(clips, truth, paired=False, fps=representation.fps)
    numbers: Numbers = {key: value for key, value in found.items() if key not in ("clips", "joint_error_cm")}
    long = [
        measure_identity(each, fps=representation.fps)
        for each in joints
        if each.shape[1] >= min_frames(representation.fps)
    ]
    if long:
        numbers |= {
            "bone_inconsistency": float(np.mean([each.bone_inconsistency for each in long])),
            "swaps": 100 * float(np.mean([each.swap_score > SWAP_THRESHOLD for each in long])),
            "merges": 100 * float(np.mean([each.separation_cm < 100 * MERGE_DISTANCE for each in long])),
        }
    return numbers


def _of_each_person(joints: Sequence[Any], fps: float) -> Numbers:
    """What of the kinematic metrics is of one person alone."""
    feet = [foot_contact(each) for each in joints]
    contacts = sum(each.contacts for each in feet)
    frames = [each.shape[1] for each in joints]
    return {
        "bone_variation": float(np.mean([bone_variation(each) for each in joints])),
        "foot_skating_share": 100 * sum(each.sliding for each in feet) / contacts if contacts else None,
        "jitter": float(np.mean([jitter(each, fps=fps) for each in joints])),
        "floor_penetration_cm": float(np.average([floor_penetration(each) for each in joints], weights=frames)),
    }


def _of_embeddings(pairs: Sequence[tuple[Tensor, str]], dataset: MotionDataset, evaluator: Evaluator) -> Numbers:
    protocol = PROTOCOLS.get(evaluator.representation)
    scaling = {"scale": protocol.scale, "divide_by": protocol.divide_by} if protocol else {}
    truth = _embed(evaluator, [dataset[index]["motion"] for index in range(len(dataset))])
    motion = _embed(evaluator, [motion for motion, _ in pairs])
    text = evaluator.embed_text([caption for _, caption in pairs]).cpu().numpy()
    found = retrieval(text, motion, len(dataset))
    first = np.arange(len(motion))
    return {
        "fid": frechet_distance(motion, truth, scale=scaling.get("scale", 1.0)),
        **{f"r_precision_{k}": value for k, value in enumerate(found.r_precision, start=1)},
        "mm_dist": found.mm_dist,
        "diversity": diversity(motion, first, np.roll(first, 1), **scaling),
    }


def _embed(evaluator: Evaluator, motions: Sequence[Tensor]) -> Any:
    padded, lengths = pad_motion(motions)
    return evaluator.embed_motion(padded.to(evaluator.device), lengths).cpu().numpy().astype(np.float64)


@dataclass(frozen=True)
class ComparisonReport:
    """Rows by title, the published ones, and under what conditions the others were measured."""

    rows: dict[str, Numbers]
    published: tuple[Published, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def table(self) -> list[list[str]]:
        """Header, a line for every row, then the published ones, marked; columns that no row has are left out."""
        beside = [(f"{row.name} {row.mark}", row.numbers()) for row in self.published]
        rows = [*self.rows.items(), *beside]
        shown = [key for key in COLUMNS if any(numbers.get(key) is not None for _, numbers in rows)]
        lines = [["system", *(COLUMNS[key][0] for key in shown)]]
        return lines + [
            [name, *(_written(numbers.get(key), COLUMNS[key][1]) for key in shown)] for name, numbers in rows
        ]

    def markdown(self) -> str:
        """``table``, conditions and notes in Markdown."""
        header, *lines = self.table()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        text = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
        conditions = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in self.settings.items())
        return "\n".join([text, "", f"Conditions: {conditions}.", "", *(f"- {note}" for note in self.notes)]) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``comparison.json`` and ``comparison.md``, each whole or not at all."""
        published = [{"name": row.name, "mark": row.mark, **row.numbers()} for row in self.published]
        content = {"settings": self.settings, "rows": self.rows, "published": published, "notes": list(self.notes)}
        write_json(folder / TABLES[0], content)
        write_text(folder / TABLES[1], self.markdown())


def _written(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
