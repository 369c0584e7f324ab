"""How well a model can be steered: reactions, gaps, targets, scenes and live motion, beside the data and baselines."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from intermoe.control import Control, Known, Target
from intermoe.control.timeline import window_lengths
from intermoe.data.interhuman import InterHumanDataset
from intermoe.eval.kinematics import check_two
from intermoe.files import write_json
from intermoe.metrics.bodies import Penetration, penetration
from intermoe.metrics.kinematics import foot_contact, jitter, joint_error, pelvis_distances
from intermoe.motion.skeleton import JOINT_NAMES

if TYPE_CHECKING:
    from intermoe.pipeline import MotionPipeline

Joints = npt.NDArray[np.float32]

CONTACT, MET, MET_SECONDS = 0.15, 0.20, 0.3
"""Wrists nearer than the first, in metres, touch; a touch is met within the second, and within the third in time."""
GAP = 30
SEGMENT, SEGMENTS = 300, 6
"""Frames of each prompt of a timeline, and how many there are: a minute at 30 a second."""
WINDOWS, REPEATS = 20, 3
_WRISTS = [JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist")]
_NEAR = 3


@dataclass(frozen=True)
class ControlReport:
    """Rows of what was measured: name, value, what it is compared with, and that value."""

    rows: tuple[tuple[str, float | None, str, float | None], ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [dict(zip(("measured", "value", "beside", "that"), row, strict=True)) for row in self.rows]
        return {"settings": self.settings, "rows": rows}

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. Raises ``FileExistsError`` if there is one."""
        write_json(path, self.to_dict(), exclusive=True)

    def table(self) -> list[list[str]]:
        """Header and a line each."""
        shown = [[name, _shown(value), beside, _shown(that)] for name, value, beside, that in self.rows]
        return [["measured", "value", "beside", "that"], *shown]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def evaluate_control(
    pipeline: MotionPipeline,
    dataset: InterHumanDataset,
    *,
    limit: int = 8,
    best_of: int = 10,
    seed: int = 0,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ControlReport:
    """Measure steering on the first ``limit`` items of ``dataset``, of at least 2 seconds and a gap.

    What the system does not follow (``MotionPipeline.controls``) is left out: targets, or all that begins with given
    persons or frames.

    Args:
        dataset: evaluation items (``training=False``).
        limit: how many of them.
        best_of: reactions to each.
        guidance_scale: by default what the pipeline takes by default, with what is given and without.
        progress: called as ``progress(parts_done, parts)``.

    Raises:
        ValueError: a model of one person, fewer than two items that are long enough, ``limit`` or ``best_of`` below 1.
    """
    check_two(pipeline)
    if limit < 1 or best_of < 1:
        raise ValueError(f"limit, best_of: expected 1 or more, got {limit} and {best_of}")
    fitting = [index for index in range(len(dataset)) if dataset.num_frames(index) >= 3 * GAP][:limit]
    if len(fitting) < 2:
        raise ValueError(f"dataset: expected two items of {3 * GAP} frames or more, got {len(fitting)}")
    items = [_Item(dataset[index]["motion"], dataset.captions(index)[0]) for index in fitting]
    options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    every_part: list[tuple[str, Callable[[], Rows]]] = [
        ("reaction", lambda: _reactions(pipeline, items, best_of, seed, options)),
        ("known", lambda: _gaps(pipeline, items, seed, options)),
        ("targets", lambda: _targets(pipeline, items, seed, options)),
        ("known", lambda: _timeline(pipeline, items, seed, options)),
        ("known", lambda: _length(pipeline, items, seed, options)),
        ("known", lambda: _live(pipeline, items, seed)),
        ("", lambda: _persons(pipeline, items, seed, options)),
        ("known", lambda: _cost(pipeline, items, seed, options)),
    ]
    follows = {"", *pipeline.controls, *(["reaction"] if "known" in pipeline.controls else [])}
    parts = [part for needed, part in every_part if needed in follows]
    rows: Rows = []
    for index, part in enumerate(parts):
        rows += part()
        if progress is not None:
            progress(index + 1, len(parts))
    settings: dict[str, Any] = {"items": len(items), "best_of": best_of, "seed": seed}
    settings["by_levels"] = pipeline.trained_with_levels
    given = Control([Known(0, motion=items[0].motion[0])])
    for name, control in (("guidance_scale", None), ("guidance_scale_given", given)):
        settings[name] = pipeline.default_guidance(control) if guidance_scale is None else guidance_scale
    settings |= {"num_inference_steps": num_inference_steps, "split": dataset.split}
    return ControlReport(tuple(rows), settings)


class _Item:
    def __init__(self, motion: torch.Tensor, caption: str) -> None:
        self.motion, self.caption = motion, caption
        self.joints: Joints = motion[..., :66].unflatten(-1, (22, 3)).numpy()


Rows = list[tuple[str, float | None, str, float | None]]


def _made(
    pipeline: MotionPipeline,
    item: _Item,
    seed: int,
    options: Any,
    control: Control | None = None,
    persons: int | None = None,
) -> Joints:
    frames = item.joints.shape[1]
    result = pipeline(item.caption, frames, seed=seed, control=control, num_persons=persons, **options)
    made: Joints = result.joints[0].numpy()
    return made


def _reactions(pipeline: MotionPipeline, items: list[_Item], best_of: int, seed: int, options: Any) -> Rows:
    reacting: list[float] = []
    placed: list[float] = []
    beside: list[float] = []
    met: list[float] = []
    other: list[float] = []
    for number, item in enumerate(items):
        control = Control([Known(0, motion=item.motion[0])])
        made = [_made(pipeline, item, seed + k, options, control)[1] for k in range(best_of)]
        free = [_made(pipeline, item, seed + k, options) for k in range(best_of)]
        given, real = item.joints
        reacting.append(min(joint_error(each, real) for each in made))
        placed.append(min(joint_error(_placed(second, second, real), real) for _, second in free))
        beside.append(min(joint_error(_placed(second, first, given), real) for first, second in free))
        met.append(float(np.mean([_contacts_met(item.joints, each) for each in made])))
        stranger = items[(number + 1) % len(items)].motion[0]
        frames = min(len(stranger), item.motion.shape[1])
        control = Control([Known(0, motion=stranger[:frames])])
        made = [_made(pipeline, item, seed + k, options, control)[1] for k in range(best_of)]
        other.append(float(np.mean([_contacts_met(item.joints, each) for each in made])))
    return [
        ("reaction: joint error (cm), best", _mean(reacting), "free, placed at the same start", _mean(placed)),
        ("reaction: the same of free motion, the given person at their start (cm)", _mean(beside), "", None),
        ("reaction: contacts met (%)", _mean(met, 100), "reacting to another clip", _mean(other, 100)),
    ]


def _placed(joints: Joints, by: Joints, start: Joints) -> Joints:
    """``joints`` (T, 22, 3) turned about Y and moved as takes ``by`` (T, 22, 3) to begin and face as ``start`` does."""
    from intermoe.motion.interhuman import facing_forward

    turn, origin = facing_forward(torch.from_numpy(by[0]))
    wanted, place = facing_forward(torch.from_numpy(start[0]))
    moved: Joints = ((torch.from_numpy(joints) - origin) @ turn.T @ wanted + place).numpy()
    return moved


def _contacts_met(real: Joints, second: Joints) -> float:
    """Share of the frames in which two wrists of ``real`` (2, T, 22, 3) touch that ``second`` (T, 22, 3) meets too.

    NaN where nobody touches.
    """
    there = _between(real[0], real[1]) < CONTACT
    near = _between(real[0], second) < MET
    reach = round(MET_SECONDS * 30)
    met = [near[max(0, t - reach) : t + reach + 1, a, b].any() for t, a, b in np.argwhere(there)]
    return float(np.mean(met)) if met else float("nan")


def _between(first: Joints, second: Joints) -> Any:
    return np.linalg.norm(first[:, _WRISTS, None] - second[:, None, _WRISTS], axis=-1)


def _gaps(pipeline: MotionPipeline, items: list[_Item], seed: int, options: Any) -> Rows:
    filled, line, jumps, real = [], [], [], []
    for item in items:
        start = (item.motion.shape[1] - GAP) // 2
        ends = [slice(0, start), slice(start + GAP, item.motion.shape[1])]
        known = [Known(p, motion=item.motion[p, run], frames=run) for p in (0, 1) for run in ends]
        made = _made(pipeline, item, seed, options, Control(known))
        share = np.linspace(0, 1, GAP + 2, dtype=np.float32)[1:-1, None, None]
        before, after = item.joints[:, start - 1, None], item.joints[:, start + GAP, None]
        gap = item.joints[:, start : start + GAP]
        filled.append(joint_error(made[:, start : start + GAP], gap))
        line.append(joint_error((1 - share) * before + share * after, gap))
        jump = np.linalg.norm(np.diff(made, n=2, axis=1), axis=-1).max(axis=(0, 2)) * 30
        jumps.append(jump[[start - 2, start - 1, start + GAP - 2, start + GAP - 1]].max())
        real.append(np.percentile(np.linalg.norm(np.diff(item.joints, n=2, axis=1), axis=-1).max(axis=(0, 2)) * 30, 99))
    return [
        ("gap of 1 s: joint error (cm)", _mean(filled), "linear interpolation", _mean(line)),
        ("gap: velocity jump at seams (m/s)", _mean(jumps), "99th percentile of the data", _mean(real)),
    ]


def _targets(pipeline: MotionPipeline, items: list[_Item], seed: int, options: Any) -> Rows:
    missed, slid, free_slid = [], [], []
    for number, item in enumerate(items):
        joint = ("left_wrist", "right_wrist", "pelvis")[number % 3]
        free = _made(pipeline, item, seed, options)
        frames = [GAP, 2 * GAP]
        places = free[1, frames, JOINT_NAMES.index(joint)] + np.array([0.15, 0.0, 0.15], np.float32)
        target = Target(1, joint, frames, positions=places)
        made = _made(pipeline, item, seed, options, Control(targets=[target]))
        missed += (100 * target.missed(torch.from_numpy(made))).tolist()
        slid.append(foot_contact(made).distance)
        free_slid.append(foot_contact(free).distance)
    return [
        ("targets: distance (cm)", _mean(missed), "", None),
        ("targets: sliding of feet (m)", _mean(slid), "free generation", _mean(free_slid)),
    ]


def _timeline(pipeline: MotionPipeline, items: list[_Item], seed: int, options: Any) -> Rows:
    segments = [(items[index % len(items)].caption, SEGMENT) for index in range(SEGMENTS)]
    joints = pipeline.timeline(segments, seed=seed, **options).joints[0].numpy()
    third = np.linalg.norm(np.diff(joints, n=3, axis=1), axis=-1).mean(axis=(0, 2)) * 30**3
    near = np.zeros(len(third), dtype=bool)
    for seam in accumulate(window_lengths(segments, pipeline.config.max_frames)[:-1]):
        near[seam - _NEAR : seam + _NEAR] = True
    lowest = joints[..., 1].min(axis=(0, 2))
    return [
        ("timeline: jerk at seams (m/s³)", float(third[near].mean()), "inside", float(third[~near].mean())),
        ("timeline: jerk of the data (m/s³)", _mean([jitter(item.joints) for item in items]), "", None),
        (
            "timeline: lowest joint of the last segment (cm)",
            float(100 * lowest[-SEGMENT:].mean()),
            "of the first",
            float(100 * lowest[:SEGMENT].mean()),
        ),
        (
            "timeline: distance of pelvises in the last segment (cm)",
            float(pelvis_distances(joints[:, -SEGMENT:]).mean()),
            "in the first",
            float(pelvis_distances(joints[:, :SEGMENT]).mean()),
        ),
    ]


def _length(pipeline: MotionPipeline, items: list[_Item], seed: int, options: Any) -> Rows:
    """What a scene costs as it goes on; its first window, which meets everything for the first time, does not count."""
    scene = pipeline.live(items[0].caption, seed=seed, **options)
    next(scene)
    times, peaks = [], [_peak_memory()]
    for _ in range(2):
        began = time.perf_counter()
        frames = sum(next(scene).shape[1] for _ in range(WINDOWS))
        times.append((time.perf_counter() - began) * pipeline.config.fps / frames)
        peaks.append(_peak_memory())
    return [
        ("timeline: time for a second of its second half (s)", times[1], "of its first", times[0]),
        ("timeline: memory its second half adds (MB)", peaks[2] - peaks[1], "its first", peaks[1] - peaks[0]),
    ]


def _peak_memory() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _live(pipeline: MotionPipeline, items: list[_Item], seed: int) -> Rows:
    live = pipeline.live(items[0].caption, seed=seed)
    next(live)  # what is made on the first call is not the model's time
    began = time.perf_counter()
    frames = sum(next(live).shape[1] for _ in range(5))
    rate = frames / (time.perf_counter() - began)
    live.send(items[-1].caption)
    began = time.perf_counter()
    next(live)
    return [("live: frames a second", rate, "first frame after a prompt (s)", time.perf_counter() - began)]


def _persons(pipeline: MotionPipeline, items: list[_Item], seed: int, options: Any) -> Rows:
    found, nearest = {2: Penetration(), 4: Penetration()}, {2: math.inf, 4: math.inf}
    for item in items:
        for count in found:
            joints = _made(pipeline, item, seed, options, persons=count)
            found[count] += penetration(joints)
            nearest[count] = min(nearest[count], 100 * _nearest_pelvises(joints))
    return [
        (
            "4 persons: bodies in each other, depth within 60 cm (cm)",
            found[4].mean_depth_cm,
            "2",
            found[2].mean_depth_cm,
        ),
        ("4 persons: frames of two with bodies in each other (%)", found[4].share, "2", found[2].share),
        ("4 persons: nearest pelvises (cm)", nearest[4], "2", nearest[2]),
    ]


def _nearest_pelvises(joints: Joints) -> float:
    """Metres between the nearest two of joints (P, T, 22, 3), over all frames."""
    pelvis = joints[:, :, 0]
    return min(float(np.linalg.norm(one - other, axis=-1).min()) for one, other in combinations(pelvis, 2))


def _cost(pipeline: MotionPipeline, items: list[_Item], seed: int, options: Any) -> Rows:
    """Time of a motion whose first half is given, by two levels, over one of one level; the fastest of a few each."""
    item, taken = items[0], {True: math.inf, False: math.inf}
    options = options | {"guidance_scale": options["guidance_scale"] or pipeline.default_guidance()}  # alike in both
    half = item.motion.shape[1] // (2 * pipeline.frame_multiple) * pipeline.frame_multiple
    item = _Item(item.motion[:, : 2 * half], item.caption)
    control = Control([Known(person, motion=each[:half]) for person, each in enumerate(item.motion)])
    for _ in range(REPEATS):
        for given in taken:
            began = time.perf_counter()
            _made(pipeline, item, seed, options, control if given else None)
            taken[given] = min(taken[given], time.perf_counter() - began)
    return [("first half given: time of a motion (s)", taken[True], "free generation", taken[False])]


def _mean(values: Sequence[float], factor: float = 1.0) -> float | None:
    """Mean of those that are numbers, or ``None``."""
    known = [value for value in values if not np.isnan(value)]
    return float(factor * np.mean(known)) if known else None
