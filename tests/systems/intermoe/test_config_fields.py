"""What each value of the system's configurations changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe import InterMoEPipeline, MotionPipeline
from intermoe.diffusion import DiffusionConfig, Sampler, build_scheduler, sample
from intermoe.nn.attention import Attention
from intermoe.systems.intermoe.config import DenoiserConfig, PipelineConfig, VAEConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.vae import CausalSkeletalVAE, History

SMALL: dict[str, Any] = {
    "input_dim": 6, "text_dim": 5, "dim": 8, "num_layers": 2, "num_heads": 2, "num_experts": 3, "expert_dim": 4,
    "dropout": 0.0,
}  # fmt: skip


def denoiser(**changes: Any) -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(model: Denoiser) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 5, model.config.input_dim, generator=generator)
    return x, torch.tensor([3, 700]), torch.randn(2, model.config.text_dim, generator=generator)


def test_widths_and_depths_of_the_denoiser() -> None:
    model = denoiser(input_dim=10, text_dim=7, dim=12, num_layers=3, num_experts=5, expert_dim=6)
    assert model(*inputs(model)).shape == (2, 2, 5, 10)
    assert len(model.layers) == len(model.moe_blocks()) == 3
    for block in model.moe_blocks():
        assert block.w_gate_up.shape == (5, 2 * 6, 12)
        assert block.selection_bias.shape == (5,)


def test_heads_divide_the_width_and_change_the_answer() -> None:
    one, two = denoiser(num_heads=1).eval(), denoiser(num_heads=2).eval()
    assert {key: value.shape for key, value in one.state_dict().items()} == {
        key: value.shape for key, value in two.state_dict().items()
    }
    assert not torch.allclose(one(*inputs(one)), two(*inputs(two)))
    for layer in two.layers:
        assert layer.self_attention.attention.num_heads == layer.cross_attention.attention.num_heads == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("capacity", 2.0), ("fusion", "sum"), ("fusion", "learned"), ("alpha", 0.25), ("num_shared_experts", 2),
        ("bias_rate", 0.02), ("bias_init", -0.25), ("routing", "expert_choice"), ("pool", "sample"),
        ("unit", "sequence"),
    ],
)  # fmt: skip
def test_values_of_routing_reach_every_block(name: str, value: Any) -> None:
    """What they do there is shown with the block."""
    assert getattr(DenoiserConfig(**SMALL), name) != value
    for block in denoiser(**{name: value}).moe_blocks():
        assert getattr(block, name) == value


def test_top_k_reaches_every_block() -> None:
    model = denoiser(routing="token_choice", top_k=2)
    model(*inputs(model))
    assert all(block.expert_counts.sum() == 2 * 2 * 5 * 2 for block in model.moe_blocks())


def test_the_fusion_weight_and_shared_experts_change_the_answer() -> None:
    plain = denoiser().eval()
    for changes in ({"alpha": 0.25}, {"fusion": "sum"}, {"bias_init": -0.9}, {"num_shared_experts": 1}):
        other = denoiser(**changes).eval()
        if "bias_init" in changes:
            for block in other.moe_blocks():
                block.selection_bias.fill_(-0.9)
        assert not torch.allclose(other(*inputs(other)), plain(*inputs(plain)), atol=1e-5)


@pytest.mark.parametrize("p", [0.25, 0.75])
def test_dropout_of_attention_is_of_its_weights(p: float) -> None:
    """One key of value 1 beside the zero key: half of the attention, 0 with probability p, else 1 / (2 (1 - p))."""
    attention = Attention(2, 1, dropout=p).train()
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.key_value.weight.zero_()
        attention.key_value.bias[2:] = 1.0
        attention.out.weight.copy_(torch.eye(2))
    torch.manual_seed(0)
    out = attention(torch.zeros(1, 4000, 2), torch.zeros(1, 1, 2))[0, :, 0]
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.03)
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (2 * (1 - p))))
    torch.testing.assert_close(attention.eval()(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)), torch.full((1, 1, 2), 0.5))


@pytest.mark.parametrize("part", ["self_attention", "cross_attention"])
def test_dropout_reaches_both_attentions(part: str) -> None:
    hidden, condition = torch.randn(2, 2, 5, 8), torch.randn(2, 8)
    for p in (0.0, 0.5):
        for layer in denoiser(dropout=p).train().layers:
            module = getattr(layer, part)
            arguments = (hidden, condition) if part == "self_attention" else (hidden, hidden, condition)
            assert torch.equal(module(*arguments), module(*arguments)) is (p == 0.0)
            module.eval()
            assert torch.equal(module(*arguments), module(*arguments))


def test_partners_are_seen_as_they_entered_the_layer() -> None:
    """By the definition: the cross-attention's context is what came in, whatever the self-attention made of it."""
    layer = denoiser().double().eval().layers[0]  # double: no rounding decides a selection
    hidden, condition = torch.randn(2, 3, 5, 8).double(), torch.randn(2, 8).double()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    own = hidden + layer.self_attention(hidden, condition, mask)
    both = torch.empty_like(own)
    for person in range(3):
        others = [other for other in range(3) if other != person]
        context = torch.cat([hidden[:, other] for other in others], dim=1)
        cross = layer.cross_attention
        normed = cross.norm(own[:, person], condition)
        keys = cross.context_norm(context, condition)
        both[:, person] = own[:, person] + cross.attention(normed, keys, mask.repeat(1, 2))
    pool = both.flatten(1, 2)
    expected = pool + layer.moe(pool, condition, mask.repeat(1, 3))
    torch.testing.assert_close(layer(hidden, condition, mask), expected.view(hidden.shape), rtol=1e-4, atol=1e-4)


