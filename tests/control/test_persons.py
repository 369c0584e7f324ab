"""Groups of persons beside each other: whose noise, who keeps the control, and nobody in another group."""

from __future__ import annotations

import dataclasses
import itertools
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from intermoe import cli
from intermoe.control import Control, Known
from intermoe.control.persons import GAP, check_persons, count_groups, crowd
from intermoe.motion.interhuman import INTERHUMAN, SOLO, from_joints, joints
from intermoe.motion.interx import INTERX
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.seeds import derived_seed

FRAMES = 12


def group(places: list[tuple[float, float]], speed: float = 0.0) -> Tensor:
    """Motion (P, FRAMES, 262) of bodies at rest who walk along X."""
    rest = torch.as_tensor(at_rest(REST_POSE)).float()
    way = torch.zeros(FRAMES, 1, 3)
    way[:, 0, 0] = speed * torch.arange(FRAMES)
    return torch.stack([from_joints(rest + way + torch.tensor([x, 0.0, z])) for x, z in places])


class Maker:
    """Makes pairs a metre apart, and notes what it is asked for."""

    def __init__(self, speed: float = 0.0) -> None:
        self.calls: list[tuple[list[int], list[int], Control | None]] = []
        self.speed = speed

    def __call__(self, which: Any, seeds: Any, control: Control | None) -> list[Tensor]:
        self.calls.append((list(which), list(seeds), control))
        return [group([(0.0, 0.0), (0.0, 1.0)], self.speed * (-1) ** len(self.calls)) for _ in which]


def apart(scene: Tensor) -> float:
    """Least distance between any joints of different pairs, in metres on the ground."""
    ground = joints(scene)[..., [0, 2]]
    far = [
        torch.cdist(ground[a].double(), ground[b].double()).min()
        for a, b in combinations(range(len(scene)), 2)
        if a // 2 != b // 2
    ]
    return float(torch.stack(far).min())


@pytest.mark.parametrize("speed", [0.0, 0.1])
@pytest.mark.parametrize("num_persons", [3, 4, 8])
def test_nobody_reaches_into_another_pair(num_persons: int, speed: float) -> None:
    made = Maker(speed)
    scenes = crowd(made, INTERHUMAN, [5, 6], num_persons)
    for scene in scenes:
        assert scene.shape == (num_persons, FRAMES, 262)
        assert apart(scene) >= GAP - 1e-5
        torch.testing.assert_close(scene[:2], group([(0, 0), (0, 1)], -speed))  # the first pair stays
    size = joints(scenes[0])[:, 0, 0].norm(dim=-1).max()
    assert size < 2.5 * num_persons  # and nobody is further away than needed
    # who was moved is moved as a whole: the same pose, the same distance to the partner
    second = joints(scenes[0])[2]
    torch.testing.assert_close(
        second - second[:1, :1], joints(group([(0, 0)], speed))[0] - joints(group([(0, 0)]))[0, 0, 0]
    )


def test_noise_and_control() -> None:
    made, control = Maker(), Control([Known(0, motion=group([(0, 0)])[0])])
    crowd(made, INTERHUMAN, [5, 2**63 - 1], 4, control)
    assert made.calls == [
        ([0, 1], [5, 2**63 - 1], control),
        ([0, 1], [derived_seed(5, 1), derived_seed(2**63 - 1, 1)], None),
    ]
    made = Maker()
    crowd(made, INTERHUMAN, [5], 5, Control(bodies_apart=True), reacts=True)
    assert [control and control.bodies_apart for _, _, control in made.calls] == [True] * 3


def test_who_is_left_over_reacts_to_the_first() -> None:
    made = Maker()
    scenes = crowd(made, INTERHUMAN, [5, 6], 3, reacts=True)
    assert [(which, seeds) for which, seeds, _ in made.calls[1:]] == [
        ([0], [derived_seed(5, 1)]), ([1], [derived_seed(6, 1)])
    ]  # fmt: skip
    for (_, _, control), scene in zip(made.calls[1:], scenes, strict=True):
        assert control is not None
        (known,) = control.known
        assert known.person == 0
        assert torch.equal(known.motion, scene[0])
        assert apart(scene) >= GAP - 1e-5
    alone = Maker()
    crowd(alone, INTERHUMAN, [5, 6], 3)
    assert [control for _, _, control in alone.calls] == [None, None]
    assert len(alone.calls) == count_groups(3, INTERHUMAN, 2, reacts=False)


@pytest.mark.parametrize(("num_persons", "groups"), [(1, 1), (2, 1), (3, 4), (4, 2), (5, 5), (8, 4)])
def test_groups_are_counted(num_persons: int, groups: int) -> None:
    made = Maker()
    scenes = crowd(made, INTERHUMAN, [1, 2, 3], num_persons, reacts=True)
    assert len(made.calls) == groups == count_groups(num_persons, INTERHUMAN, 3, reacts=True)
    assert {len(scene) for scene in scenes} == {num_persons}


