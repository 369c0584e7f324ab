"""Experts a token by noise level, layer, person and moment, by cases counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe import cli
from intermoe.data import InterHumanDataset
from intermoe.eval import routing
from intermoe.eval.routing import RoutingReport, _by_group, _counts, _moments, _reach, _where, evaluate_routing
from intermoe.motion.skeleton import JOINT_NAMES


def test_counts_by_hand() -> None:
    """Two steps, two layers, a motion of two persons and two groups of frames."""
    experts = np.array([[[[[1, 1], [3, 3]]], [[[0, 2], [2, 0]]]], [[[[1, 1], [1, 1]]], [[[4, 4], [4, 4]]]]], float)
    rows = {name: tuple(values) for name, *values in _counts(experts, [800, 300])}
    assert rows["all; of a step and layer"] == (2.0, 1.0, 4.0)
    assert rows["noise level 800; of a layer"] == (1.5, 1.0, 2.0)
    assert rows["noise level 300; of a layer"] == (2.5, 1.0, 4.0)
    assert rows["layer 2; of a step"] == (2.5, 1.0, 4.0)
    assert rows["person 1; of a step and layer"] == (1.75, 1.0, 4.0)
    assert rows["person 2; of a step and layer"] == (2.25, 1.0, 4.0)
    assert rows["share of tokens without; of a step and layer"] == (0.125, 0.0, 0.5)


def test_moments_by_hand() -> None:
    """Five groups of four frames; in the second one wrist is at the other's shoulder, in the third somebody runs."""
    joints = np.zeros((1, 2, 20, 22, 3))
    joints[:, 1, ..., 0] = 2.0
    joints[0, 0, 5, 20] = (1.9, 0, 0)
    joints[0, 1, 9:, :, 2] = np.minimum(np.arange(11), 3)[:, None]
    rows = {name: tuple(values) for name, *values in _moments(np.array([[1.0, 5.0, 2.0, 1.0, 1.0]]), joints)}
    assert rows["frames of contact; of a motion"] == (5.0, 5.0, 5.0)
    assert rows["frames without contact; of a motion"] == (1.25, 1.25, 1.25)
    assert rows["the fastest quarter of frames; of a motion"][0] == 2.0
    joints[0, 0, 5, 20] = 0
    assert {row[0]: row[1] for row in _moments(np.ones((1, 5)), joints)}["frames of contact; of a motion"] is None


def test_every_frame_counts_alike_and_least_and_most_are_of_motions() -> None:
    """Three frames of the first motion and one of the second: a mean of motions would be 2.5."""
    experts, where = np.array([[1.0, 1, 1, 9], [4.0, 9, 9, 9], [9.0] * 4]), np.zeros((3, 4), dtype=bool)
    where[0, :3] = where[1, 0] = True
    assert _where("chosen", experts, where) == ("chosen", 1.75, 1.0, 4.0)
    assert _where("none", experts, where & False) == ("none", None, None, None)


def test_a_model(tiny_pipeline: Any, bowing: Path, tmp_path: Path) -> None:
    dataset = InterHumanDataset(bowing, "test", training=False, max_frames=40)
    asked: Any = {"num_frames": 16, "seed": 5, "num_inference_steps": 2, "guidance_scale": 1.5}
    report = evaluate_routing(tiny_pipeline, dataset, limit=3, **asked)
    rows = {row[0]: row[1:] for row in report.rows}
    levels = [name for name in rows if name.startswith("noise level")]
    assert levels == ["noise level 500; of a layer", "noise level 0; of a layer"]
    mean = rows["all; of a step and layer"][0]
    assert mean is not None
    assert 0 < mean <= 3  # of three experts
    assert rows["layer 1; of a step"][0] == pytest.approx(mean)
    persons = [rows[f"person {number}; of a step and layer"][0] for number in (1, 2)]
    assert np.mean([person for person in persons if person is not None]) == pytest.approx(mean)
    bias = tiny_pipeline.denoiser.moe_blocks()[0].selection_bias
    assert rows["selection bias of layer 1"][1] == pytest.approx(bias.min().item())
    report.save(tmp_path / "routing.json")
    saved = json.loads((tmp_path / "routing.json").read_text(encoding="utf-8"))
    assert saved["settings"] == {"split": "test", "prompts": 3, **asked}
    with pytest.raises(ValueError, match="limit: expected >= 1, got 0"):
        evaluate_routing(tiny_pipeline, dataset, limit=0)


