"""What fills gaps: the network by its properties, and where a model uses it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.control import Control, Given, Known, Target
from intermoe.motion.interhuman import INTERHUMAN, from_joints
from intermoe.pipeline import MotionPipeline
from intermoe.systems.intermoe.between import SEEN, Between, Ends, Gap, ends_of, gaps, mirrored, seen
from intermoe.systems.intermoe.config import BetweenConfig, PipelineConfig, VAEConfig
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from tests.motion.conftest import walking
from tests.motion.test_apart import joints

CONFIG = BetweenConfig(width=7, layers=2, code=5, waves=3, max_frames=10)


def network(**changes: Any) -> Between:
    """Freshly drawn, also where it would start at zero."""
    torch.manual_seed(0)
    between = Between(dataclasses.replace(CONFIG, **changes)).eval()
    torch.nn.init.normal_(between.joints.weight, std=0.05)
    torch.nn.init.uniform_(between.std, 0.5, 2.0)
    torch.nn.init.normal_(between.mean, std=0.1)
    return between


def some_ends(count: int = 4) -> Ends:
    """People who stand somewhere and face somewhere."""
    torch.manual_seed(1)
    before, after = (3 * torch.randn(count, 1, 1, 3) + 0.5 * torch.randn(count, len(SEEN), 22, 3) for _ in range(2))
    return Ends(before, after, torch.tensor([4.0, 1.0, 9.0, 10.0])[:count])


PLACES = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [8.0, 2.0, 5.0], [9.0, 0.0, 4.0]])


def about_y(angle: float) -> torch.Tensor:
    cos, sin = torch.tensor(angle).cos(), torch.tensor(angle).sin()
    return torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def test_a_fresh_network_leads_straight() -> None:
    torch.manual_seed(0)
    ends = some_ends()
    made = Between(CONFIG)(ends, PLACES)
    for gap, row in enumerate(PLACES.tolist()):
        for number, place in enumerate(row):
            share = (place + 1) / (float(ends.frames[gap]) + 1)
            expected = (1 - share) * ends.before[gap, 0] + share * ends.after[gap, 0]
            torch.testing.assert_close(made[gap, number], expected, rtol=1e-4, atol=1e-5)


def test_both_ends_are_met() -> None:
    ends, between = some_ends(), network()
    made = between(ends, torch.stack([torch.full((4,), -1.0), ends.frames], dim=1))
    torch.testing.assert_close(made[:, 0], ends.before[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[:, 1], ends.after[:, 0], rtol=1e-4, atol=1e-5)
    inside = between(ends, PLACES)
    assert (inside - Between(CONFIG)(ends, PLACES)).abs().max() > 0.01


def test_where_in_the_world_it_is_does_not_matter() -> None:
    ends, between = some_ends(), network()
    turn, shift = about_y(2.1), torch.tensor([5.0, 0.0, -7.0])
    moved = Ends(ends.before @ turn.T + shift, ends.after @ turn.T + shift, ends.frames)
    expected = between(ends, PLACES) @ turn.T + shift
    torch.testing.assert_close(between(moved, PLACES), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen(moved), seen(ends), rtol=1e-4, atol=1e-4)
    higher = Ends(ends.before + torch.tensor([0.0, 0.3, 0.0]), ends.after, ends.frames)
    assert not torch.allclose(seen(higher), seen(ends), atol=0.1)  # the floor is where it is


def test_places_and_speeds_are_what_is_seen() -> None:
    """Somebody who faces Z+ and goes there at 0.6 m/s is seen from half way and from behind, as facing Z-."""
    distance = torch.tensor(SEEN).float()
    pose = torch.zeros(22, 3)
    pose[1, 0], pose[2, 0], pose[:, 1] = 0.1, -0.1, 1.0
    before = pose - torch.stack([torch.zeros(5), torch.zeros(5), 0.2 + 0.02 * distance], dim=1)[:, None]
    after = pose + torch.stack([torch.zeros(5), torch.zeros(5), 0.2 + 0.02 * distance], dim=1)[:, None]
    told = seen(Ends(before[None], after[None], torch.tensor([19.0])))[0].unflatten(-1, (22, 3))
    torch.testing.assert_close(told[0, 0], torch.tensor([0.0, 1.0, 0.2]))
    torch.testing.assert_close(told[1, 0], torch.tensor([0.0, 1.0, -0.2]))
    # a tenth of metres a second, over a tenth of a second at least
    expected = -torch.tensor([0.02, 0.06, 0.06, 0.06] * 2)
    torch.testing.assert_close(told[2:, 0, 2], expected)
    torch.testing.assert_close(told[2:, 5, 2], expected)


@torch.no_grad()
def test_what_is_added_to_the_straight_way_by_hand() -> None:
    """Sines of one, two and three half waves, each of a frame's joints in axes that stand between the ends."""
    ends, between = some_ends(), network()
    between.first.weight[:, -2:] *= 20  # so that a gap's length shows
    between.joints.weight *= 5
    straight, made = Between(CONFIG)(ends, PLACES), between(ends, PLACES)
    told = (seen(ends) - between.mean) / between.std
    gelu = torch.nn.functional.gelu
    for gap, frames in enumerate((4, 1, 9, 10)):
        codes = [each @ between.places.weight.T + between.places.bias for each in told[gap, :2]]
        codes += [each @ between.speeds.weight.T for each in told[gap, 2:]]
        length = torch.tensor([frames / 30, (frames / 30) ** 2])
        hidden = gelu(between.first.weight @ torch.cat([*codes, length]) + between.first.bias)
        for layer in between.layers:
            hidden = hidden + gelu(layer.weight @ hidden + layer.bias)
        waves = (between.waves.weight @ hidden + between.waves.bias).view(3, 5) @ between.joints.weight.T
        hips = ends.before[gap, 0] + ends.after[gap, 0]
        across = (hips[2] - hips[1]) * torch.tensor([1.0, 0.0, 1.0])  # from the left hip to the right one
        right = across / across.norm()
        back = torch.tensor([-right[2], 0.0, right[0]])
        for number, place in enumerate(PLACES[gap].tolist()):
            share = (place + 1) / (frames + 1)
            local = sum(math.sin(math.pi * k * share) * waves[k - 1] for k in (1, 2, 3)).view(22, 3)  # type: ignore[union-attr]
            added = local[:, :1] * right + local[:, 1:2] * torch.tensor([0.0, 1.0, 0.0]) + local[:, 2:] * back
            torch.testing.assert_close(made[gap, number], straight[gap, number] + added, rtol=1e-4, atol=1e-4)


