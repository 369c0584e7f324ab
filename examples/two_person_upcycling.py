"""A trained two-person denoiser, its dense feed-forward networks upcycled to InterMoE, trained on beside the dense one.

The denoiser is built as InterGen's: both persons share the weights, attend to themselves and to each other. Its blocks
are a user's own, so a ``BlockAdapter`` says where the network, the condition and the mask are. Needs a folder in
InterHuman's layout; runs on two CPU cores in under three minutes:

    python examples/two_person_upcycling.py DATA
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from comparison import print_results, train
from torch import Tensor, nn

from intermoe.data import InterHumanDataset
from intermoe.data.statistics import compute_statistics
from intermoe.integrations import BlockAdapter, Condition, Mask, calibrated_selection, replace_feed_forward
from intermoe.nn.attention import CrossAttention, SelfAttention
from intermoe.nn.layers import AdaLN, SwiGLU, TimestepEmbedding, sinusoid

WINDOW, STRIDE, BATCH = 96, 4, 12
FEATURES, DIM, LAYERS, HEADS, WIDTH = 262, 96, 3, 4, 192
NUM_EXPERTS, CAPACITY = 8, 1.0


class Block(nn.Module):
    """Self-attention, cross-attention to the partner and a dense SwiGLU network, each normalised by the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = SelfAttention(DIM, HEADS), CrossAttention(DIM, HEADS)
        self.norm = AdaLN(DIM, DIM)
        self.feed_forward = SwiGLU(DIM, WIDTH)

    def forward(self, hidden: Tensor, condition: Tensor, frame_mask: Tensor, token_mask: Tensor) -> Tensor:
        """hidden (B, 2, T, D), condition (B, D), frame_mask (B, T), token_mask (B, 2 T) -> (B, 2, T, D)."""
        partners = hidden
        hidden = hidden + self.self_attention(hidden, condition, frame_mask)
        hidden = hidden + self.cross_attention(hidden, partners, condition, frame_mask)
        tokens = self.norm(hidden, condition).flatten(1, 2)
        return hidden + self.feed_forward(tokens).view(hidden.shape)


ADAPTER = BlockAdapter(
    Block, ["feed_forward"], condition={"timestep": Condition("condition", width=DIM)}, mask=Mask("token_mask")
)


class TwoPersonDenoiser(nn.Module):
    """Estimates clean motion of two persons from noisy motion and a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_motion, self.out = nn.Linear(FEATURES, DIM), nn.Linear(DIM, FEATURES)
        self.embed_timestep = TimestepEmbedding(DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, motion: Tensor, timesteps: Tensor, mask: Tensor) -> Tensor:
        """(B, 2, T, FEATURES), (B,), (B, T) bool -> (B, 2, T, FEATURES)."""
        condition = self.embed_timestep(timesteps)
        hidden = self.embed_motion(motion) + sinusoid(torch.arange(motion.shape[2]), DIM)
        for block in self.blocks:
            hidden = block(hidden, condition, mask, mask.repeat(1, 2))
        return self.out(hidden)


class Clips:
    """Random windows of a split, normalised, every fourth frame."""

    def __init__(self, root: Path, split: str) -> None:
        exactly = {"min_frames": WINDOW, "max_frames": WINDOW}
        self.dataset = InterHumanDataset(root, split, **exactly, training=True, mirror=split == "train")
        self.statistics = compute_statistics(InterHumanDataset(root, "train"))

    def batch(self, seed: int) -> Tensor:
        """(BATCH, 2, WINDOW / STRIDE, FEATURES)."""
        self.dataset.set_epoch(seed)
        chosen = torch.randint(len(self.dataset), (BATCH,), generator=torch.Generator().manual_seed(seed))
        motion = torch.stack([self.dataset[int(i)]["motion"][:, ::STRIDE] for i in chosen])
        return self.statistics.normalise(motion)


def loss_on(clips: Clips, model: nn.Module, seed: int) -> Tensor:
    """Masked squared error of the clean motion; some clips are cut short, so that padding takes part."""
    motion = clips.batch(seed)
    generator = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(1000, (BATCH,), generator=generator)
    level = (timesteps / 1000 * math.pi / 2)[:, None, None, None]
    noisy = level.cos() * motion + level.sin() * torch.randn(motion.shape, generator=generator)
    frames = motion.shape[2]
    lengths = torch.randint(frames // 2, frames + 1, (BATCH,), generator=generator)
    mask = torch.arange(frames) < lengths[:, None]
    return (model(noisy, timesteps, mask) - motion).transpose(1, 2)[mask].square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder in InterHuman's layout")
    parser.add_argument("--steps", type=int, default=300, help="training steps before and after upcycling")
    arguments = parser.parse_args()
    steps = arguments.steps
    training, held_out = Clips(arguments.data, "train"), Clips(arguments.data, "val")

    def loss(model: nn.Module, step: int) -> Tensor:
        return loss_on(training, model, step)

    def loss_later(model: nn.Module, step: int) -> Tensor:
        return loss_on(training, model, steps + step)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(loss_on(held_out, model, seed)) for seed in range(8)) / 8

    torch.manual_seed(0)
    dense, dense_flops = TwoPersonDenoiser(), 2 * 3 * DIM * WIDTH
    results = [train("dense", dense, loss, score, steps=steps, lr=2e-3, dense_flops=dense_flops)]

    values = {"num_experts": NUM_EXPERTS, "expert_dim": WIDTH, "capacity": CAPACITY}
    exact = copy.deepcopy(dense)
    replace_feed_forward(exact, init="upcycle", **values, adapters=[ADAPTER])
    moe = copy.deepcopy(dense)
    print(replace_feed_forward(moe, init="upcycle_sparse", **values, adapters=[ADAPTER]))
    with calibrated_selection(moe), torch.no_grad():
        loss_later(moe, 0)
    print(f"held-out loss: dense {score(dense):.6f}, upcycled with every expert {score(exact.eval()):.6f}, ", end="")
    print(f"upcycled at {CAPACITY:g} expert per token {score(moe.eval()):.6f}")

    for name, model in (("dense, trained on", dense), ("InterMoE, trained on", moe)):
        results.append(train(name, model, loss_later, score, steps=steps, lr=1e-3, dense_flops=dense_flops))
    print_results(results)


if __name__ == "__main__":
    main()