def autoencoder(**changes: Any) -> CausalSkeletalVAE:
    torch.manual_seed(0)
    return CausalSkeletalVAE(VAEConfig(**{"latent_dim": 4, "num_blocks": 1, "dropout": 0.0, **changes}))


@pytest.mark.parametrize(("name", "frame"), [("interhuman", (262,)), ("interx", (55, 12)), ("humanml3d", (263,))])
def test_representation_and_width_of_latents(name: str, frame: tuple[int, ...]) -> None:
    vae = autoencoder(representation=name, latent_dim=6)
    latents = vae.encode(torch.randn(2, 8, *frame)).mean
    assert latents.shape == (2, 2, 7, 6)
    assert vae.decode(latents).shape == (2, 8, *frame)


def test_blocks_of_each_resolution() -> None:
    vae = autoencoder(num_blocks=3)
    assert [len(stack) for stack in (*vae.encoder, *vae.decoder)] == [3] * 4


@pytest.mark.parametrize(("kernel", "seen"), [(1, 0), (3, 2), (5, 4)])
def test_kernel_size_is_how_far_a_convolution_looks_back(kernel: int, seen: int) -> None:
    """Two convolutions at the finer resolution: a change of a frame reaches kernel - 1 frames ahead, twice."""
    vae = autoencoder(kernel_size=kernel).eval()
    block = vae.encoder[0][0]
    x = torch.randn(1, 16, 22, 4)
    changed = x.clone()
    changed[:, 3] += 1
    outs = [block(value, vae._neighbour_mean(0), History()) for value in (x, changed)]
    moved = (outs[0] - outs[1]).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(3, 3 + 2 * seen + 1))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_dropout_of_the_autoencoder(p: float) -> None:
    vae = autoencoder(dropout=p).train()
    x = torch.randn(4, 16, 22, 4)
    for stack in (vae.encoder[0], vae.decoder[1]):
        out = stack[0](x, vae._neighbour_mean(0), History())
        assert (out == x).float().mean().item() == pytest.approx(p, abs=0.03)  # what a block adds is dropped
    vae.eval()
    assert torch.equal(vae.encode(torch.ones(1, 8, 262)).mean, vae.encode(torch.ones(1, 8, 262)).mean)


