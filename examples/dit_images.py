"""A diffusers DiT on small images, dense and with InterMoE in place of its feed-forward networks, at equal FLOP.

The images are drawn on the spot: discs, squares, crosses and stripes of any colour, 16 x 16 pixels, one class each.
Runs on two CPU cores in under three minutes:

    python examples/dit_images.py
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from comparison import expert_dim_of_equal_flops, print_results, train
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from intermoe.integrations import calibrated_selection, load_pretrained, replace_feed_forward

SIZE, CLASSES, BATCH = 16, 4, 32
DIM, LAYERS, HEADS = 64, 4, 4
NUM_EXPERTS, CAPACITY = 8, 1.0


def draw_images(seed: int, count: int = BATCH) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIZE, SIZE) in [-1, 1] and their classes (count,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centre = 4 + 8 * torch.rand(count, 2, 1, 1, generator=generator)
    radius = 2.5 + 2.5 * torch.rand(count, 1, 1, generator=generator)
    colours = 2 * torch.rand(2, count, 3, 1, 1, generator=generator) - 1
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    y, x = (rows - centre[:, 0]), (columns - centre[:, 1])
    disc = x**2 + y**2 < radius**2
    square = torch.maximum(x.abs(), y.abs()) < radius
    cross = torch.minimum(x.abs(), y.abs()) < 1.2
    stripes = ((x + y) / radius).floor() % 2 == 0
    shape = torch.stack([disc, square, cross & square, stripes])[labels, torch.arange(count)][:, None]
    return torch.where(shape, colours[0], colours[1]), labels


def build() -> DiTTransformer2DModel:
    """The dense model."""
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=DIM // HEADS,
        in_channels=3,
        num_layers=LAYERS,
        sample_size=SIZE,
        num_embeds_ada_norm=CLASSES,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each model")
    steps = parser.parse_args().steps
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")

    def loss(model: nn.Module, seed: int) -> Tensor:
        images, labels = draw_images(seed)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(images.shape, generator=generator)
        timesteps = torch.randint(1000, (len(images),), generator=generator)
        noisy = scheduler.add_noise(images, noise, timesteps)
        estimate = model(noisy, timestep=timesteps, class_labels=labels, return_dict=False)[0]
        return (estimate - noise).square().mean()

    def score(model: nn.Module) -> float:
        return sum(float(loss(model, seed)) for seed in range(10**6, 10**6 + 16)) / 16

    dense_flops = 2 * 2 * DIM * 4 * DIM
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

    with tempfile.TemporaryDirectory() as folder:
        moe.save_pretrained(folder)
        loaded = load_pretrained(DiTTransformer2DModel, folder)
    images, labels = draw_images(0, 1)
    call = {"timestep": torch.tensor([500]), "class_labels": labels, "return_dict": False}
    with torch.no_grad():
        same = torch.equal(moe(images, **call)[0], loaded(images, **call)[0])
    print(f"saved with save_pretrained, loaded with load_pretrained: same output bit for bit: {same}")


if __name__ == "__main__":
    main()
