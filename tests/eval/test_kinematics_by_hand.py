"""Which clips, seeds and lengths are asked for, by whom they are done, and what is refused before any work."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.eval import evaluate_identity, evaluate_kinematics, kinematics
from intermoe.eval.activities import ActivityReport, Asked, evaluate_activities
from intermoe.eval.control import ControlReport, evaluate_control
from intermoe.eval.identity_report import IdentityReport, IdentityRow
from intermoe.eval.kinematics import KinematicReport, check_generation, generate_clips, metric_table
from intermoe.eval.routing import RoutingReport, evaluate_routing
from intermoe.eval.runner import EvaluationSettings
from intermoe.metrics.clips import METRICS, measure
from intermoe.motion.interhuman import joints
from intermoe.motion.representation import REPRESENTATIONS

FRAMES = {"a": 20, "b": 24, "c": 20}


@pytest.fixture(scope="module")
def dataset(two_people: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> InterHumanDataset:
    """Three items, of which two are tagged and one says where it is from, with two captions each."""
    root = two_people(tmp_path_factory.mktemp("data") / "folder", {"val": FRAMES}, "")
    for name in FRAMES:
        (root / "annots" / f"{name}.txt").write_text(f"they {name}\nthe two of them {name}\n", encoding="utf-8")
    items = [{"name": "c", "tags": {"activity": "hug"}}, {"name": "a", "tags": {"activity": "bow"}}, {"name": "b"}]
    (root / "items.json").write_text(json.dumps(items), encoding="utf-8")
    return InterHumanDataset(root, "val", training=False)


class Echo:
    """Makes for a caption the motion of its item, raised by the seed's last digit in centimetres; notes the calls."""

    device, frame_multiple, has_latents = torch.device("cpu"), 4, True
    representation = REPRESENTATIONS["interhuman"]
    config = SimpleNamespace(system="echo")

    def __init__(self, dataset: InterHumanDataset, refused: str = "") -> None:
        self.motions = {c: dataset[i]["motion"] for i in range(len(dataset)) for c in dataset.captions(i)}
        self.calls: list[Any] = []
        self.checked: list[Any] = []
        self.refused = refused

    def check(self, prompts: Any, num_frames: int) -> None:
        self.checked.append((list(prompts), num_frames))
        if self.refused in prompts:
            raise ValueError("prompts: refused")

    def encode(self, motion: torch.Tensor) -> torch.Tensor:
        return motion + 0.25

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents + 0.25

    def __call__(self, prompts: list[str], *, num_frames: int, seed: int, **options: Any) -> Any:
        self.calls.append((prompts, num_frames, seed, options))
        made = [joints(self.motions[prompt]) + 0.01 * ((seed + n) % 10) for n, prompt in enumerate(prompts)]
        return SimpleNamespace(joints=torch.stack(made))


def test_clips_are_of_their_caption_seed_and_activity(dataset: InterHumanDataset) -> None:
    pipeline: Any = Echo(dataset)
    asked: Any = {"num_inference_steps": 7, "guidance_scale": 1.5}
    done: list[Any] = []
    made = generate_clips(
        pipeline, dataset, seeds=(3, 1), batch_size=3, progress=lambda *each: done.append(each), **asked
    )
    words = ["they a", "the two of them a", "they c", "the two of them c", "they b", "the two of them b"]
    batches = [(words[:3], 20), (words[3:4], 20), (words[4:], 24)]
    seeds = [18, 21, 22, 6, 9, 10]  # of six captions; the first of a batch
    expected = [(*batch, seed, asked) for batch, seed in zip(2 * batches, seeds, strict=True)]
    assert pipeline.calls == expected
    assert list(made) == [3, 1]
    for seed, clips in made.items():
        assert [clip.captions for clip in clips] == [(word,) for word in words]
        assert [clip.activity for clip in clips] == ["bow", "bow", "hug", "hug", "folder", "folder"]
        for number, clip in enumerate(clips):
            own = joints(pipeline.motions[words[number]]) + 0.01 * ((6 * seed + number) % 10)
            np.testing.assert_array_equal(clip.joints, own.numpy())
    assert done == [(3, 12), (4, 12), (6, 12), (9, 12), (10, 12), (12, 12)]


def test_a_report_tells_seeds_apart_and_all_of_them_together(dataset: InterHumanDataset) -> None:
    pipeline: Any = Echo(dataset)
    report = evaluate_kinematics(pipeline, dataset, seeds=(3, 1))
    made = generate_clips(pipeline, dataset, seeds=(3, 1), num_inference_steps=50, guidance_scale=3.5)
    truth = kinematics.real_clips(dataset)
    alone = {seed: measure(clips, truth, paired=False) for seed, clips in made.items()}
    assert report.generation_by_seed == alone
    assert alone[3] != alone[1]
    assert report.rows["generation"] == measure([*made[3], *made[1]], truth, paired=False)
    assert report.rows["ground truth"] == measure(truth, truth, paired=True)
    assert report.rows["reconstruction"] == measure(kinematics.reconstructed(pipeline, dataset), truth, paired=True)
    pipeline.has_latents = False
    assert list(evaluate_kinematics(pipeline, dataset, seeds=(0,)).rows) == ["ground truth", "generation"]


