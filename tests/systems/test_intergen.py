"""InterGen: persons, padding, its losses in cases that can be computed by hand, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intermoe import official
from intermoe.integrations import attach_bias_update, replace_feed_forward
from intermoe.motion.skeleton import PARENTS
from intermoe.motion.statistics import Statistics
from intermoe.nn.layers import sinusoid
from intermoe.nn.moe import InterMoEBlock
from intermoe.systems.intergen.config import InterGenConfig, MotionLossConfig
from intermoe.systems.intergen.losses import facing_quaternion, motion_losses
from intermoe.systems.intergen.network import InterGen
from intermoe.systems.intergen.official import split_state

Golden = Callable[[str], Any]
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def tiny(**changes: Any) -> InterGen:
    torch.manual_seed(0)
    sizes = {"input_dim": 6, "text_dim": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 24}
    model = InterGen(InterGenConfig(**{**sizes, "dropout": 0.0, **changes})).eval()
    for parameter in model.parameters():
        if not parameter.any():  # what starts at zero would hide the rest
            nn.init.normal_(parameter, std=0.2)
    return model


def call(persons: int = 2, frames: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, persons, frames, 6, generator=generator), torch.randn(2, 5, generator=generator)
    return x, torch.tensor([3, 700]), text


@pytest.mark.parametrize("persons", [1, 2, 3])
def test_persons_share_weights_and_permute(persons: int) -> None:
    model, (x, t, text) = tiny(), call(persons)
    y = model(x, t, text)
    assert y.shape == x.shape
    torch.testing.assert_close(model(x.flip(1), t, text), y.flip(1))


def test_padding_does_not_reach_valid_frames() -> None:
    model, (x, t, text) = tiny(), call()
    y = model(x, t, text, MASK).transpose(1, 2)
    for value in (50.0, math.inf, math.nan):
        changed = x.masked_fill(~MASK[:, None, :, None], value)
        assert torch.equal(model(changed, t, text, MASK).transpose(1, 2)[MASK], y[MASK])
    torch.testing.assert_close(model(x[1:, :, :4], t[1:], text[1:])[0], y[1, :4].transpose(0, 1))


def test_the_partner_is_what_entered_the_layer() -> None:
    layer = tiny(num_layers=1).layers[0]
    hidden, condition = torch.randn(1, 2, 4, 16), torch.randn(1, 16)
    queries = hidden + layer.self_attention(hidden, condition)
    attended = queries + layer.cross_attention(queries, hidden, condition)
    tokens = attended.flatten(1, 2)
    expected = attended + layer.feed_forward(tokens, condition).view_as(attended)
    torch.testing.assert_close(layer(hidden, condition), expected)
    updated = queries + layer.cross_attention(queries, queries, condition)
    assert (updated - attended).abs().max() > 1e-3


def test_a_fresh_network_answers_zero_and_learns() -> None:
    model = InterGen(InterGenConfig(input_dim=6, text_dim=5, dim=16, num_layers=1, num_heads=2, feedforward_dim=8))
    x, t, text = call()
    estimate = model(x, t, text)
    assert (estimate == 0).all()
    (estimate - x).square().mean().backward()
    assert model.out.weight.grad.abs().max() > 0
    assert all((module.modulation.weight == 0).all() for name, module in model.named_modules() if name.endswith("norm"))


def test_experts_take_the_place_of_its_feed_forward_networks() -> None:
    model, (x, t, text) = tiny(), call()
    report = replace_feed_forward(model, num_experts=3, expert_dim=8)
    assert [layer.condition for layer in report.layers] == ["modulation"] * 2
    attach_bias_update(torch.optim.SGD(model.parameters(), lr=0.1), model)
    model.train()(x, t, text, MASK).sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, InterMoEBlock)]
    assert [int(block.token_count) for block in blocks] == [20, 20]  # both persons' valid frames
    assert all(block.text_router.grad.any() for block in blocks)
    model.eval()
    cut = model(x[1:, :, :4], t[1:], text[1:])
    torch.testing.assert_close(model(x, t, text, MASK)[1:, :, :4], cut)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(1, 2, 4, 7), torch.zeros(1), torch.zeros(1, 5)), ValueError, "x: expected shape .* 6"),
        ((torch.zeros(1, 2, 0, 6), torch.zeros(1), torch.zeros(1, 5)), ValueError, "x: expected at least one"),
        ((torch.zeros(1, 2, 4, 6), torch.zeros(2), torch.zeros(1, 5)), ValueError, "timesteps: expected shape"),
        ((torch.zeros(1, 2, 4, 6), torch.zeros(1), torch.zeros(1, 4)), ValueError, "text: expected shape"),
        (
            (torch.zeros(1, 2, 4, 6), torch.zeros(1), torch.zeros(1, 5), torch.ones(1, 4)),
            TypeError,
            "mask: expected dtype",
        ),
    ],
)
def test_bad_call_is_named(arguments: tuple[Tensor, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny()(*arguments)


def test_one_frame_is_enough() -> None:
    x = torch.randn(1, 2, 1, 6)
    for mask in (None, torch.ones(1, 1, dtype=torch.bool)):
        assert tiny()(x, torch.tensor([3]), torch.randn(1, 5), mask).shape == x.shape


def test_configuration() -> None:
    config = InterGenConfig(dim=32)
    assert InterGenConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="num_heads: expected a divisor of 32, got 5"):
        InterGenConfig(dim=32, num_heads=5)


def read(published_file: Callable[..., dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file as the published network's, and its configuration."""
    config = {"input_feats": 10, "latent_dim": 8, "ff_size": 12, "num_layers": 2, "num_heads": 2}
    known = {"text_embed.weight": (8, 5), "sequence_pos_encoder.pe": sinusoid(torch.arange(9), 8)}
    return published_file(lambda state: official.load_network("intergen", state, config), known), config


