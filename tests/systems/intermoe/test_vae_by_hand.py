"""The autoencoder's two ways, joint by joint and frame by frame; of the convolution test_vae.py has the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from intermoe.motion.representation import ABSENT, REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import (
    CausalSkeletalVAE,
    History,
    JointDecoder,
    JointEncoder,
    JointLinear,
    ResidualBlock,
)

LAYOUTS = ("interhuman", "interx", "humanml3d")


def make(layout: str) -> CausalSkeletalVAE:
    torch.manual_seed(0)
    return CausalSkeletalVAE(VAEConfig(representation=layout, latent_dim=3, num_blocks=1, dropout=0.3)).eval()


def block_by_hand(block: ResidualBlock, x: Tensor, adjacency: Tensor) -> Tensor:
    mean = torch.stack([row / row.sum() for row in adjacency])
    return x + block.conv2(silu(block.conv1(silu(x), mean, History())), mean, History())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_motion_to_latents(layout: str) -> None:
    """Linear, SiLU, Linear for each joint; then twice a block and the means of two frames and of a part's joints."""
    vae = make(layout)
    motion = torch.randn(1, 8, *vae.representation.frame_shape)
    frames, features = motion.flatten(2)[0], vae.representation.features
    x, first = torch.empty(1, 8, len(features), 3), 0
    for joint, columns in enumerate(features):
        read = torch.stack([torch.zeros(8) if c == ABSENT else frames[:, c] for c in columns], dim=1)
        hidden = silu(read @ vae.joint_encoder.weight[first : first + len(columns)] + vae.joint_encoder.bias[joint])
        x[0, :, joint] = hidden @ vae.joint_encoder.out.weight[joint] + vae.joint_encoder.out.bias[joint]
        first += len(columns)
    for level, (adjacency, pool) in enumerate(((vae.adjacency_0, vae.pool_0), (vae.adjacency_1, vae.pool_1))):
        x = block_by_hand(vae.encoder[level][0], x, adjacency)
        x = (x[:, 0::2] + x[:, 1::2]) / 2
        x = torch.stack([x[:, :, members > 0].mean(dim=2) for members in pool], dim=2)
    expected = torch.stack([x[0, :, part] @ vae.head.weight[part] + vae.head.bias[part] for part in range(7)], dim=1)
    posterior = vae.encode(motion)
    torch.testing.assert_close(posterior.mean[0], expected[..., :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.log_var[0], expected[..., 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_to_motion(layout: str) -> None:
    """A part's joints get its value, time is doubled and then interpolated between the two; and a block after each."""
    vae = make(layout)
    latents = torch.randn(1, 2, 7, 3)
    x = torch.stack([latents[:, :, vae.pool_1[:, joint] > 0].sum(dim=2) for joint in range(vae.pool_1.shape[1])], dim=2)
    x = block_by_hand(vae.decoder[0][0], x.repeat_interleave(2, dim=1), vae.adjacency_1)
    x = torch.stack([x[:, :, vae.pool_0[:, joint] > 0].sum(dim=2) for joint in range(vae.pool_0.shape[1])], dim=2)
    between = [(1 - share) * x[:, pair] + share * x[:, pair + 1] for pair in (0, 2) for share in (0, 0.25, 0.75, 1)]
    x = block_by_hand(vae.decoder[1][0], torch.stack(between, dim=1), vae.adjacency_0)
    decoder, first = vae.joint_decoder, 0
    expected = torch.empty(8, vae.representation.frame_size)
    for joint, columns in enumerate(vae.representation.features):
        hidden = silu(x[0, :, joint] @ decoder.inner.weight[joint] + decoder.inner.bias[joint])
        for row, column in enumerate(columns, start=first):
            if column != ABSENT:
                expected[:, column] = hidden @ decoder.weight[row] + decoder.bias[row]
        first += len(columns)
    torch.testing.assert_close(vae.decode(latents)[0].flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_training_and_of_what_a_block_adds() -> None:
    block = make("interhuman").encoder[0][0].train()
    block.dropout.p = 1.0
    x = torch.randn(1, 4, 22, 3)
    assert torch.equal(block(x, torch.eye(22), History()), x)


def test_a_codec_is_frozen_and_codes_each_person_alone() -> None:
    """Latents of person p are those of its normalised motion, part after part; and the way back."""
    vae = make("interhuman").train()
    codec = LatentCodec(vae, Statistics(torch.linspace(-1, 1, 262).numpy(), torch.linspace(0.5, 2, 262).numpy()))
    assert not any(part.training for part in vae.modules())
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    motion, latents = torch.randn(3, 2, 8, 262), torch.randn(3, 2, 2, 21)
    coded, decoded = codec.encode(motion), codec.decode(latents)
    mean, std = torch.linspace(-1, 1, 262), torch.linspace(0.5, 2, 262)
    for row in range(3):
        for person in (0, 1):
            alone = vae.encode(((motion[row, person] - mean) / std)[None])
            torch.testing.assert_close(coded.mean[row, person], alone.mean[0].flatten(1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(coded.log_var[row, person], alone.log_var[0].flatten(1), rtol=1e-4, atol=1e-5)
            back = vae.decode(latents[row, person].view(1, 2, 7, 3))[0] * std + mean
            torch.testing.assert_close(decoded[row, person], back, rtol=1e-4, atol=1e-5)


def test_a_codec_of_half_weights_takes_and_gives_float32() -> None:
    statistics = Statistics(torch.full((262,), 3.0).numpy(), torch.full((262,), 1e-3).numpy())
    codec, half = (LatentCodec(make("interhuman").to(dtype), statistics) for dtype in (torch.float32, torch.bfloat16))
    motion, latents = 3 + 1e-3 * torch.randn(1, 2, 8, 262), torch.randn(1, 2, 2, 21)
    for made, expected in (
        (half.encode(motion).mean, codec.encode(motion).mean),
        (half.encode(motion).log_var, codec.encode(motion).log_var),
        ((half.decode(latents) - 3) / 1e-3, (codec.decode(latents) - 3) / 1e-3),  # not rounded at 3 m
    ):
        assert made.dtype == torch.float32
        assert 0 < float((made - expected).norm() / expected.norm()) < 0.05


def test_latents_can_be_steered_through_a_codec_where_that_is_asked_for() -> None:
    codec = LatentCodec(make("interhuman"), Statistics(torch.zeros(262).numpy(), torch.ones(262).numpy()))
    latents = torch.randn(1, 2, 2, 21, requires_grad=True)
    assert not codec.decode(latents).requires_grad
    codec.decode_with_gradients(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.all()
    assert not codec.encode(torch.randn(1, 2, 8, 262, requires_grad=True)).mean.requires_grad
    for wrong in (torch.zeros(1, 2, 8, 262, dtype=torch.long), [1.0]):
        with pytest.raises(TypeError, match="motion: expected a floating-point tensor, got"):
            codec.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"latents: expected shape \(B, P, T, 21\), got \(1, 2, 2, 22\)"):
        codec.decode(torch.zeros(1, 2, 2, 22))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_joints_of_few_and_of_many_features_are_drawn_as_torch_draws_a_linear(layout: str) -> None:
    """Uniform up to 1 / sqrt(features of the joint), weights and bias: the largest of many numbers is near it."""
    torch.manual_seed(0)
    representation = REPRESENTATIONS[layout]
    encoder, first = JointEncoder(representation, 400), 0
    for joint, columns in enumerate(representation.features):
        bound = len(columns) ** -0.5
        for drawn in (encoder.weight[first : first + len(columns)], encoder.bias[joint]):
            assert 0.95 * bound < float(drawn.detach().abs().max()) <= bound
        first += len(columns)
    decoder = JointDecoder(representation, 400)
    layer = JointLinear(3, 400, 90)
    for drawn in (decoder.weight, decoder.bias, layer.weight, layer.bias):
        assert 0.95 / 20 < float(drawn.detach().abs().max()) <= 1 / 20  # of 400 channels


@torch.no_grad()
def test_training_decodes_a_draw_of_the_posterior() -> None:
    vae, motion = make("interhuman"), torch.randn(2, 8, 262)
    made, posterior = vae(motion, torch.Generator().manual_seed(3))
    noise = torch.randn(2, 2, 7, 3, generator=torch.Generator().manual_seed(3))
    expected = vae.encode(motion)
    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(made, vae.decode(expected.mean + (0.5 * expected.log_var).exp() * noise))
    assert posterior.mode() is posterior.mean
