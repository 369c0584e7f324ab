"""A small judge of what two persons do: trained on real motion of known activities, asked of motion that was made.

Convolutions over features of joints ten times a second; the mean and the maximum over time decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intermoe.metrics.clips import Clip
from intermoe.metrics.frames import LEFT_RIGHT_EXCHANGED
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS

STRIDE = 3
"""Frames from one feature to the next: ten a second."""
_FPS = 30 / STRIDE
_PELVIS = JOINT_NAMES.index("pelvis")
_POINTS = [JOINT_NAMES.index(name) for name in ("pelvis", "head", "left_wrist", "right_wrist")]
_UPPER = [
    JOINT_NAMES.index(name)
    for name in (
        "neck",
        *(f"{side}_{part}" for part in ("shoulder", "elbow", "wrist") for side in ("left", "right")),
    )
]


STEPS = 900
"""Training steps of a judge."""
WIDTH, LAYERS, BATCH = 96, 3, 24
RATE, WEIGHT_DECAY, SMOOTHING = 1e-3, 0.02, 0.05
SHORTEST = 0.6
"""Least share of a clip that training cuts from it."""
JOINT_NOISE, PLACE_NOISE = 0.015, 0.05
"""Standard deviations in metres by which training moves a clip's joints, and its persons as a whole."""


def features(joints: Tensor) -> Tensor:
    """What the judge sees of joints (2, T, 22, 3): (ceil(T / 3), C), the same wherever the two stand and face.

    In a frame of reference in the middle of both, whose X axis leads from the first to the second: joints about their
    own pelvis and how fast they move, pelvises, the way from one to the other, and distances of arms.
    """
    joints = joints.float()[:, ::STRIDE]
    pelvis = joints[:, :, _PELVIS]
    joints = joints - pelvis.mean(dim=(0, 1)) * pelvis.new_tensor([1.0, 0.0, 1.0])
    along = (pelvis[1] - pelvis[0]).mean(dim=0)
    angle = torch.atan2(along[2], along[0])
    x, y, z = joints.unbind(-1)
    joints = torch.stack([x * angle.cos() + z * angle.sin(), y, z * angle.cos() - x * angle.sin()], dim=-1)
    own = joints - joints[:, :, :1] * joints.new_tensor([1.0, 0.0, 1.0])
    speed = F.pad(joints.diff(dim=1), (0, 0, 0, 0, 0, 1)) * _FPS
    way = (joints[1] - joints[0])[:, _POINTS]
    reach = torch.cdist(joints[0][:, _UPPER], joints[1][:, _UPPER])
    by_person = (each.transpose(0, 1) for each in (own, 0.3 * speed, joints[:, :, _PELVIS]))
    return torch.cat([each.flatten(1) for each in (*by_person, way, reach)], dim=1)


class ActivityJudge(nn.Module):
    """Scores of activities for the features of a clip.

    Args:
        names: of the activities.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        channels = features(torch.zeros(2, 1, NUM_JOINTS, 3)).shape[1]
        self.embed = nn.Sequential(nn.LayerNorm(channels), nn.Dropout(0.2), nn.Linear(channels, WIDTH))
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(LAYERS))
        self.out = nn.Sequential(nn.Dropout(0.4), nn.Linear(2 * WIDTH, len(self.names)))

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        """Features (T'_i, C) of each clip to scores (B, activities)."""
        lengths = torch.tensor([len(clip) for clip in clips])
        valid = (torch.arange(int(lengths.max())) < lengths[:, None])[:, None]
        hidden = self.embed(nn.utils.rnn.pad_sequence(list(clips), batch_first=True)).transpose(1, 2) * valid
        for layer in self.layers:
            hidden = (hidden + F.gelu(layer(hidden))) * valid
        mean = hidden.sum(dim=2) / lengths[:, None]
        return self.out(torch.cat([mean, hidden.masked_fill(~valid, -torch.inf).amax(dim=2)], dim=1))

    @torch.no_grad()
    def ranked(self, clip: Clip) -> list[str]:
        """The activities, the likeliest first."""
        scores = self.eval()([features(torch.from_numpy(clip.joints))])[0]
        return [self.names[index] for index in scores.argsort(descending=True, stable=True).tolist()]


def train_judge(
    clips: Sequence[Clip],
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> ActivityJudge:
    """A judge of the activities of ``clips``, each drawn as often as another; the same for the same seed.

    What is drawn is cut, mirrored and its persons exchanged by chance, and moved a little, as models move.

    Raises:
        ValueError: a clip whose activity is not known, fewer than two activities, or fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps: expected >= 1, got {steps}")
    by_name: dict[str, list[Tensor]] = {}
    for clip in clips:
        if clip.activity is None:
            raise ValueError("clips: expected an activity of each, got None")
        by_name.setdefault(clip.activity, []).append(torch.from_numpy(clip.joints).float())
    names = sorted(by_name)
    if len(names) < 2:
        raise ValueError(f"clips: expected two activities or more, got {', '.join(names) or 'none'}")
    rng, devices = np.random.default_rng(seed), list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        judge = ActivityJudge(names).train()
        optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        for step in range(steps):
            rate = min(1.0, 18 * (step + 1) / steps) * (1 + np.cos(np.pi * step / steps)) / 2
            optimiser.param_groups[0]["lr"] = RATE * float(rate)
            wanted = rng.integers(len(names), size=BATCH)
            drawn = [by_name[names[number]][rng.integers(len(by_name[names[number]]))] for number in wanted]
            scores = judge([features(_varied(joints, rng)) for joints in drawn])
            loss = F.cross_entropy(scores, torch.from_numpy(wanted), label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return judge.eval()


def _varied(joints: Tensor, rng: np.random.Generator) -> Tensor:
    """A part of joints (2, T, 22, 3), perhaps mirrored, the persons perhaps exchanged, moved a little."""
    frames = joints.shape[1]
    count = max(1, int(frames * rng.uniform(SHORTEST, 1)))
    start = int(rng.integers(frames - count + 1))
    joints = joints[:, start : start + count]
    if rng.random() < 0.5:
        joints = joints[:, :, LEFT_RIGHT_EXCHANGED.tolist()] * joints.new_tensor([-1.0, 1.0, 1.0])
    if rng.random() < 0.5:
        joints = joints.flip(0)
    pose = rng.normal(scale=JOINT_NOISE, size=(2, 1, NUM_JOINTS, 3))
    place = rng.normal(scale=PLACE_NOISE, size=(2, 1, 1, 3))
    return joints + torch.from_numpy(pose + place).to(joints)