def test_single_persons_are_put_beside_each_other() -> None:
    scene = crowd(lambda which, seeds, control: [group([(0, 0)]) for _ in which], SOLO, [1], 3)[0]
    for a, b in combinations(joints(scene)[..., [0, 2]], 2):
        assert torch.cdist(a, b).min() >= GAP - 1e-5


def test_refusals() -> None:
    for wrong in (0, 9):
        with pytest.raises(ValueError, match="num_persons"):
            check_persons(wrong, INTERHUMAN)
    with pytest.raises(TypeError, match="num_persons"):
        check_persons(2.5, INTERHUMAN)  # type: ignore[arg-type]
    assert check_persons(1, INTERX) == 1
    with pytest.raises(
        ValueError, match="num_persons: expected at most 2, the motion of interx cannot be moved, got 3"
    ):
        check_persons(3, INTERX)


def test_a_model(tiny_pipeline: Any) -> None:
    done: list[tuple[int, int]] = []
    options: dict[str, Any] = {"num_frames": 16, "num_inference_steps": 2, "seed": 3}
    pair = tiny_pipeline(["Two people bow."] * 2, **options)
    four = tiny_pipeline(["Two people bow."] * 2, num_persons=4, progress=lambda *each: done.append(each), **options)
    assert four.joints.shape == (2, 4, 16, 22, 3)
    assert torch.equal(four.joints[:, :2], pair.joints)
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for scene in four.joints:  # nobody does what a person of the other group does
        poses = scene - scene[:, :, :1]
        assert all((poses[one] - poses[other]).abs().max() > 1e-3 for one in (0, 1) for other in (2, 3))
    one = tiny_pipeline("Two people bow.", num_persons=1, **options)
    assert torch.equal(one.joints[0], pair.joints[0, :1])
    with pytest.raises(ValueError, match="num_persons"):
        tiny_pipeline("Two people bow.", num_persons=9, **options)


