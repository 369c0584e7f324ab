"""The identity report: which copies of which clips are ranked against what, by measures known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.eval import evaluate_identity
from intermoe.eval.identity_report import CORRUPTIONS, LONG_LIMBS, IdentityReport, IdentityRow, _ranking, _row
from intermoe.metrics import corruptions
from intermoe.metrics.identity import SWAP_THRESHOLD, IdentityMetrics, measure_identity
from intermoe.motion.interhuman import joints
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.skeleton import JOINT_NAMES

FRAMES = {"a": 42, "b": 50}
COLUMNS = ["bones (%)", "style overlap", "role break", "swap score", "separation (cm)"]


@pytest.fixture(scope="module")
def dataset(two_people: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> InterHumanDataset:
    root = two_people(tmp_path_factory.mktemp("identity"), {"val": FRAMES}, "")
    for name in FRAMES:
        (root / "annots" / f"{name}.txt").write_text(f"they {name}", encoding="utf-8")
    return InterHumanDataset(root, "val", training=False)


class Echo:
    """Makes the motion of the caption's item, grown by a tenth for each seed; reconstructs it at half of its size."""

    device, frame_multiple = torch.device("cpu"), 4
    representation = REPRESENTATIONS["interhuman"]

    def __init__(self, dataset: InterHumanDataset, has_latents: bool = True) -> None:
        self.motions = {c: dataset[i]["motion"] for i in range(len(dataset)) for c in dataset.captions(i)}
        self.has_latents = has_latents
        self.asked: list[Any] = []

    def check(self, prompts: Any, num_frames: int) -> None:
        pass

    def encode(self, motion: torch.Tensor) -> torch.Tensor:
        return motion

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / 2

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        self.asked.append(options)
        grown = 1 + 0.1 * (options["seed"] // len(self.motions))
        return SimpleNamespace(joints=torch.stack([joints(grown * self.motions[prompt]) for prompt in prompts]))


def means(clips: list[Any]) -> list[float]:
    return np.mean([astuple(measure_identity(clip)) for clip in clips], axis=0).tolist()


def test_rows_are_of_the_data_the_model_and_broken_copies(dataset: InterHumanDataset) -> None:
    pipeline: Any = Echo(dataset)
    done: list[Any] = []
    report = evaluate_identity(
        dataset, pipeline, seeds=(0, 2), num_inference_steps=7, guidance_scale=1.5, batch_size=1,
        progress=lambda *each: done.append(each),
    )  # fmt: skip
    longer = [f"{name}, longer limbs" for name in CORRUPTIONS]
    made = ["ground truth", "reconstruction", "generation"]
    assert list(report.rows) == [*made, *CORRUPTIONS, "person 2 with longer limbs", *longer]
    assert list(report.ranking) == [*CORRUPTIONS, *longer]
    names = ("num_frames", "seed", "num_inference_steps", "guidance_scale")
    asked = [tuple(each[name] for name in names) for each in pipeline.asked]
    assert asked == [(42, 0, 7, 1.5), (50, 1, 7, 1.5), (42, 4, 7, 1.5), (50, 5, 7, 1.5)]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    clean = [joints(dataset[i]["motion"]).numpy() for i in range(2)]
    limbs = [corruptions.scale_skeleton(clip, LONG_LIMBS, person=1) for clip in clean]
    wanted = {
        "ground truth": clean,
        "reconstruction": [clip / 2 for clip in clean],
        "generation": [np.float32(grown) * clip for grown in (1, 1.2) for clip in clean],
        "averaged": [corruptions.average(clip) for clip in clean],
        "person 2 with longer limbs": limbs,
        "swapped midway, longer limbs": [corruptions.swap_midway(clip) for clip in limbs],
    }
    for name, clips in wanted.items():
        row = report.rows[name]
        assert row.clips == len(clips)
        assert list(row.mean.values()) == pytest.approx(means(clips), rel=1e-3, abs=1e-3), name
    for name, corrupt in CORRUPTIONS.items():
        for suffix, bases in (("", clean), (", longer limbs", limbs)):
            pairs = ([measure_identity(change(clip)) for clip in bases] for change in (np.copy, corrupt))
            assert report.ranking[name + suffix] == _ranking(*pairs)
    assert report.settings == {
        "split": "val", "items": 2, "model": True, "seeds": [0, 2], "num_inference_steps": 7, "guidance_scale": 1.5
    }  # fmt: skip


def test_without_latents_there_is_no_reconstruction_and_without_a_model_no_generation(
    dataset: InterHumanDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = IdentityMetrics(1.0, 0.2, 0.3, 0.4, 50.0)
    monkeypatch.setattr("intermoe.eval.identity_report.measure_identity", lambda joints: clip)
    pipeline: Any = Echo(dataset, has_latents=False)
    assert list(evaluate_identity(dataset, pipeline).rows)[:3] == ["ground truth", "generation", "swapped midway"]
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "intermoe.eval.identity_report.generate_clips",
        lambda *_, seeds, **options: (asked.update(options), {seed: [SimpleNamespace(joints=0)] for seed in seeds})[1],
    )
    settings = {"num_inference_steps": 7, "guidance_scale": 1.5, "batch_size": 5, "progress": print}
    assert evaluate_identity(dataset, pipeline, seeds=(4, 1), **settings).rows["generation"].clips == 2  # type: ignore[arg-type]
    assert asked == settings
    report = evaluate_identity(dataset)
    assert list(report.rows)[:2] == ["ground truth", "swapped midway"]
    assert report.settings == {"split": "val", "items": 2, "model": False}


def test_copies_with_longer_limbs_are_ranked_against_undamaged_ones(
    dataset: InterHumanDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by how high the second person begins, a tenth higher with longer limbs, which no exchange changes."""

    def measure(joints: Any) -> IdentityMetrics:
        return IdentityMetrics(float(joints[1, 0, 0, 1]), 0.0, 0.0, 0.0, 50.0)

    monkeypatch.setattr("intermoe.eval.identity_report.measure_identity", measure)
    report = evaluate_identity(dataset)
    longer = report.rows["person 2 with longer limbs"].mean["bone_inconsistency"]
    assert longer == pytest.approx(1.1 * report.rows["ground truth"].mean["bone_inconsistency"])
    for name in ("swapped midway", "swapped, blend of 10"):
        for suffix in ("", ", longer limbs"):
            assert report.ranking[name + suffix]["bone_inconsistency"] == 0, name


def test_copies_are_broken_as_their_names_say() -> None:
    pair = np.random.default_rng(0).normal(size=(2, 40, 22, 3))
    wanted: dict[str, Any] = {
        "swapped midway": corruptions.swap_midway,
        "swapped, blend of 10": partial(corruptions.swap_midway, blend=10),
        "averaged": corruptions.average,
        "averaged in place": corruptions.average_in_place,
        "mirrored midway": corruptions.mirror_midway,
        "mirrored, blend of 10": partial(corruptions.mirror_midway, blend=10),
    }
    assert list(CORRUPTIONS) == list(wanted)
    for name, corrupt in wanted.items():
        np.testing.assert_array_equal(CORRUPTIONS[name](pair), corrupt(pair))
    ends = {"pelvis"} | {f"{side}_{part}" for side in ("left", "right") for part in ("knee", "ankle", "elbow", "wrist")}
    assert {name: 1.1 if name in ends else 1.0 for name in JOINT_NAMES} == dict(
        zip(JOINT_NAMES, LONG_LIMBS, strict=True)
    )


def test_ranked_is_what_differs_by_more_than_a_thousandth() -> None:
    clean = [IdentityMetrics(1.0, 0.2, 0.3, 0.4, 50.0)] * 2
    for step, share in ((0.0009, 0.0), (0.0011, 50.0)):
        broken = [IdentityMetrics(1.0 + step, 0.2 + step, 0.3 + step, 0.4 + step, 50.0 - step), clean[1]]
        assert set(_ranking(clean, broken).values()) == {share}


def test_a_row_is_of_means_and_shares() -> None:
    """Of four clips one swaps beyond the threshold, one at it; one of them merges."""
    swaps = (SWAP_THRESHOLD + 0.5, SWAP_THRESHOLD, SWAP_THRESHOLD - 1, SWAP_THRESHOLD - 1.5)
    clips = [
        IdentityMetrics(1.0 * n, 0.1 * n, 0.2 * n, swap, apart)
        for n, swap, apart in zip((1, 2, 3, 6), swaps, (14.0, 100.0, 15.0, 71.0), strict=True)
    ]
    row = _row(clips)
    assert (row.clips, row.swaps, row.merges) == (4, 25.0, 25.0)
    assert list(row.mean) == ["bone_inconsistency", "style_overlap", "role_break", "swap_score", "separation_cm"]
    assert list(row.mean.values()) == pytest.approx([3.0, 0.3, 0.6, SWAP_THRESHOLD - 0.5, 50.0])


def test_tables_have_every_number_in_its_column() -> None:
    names = ("bone_inconsistency", "style_overlap", "role_break", "swap_score", "separation_cm")
    values = dict(zip(names, (1.234, 0.056, 3.4567, -4.5, 55.5555), strict=True))
    report = IdentityReport(
        {"ground truth": IdentityRow(12, values, 6.5, 7.25)},
        {"averaged": dict(zip(names, (0.0, 33.333, 66.667, 99.6, 100.0), strict=True))},
        {},
    )
    assert report.table() == [
        ["motion", "clips", *COLUMNS, "swaps (%)", "merges (%)"],
        ["ground truth", "12", "1.23", "0.06", "3.46", "-4.50", "55.56", "6.50", "7.25"],
    ]
    assert report.ranking_table() == [
        ["ranked below clean (%)", *COLUMNS],
        ["averaged", "0", "33", "67", "100", "100"],
    ]


@pytest.mark.parametrize("options", [{"training": True}, {"mirror": True}, {"swap_persons": True}])
def test_random_items_are_refused(dataset: InterHumanDataset, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="dataset: expected training=False and no augmentation, got a random one"):
        evaluate_identity(InterHumanDataset(dataset.root, "val", **{"training": False, **options}))
