"""in2IN: which text drives what, guidance by four passes, and DualMDM; from the method's equations alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.diffusion import Sampler, sample
from intermoe.integrations import replace_feed_forward
from intermoe.systems.in2in.config import SCHEDULES, DualMDMConfig, GuidanceConfig
from intermoe.systems.in2in.guidance import DualMDM, FourPasses, individual_weight
from intermoe.systems.in2in.network import In2IN, IndividualPrior
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intergen.network import InterGen

CONFIG = InterGenConfig(input_dim=6, text_dim=5, dim=16, num_layers=2, num_heads=2, feedforward_dim=24, dropout=0.0)
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def drawn(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    model = kind(CONFIG).eval()
    for parameter in model.parameters():
        if not parameter.any():  # what starts at zero would hide the rest
            nn.init.normal_(parameter, std=0.2)
    return model


def call(persons: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, persons, 6, 6, generator=generator)
    return x, torch.tensor([3, 700]), torch.randn(2, 1 + persons, 5, generator=generator)


def test_with_one_text_for_all_it_is_intergen() -> None:
    model, intergen, (x, t, text) = drawn(In2IN), drawn(InterGen), call()
    intergen.load_state_dict(model.state_dict())
    same = text[:, :1].expand(-1, 3, -1)
    torch.testing.assert_close(model(x, t, same, MASK), intergen(x, t, same[:, 0], MASK))


def test_each_text_drives_its_own_part() -> None:
    """Without cross-attention a person hears their own text alone; through it the interaction's, and not the partner's
    but by what the partner does."""
    model, (x, t, text) = drawn(In2IN), call()

    def heard(which: int) -> list[bool]:
        changed = text.clone()
        changed[:, which] += 1
        return ((model(x, t, changed) - model(x, t, text)).abs().amax(dim=(0, 2, 3)) > 1e-5).tolist()

    assert [heard(which) for which in range(3)] == [[True, True], [True, True], [True, True]]
    for layer in model.layers:
        nn.init.zeros_(layer.cross_attention.attention.out.weight)
    assert [heard(which) for which in range(3)] == [[False, False], [True, False], [False, True]]
    layer, hidden = drawn(In2IN).layers[0], torch.randn(1, 2, 4, 16)
    condition = torch.randn(1, 3, 16)
    changed = torch.stack([condition[0, 0], condition[0, 1], condition[0, 2] + 1])[None]
    torch.testing.assert_close(layer(hidden, changed)[:, 0], layer(hidden, condition)[:, 0])  # partners as they entered


@pytest.mark.parametrize("persons", [1, 2, 3])
def test_persons_permute_with_their_texts(persons: int) -> None:
    model, (x, t, text) = drawn(In2IN), call(persons)
    exchanged = torch.cat([text[:, :1], text[:, 1:].flip(1)], dim=1)
    torch.testing.assert_close(model(x.flip(1), t, exchanged), model(x, t, text).flip(1))


def test_padding_does_not_reach_valid_frames() -> None:
    model, (x, t, text) = drawn(In2IN), call()
    y = model(x, t, text, MASK).transpose(1, 2)
    for value in (50.0, math.inf, math.nan):
        changed = x.masked_fill(~MASK[:, None, :, None], value)
        assert torch.equal(model(changed, t, text, MASK).transpose(1, 2)[MASK], y[MASK])
    torch.testing.assert_close(model(x[1:, :, :4], t[1:], text[1:])[0], y[1, :4].transpose(0, 1))


def test_individual_prior_is_intergen_without_a_partner() -> None:
    prior, intergen, (x, t, text) = drawn(IndividualPrior), drawn(InterGen), call(1)
    for layer in intergen.layers:
        nn.init.zeros_(layer.cross_attention.attention.out.weight)
        nn.init.zeros_(layer.cross_attention.attention.out.bias)
    shared = {name: value for name, value in intergen.state_dict().items() if "cross_attention" not in name}
    prior.load_state_dict(shared)
    torch.testing.assert_close(prior(x, t, text[:, 0], MASK), intergen(x, t, text[:, 0], MASK))


def test_experts_take_the_place_of_its_feed_forward_networks() -> None:
    """Padding is each item's, for all of its persons."""
    model, (x, t, text) = drawn(In2IN), call()
    replace_feed_forward(model, num_experts=3, expert_dim=8)
    for parameter in model.parameters():
        if not parameter.any():  # experts add nothing at first
            nn.init.normal_(parameter, std=0.2)
    found = model(x, t, text, MASK)
    torch.testing.assert_close(found[:1], model(x[:1], t[:1], text[:1]))
    torch.testing.assert_close(found[1:, :, :4], model(x[1:, :, :4], t[1:], text[1:]))


