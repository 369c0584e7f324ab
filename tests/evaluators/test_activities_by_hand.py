"""The judge of activities written out once more in numpy, and what its training is asked with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import conv1d, cross_entropy, gelu, layer_norm

from intermoe.evaluators import activities as judges
from intermoe.evaluators.activities import ActivityJudge, features, train_judge
from intermoe.metrics.clips import Clip

PELVIS, NECK, HEAD = 0, 12, 15
ARMS = (16, 17, 18, 19, 20, 21)
"""Shoulders, elbows and wrists, the left one of each first."""


def test_features_in_the_pairs_own_frame_of_reference() -> None:
    """X leads from the first to the second, Y is up; ten instants a second, the last of which has no speed."""
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(2, 8, 22, 3)) + np.array([[0, 1, 0], [2, 1, 3]])[:, None, None]
    seen = joints[:, [0, 3, 6]]
    middle = seen[:, :, PELVIS].mean(axis=(0, 1))
    along = (seen[1, :, PELVIS] - seen[0, :, PELVIS]).mean(axis=0) * [1, 0, 1]
    along /= np.linalg.norm(along)
    axes = np.stack([along, [0, 1, 0], np.cross(along, [0, 1, 0])])  # rows; X, up, and to the right of both
    placed = (seen - middle * [1, 0, 1]) @ axes.T
    expected = []
    for instant in range(3):
        own = [placed[p, instant] - placed[p, instant, PELVIS] * [1, 0, 1] for p in (0, 1)]
        rates = [
            10 * (placed[p, instant + 1] - placed[p, instant]) if instant < 2 else np.zeros((22, 3)) for p in (0, 1)
        ]
        way = [placed[1, instant, j] - placed[0, instant, j] for j in (PELVIS, HEAD, *ARMS[4:])]
        arms = (NECK, *ARMS)
        reach = [[np.linalg.norm(placed[0, instant, i] - placed[1, instant, j]) for j in arms] for i in arms]
        pelvises = [placed[p, instant, PELVIS] for p in (0, 1)]
        parts = (own, [0.3 * rate for rate in rates], pelvises, way, reach)
        expected.append(np.concatenate([np.ravel(part) for part in parts]))
    np.testing.assert_allclose(features(torch.from_numpy(joints)), np.stack(expected), rtol=1e-4, atol=1e-4)


def test_scores_are_of_the_mean_and_the_maximum_over_a_clips_own_time() -> None:
    torch.manual_seed(0)
    judge = ActivityJudge(["bow", "nod", "wave"]).eval()
    clips = [torch.randn(length, 331) for length in (4, 7, 1)]
    norm, _, linear = judge.embed
    assert (len(judge.layers), linear.out_features) == (3, 96)
    expected = []
    for clip in clips:
        hidden = linear(layer_norm(clip, (331,), norm.weight, norm.bias)).T[None]
        for layer in judge.layers:
            assert layer.kernel_size == (5,)
            hidden = hidden + gelu(conv1d(hidden, layer.weight, layer.bias, padding=2))
        expected.append(judge.out[1](torch.cat([hidden.mean(dim=2), hidden.amax(dim=2)], dim=1))[0])
    torch.testing.assert_close(judge(clips), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert [judge.embed[1].p, judge.out[0].p] == [0.2, 0.4]


def clips(*names: str) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [Clip(rng.normal(size=(2, 9, 22, 3)).astype(np.float32), activity=name) for name in names]


def test_the_likeliest_comes_first_and_the_earlier_of_equals() -> None:
    """A judge that was left in training does not drop what it looks at."""
    judge = ActivityJudge(["a", "b", "c", "d"]).train()
    (clip,) = clips("a")
    with torch.no_grad():
        judge.out[1].weight.zero_()
        judge.out[1].bias.copy_(torch.tensor([1.0, 3.0, 1.0, 3.0]))
    assert judge.ranked(clip) == ["b", "d", "a", "c"]
    assert not judge.training
    with torch.no_grad():
        judge.out[1].weight.normal_()
    judge.train()
    scores = judge.eval()([features(torch.from_numpy(clip.joints))])[0]
    judge.train()
    assert judge.ranked(clip) == [judge.names[index] for index in scores.argsort(descending=True)]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last training gave to the optimiser and to the loss."""
    told: dict[str, Any] = {}

    class Told(torch.optim.AdamW):
        def __init__(self, parameters: Any, rate: float, **options: float) -> None:
            parameters = list(parameters)
            told.update(start=[each.detach().clone() for each in parameters], rate=rate, options=options, wanted=[])
            super().__init__(parameters, rate, **options)

    def loss(scores: torch.Tensor, wanted: torch.Tensor, **options: float) -> torch.Tensor:
        told["wanted"].append(wanted.tolist())
        told["loss"] = options
        return cross_entropy(scores, wanted, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Told)
    monkeypatch.setattr(judges.F, "cross_entropy", loss)
    return told


def test_a_judge_is_trained_as_it_was_measured(training: dict[str, Any]) -> None:
    """24 clips a step of activities drawn alike, though one has most of the clips; weights drawn from the seed."""
    given = clips("nod", "bow", "wave", "wave", "wave", "wave")
    with torch.no_grad():
        judge = train_judge(given, steps=4, seed=3)
    assert judge.names == ("bow", "nod", "wave")
    assert not judge.training
    assert (training["rate"], training["options"]) == (1e-3, {"weight_decay": 0.02})
    assert training["loss"] == {"label_smoothing": 0.05}
    assert [len(wanted) for wanted in training["wanted"]] == [24] * 4
    drawn = np.bincount(np.concatenate(training["wanted"]), minlength=3)
    assert drawn.sum() == 96
    assert drawn.min() >= 20  # of 32
    torch.manual_seed(3)
    for start, own in zip(training["start"], ActivityJudge(judge.names).parameters(), strict=True):
        assert torch.equal(start, own)
    assert not torch.equal(judge.out[1].weight, training["start"][-2])


def test_a_judge_takes_900_steps_from_seed_0_unless_asked_for_others() -> None:
    assert train_judge.__kwdefaults__ == {"steps": 900, "seed": 0}