def test_reader_is_strict(published_file: Callable[..., dict[str, Tensor]]) -> None:
    state, config = read(published_file)
    layers = config["num_layers"]
    with pytest.raises(ValueError, match=rf"unexpected keys .*blocks\.{layers - 1}\."):
        official.load_network("intergen", state, {**config, "num_layers": layers - 1})
    with pytest.raises(ValueError, match="config: missing key 'ff_size'"):
        official.load_network("intergen", state, {k: v for k, v in config.items() if k != "ff_size"})
    with pytest.raises(ValueError, match="config: activation: expected 'gelu', got 'relu'"):
        official.load_network("intergen", state, {**config, "activation": "relu"})
    table = torch.zeros(7, config["latent_dim"])
    with pytest.raises(ValueError, match=r"'sequence_pos_encoder\.pe': expected the sinusoidal table"):
        official.load_network("intergen", {**state, "sequence_pos_encoder.pe": table}, config)
    with pytest.raises(ValueError, match=r"system: expected one of intergen, .*, got 'intergone'"):
        official.load_network("intergone", state, config)
    for key in state.keys() - {"sequence_pos_encoder.pe"}:  # which may be absent
        with pytest.raises(ValueError, match=f"missing key '{key}'"):
            official.load_network("intergen", {k: v for k, v in state.items() if k != key}, config)


def test_every_weight_is_copied(published_file: Callable[..., dict[str, Tensor]]) -> None:
    """No parameter keeps its initial value: a number everywhere in the file is it everywhere in the model."""
    state, config = read(published_file)
    filled = {k: v if k.endswith(".pe") else torch.full_like(v, 7.25) for k, v in state.items()}
    model = official.load_network("intergen", filled, config)
    assert [name for name, parameter in model.named_parameters() if not (parameter == 7.25).all()] == []