def test_the_estimate_is_the_same_backward_and_in_the_mirror() -> None:
    ends, between = some_ends(), network()
    made = between.estimate(ends, PLACES)
    backward = between.estimate(ends.reversed(), ends.frames[:, None] - 1 - PLACES)
    torch.testing.assert_close(backward, made, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(between.estimate(ends.mirrored(), PLACES), mirrored(made), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(between(ends.mirrored(), PLACES), mirrored(between(ends, PLACES)), atol=1e-2)
    every = [
        between(ends, PLACES),
        mirrored(between(ends.mirrored(), PLACES)),
        between(ends.reversed(), ends.frames[:, None] - 1 - PLACES),
        mirrored(between(ends.reversed().mirrored(), ends.frames[:, None] - 1 - PLACES)),
    ]
    torch.testing.assert_close(made, sum(every) / 4, rtol=1e-4, atol=1e-5)


def test_the_mirror_image_by_hand() -> None:
    pose = torch.arange(66.0).view(22, 3)
    image = mirrored(pose)
    assert image[0].tolist() == [0.0, 1.0, 2.0]  # the pelvis, at x = 0
    assert image[1].tolist() == [-6.0, 7.0, 8.0]  # the left hip is where the right one was
    assert image[21].tolist() == [-60.0, 61.0, 62.0]
    assert torch.equal(mirrored(image), pose)


def test_noise_is_in_standard_deviations_of_what_is_seen() -> None:
    ends, between = some_ends(), network()
    noise = torch.randn(4, 10, 66)
    expected = between(ends, PLACES, noise)
    assert not torch.allclose(expected, between(ends, PLACES), atol=1e-3)
    between.mean -= noise[0] * between.std
    torch.testing.assert_close(between(ends, PLACES)[0], expected[0], rtol=1e-4, atol=1e-5)


def test_gaps_lie_between_given_frames_and_are_short() -> None:
    runs = [(2, False), (4, True), (1, False), (5, True), (3, False), (4, True), (4, False), (4, True), (6, False)]
    given = torch.cat([torch.full((count,), there) for count, there in runs])
    first, second, third = Gap(2, 6, 7, 11), Gap(7, 12, 15, 18), Gap(15, 19, 23, 26)
    assert gaps(given, 4) == [first, second, third]
    assert gaps(given, 3) == [first, second]
    assert gaps(given, 2) == [first]
    given[18] = False  # three frames are too few on either side, and the gap beside them is longer
    assert gaps(given, 5) == [first]
    for nothing in (torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)):
        assert gaps(nothing, 9) == []


def test_ends_reach_as_far_as_frames_are_given() -> None:
    joints = torch.arange(60.0)[:, None, None].expand(60, 22, 3)
    ends = ends_of(joints, Gap(0, 20, 30, 59))
    assert ends.before[0, :, 0, 0].tolist() == [19, 18, 16, 13, 7]
    assert ends.after[0, :, 0, 0].tolist() == [30, 31, 33, 36, 42]
    assert ends.frames.tolist() == [10]
    ends = ends_of(joints, Gap(15, 20, 30, 30))
    assert ends.before[0, :, 0, 0].tolist() == [19, 18, 16, 15, 15]
    assert ends.after[0, :, 0, 0].tolist() == [30] * 5


def test_short_gaps_are_filled_and_nothing_else() -> None:
    between, people = network(), joints(walking(40))
    where = torch.ones(2, 40, dtype=torch.bool)
    where[0, 10:20] = False  # as long as they may be
    where[0, 36] = where[0, 39] = False  # too few frames beside it, and none
    where[1, 12:23] = False  # too long
    made, filled = between.filled(people, where)
    expected = torch.zeros(2, 40, dtype=torch.bool)
    expected[0, 10:20] = True
    assert torch.equal(filled, expected)
    assert torch.equal(made[~expected], people[~expected])
    gap = Gap(0, 10, 20, 35)
    alone = between.estimate(ends_of(people[0], gap), torch.arange(10.0)[None])[0]
    torch.testing.assert_close(made[0, 10:20], alone)
    people[0, 10:20] = 99.0  # what lies there is not looked at
    assert torch.equal(between.filled(people, where)[0][expected], made[expected])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_a_half_type_do_not_blur_where_people_are(dtype: torch.dtype) -> None:
    """A hundred metres away a bfloat16 knows places to half a metre."""
    between, where = network(), torch.ones(2, 40, dtype=torch.bool)
    people = joints(walking(40)) + torch.tensor([100.0, 0.0, 100.0])
    where[:, 10:20] = False
    expected, _ = between.filled(people, where)
    made, _ = between.to(dtype).filled(people, where)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(("name", "value"), [("width", 6), ("layers", 1), ("code", 4), ("waves", 2)])
def test_sizes_of_the_network(name: str, value: int) -> None:
    sizes = {key: tuple(each.shape) for key, each in Between(CONFIG).state_dict().items()}
    other = {
        key: tuple(each.shape)
        for key, each in Between(dataclasses.replace(CONFIG, **{name: value})).state_dict().items()
    }
    kinds = {"width": ("first.weight", 0), "code": ("places.weight", 0), "waves": ("waves.weight", 0)}
    if name == "layers":
        assert sizes.keys() - other.keys() == {"layers.1.weight", "layers.1.bias"}
    else:
        key, axis = kinds[name]
        unit = 5 if name == "waves" else 1
        assert (sizes[key][axis], other[key][axis]) == (unit * getattr(CONFIG, name), unit * value)
    places = torch.arange(3.0).expand(4, 3)
    torch.manual_seed(0)
    between = Between(dataclasses.replace(CONFIG, **{name: value}))
    torch.nn.init.normal_(between.joints.weight)
    assert not torch.allclose(between(some_ends(), places), network()(some_ends(), places), atol=1e-3)


@pytest.fixture
def filling(tiny_pipeline: InterMoEPipeline) -> InterMoEPipeline:
    config = dataclasses.replace(tiny_pipeline.config, between=CONFIG, levels=True)
    parts = (tiny_pipeline.vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    return InterMoEPipeline(config, *parts, network())


def given(begin: int, end: int, persons: tuple[int, ...] = (0, 1)) -> list[Known]:
    """Two people who walk, but for some frames of some of them."""
    motion = torch.stack([from_joints(each) for each in joints(walking(40))])
    return [
        Known(person, motion=motion[person, run], frames=run)
        for person in persons
        for run in (slice(0, begin), slice(end, 40))
    ]


def test_a_short_gap_is_filled_alike_for_every_seed_and_prompt(filling: InterMoEPipeline) -> None:
    def made(control: Control, seed: int = 0, prompt: str = "two people bow") -> torch.Tensor:
        return filling(prompt, 40, num_inference_steps=2, seed=seed, control=control).joints[0]

    control = Control(given(16, 24))
    first = made(control)
    assert torch.equal(made(control, seed=5, prompt="one of them turns"), first)
    drawn = Control(given(16, 24), estimate_gaps=False)
    assert not torch.allclose(made(drawn, seed=5), made(drawn), atol=1e-4)
    longer = Control(given(12, 24))
    assert not torch.allclose(made(longer, seed=5), made(longer), atol=1e-4)
    alone = Control(given(16, 24, persons=(0,)))  # the other is free, and drawn
    one, other = made(alone), made(alone, seed=5)
    assert torch.equal(one[0], other[0])
    assert not torch.allclose(one[1], other[1], atol=1e-4)
    led = Control(given(16, 24), targets=[Target(0, "left_wrist", [20], positions=[[0.0, 1.0, 0.5]])])
    assert not torch.allclose(made(led, seed=5), made(led), atol=1e-4)


def test_the_estimate_is_what_is_known_of_the_latents(
    filling: InterMoEPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intermoe.systems.intermoe import pipeline as module

    kept: list[Any] = []
    sample = module.sample

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        kept.append(options["known"])
        return sample(*args, **options)

    monkeypatch.setattr(module, "sample", watched)
    filling("two people bow", 40, num_inference_steps=1, control=Control(given(16, 24)))
    filling("two people bow", 40, num_inference_steps=1, control=Control(given(16, 24), estimate_gaps=False))
    assert kept[0].where.all()
    assert kept[1].where.sum() == 2 * 8
    for number, place in enumerate((lambda each: each.with_gaps(filling.between.filled), lambda each: each)):
        placed = place(Control(given(16, 24)).place(filling.representation, 40, 2))
        encoded = filling.encode(filling.statistics.familiar(placed.filled(40))[None])[0].flatten(2)
        assert torch.equal(kept[number].latents[0], encoded)


def test_what_fills_gaps_is_as_if_it_were_given() -> None:
    """Of two persons one has a gap that is filled and one that is not; nothing else of the motion moves."""
    motion = torch.stack([from_joints(each) for each in joints(walking(24))])
    motion[..., 66:132] += 0.25  # what is given need not be its positions' differences
    where = torch.ones(2, 24, dtype=torch.bool)
    where[0, 6:10] = where[1, 12:20] = False
    placed = Given(INTERHUMAN, motion * where[..., None], where, 8)
    asked = []

    def between(people: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append((people, there))
        filled = torch.zeros_like(there)
        filled[0, 6:10] = True
        return people + 0.5 * filled[..., None, None], filled

    made = placed.with_gaps(between)
    line = placed.filled(24)
    assert torch.equal(asked[0][0], joints(line))
    assert torch.equal(asked[0][1], where)
    expected = where.clone()
    expected[0, 6:10] = True
    assert torch.equal(made.where, expected)
    assert torch.equal(placed.where, where)
    torch.testing.assert_close(joints(made.motion)[0, 6:10], joints(line)[0, 6:10] + 0.5)
    still = torch.ones(2, 24, dtype=torch.bool)
    still[0, 5:10] = False
    assert torch.equal(made.motion[still], line[still])
    steps = made.motion[..., 66:132].unflatten(-1, (22, 3))[0, 5:10]
    torch.testing.assert_close(steps, joints(made.motion)[0].diff(dim=0)[5:10], rtol=1e-4, atol=1e-5)
    assert torch.equal(made.motion[..., 132:], line[..., 132:])


def test_a_model_comes_back_with_its_network(filling: InterMoEPipeline, tmp_path: Path) -> None:
    filling.save_pretrained(tmp_path)
    again = MotionPipeline.from_pretrained(tmp_path)
    assert isinstance(again, InterMoEPipeline)
    assert again.config == filling.config
    expected = filling.between.state_dict()  # type: ignore[union-attr]
    found = again.between.state_dict()  # type: ignore[union-attr]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert [*again.modules] == ["vae", "denoiser", "text", "between"]


def test_a_model_without_it_has_no_such_part(tiny_pipeline: InterMoEPipeline) -> None:
    assert tiny_pipeline.between is None
    assert [*tiny_pipeline.modules] == ["vae", "denoiser", "text"]
    parts = (tiny_pipeline.vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    with pytest.raises(ValueError, match=r"between: expected a network of width 0, got Between"):
        InterMoEPipeline(tiny_pipeline.config, *parts, network())
    with pytest.raises(ValueError, match=r"between: expected a network of width 7, got None"):
        InterMoEPipeline(dataclasses.replace(tiny_pipeline.config, between=CONFIG), *parts)


def test_values_that_are_none_are_refused() -> None:
    for name in ("layers", "code", "waves", "max_frames"):
        with pytest.raises(ValueError, match=f"{name}: expected >= 1, got 0"):
            dataclasses.replace(CONFIG, **{name: 0})
    with pytest.raises(ValueError, match=r"width: expected >= 0, got -1"):
        BetweenConfig(width=-1)
    with pytest.raises(ValueError, match=r"between.width: expected 0 for interx, got 7"):
        PipelineConfig(vae=VAEConfig(representation="interx"), between=CONFIG)
