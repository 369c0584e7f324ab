"""Causal-Skeletal VAE: formula, causality, streaming, shapes, errors. Reference arrays: tests/test_official_vae.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from intermoe.systems.intermoe.config import VAEConfig
from intermoe.systems.intermoe.vae import CausalSkeletalVAE, History, JointLinear, LatentDistribution, SkeletalConv

LAYOUTS = ("interhuman", "interx", "humanml3d")
FLOAT32_TOLERANCE = 1e-5

RelativeError = Callable[[Tensor, Tensor], float]


def make_vae(layout: str = "interhuman", latent_dim: int = 6, **settings: float) -> CausalSkeletalVAE:
    torch.manual_seed(0)
    return CausalSkeletalVAE(VAEConfig(representation=layout, latent_dim=latent_dim, **settings)).eval()


def make_motion(vae: CausalSkeletalVAE, batch: int, frames: int) -> Tensor:
    return torch.randn(batch, frames, *vae.representation.frame_shape, generator=torch.Generator().manual_seed(1))


def test_full_size_has_the_published_number_of_parameters() -> None:
    vae = CausalSkeletalVAE(VAEConfig())
    learned = sum(parameter.numel() for parameter in vae.parameters())
    # The published count includes its fixed matrices: the graph once per convolution, each pooling twice.
    graphs = 8 * (vae.adjacency_0.numel() + vae.adjacency_1.numel())
    poolings = 2 * (vae.pool_0.numel() + vae.pool_1.numel())
    assert learned == 1_001_228
    assert learned + graphs + poolings == 1_006_948


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("batch", "frames", "latent_dim"),
    [
        (1, 4, 1),  # the least of everything
        (3, 12, 7),  # odd batch, odd number of groups, odd width
    ],
)
def test_shapes(layout: str, batch: int, frames: int, latent_dim: int) -> None:
    vae = make_vae(layout, latent_dim)
    motion = make_motion(vae, batch, frames)
    posterior = vae.encode(motion)
    assert posterior.mean.shape == posterior.log_var.shape == (batch, frames // 4, 7, latent_dim)
    decoded = vae.decode(posterior.mode())
    assert decoded.shape == motion.shape
    assert decoded.is_contiguous()


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_skeletal_convolution_is_its_formula(kernel_size: int, relative_error: RelativeError) -> None:
    torch.manual_seed(0)
    batch, frames, joints, dim = 2, 5, 4, 3
    conv = SkeletalConv(dim, kernel_size).double()
    x = torch.randn(batch, frames, joints, dim, dtype=torch.float64)
    mean = torch.rand(joints, joints, dtype=torch.float64)
    mean /= mean.sum(dim=1, keepdim=True)

    expected = torch.zeros_like(x)
    for t in range(frames):
        for j in range(joints):
            expected[:, t, j] = conv.own(x[:, t, j]) + conv.temporal.bias
            for i in range(joints):
                expected[:, t, j] += mean[j, i] * conv.neighbours(x[:, t, i])
            for back in range(kernel_size):
                for side in range(-(kernel_size // 2), kernel_size // 2 + 1):
                    if t - back >= 0 and 0 <= j + side < joints:
                        tap = conv.temporal.weight[:, :, kernel_size - 1 - back, kernel_size // 2 + side]
                        expected[:, t, j] += x[:, t - back, j + side] @ tap.t()
    assert relative_error(conv(x, mean, History()), expected) < 1e-12


def test_skeletal_convolution_gradients() -> None:
    torch.manual_seed(0)
    conv = SkeletalConv(2, 3).double()
    x = torch.randn(1, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    mean = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    parameters = dict(conv.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        replaced = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(conv, replaced, (x, mean, History()))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_joint_linear_is_one_linear_map_per_joint(relative_error: RelativeError) -> None:
    layer = JointLinear(3, 4, 2)
    x = torch.randn(5, 3, 4)
    expected = torch.stack([x[:, j] @ layer.weight[j] + layer.bias[j] for j in range(3)])
    assert relative_error(layer(x), expected) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_input_column_reaches_the_latents_and_every_output_column_is_written(layout: str) -> None:
    vae = make_vae(layout)
    motion = make_motion(vae, 1, 4).requires_grad_()
    vae.encode(motion).mean.sum().backward()
    assert (motion.grad != 0).any(dim=1).all()
    decoded = vae.decode(torch.randn(2, 1, 7, 6))
    assert (decoded[0] != decoded[1]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", [0, 1, 3])
def test_nothing_depends_on_input_after_its_group_of_four_frames(layout: str, group: int) -> None:
    """Jacobians: latent g reads frames up to 4g + 3 only; frames 4g .. 4g + 3 read latents up to g only."""
    vae = make_vae(layout)
    motion = make_motion(vae, 1, 16).requires_grad_()
    vae.encode(motion).mean[:, group].square().sum().backward()
    per_frame = motion.grad.flatten(2).abs().sum(dim=(0, 2))
    assert (per_frame[: 4 * group + 4] > 0).all()
    assert (per_frame[4 * group + 4 :] == 0).all()

    latents = torch.randn(1, 4, 7, 6, requires_grad=True)
    vae.decode(latents)[:, 4 * group : 4 * group + 4].square().sum().backward()
    per_latent = latents.grad.abs().sum(dim=(0, 2, 3))
    assert (per_latent[: group + 1] > 0).all()
    assert (per_latent[group + 1 :] == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_after_a_motion_does_not_change_it(layout: str, relative_error: RelativeError) -> None:
    vae = make_vae(layout)
    motion = make_motion(vae, 2, 12)
    padded = torch.cat([motion, torch.zeros_like(motion)], dim=1)
    short, long = vae.encode(motion), vae.encode(padded)
    assert relative_error(long.mean[:, :3], short.mean) < FLOAT32_TOLERANCE
    assert relative_error(long.log_var[:, :3], short.log_var) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_streaming_equals_the_whole_sequence(layout: str, batch: int, relative_error: RelativeError) -> None:
    vae = make_vae(layout)
    latents = torch.randn(batch, 9, 7, 6)
    stream = vae.streaming_decoder()
    steps = [stream.step(latents[:, index]) for index in range(9)]
    assert all(step.shape == (batch, 4, *vae.representation.frame_shape) for step in steps)
    assert relative_error(torch.cat(steps, dim=1), vae.decode(latents)) < FLOAT32_TOLERANCE


def test_streaming_with_a_long_kernel_equals_the_whole_sequence(relative_error: RelativeError) -> None:
    vae = make_vae(kernel_size=7)  # looks back 6 frames: further than one step's 4
    latents = torch.randn(2, 6, 7, 6)
    stream = vae.streaming_decoder()
    steps = [stream.step(latents[:, index]) for index in range(6)]
    assert relative_error(torch.cat(steps, dim=1), vae.decode(latents)) < FLOAT32_TOLERANCE


def test_streaming_memory_is_constant() -> None:
    vae = make_vae()
    stream = vae.streaming_decoder()

    def held() -> list[int]:
        return [frames.untyped_storage().nbytes() for frames in stream._history._frames]

    stream.step(torch.randn(2, 7, 6))
    first = held()
    assert len(first) == 8  # convolutions of the decoder
    for _ in range(20):
        stream.step(torch.randn(2, 7, 6))
    assert held() == first
    # 4 bytes, batch 2, 2 frames back, width 6, 4 convolutions at each of 12 and 22 joints
    assert sum(first) == 4 * 2 * 2 * 6 * 4 * (12 + 22)


def test_streaming_resets() -> None:
    vae = make_vae()
    latent = torch.randn(2, 7, 6)
    stream = vae.streaming_decoder()
    first = stream.step(latent)
    assert not torch.equal(stream.step(latent), first)
    stream.reset()
    assert torch.equal(stream.step(latent), first)
    stream.reset()
    assert stream.step(latent[:1]).shape[0] == 1


def test_two_streams_do_not_disturb_each_other() -> None:
    vae = make_vae()
    one, two = vae.streaming_decoder(), vae.streaming_decoder()
    latents = torch.randn(3, 1, 7, 6)
    alone = [one.step(latent) for latent in latents]
    one.reset()
    for index, latent in enumerate(latents):
        two.step(torch.randn(1, 7, 6))
        assert torch.equal(one.step(latent), alone[index])


def test_streaming_refuses_dropout_and_changed_batch() -> None:
    vae = make_vae()
    stream = vae.streaming_decoder()
    stream.step(torch.zeros(2, 7, 6))
    with pytest.raises(ValueError, match="expected the batch size 2 of this stream, got 3"):
        stream.step(torch.zeros(3, 7, 6))
    with pytest.raises(ValueError, match=r"latent: expected \(B, 7, 6\), got \(2, 6, 7\)"):
        stream.step(torch.zeros(2, 6, 7))
    with pytest.raises(RuntimeError, match="eval"):
        vae.train().streaming_decoder().step(torch.zeros(2, 7, 6))


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        ("interhuman", (1, 6, 262), "motion: expected a multiple of 4 frames, got 6"),
        ("interhuman", (1, 8, 263), r"motion: expected \(B, T, 262\) for interhuman, got \(1, 8, 263\)"),
        ("interhuman", (8, 262), r"got \(8, 262\)"),
        ("interhuman", (1, 0, 262), r"got \(1, 0, 262\)"),
        ("interx", (1, 8, 660), r"motion: expected \(B, T, 55, 12\) for interx, got \(1, 8, 660\)"),
        ("humanml3d", (1, 8, 262), r"motion: expected \(B, T, 263\) for humanml3d"),
    ],
)
def test_bad_motion_is_refused(layout: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_vae(layout).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 7, 6), (2, 3, 6, 7), (2, 0, 7, 6)])
def test_bad_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents: expected \(B, T', 7, 6\), got"):
        make_vae().decode(torch.zeros(shape))


def test_unknown_representation_is_refused() -> None:
    with pytest.raises(ValueError, match="representation: expected one of"):
        VAEConfig(representation="kit")


def test_posterior_sampling_is_seeded_and_differentiable() -> None:
    mean = torch.randn(2, 3, 7, 4, requires_grad=True)
    log_var = torch.randn(2, 3, 7, 4, requires_grad=True)
    posterior = LatentDistribution(mean, log_var)
    sample = posterior.sample(torch.Generator().manual_seed(5))
    assert torch.equal(sample, posterior.sample(torch.Generator().manual_seed(5)))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample, mean + log_var.mul(0.5).exp() * noise)
    sample.sum().backward()
    assert (mean.grad == 1).all()
    assert (log_var.grad != 0).all()


def test_kl_is_the_closed_form() -> None:
    mean, log_var = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    normal = torch.distributions.Normal(mean, log_var.mul(0.5).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(LatentDistribution(mean, log_var).kl(), expected)
    assert LatentDistribution(torch.zeros(1), torch.zeros(1)).kl() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_round_trip_through_safetensors(layout: str, tmp_path: Path) -> None:
    vae = make_vae(layout)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    other = CausalSkeletalVAE(vae.config).eval()
    other.load_state_dict(load_file(tmp_path / "vae.safetensors"))
    motion = make_motion(vae, 1, 8)
    assert torch.equal(other.decode(other.encode(motion).mean), vae.decode(vae.encode(motion).mean))


def test_a_few_steps_learn_and_reach_every_parameter() -> None:
    vae = make_vae(latent_dim=8, dropout=0.0).train()
    motion = make_motion(vae, 2, 8)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        reconstruction, posterior = vae(motion, torch.Generator().manual_seed(0))
        loss = (reconstruction - motion).square().mean() + 0.02 * posterior.kl()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, parameter in vae.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, relative_error: RelativeError) -> None:
    vae = make_vae()
    motion = make_motion(vae, 1, 8)
    expected = vae.decode(vae.encode(motion).mean)
    vae.to(dtype)
    actual = vae.decode(vae.encode(motion.to(dtype)).mean)
    assert actual.dtype == dtype
    # bfloat16 keeps 8 bits; about 30 operations follow one another, each rounding once.
    tolerance = 30**0.5 * torch.finfo(dtype).eps * 2 if dtype is torch.bfloat16 else FLOAT32_TOLERANCE
    assert relative_error(actual.float(), expected) < tolerance