def test_a_whole_checkpoint_is_split() -> None:
    parts = split_state({"model.decoder.net.out.linear.bias": torch.ones(1), "model.clip_ln.bias": torch.ones(2)})
    assert {part: list(state) for part, state in parts.items()} == {
        "network": ["out.linear.bias"],
        "text": ["clip_ln.bias"],
    }
    with pytest.raises(ValueError, match=r"begin with 'model\.', got 'ema\.x'"):
        split_state({"ema.x": torch.ones(1)})


# Joint j of a person stands at height 2 j, so that joints are near themselves alone, but for the hips, which lie side
# by side and give a facing direction.
HIPS = 0.4
POSE = torch.stack([torch.zeros(22), 2.0 * torch.arange(22), torch.zeros(22)], dim=-1).double()
POSE[1], POSE[2] = torch.tensor([HIPS / 2, 2, 0]), torch.tensor([-HIPS / 2, 2, 0])
STATISTICS = Statistics(np.linspace(-1, 1, 262), np.linspace(0.5, 2, 262))


def motion(positions: Tensor) -> Tensor:
    """Normalised motion (B, P, T, 262) of joints; other columns are at their mean."""
    columns = torch.zeros(*positions.shape[:3], 262, dtype=torch.float64)
    columns[..., :66] = STATISTICS.normalise(
        torch.cat([positions.flatten(3), torch.zeros(*positions.shape[:3], 196, dtype=torch.float64)], dim=-1)
    )[..., :66]
    return columns


def standing(frames: int = 4, batch: int = 2) -> Tensor:
    """Two persons at one place, who do not move: (B, 2, T, 22, 3)."""
    return POSE.expand(batch, 2, frames, 22, 3).clone()


def losses(
    found: Tensor, expected: Tensor, mask: Tensor | None = None, t: int = 3, **changes: Any
) -> dict[str, Tensor]:
    timesteps = torch.full((len(found),), t)
    return motion_losses(motion(found), motion(expected), timesteps, mask, STATISTICS, MotionLossConfig(**changes))


def test_the_right_motion_costs_nothing() -> None:
    terms = losses(standing(), standing())
    assert all(value.abs() < 1e-12 for value in terms.values())


def test_geometric_terms_by_hand() -> None:
    taller = torch.tensor([1.0, 1.5, 1.0])
    wrong = standing()
    wrong[:, 0] = POSE * taller
    bones = POSE[1:] - POSE[list(PARENTS[1:])]
    longer = torch.linalg.vector_norm(bones * taller, dim=-1) - torch.linalg.vector_norm(bones, dim=-1)
    assert losses(wrong, standing())["bones"] == pytest.approx(10 * longer.square().mean().item())

    drifting = standing() + torch.arange(4)[:, None, None] * torch.tensor([0.3, 0.0, 0.0])
    terms = losses(drifting, standing())
    assert terms["velocity"] == pytest.approx(30 * 2 * 0.3**2 / 3)  # two persons
    assert terms["feet"] == 0  # too fast, and too high, to stand


def test_a_foot_that_stands_must_not_move() -> None:
    sliding = standing()
    sliding[:, 0, :, 7, 1] = 0.1  # one ankle low enough, the toes (10) stay high
    sliding[:, 0, :, 7, 0] += 0.02 * torch.arange(4)
    assert losses(sliding, sliding)["feet"] == pytest.approx(30 * 0.02**2 / 3)
    sliding[:, 0, :, 7, 0] += 0.02 * torch.arange(4)  # 4 cm a frame is a step
    assert losses(sliding, sliding)["feet"] == 0
    sliding[:, 0, :, 7, 1] = 0.13
    sliding[:, 0, :, 7, 0] -= 0.02 * torch.arange(4)
    assert losses(sliding, sliding)["feet"] == 0


def test_a_foot_stands_by_its_height_before_the_step() -> None:
    """One ankle: it rises by 1 cm from below 12 cm, goes on rising, and comes down by 1.6 cm from above."""
    stepping = standing()
    stepping[:, 0, :, 7, 1] = torch.tensor([0.115, 0.125, 0.135, 0.119])
    assert losses(stepping, stepping)["feet"] == pytest.approx(30 * 0.01**2 / 3 / 3)


