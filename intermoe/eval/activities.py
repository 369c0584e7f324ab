"""Whether motion shows the activity it was asked for, by a judge trained on real motion; every other number beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intermoe.data.activities import activities
from intermoe.data.interhuman import InterHumanDataset
from intermoe.eval.kinematics import check_two, metric_table, real_clips, reconstructed
from intermoe.evaluators.activities import STEPS, train_judge
from intermoe.files import write_json
from intermoe.metrics.bodies import closest_wrists
from intermoe.metrics.clips import Clip, Numbers, measure

if TYPE_CHECKING:
    from intermoe.pipeline import MotionPipeline

Captions = Mapping[str, Sequence[str]]
"""Captions by activity."""
REAL_TRAIN, REAL_VAL, RECONSTRUCTION = "real, trained on", "real, held out", "reconstruction"
CAPTIONS, PARAPHRASES = "captions", "paraphrases"


@dataclass(frozen=True)
class Asked:
    """What a model is asked for.

    Args:
        captions: how many of the captions of the data are generated for each activity, drawn by chance but always the
            same.
        paraphrases: captions by activity that no clip has, or ``None``.
        num_frames: length of each motion.

    Raises:
        ValueError: fewer than one caption.
    """

    captions: int = 2
    paraphrases: Captions | None = None
    num_frames: int = 90

    def __post_init__(self) -> None:
        if self.captions < 1:
            raise ValueError(f"captions: expected >= 1, got {self.captions}")

    def prompts(self, train: Sequence[InterHumanDataset], val: Sequence[InterHumanDataset]) -> dict[str, Captions]:
        """Captions by activity, by row of the report.

        Raises:
            ValueError: as ``check_paraphrases``, or for paraphrases of an activity that ``train`` has not.
        """
        found: dict[str, Captions] = {CAPTIONS: _drawn(captions_by_activity(train), self.captions)}
        if self.paraphrases is not None:
            check_paraphrases(self.paraphrases, captions_by_activity([*train, *val]))
            for activity in self.paraphrases:
                if activity not in found[CAPTIONS]:  # the judge cannot recognise what it was not trained on
                    names = ", ".join(found[CAPTIONS])
                    raise ValueError(f"paraphrases: expected activities of split train, {names}, got {activity!r}")
            found[PARAPHRASES] = self.paraphrases
        return found


@dataclass(frozen=True)
class ActivityReport:
    """Numbers of each row.

    ``by_activity[row][activity]`` has ``clips``, ``recognised`` of them, ``taken_for`` (what others were taken for, and
    how often) and ``closest_wrists_cm`` of each clip. ``recognised_by_seed`` is the share in % by row and seed.
    """

    rows: dict[str, Numbers]
    by_activity: dict[str, dict[str, dict[str, Any]]]
    recognised_by_seed: dict[str, dict[int, float]]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        by_seed = {row: {str(k): v for k, v in each.items()} for row, each in self.recognised_by_seed.items()}
        return {
            "settings": self.settings,
            "rows": self.rows,
            "by_activity": self.by_activity,
            "recognised_by_seed": by_seed,
        }

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. Raises ``FileExistsError`` if there is one."""
        write_json(path, self.to_dict(), exclusive=True)

    def table(self) -> list[list[str]]:
        """Header and one line a metric, a column for each row of the report."""
        header, *lines = metric_table(self.rows)
        titles = {"clips": "clips", "recognised": "activity recognised (%)", "among_three": "among the first three (%)"}
        own = [[title, *(f"{row[key]:.4g}" for row in self.rows.values())] for key, title in titles.items()]
        return [header, *own, *lines]

    def activity_table(self) -> list[list[str]]:
        """Header and a line for every activity that was generated: how many were recognised, of how many."""
        made = [row for row in self.by_activity if row in (CAPTIONS, PARAPHRASES)]
        lines = [["activity", *(each for row in made for each in (row, "others taken for"))]]
        for activity in sorted({activity for row in made for activity in self.by_activity[row]}):
            line = [activity]
            for row in made:
                found = self.by_activity[row].get(activity)
                if found is None:
                    line += ["–", ""]
                    continue
                taken = ", ".join(f"{name} {count}" for name, count in found["taken_for"].items())
                line += [f"{found['recognised']} of {found['clips']}", taken]
            lines.append(line)
        return lines


