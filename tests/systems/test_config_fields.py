"""What each value of the configurations of InterGen, in2IN, DualMDM and InterMask changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intermoe.diffusion import SCHEDULERS
from intermoe.motion.statistics import Statistics
from intermoe.pipeline import SYSTEMS, ModelConfig
from intermoe.systems.in2in.config import DualMDMConfig, GuidanceConfig, In2INModelConfig
from intermoe.systems.in2in.guidance import DualMDM, individual_weight
from intermoe.systems.intergen.config import InterGenConfig, InterGenModelConfig, MotionLossConfig
from intermoe.systems.intergen.losses import motion_losses
from intermoe.systems.intergen.network import InterGen
from intermoe.systems.intermask import official as intermask_official
from intermoe.systems.intermask.config import InterMaskConfig, InterMaskModelConfig, TokenizerConfig, UnmaskingConfig
from intermoe.systems.intermask.network import InterMask
from intermoe.systems.intermask.sampling import unmask
from intermoe.systems.intermoe.config import PipelineConfig
from intermoe.systems.mdm import official as mdm_official
from intermoe.systems.mdm.config import ComMDMConfig, ComMDMModelConfig, MDMConfig, MDMModelConfig
from intermoe.systems.timotion.config import TIMotionConfig, TIMotionModelConfig

INTERGEN: dict[str, Any] = {
    "input_dim": 6, "text_dim": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 24, "dropout": 0.0,
}  # fmt: skip
INTERMASK: dict[str, Any] = {
    "num_codes": 9, "code_dim": 6, "text_dim": 5, "dim": 8, "num_layers": 2, "num_heads": 2, "feedforward_dim": 12,
    "dropout": 0.0, "num_parts": 5,
}  # fmt: skip


def drawn(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def intergen(**changes: Any) -> InterGen:
    return drawn(InterGen(InterGenConfig(**{**INTERGEN, **changes})))


def motion_call(config: InterGenConfig) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 6, config.input_dim, generator=generator)
    return x, torch.tensor([3, 700]), torch.randn(2, config.text_dim, generator=generator)


def test_sizes_of_intergen() -> None:
    model = intergen(input_dim=7, text_dim=4, dim=12, num_layers=3, feedforward_dim=20)
    assert model(*motion_call(model.config)).shape == (2, 2, 6, 7)
    assert len(model.layers) == 3
    assert [layer.feed_forward.network[0].weight.shape for layer in model.layers] == [(20, 12)] * 3
    assert model.embed_text.weight.shape == (12, 4)


def test_heads_of_intergen_change_the_answer_and_no_shape() -> None:
    one, two = intergen(num_heads=1), intergen(num_heads=2)
    two.load_state_dict(one.state_dict())
    assert not torch.allclose(one(*motion_call(one.config)), two(*motion_call(two.config)), atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_dropout_of_intergen_is_in_attention_and_feed_forward(p: float) -> None:
    model = intergen(dropout=p).train()
    for layer in model.layers:
        for part, arguments in (
            (layer.self_attention, (torch.randn(2, 2, 6, 16), torch.randn(2, 16))),
            (layer.cross_attention, (torch.randn(2, 2, 6, 16), torch.randn(2, 2, 6, 16), torch.randn(2, 16))),
            (layer.feed_forward, (torch.randn(2, 6, 16), torch.randn(2, 16))),
        ):
            assert torch.equal(part(*arguments), part(*arguments)) is (p == 0.0)
            part.eval()
            assert torch.equal(part(*arguments), part(*arguments))


def test_padding_that_is_not_masked_is_computed_on() -> None:
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    for mask_padding in (True, False):
        model = intergen(mask_padding=mask_padding)
        x, timesteps, text = motion_call(model.config)
        changed = x + 5 * ~mask[:, None, :, None]
        same = torch.allclose(model(changed, timesteps, text, mask), model(x, timesteps, text, mask), atol=1e-4)
        assert same is mask_padding


TERMS = ("simple", "velocity", "bones", "feet", "distances", "touch", "orientation")


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_of_intergens_loss_is_of_its_term_alone(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    statistics = Statistics(np.zeros(262), np.full(262, 0.02))  # all within reach of each other, and all but standing
    found, expected = (0.1 * torch.randn(2, 2, 5, 262, generator=generator, dtype=torch.float64) for _ in range(2))

    def terms(**changes: float) -> dict[str, Tensor]:
        return motion_losses(found, expected, torch.tensor([3, 9]), None, statistics, MotionLossConfig(**changes))

    plain = terms()
    assert all(plain[term] > 0 for term in TERMS)
    for weight in (0.0, 7.0):
        weighed, default = terms(**{name: weight}), getattr(MotionLossConfig(), name)
        for term in TERMS:
            torch.testing.assert_close(weighed[term], plain[term] * (weight / default if term == name else 1.0))
        torch.testing.assert_close(weighed["loss"], sum((weighed[term] for term in TERMS), torch.zeros(())).double())


def test_the_last_timestep_that_is_judged() -> None:
    statistics = Statistics(np.zeros(262), np.ones(262))
    found, expected = torch.randn(1, 2, 5, 262), torch.randn(1, 2, 5, 262)
    for last in (100, 900):
        for timestep in (last, last + 1):
            config = MotionLossConfig(last_timestep=last)
            terms = motion_losses(found, expected, torch.tensor([timestep]), None, statistics, config)
            assert (terms["velocity"] > 0) == (timestep == last)


def test_scales_and_times_of_dual_mdm() -> None:
    """Each network's estimate is t + its scale - 1 where it is t with text and t - 1 without; w(t) as it is set."""
    x, timesteps, text = torch.zeros(1, 2, 3, 4), torch.tensor([50]), torch.ones(1, 3, 5)

    def answers(value: float) -> Any:
        def network(x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
            return (value - (text == 0).all(dim=-1).reshape(len(x), -1)[:, :1, None, None].float()).expand(x.shape)

        return network

    config = DualMDMConfig(interaction_scale=3.0, individual_scale=5.0, schedule="linear", num_train_timesteps=200)
    mixed = DualMDM(answers(10.0), answers(20.0), config)(x, timesteps, text)
    torch.testing.assert_close(mixed, torch.full_like(x, 12.0 + 0.25 * (24.0 - 12.0)))
    config = DualMDMConfig(schedule="exponential", rate=0.02, num_train_timesteps=200)
    torch.testing.assert_close(individual_weight(timesteps, config), torch.tensor([-0.02 * 150]).exp())


def intermask(**changes: Any) -> InterMask:
    return drawn(InterMask(InterMaskConfig(**{**INTERMASK, **changes})))


def codes_call(config: InterMaskConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(config.num_codes, (2, 2, config.num_parts, 3), generator=generator)
    return codes, torch.randn(2, config.text_dim, generator=generator)


def test_sizes_of_intermask() -> None:
    model = intermask(num_codes=7, code_dim=4, text_dim=3, dim=12, num_layers=3, feedforward_dim=20, num_parts=4)
    assert model(*codes_call(model.config)).shape == (2, 2, 4, 3, 7)
    assert model.embed_codes.weight.shape == (7 + 3, 4)
    assert model.embed_text.weight.shape == (12, 3)
    assert len(model.layers) == 3
    for layer in model.layers:
        assert layer.feed_forward.inner.weight.shape == layer.apart_feed_forward.inner.weight.shape == (20, 12)


def test_heads_of_intermask_change_the_answer_and_no_shape() -> None:
    one, two = intermask(num_heads=1), intermask(num_heads=2)
    two.load_state_dict(one.state_dict())
    assert not torch.allclose(one(*codes_call(one.config)), two(*codes_call(two.config)), atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_dropout_of_intermask_is_in_attention_and_feed_forward(p: float) -> None:
    model, hidden = intermask(dropout=p).train(), torch.randn(2, 6, 8)
    for layer in model.layers:
        parts: list[tuple[nn.Module, int]] = [(layer.feed_forward, 1), (layer.apart_feed_forward, 1)]
        parts += [
            (part, 2)
            for part in (
                layer.attention, layer.spatial_attention, layer.temporal_attention, layer.cross_attention
            )
        ]  # fmt: skip
        for part, count in parts:
            assert torch.equal(part(*[hidden] * count), part(*[hidden] * count)) is (p == 0.0)


@pytest.mark.parametrize(("scale", "code"), [(1.0, 0), (4.0, 1)])
def test_codes_are_the_likeliest_of_the_guided_logits(scale: float, code: int) -> None:
    """Without text (3, 0, ...), with it (2, 1, ...): guided (3 - s, s, ...)."""

    class Answers:
        config, mask_id = InterMaskConfig(**INTERMASK), 9

        def __call__(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
            logits = torch.zeros(*codes.shape, 9)
            given = text.mean(dim=1)[:, None, None, None]
            logits[..., 0], logits[..., 1] = 3 - given, given.expand(codes.shape)
            return logits

    network: Any = Answers()
    config = UnmaskingConfig(num_inference_steps=2, guidance_scale=scale, keep_share=1 / 9)
    uniforms = torch.full((2, 1, 2, 5, 3, 9), 0.5)
    found = unmask(network, torch.ones(1, 5), torch.ones(1, 3, dtype=torch.bool), config, uniforms=uniforms)
    assert (found == code).all()


def test_defaults_are_the_published_ones() -> None:
    weights = dataclasses.astuple(MotionLossConfig())
    assert weights == (1.0, 30.0, 10.0, 30.0, 3.0, 3.0, 0.01, 700, False, False)
    assert dataclasses.astuple(UnmaskingConfig()) == (20, 2.0, 0.1)
    assert dataclasses.astuple(DualMDMConfig()) == (3.5, 2.5, "exponential", 0.0085, 1000)
    assert dataclasses.astuple(GuidanceConfig()) == (3.0, 3.0, 1.0)
    assert dataclasses.astuple(InterGenConfig()) == (262, 768, 1024, 8, 8, 2048, 0.1, True)
    assert dataclasses.astuple(TIMotionConfig()) == (262, 768, 512, 5, 16, 2048, 0.1, True, True, 1, 1)
    assert dataclasses.astuple(MDMConfig()) == (263, 512, 512, 8, 4, 1024, 0.1, True)
    assert dataclasses.astuple(ComMDMConfig()) == (dataclasses.astuple(MDMConfig()), 8, 2, 4, 1024)
    assert dataclasses.astuple(InterMaskConfig()) == (1024, 512, 768, 384, 6, 6, 1024, 0.2, 5)
    assert dataclasses.astuple(TokenizerConfig()) == (
        "interhuman", 1024, 512, 512, 2, 3, 0.2, "every_frame", 0.5, 0.99
    )  # fmt: skip
    assert (intermask_official.PUBLISHED, intermask_official.TOKENIZER) == (
        {"num_heads": 6}, "openai/clip-vit-large-patch14-336"
    )  # fmt: skip
    assert mdm_official.TEXT == "openai/clip-vit-base-patch32"


@pytest.mark.parametrize(
    ("kind", "system", "fps", "steps", "guidance", "fewest"),
    [
        (InterGenModelConfig, "intergen", 30, 50, 3.5, 1),
        (TIMotionModelConfig, "timotion", 30, 50, 3.5, 1),
        (In2INModelConfig, "in2in", 30, 50, 3.5, 1),
        (InterMaskModelConfig, "intermask", 30, 20, 2.0, 2),
        (MDMModelConfig, "mdm", 20, 1000, 2.5, 1),
        (ComMDMModelConfig, "commdm", 30, 1000, 1.0, 1),
        (PipelineConfig, "intermoe", 30, 50, 3.5, 1),
    ],
)
def test_a_model_whose_configuration_says_nothing(
    kind: type[ModelConfig], system: str, fps: int, steps: int, guidance: float, fewest: int
) -> None:
    config: Any = kind()
    assert (config.system, config.name, config.fps) == (system, system, fps)
    assert (config.default_steps, config.default_guidance, config.min_steps) == (steps, guidance, fewest)
    assert (config.min_frames, config.max_frames) == (16, 300)
    assert config.max_steps == (None if system == "intermask" else 1000)
    parts = config.network if hasattr(config, "network") else config.denoiser
    assert config.text.output_dim == parts.text_dim == (512 if "mdm" in system else 768)
    if system == "intermoe":
        names = ("rigid_bones", "planted_feet", "on_floor", "bodies_apart", "smooth", "levels")
        assert not any(getattr(config, name) for name in names)
        assert (config.between.width, config.denoiser.shortcut.steps) == (0, 0)
    if system == "intermask":
        assert config.keep_share == 0.1
    if "mdm" in system:
        width = {"mdm": ("humanml3d", 263), "commdm": ("interhuman", 262)}
        assert (config.representation, parts.input_dim) == width[system]


def test_the_sampler_that_a_system_was_published_with_comes_first() -> None:
    ancestral = {"mdm", "commdm"}
    others = [SYSTEMS[name].schedulers for name in SYSTEMS if name not in ancestral | {"intermask"}]
    assert {each[0] for each in others} == {"ddim"}
    for name in ancestral:
        assert SYSTEMS[name].schedulers[0] == "ddpm"
        assert sorted(SYSTEMS[name].schedulers) == sorted(SCHEDULERS)
    assert SYSTEMS["intermask"].schedulers == ("unmasking",)
    assert [SYSTEMS[name].controls for name in ("intergen", "intermask", "commdm", "mdm")] == [
        ("known",), ("reaction",), (), ("known",)
    ]  # fmt: skip