def test_interaction_terms_by_hand() -> None:
    apart = standing()
    apart[:, 1] += torch.tensor([0.0, 0.0, 0.5])
    terms = losses(apart, standing())
    # of the same joint 22 distances of 0.5 m instead of 0, and between left and right hip 2; all others are 2 m or more
    hips = (math.hypot(0.5, HIPS) - HIPS) ** 2
    assert terms["distances"] == pytest.approx(3 * (22 * 0.25 + 2 * hips) / 24, rel=1e-6)
    assert terms["touch"] == pytest.approx(3 * 0.25, rel=1e-6)
    assert losses(apart, apart)["touch"] == 0  # nothing should touch
    # what is estimated within a metre counts, what should be does not; touching is of what should touch
    assert losses(standing(), apart)["touch"] == 0
    for found, expected, count in ((0.9, 1.1, 24), (1.1, 0.9, 0)):
        near, far = standing(), standing()
        near[:, 1] += torch.tensor([0.0, 0.0, found])
        far[:, 1] += torch.tensor([0.0, 0.0, expected])
        counted = [(found - expected) ** 2] * 22 + [(math.hypot(found, HIPS) - math.hypot(expected, HIPS)) ** 2] * 2
        wanted = 3 * sum(counted) / 24 if count else 0.0
        assert losses(near, far)["distances"] == pytest.approx(wanted, rel=1e-5)

    for expected, counts in ((0.09, True), (0.11, False)):  # touching is within 10 cm
        near, apart = standing(), standing()
        near[:, 1] += torch.tensor([0.0, 0.0, expected])
        apart[:, 1] += torch.tensor([0.0, 0.0, 0.5])
        wanted = 3 * 0.25 if counts else 0.0
        assert losses(apart, near)["touch"] == pytest.approx(wanted, rel=1e-6)

    turned = standing()
    angle = 1.1
    rotation = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
    )
    turned[:, 1] = turned[:, 1] @ rotation.T
    # w = cos(angle / 2) instead of 1, y = sin(angle / 2) instead of 0
    assert losses(turned, standing())["orientation"] == pytest.approx(0.01 * (1 - math.cos(angle / 2)))
    quaternion = facing_quaternion(turned[:, 0], turned[:, 1])
    assert quaternion[0, 0].tolist() == pytest.approx([math.cos(angle / 2), math.sin(angle / 2)])
    back = facing_quaternion(turned[:, 1], turned[:, 0])
    assert back[0, 0].tolist() == pytest.approx([math.cos(angle / 2), -math.sin(angle / 2)])


def test_one_person_has_no_interaction_and_three_have_three_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    found = POSE + torch.randn(2, 3, 4, 22, 3, generator=generator, dtype=torch.float64)
    expected = POSE + torch.randn(2, 3, 4, 22, 3, generator=generator, dtype=torch.float64)
    alone = losses(found[:, :1], expected[:, :1])
    assert alone["distances"] == alone["touch"] == alone["orientation"] == 0
    pairs = [losses(found[:, pair], expected[:, pair]) for pair in ([0, 1], [0, 2], [1, 2])]
    together = losses(found, expected)
    for name in ("distances", "touch", "orientation"):
        torch.testing.assert_close(together[name], sum(pair[name] for pair in pairs))
    torch.testing.assert_close(together["loss"], sum(v for k, v in together.items() if k != "loss"))