def test_biases_and_moments_are_those_of_the_model(
    tiny_pipeline: Any, bowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments are told the experts of each motion's groups of frames, over steps, layers and persons."""
    (block,) = tiny_pipeline.denoiser.moe_blocks()
    monkeypatch.setitem(block._buffers, "selection_bias", torch.tensor([-0.5, -0.25, -0.75 + 1 / 16]))
    told: list[Any] = []
    monkeypatch.setattr(routing, "_moments", lambda *given: told.append(given) or [])
    dataset = InterHumanDataset(bowing, "test", training=False, max_frames=40)
    report = evaluate_routing(tiny_pipeline, dataset, limit=3, num_frames=16, num_inference_steps=2)
    rows = {row[0]: row[1:] for row in report.rows}
    assert rows["selection bias of layer 1"] == (pytest.approx(-0.4791667), -0.6875, -0.25)
    ((experts, joints),) = told
    assert (experts.shape, joints.shape) == ((3, 4), (3, 2, 16, 22, 3))
    assert experts.mean() == pytest.approx(rows["all; of a step and layer"][0])


def test_the_command(tiny_pipeline: Any, bowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline.save_pretrained("model")
    options = ["--data", str(bowing), "--split", "test", "--model", "model", "--frames", "16", "--steps", "1"]
    result = CliRunner().invoke(cli.app, ["evaluate", "routing", *options, "--limit", "2"])
    assert result.exit_code == 0, result.output
    assert "noise level 0; of a layer" in result.stdout
    assert Path("routing.json").exists()


def test_the_last_group_of_frames_is_filled_up_with_its_last_frame() -> None:
    np.testing.assert_allclose(_by_group(np.arange(5.0), 2, np.mean), [1, (3 + 4 + 4) / 3])
    np.testing.assert_allclose(_by_group(np.arange(6.0), 2, np.min), [0, 3])


def test_of_guided_steps_the_half_with_text_counts(tiny_pipeline: Any, bowing: Path) -> None:
    """In the first step guided and unguided motion are the same noise, so their experts are."""
    dataset = InterHumanDataset(bowing, "test", training=False, max_frames=40)
    first: list[Any] = []
    for scale in (1.0, 3.5):
        report = evaluate_routing(
            tiny_pipeline, dataset, limit=3, num_frames=16, num_inference_steps=1, guidance_scale=scale
        )
        first.append(report.rows[:-1])
    assert first[0] == first[1]


@pytest.mark.parametrize("part", ["shoulder", "elbow", "wrist"])
def test_wrists_reach_for_the_upper_body_of_anybody_else(part: str) -> None:
    for one, other in ((0, 1), (1, 0), (2, 0), (1, 2)):
        for wrist in ("left_wrist", "right_wrist"):
            for side in ("left", "right"):
                joints = 5.0 * np.arange(3)[:, None, None, None] * np.ones((3, 4, 22, 3))
                joints[..., 0] += np.arange(22)
                own, theirs = JOINT_NAMES.index(wrist), JOINT_NAMES.index(f"{side}_{part}")
                joints[one, 2, own] = joints[other, 2, theirs] + (0.06, 0.0, 0.08)
                assert _reach(joints)[2] == pytest.approx(0.1)
                assert _reach(joints)[[0, 1, 3]].min() > 5
    joints = np.stack([np.zeros((4, 22, 3)), np.full((4, 22, 3), 5.0)])
    joints[0, 1, [JOINT_NAMES.index(name) for name in ("head", "left_foot")]] = 5.0  # what is no wrist
    joints[1, 2, [JOINT_NAMES.index(name) for name in ("head", "right_hip")]] = 0.0  # and no upper body
    np.testing.assert_allclose(_reach(joints), [5 * np.sqrt(3)] * 4)


def test_groups_touch_nearer_than_twenty_centimetres_in_any_frame() -> None:
    """Two groups of four frames; in one frame of each a wrist is 19 cm and 21 cm from the other's."""
    joints = np.stack([np.zeros((8, 22, 3)), np.full((8, 22, 3), 5.0)])[None]
    joints[0, 0, 1, 20], joints[0, 0, 6, 20] = (5.0, 5.0, 4.81), (5.0, 5.0, 4.79)
    rows = {row[0]: row[1] for row in _moments(np.array([[2.0, 3.0]]), joints)}
    assert rows["frames of contact; of a motion"] == 2.0
    assert rows["frames without contact; of a motion"] == 3.0


def test_quarters_are_of_the_mean_speed_of_all_joints_of_anybody() -> None:
    """Eight groups of two frames, in which the second person steps on by 1 to 8 m, by 8 in two steps and else in one.

    A step counts for the frame before it.
    """
    steps = np.zeros(16)
    steps[[1, 3, 5, 7, 9, 11, 13, 15]] = [3, 4, 1, 5, 2, 7, 4, 6]
    steps[4] = 4
    joints = np.zeros((1, 2, 16, 22, 3))
    joints[0, 0, ..., 0] = 50.0
    joints[0, 1, ..., 2] = np.cumsum(steps)[:, None]
    experts = np.array([[30.0, 80.0, 10.0, 50.0, 20.0, 70.0, 40.0, 60.0]])  # ten for each metre
    rows = {row[0]: row[1:] for row in _moments(experts, joints)}
    assert rows["the fastest quarter of frames; of a motion"] == (75.0, 75.0, 75.0)
    assert rows["the slowest quarter of frames; of a motion"] == (15.0, 15.0, 15.0)
    late = np.zeros((1, 2, 16, 22, 3))
    late[0, 1, 4:, :, 2] = 9.0  # one step, from the second group into the third
    rows = {row[0]: row[1:] for row in _moments(experts, late)}
    assert rows["the fastest quarter of frames; of a motion"] == (80.0, 80.0, 80.0)
    assert rows["the slowest quarter of frames; of a motion"] == (None, None, None)


def test_what_is_asked_for_and_told(tiny_pipeline: Any, bowing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven items and nine that are wanted the first captions of all seven."""
    dataset = InterHumanDataset(bowing, "test", training=False, max_frames=40)
    asked: list[Any] = []
    call = type(tiny_pipeline).__call__

    def calling(self: Any, *given: Any, **options: Any) -> Any:
        asked.append(given)
        return call(self, *given, **options)

    monkeypatch.setattr(type(tiny_pipeline), "__call__", calling)
    done: list[Any] = []
    report = evaluate_routing(
        tiny_pipeline, dataset, limit=9, num_frames=16, seed=5, num_inference_steps=2, guidance_scale=1.5,
        progress=lambda *each: done.append(each),
    )  # fmt: skip
    assert asked == [(["Two people bow."] * 7, 16, 2, 1.5, 5)]
    assert done[-1] == (2, 2)
    assert report.settings["prompts"] == 7
    names = [row[0] for row in report.rows]
    assert names[-1] == "selection bias of layer 1"
    assert names[-5:-1] == [
        "frames of contact; of a motion", "frames without contact; of a motion",
        "the fastest quarter of frames; of a motion", "the slowest quarter of frames; of a motion",
    ]  # fmt: skip
    rows = (("all", 1.23456, 0.5, 2.0), ("none", None, None, None))
    assert RoutingReport(rows, {}).table() == [
        ["experts a token", "mean", "least", "most"],
        ["all", "1.235", "0.500", "2.000"],
        ["none", "–", "–", "–"],
    ]
