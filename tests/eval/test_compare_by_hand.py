"""A comparison's costs by a clock by hand, its rates, its refusals, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intermoe.eval import compare
from intermoe.eval.compare import COLUMNS, ComparisonReport, ComparisonSettings, check_system, cost
from intermoe.eval.protocol import Published
from intermoe.metrics.identity import min_frames

FRAMES = (20, 24, 46)


class Dataset:
    """Items of 20, 24 and 46 frames with two captions each, of two persons who do not move, at 60 frames a second."""

    root, split, names = "folder", "val", ("x", "y", "z")
    data_set = SimpleNamespace(
        name="toy",
        representation=SimpleNamespace(
            name="toy", persons=2, fps=60, joints=lambda motion: motion.unflatten(-1, (22, 3))
        ),
    )

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return {"motion": torch.zeros(2, FRAMES[index], 66)}

    def num_frames(self, index: int) -> int:
        return FRAMES[index]

    def captions(self, index: int) -> list[str]:
        return [f"first {index}", f"second {index}"]


def test_a_motion_of_the_middle_length_is_timed_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one whose operations are counted; of 5, 1 and 2 seconds the middle one counts, and of lengths 24."""
    asked: list[Any] = []
    layer = nn.Linear(3, 5)

    def sample(prompts: Any, lengths: Any, seeds: Any, **settings: Any) -> None:
        asked.append((prompts, lengths, seeds, settings))
        layer(torch.zeros(lengths[0], 3))

    monkeypatch.setattr(compare.time, "perf_counter", iter([10.0, 15.0, 20.0, 21.0, 30.0, 32.0]).__next__)
    pipeline: Any = SimpleNamespace(modules={"layer": layer}, sample=sample)
    found = cost(pipeline, Dataset(), steps=7, guidance=1.5)  # type: ignore[arg-type]
    settings = {"num_inference_steps": 7, "guidance_scale": 1.5}
    assert asked == [(["first 0"], [24], [0], settings)] * 4
    assert found == {
        "parameters": 20 / 1e6, "flops": 2 * 24 * 3 * 5 / 1e9, "seconds": 2.0, "experts_per_token": None
    }  # fmt: skip
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_motion_is_measured_at_the_rate_of_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 frames a second: of who they are only in clips that are long enough at that rate."""
    told: dict[str, Any] = {}

    def measure(clips: Any, truth: Any, **options: Any) -> Any:
        told["measure"] = (
            [(c.joints.shape[1], c.captions) for c in clips],
            [c.joints.shape[1] for c in truth],
            options,
        )
        return {"clips": 2, "joint_error_cm": None, "jitter": 3.0}

    def measure_identity(joints: Any, *, fps: float) -> Any:
        told.setdefault("identity", []).append((joints.shape[1], fps))
        return SimpleNamespace(bone_inconsistency=4.0, swap_score=0.0, separation_cm=99.0)

    monkeypatch.setattr(compare, "measure", measure)
    monkeypatch.setattr(compare, "measure_identity", measure_identity)
    least = min_frames(60)
    assert least > min_frames(30)
    pairs = [(torch.zeros(2, frames, 66), f"they {frames}") for frames in (least - 1, least)]
    dataset: Any = Dataset()
    found = compare._of_motion(pairs, dataset)
    clips = [(least - 1, (f"they {least - 1}",)), (least, (f"they {least}",))]
    assert told["measure"] == (clips, list(FRAMES), {"paired": False, "fps": 60})
    assert told["identity"] == [(least, 60)]
    assert found == {"jitter": 3.0, "bone_inconsistency": 4.0, "swaps": 100.0, "merges": 0.0}
    told.clear()
    assert compare._of_motion(pairs[:1], dataset) == {"jitter": 3.0}
    monkeypatch.setattr(
        compare, "_of_each_person", lambda joints, fps: {"of": [len(each) for each in joints], "fps": fps}
    )
    alone = [(torch.zeros(1, 30, 66), "they bow")] * 2
    assert compare._of_motion(alone, dataset) == {"of": [1, 1], "fps": 60}


def system(**changes: Any) -> Any:
    steps: list[int] = []
    values = {
        "representation": SimpleNamespace(name="toy", persons=2),
        "config": SimpleNamespace(check_steps=steps.append, default_steps=33, default_guidance=2.5),
        "check": lambda prompts, frames: None,
        "steps": steps,
    }
    return SimpleNamespace(**{**values, **changes})


def test_systems_are_of_the_data_or_of_one_of_their_persons() -> None:
    dataset: Any = Dataset()
    for persons in (1, 2):
        check_system(system(representation=SimpleNamespace(name="toy", persons=persons)), dataset, ComparisonSettings())
    for name, persons in (("toy", 3), ("other", 2), ("other", 1)):
        expected = "expected motion of toy of 2 persons, as the data, or of one of them"
        with pytest.raises(ValueError, match=f"^model: {expected}, got of {name} of {persons}"):
            check_system(
                system(representation=SimpleNamespace(name=name, persons=persons)), dataset, ComparisonSettings()
            )


def test_steps_and_every_caption_at_its_length_are_checked() -> None:
    dataset: Any = Dataset()
    asked: list[Any] = []
    pipeline = system(check=lambda prompts, frames: asked.append((prompts, frames)))
    check_system(pipeline, dataset, ComparisonSettings(captions=2))
    assert asked == [([f"{which} {n}"], FRAMES[n]) for which in ("first", "second") for n in range(3)]
    check_system(pipeline, dataset, ComparisonSettings(steps=4))
    assert pipeline.steps == [33, 4]

    def refuse(steps: int) -> None:
        raise ValueError(f"steps: refused {steps}")

    pipeline.config.check_steps = refuse
    with pytest.raises(ValueError, match="refused 33"):
        check_system(pipeline, dataset, ComparisonSettings())


def test_the_report_in_its_files(tmp_path: Path) -> None:
    """Every column with its digits, in order; a number that nobody has is no column."""
    values = {key: 10.0 * place + 0.12345 for place, key in enumerate(COLUMNS, start=1)}
    titles = {
        "parameters": ("parameters (M)", "10.12"), "flops": ("GFLOP per sample", "20.1"),
        "seconds": ("seconds per sample", "30.12"), "experts_per_token": ("experts per token", "40.12"),
        "train_steps": ("training steps", "50"), "train_seconds": ("training (s)", "60"),
        "bone_variation": ("bone variation (%)", "70.12"), "foot_skating_share": ("sliding feet (%)", "80.1"),
        "jitter": ("jitter (m/s³)", "90"), "floor_penetration_cm": ("below the floor (cm)", "100.12"),
        "pelvis_wasserstein_cm": ("pelvis distance, Wasserstein (cm)", "110.1"),
        "turn_direction": ("turn direction (%)", "120"), "bone_inconsistency": ("identity: bones (%)", "130.12"),
        "swaps": ("identity: swaps (%)", "140"), "merges": ("identity: merges (%)", "150"), "fid": ("FID", "160.123"),
        "r_precision_1": ("R@1", "170.123"), "r_precision_3": ("R@3", "180.123"), "mm_dist": ("MM-Dist", "190.123"),
        "diversity": ("Diversity", "200.123"),
    }  # fmt: skip
    published = Published("another", 7.0, (0.25, None, 0.75), 3.0, None, None, "retrained")
    rows: Any = {"ours": {**values, "near_share": 5.0}, "theirs": {"swaps": 0.0, "jitter": None}}
    report = ComparisonReport(rows, (published,), {"batch_size": 8, "steps": None}, ("one note", "another note"))
    header, ours, theirs, beside = report.table()
    assert header == ["system", *(title for title, _ in titles.values())]
    assert ours == ["ours", *(written for _, written in titles.values())]
    assert theirs == ["theirs", *("0" if key == "swaps" else "–" for key in titles)]
    known = {"fid": "7.000", "r_precision_1": "0.250", "r_precision_3": "0.750", "mm_dist": "3.000"}
    assert beside == ["another ‡", *(known.get(key, "–") for key in titles)]
    report.save(tmp_path)
    saved = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert saved == {
        "settings": {"batch_size": 8, "steps": None}, "rows": rows,
        "published": [{"name": "another", "mark": "‡", **published.numbers()}], "notes": ["one note", "another note"],
    }  # fmt: skip
    lines = (tmp_path / "comparison.md").read_text(encoding="utf-8").split("\n")
    assert lines[1] == "| --- |" + " ---: |" * len(titles)
    assert [lines[place] for place in (0, 2, 3, 4)] == [f"| {' | '.join(line)} |" for line in report.table()]
    assert lines[5:] == ["", "Conditions: batch size 8, steps None.", "", "- one note", "- another note", ""]
    fewer = ComparisonReport({"a": {"fid": 1.0}, "b": {"jitter": 2.0}}, (), {}).table()
    assert fewer == [["system", "jitter (m/s³)", "FID"], ["a", "–", "1.000"], ["b", "2", "–"]]


def test_seeds_are_numbered_over_all_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 2 of six captions is 12 to 17, by item and caption, whatever the order of work; defaults are its own."""
    asked: list[Any] = []

    def sample(prompts: Any, lengths: Any, seeds: Any, **settings: Any) -> Any:
        asked.append((prompts, lengths, seeds, settings))
        return [torch.full((2, 4, 66), float(seed)) for seed in seeds]

    monkeypatch.setattr(compare, "cost", lambda pipeline, dataset, steps, guidance: {"asked": [steps, guidance]})
    monkeypatch.setattr(compare, "_judged", lambda pairs, *_: {"made": [(m[0, 0, 0].item(), c) for m, c in pairs]})
    monkeypatch.setattr(Dataset, "num_frames", lambda self, index: (50, 30, 40)[index])
    dataset: Any = Dataset()
    found: Any = compare.measure_system(
        system(sample=sample), dataset, ComparisonSettings(seed=2, captions=2, batch_size=4)
    )
    settings = {"num_inference_steps": 33, "guidance_scale": 2.5}
    assert asked == [
        (["first 1", "second 1", "first 2", "second 2"], [30, 30, 40, 40], [13, 16, 14, 17], settings),
        (["first 0", "second 0"], [50, 50], [12, 15], settings),
    ]
    words = [f"{which} {n}" for which in ("first", "second") for n in range(3)]
    assert found == {"asked": [33, 2.5], "made": list(zip(np.arange(12.0, 18.0).tolist(), words, strict=True))}


def test_the_data_are_measured_as_often_as_they_have_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        compare, "_of_motion", lambda pairs, _: told.append([(m.shape[1], c) for m, c in pairs]) or {"jitter": 1.0}
    )
    monkeypatch.setattr(
        compare, "_of_embeddings", lambda pairs, *_: told.append([(m.shape[1], c) for m, c in pairs]) or {"fid": 2.0}
    )
    dataset: Any = Dataset()
    judge: Any = object()
    assert compare.measure_truth(dataset, ComparisonSettings(captions=2), judge) == {"jitter": 1.0}
    wanted = [(FRAMES[n], f"{which} {n}") for which in ("first", "second") for n in range(3)]
    assert told == [wanted, wanted]
    assert compare.measure_truth(dataset, ComparisonSettings()) == {"jitter": 1.0}
    assert told[2:] == [wanted[:3]]