@pytest.fixture
def changed(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``changed(diffusion={...}, fps=12)``: the tiny pipeline with other values in its configuration."""

    def change(diffusion: dict[str, Any] | None = None, **values: Any) -> InterMoEPipeline:
        config = dataclasses.replace(
            tiny_pipeline.config, **values, diffusion=DiffusionConfig.from_dict(diffusion or {})
        )
        monkeypatch.setattr(tiny_pipeline, "config", config)
        return tiny_pipeline

    return change


def test_rate_and_length_of_generated_motion(changed: Any) -> None:
    pipeline = changed(fps=12, min_frames=9, max_frames=11)
    for frames in (9, 11):
        result = pipeline("they bow", num_frames=frames, num_inference_steps=1)
        assert result.fps == 12
        assert result.motion.shape[2] == frames
    for frames in (8, 12):
        with pytest.raises(
            ValueError, match=rf"num_frames: expected a value in \[9, 11\] for this model, got {frames}"
        ):
            pipeline("they bow", num_frames=frames)


def made(pipeline: InterMoEPipeline, **options: Any) -> list[Tensor]:
    """The same prompt by a call and by ``sample``, as evaluations do it."""
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, **options}
    alone = pipeline("they bow", num_frames=16, seed=5, **options).motion[0]
    return [alone, pipeline.sample(["they bow"], [16], [5], **options)[0]]


def test_guidance_ends_where_the_configuration_says(changed: Any) -> None:
    guided, free = made(changed()), made(changed(), guidance_scale=1.0)
    late, never = made(changed({"guidance_until": 0.5})), made(changed({"guidance_until": 1.0}))
    for index in range(2):
        torch.testing.assert_close(never[index], free[index])
        assert not torch.allclose(late[index], free[index], atol=1e-4)
        assert not torch.allclose(late[index], guided[index], atol=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"latent_scale": 0.5},
        {"num_train_timesteps": 100},
        {"max_beta": 0.002},
        {"latent_scale": 0.5, "scale_input": True},
    ],
)
def test_sampling_follows_the_diffusion_of_the_configuration(changed: Any, values: dict[str, Any]) -> None:
    plain, pipeline = made(changed()), changed(values)
    seen: list[Tensor] = []
    hook = pipeline.denoiser.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:1]))
    found = made(pipeline)
    hook.remove()
    noise = seen[0]  # what the seed made
    if pipeline.config.diffusion.scale_input:
        level = float(build_scheduler("ddim", pipeline.config.diffusion).alphas_cumprod[750])
        noise = noise * (level * pipeline.config.diffusion.latent_scale**2 + 1 - level) ** 0.5
    latents = sample(
        pipeline.denoiser,
        pipeline.text_encoder(["they bow"]),
        (1, 2, 4, 28),
        Sampler(DiffusionConfig.from_dict(values), "ddim", 4, 3.0),
        noise=noise,
    )
    expected = pipeline.decode(latents)[0]
    for motion, before in zip(found, plain, strict=True):
        torch.testing.assert_close(motion, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(motion, before, atol=1e-3)


def test_parts_are_built_from_their_configurations(tmp_path: Path, tiny_pipeline: Any) -> None:
    """Every part of a saved model is what its own configuration says, and the name stays."""
    assert tiny_pipeline.config != PipelineConfig()
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = InterMoEPipeline.from_pretrained(tmp_path)
    assert loaded.config.name == "tiny"
    assert (loaded.vae.config, loaded.denoiser.config) == (loaded.config.vae, loaded.config.denoiser)
    assert loaded.text_encoder.output_dim == loaded.config.text.output_dim == 8
    assert loaded.config.diffusion == tiny_pipeline.config.diffusion


def test_the_system_chooses_the_pipeline(tmp_path: Path, tiny_pipeline: Any) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    assert isinstance(MotionPipeline.from_pretrained(tmp_path), InterMoEPipeline)
    values = {**tiny_pipeline.config.to_dict(), "system": "other"}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match="'other'"):
        MotionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("recompute", [False, True])
def test_balance_is_the_sum_over_the_layers(recompute: bool) -> None:
    model = denoiser(routing="token_choice", top_k=1, num_layers=3, recompute=recompute).train()
    losses: list[Tensor] = []
    for block in model.moe_blocks():
        block.register_forward_hook(lambda _, arguments, out: losses.append(out[1]))
    _, balance = model(*inputs(model), balance=True)
    assert len(losses) == 3
    torch.testing.assert_close(balance, sum(losses[1:], losses[0]))


def test_recomputation_runs_every_layer_again_and_changes_nothing() -> None:
    mask, gradients, runs = torch.tensor([[True] * 5, [True] * 3 + [False] * 2]), [], []
    for recompute in (False, True):
        model = denoiser(recompute=recompute).train()
        calls: list[int] = []
        for layer in model.layers:
            layer.self_attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(*inputs(model), mask).transpose(1, 2)[mask].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        runs.append(len(calls))
    assert runs == [2, 4]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)