def evaluate_activities(
    pipeline: MotionPipeline,
    train: Sequence[InterHumanDataset],
    val: Sequence[InterHumanDataset],
    asked: Asked | None = None,
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float = 3.5,
    batch_size: int = 16,
    judge_steps: int = STEPS,
    progress: Callable[[int, int], None] | None = None,
) -> ActivityReport:
    """Train a judge on the clips of ``train``, and ask it of these, of ``val``, and of what the model makes.

    Args:
        train, val: evaluation items (``training=False``) of one or several folders. A clip's activity is its tag in
            ``items.json``, or the name of its folder.
        asked: what the model is asked for.
        seeds: with each of them everything is generated.
        judge_steps: training steps of the judge, whose seed is 0.
        progress: called as ``progress(clips_done, clips)`` during generation.

    Raises:
        ValueError: a model of one person, fewer than two activities, a paraphrase of none of them, one that is a
            caption, or one that the model refuses, seeds or steps out of range; before any work.
    """
    check_two(pipeline)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected >= 1, got {batch_size}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: expected at least one, none twice, got {tuple(seeds)}")
    if judge_steps < 1:
        raise ValueError(f"judge_steps: expected >= 1, got {judge_steps}")
    asked = asked or Asked()
    by_row = asked.prompts(train, val)
    most = max(sum(map(len, each.values())) for each in by_row.values())
    if not 0 <= min(seeds) <= max(seeds) < 2**63 // most - 1:  # each is multiplied by the number of captions
        raise ValueError(f"seeds: expected numbers in [0, {2**63 // most - 1}), got {tuple(seeds)}")
    if len(by_row[CAPTIONS]) < 2:
        raise ValueError(f"train: expected two activities or more, got {', '.join(by_row[CAPTIONS])}")
    for each in by_row.values():
        pipeline.check([caption for of_activity in each.values() for caption in of_activity], asked.num_frames)
    real = {name: [c for d in sets for c in real_clips(d)] for name, sets in ((REAL_TRAIN, train), (REAL_VAL, val))}
    judging = train_judge(real[REAL_TRAIN], steps=judge_steps)
    clips = dict(real)
    if pipeline.has_latents:
        clips[RECONSTRUCTION] = [clip for dataset in val for clip in reconstructed(pipeline, dataset)]
    total = len(seeds) * sum(len(of_activity) for each in by_row.values() for of_activity in each.values())
    done = 0
    by_seed: dict[str, dict[int, float]] = {}
    for row, prompts in by_row.items():
        pairs = [(caption, activity) for activity, each in prompts.items() for caption in each]
        clips[row], by_seed[row] = [], {}
        for seed in seeds:
            made: list[Clip] = []
            for start in range(0, len(pairs), batch_size):
                batch = pairs[start : start + batch_size]
                result = pipeline(
                    [caption for caption, _ in batch],
                    num_frames=asked.num_frames,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    seed=seed * len(pairs) + start,
                )
                made += [Clip(j.numpy(), (c,), a) for j, (c, a) in zip(result.joints, batch, strict=True)]
                done += len(batch)
                if progress is not None:
                    progress(done, total)
            by_seed[row][seed] = 100 * float(np.mean([judging.ranked(clip)[0] == clip.activity for clip in made]))
            clips[row] += made
    judged = {row: [judging.ranked(clip) for clip in each] for row, each in clips.items()}
    rows = {
        row: {**_recognised(each, judged[row]), **measure(each, real[REAL_TRAIN], paired=False)}
        for row, each in clips.items()
    }
    settings = {
        "data": [dataset.root.resolve().name for dataset in train],
        "activities": len(judging.names),
        "captions": asked.captions,
        "num_frames": asked.num_frames,
        "seeds": list(seeds),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "judge_steps": judge_steps,
    }
    by_activity = {row: _by_activity(each, judged[row]) for row, each in clips.items()}
    return ActivityReport(rows, by_activity, by_seed, settings)


def captions_by_activity(datasets: Sequence[InterHumanDataset]) -> dict[str, list[str]]:
    """Every caption of every clip once, by the clip's activity, in order."""
    found: dict[str, dict[str, None]] = {}
    for dataset in datasets:
        for index, activity in enumerate(activities(dataset.root, dataset.names)):
            found.setdefault(activity, {}).update(dict.fromkeys(dataset.captions(index)))
    return {activity: list(found[activity]) for activity in sorted(found)}


def check_paraphrases(paraphrases: Captions, captions: Captions) -> None:
    """Raise ``ValueError`` for a paraphrase of no activity of ``captions``, or one that is a caption, by any case."""
    known = {_words(caption) for each in captions.values() for caption in each}
    for activity, each in paraphrases.items():
        if activity not in captions:
            raise ValueError(f"paraphrases: expected activities of {', '.join(captions)}, got {activity!r}")
        for caption in each:
            if _words(caption) in known:
                raise ValueError(f"paraphrases: expected what no clip is captioned with, got {caption!r}")


def _words(caption: str) -> str:
    return " ".join(caption.lower().strip(" .").split())


def _drawn(captions: Captions, count: int) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    return {activity: [each[i] for i in rng.permutation(len(each))[:count]] for activity, each in captions.items()}


def _recognised(clips: Sequence[Clip], ranked: Sequence[Sequence[str]]) -> Numbers:
    pairs = zip(clips, ranked, strict=True)
    places = [names.index(c.activity) if c.activity in names else len(names) for c, names in pairs]
    return {
        "recognised": 100 * float(np.mean([place == 0 for place in places])),
        "among_three": 100 * float(np.mean([place < 3 for place in places])),
    }


def _by_activity(clips: Sequence[Clip], ranked: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for activity in sorted({str(clip.activity) for clip in clips}):
        own = [(clip, names[0]) for clip, names in zip(clips, ranked, strict=True) if clip.activity == activity]
        others = Counter(name for _, name in own if name != activity)
        found[activity] = {
            "clips": len(own),
            "recognised": sum(name == activity for _, name in own),
            "taken_for": dict(others.most_common()),
            "closest_wrists_cm": [round(100 * closest_wrists(clip.joints), 1) for clip, _ in own],
        }
    return found
