"""Training of the text encoder on its own, before the denoiser's: from a caption to what its motion amounts to.

The denoiser learns words slowly: most of its timesteps show enough of the motion to do without them, and "left" and
"right" differ in nothing that is common to all clips. Here captions alone are seen, and among the targets are turns,
which a sum over time tells apart whenever in the clip they come.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from intermoe.data.dataset import MotionChoice, MotionDataset
from intermoe.metrics.turns import FULL_TURN, turns, yaw
from intermoe.motion.representation import Representation
from intermoe.text.protocol import TextEncoder
from intermoe.train.config import TextPretrainingConfig

SEGMENTS = 8
WARMUP_STEPS = 100
_HIDDEN = 256
_HALF_TURN = 180.0

Encode = Callable[[Tensor], Tensor]


@torch.random.fork_rng(devices=[])
def pretrain_text(
    text: TextEncoder,
    dataset: MotionDataset,
    encode: Encode,
    config: TextPretrainingConfig,
    *,
    seed: int,
) -> None:
    """Train ``text`` in place, on the CPU, to predict ``latent_summary`` and ``turn_summary`` of the captions' motion.

    Both targets are scaled to unit mean square over the data and weigh the same; small networks on top of the encoder
    that make the predictions are thrown away. The result depends on ``seed`` and the data alone, and nothing that is
    drawn afterwards on this: a run that is resumed may find it done.

    Args:
        encode: one motion (P, T, ...) to its latents (1, P, T', X), as the denoiser's loss weighs them.
    """

    @functools.cache
    def targets(choice: MotionChoice) -> tuple[Tensor, Tensor]:
        return _targets(dataset.motion(choice), encode, dataset.data_set.representation)

    everything = [targets(dataset.choose(i, 0)[0]) for i in range(len(dataset))]
    latent_mean = torch.stack([latents for latents, _ in everything]).mean(dim=0)
    latent_scale = _root_mean_square(torch.stack([latents - latent_mean for latents, _ in everything]))
    turn_scale = _root_mean_square(torch.stack([turned for _, turned in everything]), dim=0)

    torch.manual_seed(seed)
    width, (latents, turned) = text.output_dim, everything[0]
    latent_head = nn.Sequential(nn.Linear(width, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, latents.numel()))
    turn_head = nn.Linear(width, turned.numel())
    parameters = [p for part in (text, latent_head, turn_head) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    text.train()
    for step in track(range(config.steps), description="text encoder", console=Console(stderr=True)):
        rng = np.random.default_rng((seed, step))
        drawn = [dataset.choose(int(i), step) for i in rng.integers(len(dataset), size=config.batch_size)]
        motion = [targets(choice) for choice, _ in drawn]
        embedded = text([caption for _, caption in drawn])
        wanted = (torch.stack([latents for latents, _ in motion]) - latent_mean) / latent_scale
        loss = F.mse_loss(latent_head(embedded), wanted)
        loss = loss + F.mse_loss(turn_head(embedded), torch.stack([turned for _, turned in motion]) / turn_scale)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the text encoder's loss is {loss.item()} at step {step + 1}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    text.eval()


def latent_summary(latents: Tensor) -> Tensor:
    """Means of latents (P, T', X) over ``SEGMENTS`` stretches of time: (P * X * SEGMENTS,)."""
    return F.adaptive_avg_pool1d(rearrange(latents, "p t x -> 1 (p x) t"), SEGMENTS).flatten()


def turn_summary(joints: Tensor, fps: float) -> Tensor:
    """How the persons (P, T, J, 3) turn, in half turns, positive to the left: (P * (SEGMENTS + 4),).

    Of each person the change of heading over each stretch of time and over the whole, and the angles of full turns
    (``intermoe.metrics.turns.turns``): their sum, the sum of those to the left and of those to the right.
    """
    rows = []
    for person in joints.numpy():
        heading = yaw(person)
        cuts = np.linspace(0, len(heading) - 1, SEGMENTS + 1).round().astype(int)
        full = np.array(turns(person, min_degrees=FULL_TURN, fps=fps))
        whole = [heading[-1] - heading[0], full.sum(), full[full > 0].sum(), full[full < 0].sum()]
        rows.append([*np.diff(heading[cuts]), *whole])
    return torch.tensor(np.array(rows) / _HALF_TURN, dtype=torch.float32).flatten()


def _targets(motion: Tensor, encode: Encode, representation: Representation) -> tuple[Tensor, Tensor]:
    joints = torch.stack([representation.joints(person) for person in motion])
    return latent_summary(encode(motion)[0]), turn_summary(joints, representation.fps)


def _root_mean_square(values: Tensor, dim: int | None = None) -> Tensor:
    square = values.square()
    return (square.mean() if dim is None else square.mean(dim=dim)).sqrt().clamp(min=1e-3)


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return float(warm * 0.5 * (1 + np.cos(np.pi * step / steps)))