@pytest.mark.filterwarnings("ignore")
def test_the_command(tiny_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from intermoe import export

    monkeypatch.chdir(tmp_path)
    tiny_pipeline.save_pretrained("model")
    command = ["generate", "Two people bow.", "--model", "model", "--frames", "16", "--steps", "1", "--format", "npz"]
    result = CliRunner().invoke(cli.app, [*command, "--persons", "5"])
    assert result.exit_code == 0, result.output
    assert export.load(Path(result.stdout.strip())).joints.shape == (5, 16, 22, 3)
    for wrong, message in (("9", "--persons: num_persons"), ("0", "--persons: num_persons")):
        refused = CliRunner().invoke(cli.app, [*command, "--persons", wrong])
        assert refused.exit_code == 2
        assert message in refused.stderr
    timeline = ["generate", "--timeline", "they bow:20", "--persons", "3", "--model", "model"]
    assert "--persons" in CliRunner().invoke(cli.app, timeline).stderr


@pytest.mark.parametrize("size", [0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
def test_who_is_in_the_way_moves_by_the_least_step_that_leaves_the_gap(size: float) -> None:
    """Two alike at one place: twice the reach of the furthest joint and the gap, in steps of 25 cm."""
    rest = torch.as_tensor(at_rest(REST_POSE)).float()[None].expand(FRAMES, 22, 3) * size
    body = from_joints(rest)
    reach = float((rest - rest[:, :1])[..., [0, 2]].norm(dim=-1).max())
    scene = crowd(lambda which, seeds, control: [body[None]], SOLO, [1], 2)[0]
    moved = (joints(scene)[1] - joints(scene)[0])[0, 0]
    assert float(moved.norm()) == pytest.approx(0.25 * math.ceil((2 * reach + GAP) / 0.25), abs=1e-4)


def test_who_is_clear_already_stays() -> None:
    places = iter([(0.0, 0.0), (5.0, 1.0), (0.0, -5.0)])
    scene = crowd(lambda which, seeds, control: [group([next(places)])], SOLO, [1], 3)[0]
    torch.testing.assert_close(scene, group([(0.0, 0.0), (5.0, 1.0), (0.0, -5.0)]), atol=1e-5, rtol=1e-5)


def test_who_is_added_stands_to_the_side_of_the_first_or_further_around_where_that_is_taken() -> None:
    """To X+ of who faces Z+; where somebody stands there, the first way of 24 around that is clear at that distance."""
    rest = torch.as_tensor(at_rest(REST_POSE)).float()[None].expand(FRAMES, 22, 3)
    thin = from_joints(rest * torch.tensor([0.1, 1.0, 1.0]))  # whom nobody's arms keep away
    reach = float((joints(thin)[0] - joints(thin)[0, :1])[..., [0, 2]].norm(dim=-1).max())
    distance = 0.25 * math.ceil((2 * reach + GAP) / 0.25)
    made = [thin[None]] * 4
    groups = iter(made)
    scene = crowd(lambda which, seeds, control: [next(groups)], SOLO, [1], 4)[0]
    places = (joints(scene)[:, 0, 0] - joints(scene)[0, 0, 0])[:, [0, 2]]
    torch.testing.assert_close(places[1], torch.tensor([distance, 0.0]), atol=1e-4, rtol=0)
    for who in (2, 3):
        ways = [torch.tensor([math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)]) * distance for k in range(24)]
        clear = [way for way in ways if min(float((way - place).norm()) for place in places[:who]) >= 2 * reach + GAP]
        torch.testing.assert_close(places[who], clear[0], atol=1e-4, rtol=0)


def test_who_reacts_is_given_everybody_of_the_first_group_but_whom_they_stand_for() -> None:
    """Of groups of three and four persons in all: the third is made for two who are given, in their order."""
    own = dataclasses.replace(INTERHUMAN, persons=3)
    asked: list[Control | None] = []

    def make(which: Any, seeds: Any, control: Control | None) -> list[Tensor]:
        asked.append(control)
        return [group([(0.0, 0.0), (0.0, 1.0), (0.0, 2.0 + len(asked))]) for _ in which]

    (scene,) = crowd(make, own, [3], 4, Control(bodies_apart=True), reacts=True)
    control = asked[1]
    assert control is not None
    assert [known.person for known in control.known] == [0, 1]
    assert all(torch.equal(known.motion, scene[known.person]) for known in control.known)
    assert control.bodies_apart
    torch.testing.assert_close(
        joints(scene)[3, :, 5] - joints(scene)[3, :, 0], joints(scene)[2, :, 5] - joints(scene)[2, :, 0]
    )
    assert len(scene) == 4


def test_reach_is_each_persons_own_at_each_frame() -> None:
    """Two who are unlike and bow to and fro, and one more: by a look at every shift, step and frame, one by one."""
    rest, time = torch.as_tensor(at_rest(REST_POSE)).float(), torch.arange(FRAMES)

    def one(size: float, wide: int, way: float, aside: float) -> Tensor:
        """Somebody whose arms are out at frame ``wide`` alone, and who walks along X."""
        spread = torch.where(time == wide, 1.0, 0.15)
        body = size * rest * torch.stack([spread, torch.ones(FRAMES), torch.ones(FRAMES)], dim=-1)[:, None]
        return from_joints(body + torch.stack([way * time, 0 * time, aside + 0 * time], dim=-1)[:, None])

    pair = torch.stack([one(1.0, 2, 0.0, 0.0), one(1.5, 9, 0.0, 0.8)])
    group = torch.stack([one(0.7, 9, -0.12, 0.0), one(1.1, 4, -0.12, 0.5)])
    groups = iter([pair, group])
    (scene,) = crowd(lambda which, seeds, control: [next(groups)], INTERHUMAN, [1], 4)

    def circles(motion: Tensor) -> list[list[tuple[float, float, float]]]:
        """Of each person at each frame x, z and reach."""
        ground = joints(motion)[..., [0, 2]].double()
        reach = (ground - ground[:, :, :1]).norm(dim=-1).amax(dim=-1, keepdim=True)
        return torch.cat([ground[:, :, 0], reach], dim=-1).tolist()  # type: ignore[no-any-return]

    there, added = circles(pair), circles(group)

    def clear(x: float, z: float) -> bool:
        return all(
            math.hypot(b[0] + x - a[0], b[1] + z - a[1]) >= a[2] + b[2] + GAP
            for one, other in itertools.product(there, added)
            for a, b in zip(one, other, strict=True)
        )

    ways = [(math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)) for k in range(24)]
    shifts = ((0.25 * step * x, 0.25 * step * z) for step in range(40) for x, z in ways)
    expected = next(shift for shift in shifts if clear(*shift))
    moved = (joints(scene)[2:] - joints(group))[:, :, 0, [0, 2]]
    torch.testing.assert_close(moved, torch.tensor(expected).expand(2, FRAMES, 2), atol=1e-4, rtol=0)


def test_of_a_group_that_is_larger_than_needed_the_first_are_taken() -> None:
    made = [group([(0.0, 0.0), (0.0, 1.0)]), group([(0.0, 0.0), (0.0, 1.0)]) * 0.9]
    made[1][1] *= 0.5  # the second of the second pair is small
    groups = iter(made)
    (scene,) = crowd(lambda which, seeds, control: [next(groups)], INTERHUMAN, [1], 3)
    head = joints(scene)[:, 0, 15, 1] - joints(scene)[:, 0, 0, 1]
    assert (head / head[0]).tolist() == pytest.approx([1.0, 1.0, 0.9], abs=1e-4)
    (alone,) = crowd(lambda which, seeds, control: [made[1].flip(0)], INTERHUMAN, [1], 1)
    torch.testing.assert_close(alone, made[1][1:])