def test_items_are_told_apart_by_what_is_done_in_them(dataset: InterHumanDataset) -> None:
    pipeline: Any = Echo(dataset)
    real, again = kinematics.real_clips(dataset), kinematics.reconstructed(pipeline, dataset)
    for clips, shift in ((real, 0.0), (again, 0.5)):
        assert [clip.activity for clip in clips] == ["bow", "folder", "hug"]
        assert [clip.captions for clip in clips] == [dataset.captions(i) for i in range(3)]
        for index, clip in enumerate(clips):
            np.testing.assert_allclose(clip.joints, joints(dataset[index]["motion"]).numpy() + shift, atol=1e-6)


def test_every_item_is_checked_at_its_length_before_anything_is_measured(
    dataset: InterHumanDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline: Any = Echo(dataset)
    check_generation(pipeline, dataset, (0,))
    assert pipeline.checked == [(list(dataset.captions(i)), dataset.num_frames(i)) for i in range(3)]
    monkeypatch.setattr(kinematics, "real_clips", lambda *_: pytest.fail("work began"))
    monkeypatch.setattr("intermoe.eval.identity_report._measure", lambda *_: pytest.fail("work began"))
    pipeline = Echo(dataset, refused="the two of them b")
    message = rf"^{dataset.root}: split 'val', item 'b': prompts: refused$"
    for evaluate in (evaluate_kinematics, lambda model, data: evaluate_identity(data, model)):
        with pytest.raises(ValueError, match=message):
            evaluate(pipeline, dataset)


def test_seeds_leave_room_for_every_caption(dataset: InterHumanDataset) -> None:
    """Each is multiplied by the six captions, and what comes out and what follows must be numbers of 63 bits."""
    pipeline: Any = Echo(dataset)
    bound = 2**63 // 6 - 1
    check_generation(pipeline, dataset, (bound - 1, 0))
    for seeds in ((0, bound), (bound, 0), (-1, 0), (3, -1)):
        with pytest.raises(ValueError, match=rf"^seeds: expected numbers in \[0, {bound}\), got"):
            check_generation(pipeline, dataset, seeds)
    check_generation(pipeline, dataset, (0,), 1)


@pytest.mark.parametrize("persons", [1, 3])
def test_the_data_are_of_two(persons: int) -> None:
    pipeline: Any = SimpleNamespace(
        representation=SimpleNamespace(persons=persons), config=SimpleNamespace(system="crowd")
    )
    with pytest.raises(
        ValueError, match=f"^model: expected one that makes two persons, got crowd, which makes {persons}"
    ):
        kinematics.check_two(pipeline)


def test_a_table_of_numbers_of_different_rows() -> None:
    keys = [key for name in METRICS for key in METRICS[name].titles]
    rows: Any = {
        name: {**{key: 100.0 * column + place + 0.125 for place, key in enumerate(keys)}, "turn_count_captions": count}
        for column, (name, count) in enumerate((("one", 10), ("two", 2), ("three", 10), ("four", None)), start=1)
    }
    rows["two"]["jitter"] = None
    rows["four"]["turn_direction_captions"] = 5
    header, *lines = metric_table(rows)
    assert header == ["metric", "one", "two", "three", "four"]
    for place, (key, line) in enumerate(zip(keys, lines, strict=True)):
        cells = [f"{100 * column + place + 0.125:.2f}" for column in (1, 2, 3, 4)]
        assert line[1:] == ([cells[0], "–", *cells[2:]] if key == "jitter" else cells)
    assert lines[keys.index("turn_count")][0].endswith(", of 0 / 2 / 10")
    assert lines[keys.index("turn_direction")][0].endswith(", of 5")
    report = KinematicReport({"one": rows["one"]}, {7: {"clips": 3}, 2: {"clips": 4}}, {"items": 3})
    assert report.to_dict()["generation_by_seed"] == {"7": {"clips": 3}, "2": {"clips": 4}}
    assert report.markdown().splitlines()[2] == f"| {' | '.join(report.table()[1])} |"


def test_evaluations_ask_alike_where_nobody_says() -> None:
    """As the published protocol does; of kinematics three seeds."""
    sampled = {key: getattr(EvaluationSettings, key) for key in ("num_inference_steps", "guidance_scale")}
    assert sampled == {"num_inference_steps": 50, "guidance_scale": 3.5}
    wanted: dict[Any, dict[str, Any]] = {
        evaluate_kinematics: {**sampled, "seeds": (0, 1, 2), "batch_size": 16},
        evaluate_identity: {**sampled, "seeds": (0,), "batch_size": 16},
        evaluate_activities: {**sampled, "seeds": (0,), "batch_size": 16},
        evaluate_routing: {**sampled, "seed": 0, "limit": 12, "num_frames": 96},
        evaluate_control: {"num_inference_steps": 50, "guidance_scale": None, "limit": 8, "best_of": 10, "seed": 0},
        Asked: {"captions": 2, "paraphrases": None, "num_frames": 90},
    }
    for function, defaults in wanted.items():
        parameters = inspect.signature(function).parameters
        assert {key: parameters[key].default for key in defaults} == defaults, function


@pytest.mark.parametrize(
    "report",
    [
        KinematicReport({"a": {"clips": 1}}, {}, {}),
        IdentityReport({"a": IdentityRow(1, {"style_overlap": 0.5}, 2.0, 3.0)}, {}, {}),
        ActivityReport({"a": {"clips": 1}}, {}, {"a": {3: 50.0}}, {}),
        ControlReport((("a", 1.0, "", None),), {}),
        RoutingReport((("a", 1.0, 0.5, 2.0),), {}),
    ],
    ids=lambda report: type(report).__name__,
)
def test_a_report_never_replaces_a_file(report: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(report.to_dict()))
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=str(path)):
        report.save(path)
    assert path.read_text(encoding="utf-8") == "mine"