def random_pair(seed: int) -> Tensor:
    noise = torch.randn(2, 2, 6, 22, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return POSE + 0.3 * noise


def test_padding_costs_nothing_and_gets_no_gradient() -> None:
    found, expected = random_pair(0), random_pair(1)
    terms = losses(found, expected, MASK)
    for value in (0.0, 50.0, math.inf, math.nan):
        changed = torch.where(MASK[:, None, :, None, None], found, torch.full_like(found, value))
        estimate = motion(changed).requires_grad_()
        again = motion_losses(estimate, motion(expected), torch.tensor([3, 3]), MASK, STATISTICS, MotionLossConfig())
        torch.testing.assert_close(again, terms)
        again["loss"].backward()
        assert estimate.grad.isfinite().all()
        assert (estimate.grad.transpose(1, 2)[~MASK] == 0).all()
    cut = losses(found[1:, :, :4], expected[1:, :, :4])
    whole = losses(found[:1], expected[:1])
    for name in ("velocity", "bones", "feet", "distances", "touch", "orientation"):
        torch.testing.assert_close(terms[name], (cut[name] + whole[name]) / 2)


def test_noisy_samples_count_by_their_columns_alone() -> None:
    found, expected = random_pair(0), random_pair(1)
    terms = losses(found, expected, t=701)
    assert all((value > 0) == (name in ("simple", "loss")) for name, value in terms.items())
    assert losses(found, expected, t=700)["velocity"] > 0
    mixed = motion_losses(motion(found), motion(expected), torch.tensor([3, 701]), None, STATISTICS, MotionLossConfig())
    for name in ("velocity", "orientation"):
        torch.testing.assert_close(mixed[name], losses(found[:1], expected[:1])[name])


def test_the_published_codes_habits_are_switches() -> None:
    found, expected = random_pair(0), random_pair(1)
    far = torch.where(MASK[:, None, :, None, None], found, torch.full_like(found, 50.0))
    for name, switch in (("velocity", "step_into_padding"), ("feet", "step_into_padding")):
        right, theirs = (losses(far, expected, MASK, **{switch: on})[name] for on in (False, True))
        assert (right != theirs) == (name == "velocity")  # a jump of 50 m is not a foot that stands
    timesteps = torch.tensor([3, 701])
    both = motion_losses(
        motion(found), motion(expected), timesteps, MASK, STATISTICS, MotionLossConfig(orientation_of_all=True)
    )
    whole, cut = losses(found[:1], expected[:1]), losses(found[1:, :, :4], expected[1:, :, :4])
    torch.testing.assert_close(both["orientation"], (6 * whole["orientation"] + 4 * cut["orientation"]) / 10)


def test_losses_refuse_what_does_not_fit() -> None:
    estimate = torch.zeros(2, 2, 4, 262)
    for arguments, message in (
        ((estimate[..., :66], estimate, torch.zeros(2), None), r"estimate: expected shape .*262"),
        ((estimate, estimate[:1], torch.zeros(2), None), "target: expected shape"),
        ((estimate, estimate, torch.zeros(3), None), "timesteps: expected shape"),
        ((estimate, estimate, torch.zeros(2), torch.ones(2, 3)), "mask: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            motion_losses(*arguments, STATISTICS, MotionLossConfig())
    with pytest.raises(ValueError, match="velocity: expected >= 0"):
        MotionLossConfig(velocity=-1.0)


def test_frames_count_alike_in_the_simple_term_and_steps_into_padding_where_they_are_asked_for() -> None:
    """Ten valid frames of two samples, of 6 and 4; with the step into padding the second has 4 steps, not 3."""
    found, expected = random_pair(0), random_pair(1)
    off = (motion(found) - motion(expected)).square().mean(dim=(1, 3))
    terms = losses(found, expected, MASK)
    torch.testing.assert_close(terms["simple"], (off[0].sum() + off[1, :4].sum()) / 10)
    steps = (found.diff(dim=2) - expected.diff(dim=2)).square().mean(dim=(-2, -1)).sum(dim=1)
    for into_padding, count in ((False, 3), (True, 4)):
        term = losses(found, expected, MASK, step_into_padding=into_padding)["velocity"]
        torch.testing.assert_close(term, 30 * (steps[0].mean() + steps[1, :count].mean()) / 2)
