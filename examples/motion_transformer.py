"""A text-free motion transformer of torch's own encoder layers, dense and with InterMoE, at equal FLOP.

A diffusion model of stick figures that walk, run, hop and wave, computed on the spot. Clips differ in length: padding
is masked by ``src_key_padding_mask`` as always, and neither routed nor counted. The timestep comes in as a token, so
routing reads tokens alone. Runs on two CPU cores in under three minutes:

    python examples/motion_transformer.py
"""

from __future__ import annotations

import argparse
import math

import torch
from comparison import expert_dim_of_equal_flops, print_results, train
from torch import Tensor, nn

from intermoe.integrations import calibrated_selection, replace_feed_forward
from intermoe.nn.layers import TimestepEmbedding, sinusoid

JOINTS, FRAMES, BATCH = 12, 48, 24
DIM, LAYERS, HEADS, WIDTH = 64, 4, 4, 256
NUM_EXPERTS, CAPACITY = 8, 1.0


def draw_motion(seed: int) -> tuple[Tensor, Tensor]:
    """Joint angles (BATCH, FRAMES, JOINTS) and which frames are valid (BATCH, FRAMES)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    # four gaits, each with its own amplitudes, phases and overtones for every joint
    gaits = torch.Generator().manual_seed(0)
    amplitude = torch.rand(4, JOINTS, generator=gaits) ** 2
    phase = 2 * math.pi * torch.rand(4, JOINTS, generator=gaits)
    overtone = 0.5 * torch.rand(4, JOINTS, generator=gaits)
    gait = torch.randint(4, (BATCH,), generator=generator)
    frames = torch.arange(FRAMES)[None, :, None]
    speed = (0.12 + 0.06 * gait)[:, None, None] * uniform(0.8, 1.2, BATCH, 1, 1)
    angle = speed * frames + uniform(0, 2 * math.pi, BATCH, 1, 1) + phase[gait][:, None]
    motion = amplitude[gait][:, None] * (angle.sin() + overtone[gait][:, None] * (2 * angle).sin())
    lengths = torch.randint(FRAMES // 2, FRAMES + 1, (BATCH,), generator=generator)
    return 1.5 * motion * uniform(0.7, 1.3, BATCH, 1, 1), torch.arange(FRAMES) < lengths[:, None]


class MotionTransformer(nn.Module):
    """Estimates clean motion from noisy motion and a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_motion = nn.Linear(JOINTS, DIM)
        self.embed_timestep = TimestepEmbedding(DIM)
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, dim_feedforward=WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.out = nn.Linear(DIM, JOINTS)

    def forward(self, motion: Tensor, timesteps: Tensor, valid: Tensor) -> Tensor:
        """(B, T, JOINTS), (B,), (B, T) bool -> (B, T, JOINTS)."""
        tokens = self.embed_motion(motion) + sinusoid(torch.arange(motion.shape[1]), DIM)
        tokens = torch.cat([self.embed_timestep(timesteps)[:, None], tokens], dim=1)
        padding = nn.functional.pad(~valid, (1, 0), value=False)
        return self.out(self.encoder(tokens, src_key_padding_mask=padding)[:, 1:])


def build() -> MotionTransformer:
    """The dense model."""
    torch.manual_seed(0)
    return MotionTransformer()


def loss(model: nn.Module, seed: int) -> Tensor:
    """Masked squared error of the clean motion at random noise levels of a cosine schedule."""
    motion, valid = draw_motion(seed)
    generator = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(1000, (BATCH,), generator=generator)
    level = (timesteps / 1000 * math.pi / 2)[:, None, None]
    noisy = level.cos() * motion + level.sin() * torch.randn(motion.shape, generator=generator)
    return (model(noisy, timesteps, valid) - motion)[valid].square().mean()


def score(model: nn.Module) -> float:
    """The loss on clips that are not trained on."""
    return sum(float(loss(model, seed)) for seed in range(10**6, 10**6 + 16)) / 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each model")
    steps = parser.parse_args().steps

    dense_flops = 2 * 2 * DIM * WIDTH
    moe = build()
    width = expert_dim_of_equal_flops(DIM, dense_flops, NUM_EXPERTS, CAPACITY)
    print(replace_feed_forward(moe, num_experts=NUM_EXPERTS, expert_dim=width, capacity=CAPACITY))
    with calibrated_selection(moe), torch.no_grad():
        loss(moe, 0)

    results = [
        train(name, model, loss, score, steps=steps, lr=2e-3, dense_flops=dense_flops)
        for name, model in (("dense", build()), ("InterMoE", moe))
    ]
    print_results(results)


if __name__ == "__main__":
    main()
