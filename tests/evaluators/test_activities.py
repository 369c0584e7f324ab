"""The judge of activities: what it sees does not depend on place and heading, and it tells apart what differs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.evaluators import activities as judges
from intermoe.evaluators.activities import ActivityJudge, features, train_judge
from intermoe.metrics.clips import Clip


def pair(frames: int, speed: float, seed: int = 0) -> Any:
    """Two random bodies (2, frames, 22, 3) a metre apart whose wrists rise and fall ``speed`` times a second."""
    rng = np.random.default_rng(seed)
    body = rng.uniform(-0.4, 0.4, (2, 1, 22, 3)) + np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])[:, None, None]
    joints = np.tile(body, (1, frames, 1, 1))
    joints[:, :, 20:22, 1] += 0.3 * np.sin(2 * np.pi * speed * np.arange(frames) / 30)[:, None]
    return joints.astype(np.float32)


def test_features_are_the_same_wherever_the_pair_stands_and_faces() -> None:
    joints = torch.from_numpy(pair(31, 1.0))
    seen = features(joints)
    assert seen.shape[0] == 11  # every third of 31 frames
    turn = torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])
    moved = joints @ turn.T + torch.tensor([3.0, 0.0, -2.0])
    torch.testing.assert_close(features(moved), seen, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features(joints + torch.tensor([0.0, 0.2, 0.0])), seen)  # height is seen
    assert not torch.allclose(features(joints.flip(0)), seen)


def test_features_by_hand() -> None:
    """Two persons along Z, a metre apart: along the X axis of the features."""
    joints = torch.zeros(2, 4, 22, 3)
    joints[1, ..., 2] = 1.0
    joints[0, 3, 20] = torch.tensor([0.0, 0.3, 0.0])  # one wrist is raised in the second of two instants
    seen = features(joints)
    own, speed, pelvis = 2 * 22 * 3, 2 * 22 * 3, 2 * 3
    assert seen.shape == (2, own + speed + pelvis + 4 * 3 + 7 * 7)
    assert seen[1, 20 * 3 + 1] == pytest.approx(0.3)
    assert seen[0, own + 20 * 3 + 1] == pytest.approx(0.3 * 0.3 * 10)
    torch.testing.assert_close(seen[0, own + speed :][:pelvis], torch.tensor([-0.5, 0, 0, 0.5, 0, 0]))
    torch.testing.assert_close(seen[0, -49 - 12 : -49].view(4, 3)[0], torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(seen[0, -49:], torch.ones(49))


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    judge = ActivityJudge(["bow", "wave"]).eval()
    short, long = (features(torch.from_numpy(pair(frames, 1.0))) for frames in (12, 60))
    torch.testing.assert_close(judge([short, long])[0], judge([short])[0], atol=1e-5, rtol=1e-5)


def test_it_learns_what_differs_and_the_same_from_the_same_seed() -> None:
    clips = [
        Clip(pair(frames, speed, seed=int(speed)), activity=name)
        for name, speed in (("slow", 0.5), ("quick", 3.0))
        for frames in (40, 50)
    ]
    state = torch.random.get_rng_state()
    judge = train_judge(clips, steps=40)
    assert torch.equal(torch.random.get_rng_state(), state)
    held_out = [Clip(pair(70, 0.5)), Clip(pair(70, 3.0, seed=3))]
    assert [judge.ranked(clip) for clip in held_out] == [["slow", "quick"], ["quick", "slow"]]
    again, other = train_judge(clips, steps=2), train_judge(clips, steps=2, seed=1)
    weights = train_judge(clips, steps=2).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in again.state_dict().items())
    assert not torch.equal(other.out[1].weight, weights["out.1.weight"])


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="clips: expected two activities or more, got bow"):
        train_judge([Clip(pair(30, 1.0), activity="bow")])
    with pytest.raises(ValueError, match="clips: expected an activity of each, got None"):
        train_judge([Clip(pair(30, 1.0))])
    with pytest.raises(ValueError, match="steps: expected >= 1, got 0"):
        train_judge([], steps=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RATE", 1e-2), ("WEIGHT_DECAY", 5.0), ("SMOOTHING", 0.5), ("BATCH", 3), ("SHORTEST", 0.1), ("JOINT_NOISE", 0.5),
     ("PLACE_NOISE", 0.5)],
)  # fmt: skip
def test_every_setting_of_the_training_reaches_it(name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [Clip(pair(40, speed), activity=str(speed)) for speed in (0.5, 3.0)]
    plain = train_judge(clips, steps=2).out[1].weight
    assert torch.equal(train_judge(clips, steps=2).out[1].weight, plain)
    monkeypatch.setattr(judges, name, value)
    assert not torch.equal(train_judge(clips, steps=2).out[1].weight, plain)


def test_the_rate_rises_over_an_eighteenth_of_the_steps_and_falls_like_a_cosine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []

    class Told(torch.optim.AdamW):
        def step(self) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"] / judges.RATE)

    monkeypatch.setattr(torch.optim, "AdamW", Told)
    monkeypatch.setattr(judges, "BATCH", 2)
    train_judge([Clip(pair(30, speed), activity=str(speed)) for speed in (0.5, 3.0)], steps=36)
    falls = (1 + np.cos(np.pi * np.arange(36) / 36)) / 2
    np.testing.assert_allclose(rates, [0.5, *falls[1:]])


def test_what_training_varies() -> None:
    """Half of the clips are mirrored and half have their persons exchanged, independently; parts of them, all of them
    moved as one: by 1.5 cm a joint, 5 cm a person and axis."""
    rng = np.random.default_rng(0)
    joints = torch.zeros(2, 50, 22, 3)
    joints[0, :, :, 0], joints[1, :, :, 0] = 10.0, 30.0  # who is who, and which side is which
    joints[..., 1] = torch.arange(50.0)[:, None]
    joints[:, :, 20, 2] = 100.0  # the left wrist
    kinds, lengths, moved = Counter(), [], []
    for _ in range(300):
        varied = judges._varied(joints, rng)
        mirrored, exchanged = bool(varied[0, 0, 0, 0] < 0), abs(float(varied[0, 0, 0, 0])) > 20
        kinds[mirrored, exchanged] += 1
        lengths.append(varied.shape[1])
        wrist = 21 if mirrored else 20
        assert varied[0, 0, wrist, 2] > 90
        assert varied[0, 0, 41 - wrist, 2] < 10
        torch.testing.assert_close(varied.diff(dim=1)[..., 1], torch.ones(2, varied.shape[1] - 1, 22))
        moved.append(varied[:, 0, :20, 2])
    assert len(kinds) == 4
    assert min(kinds.values()) > 45  # of 75
    assert (min(lengths), max(lengths)) == (30, 49)
    together = torch.stack(moved)
    assert float((together - together.mean(dim=2, keepdim=True)).std()) == pytest.approx(0.015, rel=0.1)
    assert float(together.mean(dim=2).std()) == pytest.approx(0.05, rel=0.15)