def test_a_fresh_network_answers_zero() -> None:
    assert (In2IN(CONFIG)(*call()) == 0).all()


def test_four_passes_are_the_weighted_sum_of_four_calls() -> None:
    model, (x, t, text) = drawn(In2IN), call()
    interaction, individuals = torch.zeros_like(text), text.clone()
    interaction[:, 0] = text[:, 0]
    individuals[:, 0] = 0
    parts = [model(x, t, given, MASK) for given in (text, interaction, individuals, torch.zeros_like(text))]
    found = FourPasses(model)(x, t, text, MASK)
    torch.testing.assert_close(found, 3 * parts[0] + 3 * parts[1] + parts[2] - 6 * parts[3])
    found = FourPasses(model, GuidanceConfig(2.0, 0.5, 0.25))(x, t, text)
    parts = [model(x, t, given) for given in (text, interaction, individuals, torch.zeros_like(text))]
    torch.testing.assert_close(found, 2 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2] - 1.75 * parts[3])


def test_sampling_with_one_weight_is_plain_guidance() -> None:
    model, (x, _, text) = drawn(In2IN), call()
    once, strongly = (Sampler(num_inference_steps=4, guidance_scale=scale) for scale in (1, 3.5))
    guided = FourPasses(model, GuidanceConfig(everything=3.5, interaction=0.0, individuals=0.0))
    found = sample(guided, text, tuple(x.shape), once, noise=x, mask=MASK)
    expected = sample(model, text, tuple(x.shape), strongly, noise=x, mask=MASK)
    torch.testing.assert_close(found, expected)


def test_dual_mdm_mixes_both_guided_estimates() -> None:
    model, prior, (x, t, text) = drawn(In2IN), drawn(IndividualPrior), call()
    none = torch.zeros_like(text)
    together = 3.5 * model(x, t, text, MASK) - 2.5 * model(x, t, none, MASK)
    alone = torch.stack(
        [
            2.5 * prior(x[:, [p]], t, text[:, 1 + p], MASK)[:, 0] - 1.5 * prior(x[:, [p]], t, none[:, 0], MASK)[:, 0]
            for p in range(2)
        ],
        dim=1,
    )
    weight = torch.tensor([math.exp(-0.0085 * 997), math.exp(-0.0085 * 300)])[:, None, None, None]
    torch.testing.assert_close(DualMDM(model, prior)(x, t, text, MASK), together + weight * (alone - together))
    constant = DualMDMConfig(schedule="constant", rate=0.0)
    torch.testing.assert_close(DualMDM(model, prior, constant)(x, t, text, MASK), together)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("exponential", [math.exp(-8.5), math.exp(-4.25)]),
        ("inverse_exponential", [1 - math.exp(-8.5), 1 - math.exp(-4.25)]),
        ("linear", [0.0, 0.5]),
        ("constant", [0.0085, 0.0085]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    weights = individual_weight(torch.tensor([0, 500]), DualMDMConfig(schedule=schedule))
    assert weights.tolist() == pytest.approx(expected)


def test_every_schedule_is_known() -> None:
    assert set(SCHEDULES) == {"exponential", "inverse_exponential", "linear", "constant"}
    with pytest.raises(ValueError, match=r"schedule: expected one of .*, got 'steep'"):
        DualMDMConfig(schedule="steep")


def test_bad_call_is_named() -> None:
    x, t, text = call()
    with pytest.raises(ValueError, match=r"text: expected shape \(2, 3, 5\), got \(2, 5\)"):
        drawn(In2IN)(x, t, text[:, 0])
    with pytest.raises(ValueError, match="x: expected one person, got 2"):
        drawn(IndividualPrior)(x, t, text[:, 0])
