"""Scenes of two who are unlike: heights of each, places in a world that turns, and what a live scene hands on."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.control.known import Control
from intermoe.control.live import CHUNK, STEPS, Live
from intermoe.control.scene import MAX_SEED, OVERLAP, Scene
from intermoe.control.timeline import check_segments, cut, window_lengths, windows
from intermoe.motion.interhuman import INTERHUMAN, SOLO, from_joints
from intermoe.motion.representation import Representation
from intermoe.motion.rig import REST_POSE, at_rest

FLOATING = torch.tensor([0.2, 0.5])  # metres, of the one and of the other


def standing(frames: int, up: float, aside: float, size: float = 1.0) -> Tensor:
    """Joints (T, 22, 3) of a body at rest whose lowest joint is ``up`` high."""
    body = torch.as_tensor(at_rest(REST_POSE)).float() * size
    body = body - torch.tensor([0.0, float(body[:, 1].min()) - up, 0.0])
    return (body + torch.tensor([aside, 0.0, 0.0])).expand(frames, 22, 3)


class Floating:
    """Windows of two who float at heights of their own, and go on wherever they are told that they are."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, Control | None]] = []

    def __call__(self, prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
        self.asked.append((prompt, frames, seed, control))
        if control is None or not control.known:
            bodies = [standing(frames, float(up), aside) for up, aside in zip(FLOATING, (0.0, 1.0), strict=True)]
            return torch.stack([from_joints(each) for each in bodies])
        given = torch.stack([known.as_motion(INTERHUMAN) for known in control.known])
        return given[:, -1:].repeat(1, frames, 1)


def scene_of(window: Any, **options: Any) -> Scene:
    sizes: dict[str, Any] = {"seed": 5, "resampling": 1, "min_frames": 8, "max_frames": 60, **options}
    return Scene(INTERHUMAN, window, **sizes)


def test_each_comes_down_from_their_own_height_by_half_a_cosine() -> None:
    """In the window both stand on the floor; in the scene each fades from where they were to the floor."""
    window = Floating()
    scene = scene_of(window)
    first = INTERHUMAN.joints(scene.next("float", 30))
    torch.testing.assert_close(first[..., 1].amin(dim=-1), FLOATING[:, None].expand(2, 30), atol=1e-4, rtol=0)
    made = INTERHUMAN.joints(scene.next("float", 16))
    fading = torch.tensor([(1 + math.cos(math.pi * frame / 16)) / 2 for frame in range(1, 17)])
    torch.testing.assert_close(made[..., 1].amin(dim=-1), FLOATING[:, None] * fading, atol=1e-3, rtol=0)
    torch.testing.assert_close(made[..., [0, 2]], first[:, :16][..., [0, 2]], atol=1e-3, rtol=0)
    control = window.asked[1][3]
    assert control is not None
    for known in control.known:
        assert float(INTERHUMAN.joints(known.as_motion(INTERHUMAN))[..., 1].amin()) == pytest.approx(0, abs=1e-4)


def test_places_are_told_to_a_window_from_the_floor_of_whom_they_are_for() -> None:
    """A place of the scene is lower, seen from who stands there, by what they are still to come down."""
    window = Floating()
    scene = scene_of(window)
    scene.next("float", 30)
    place = (0.25, 1.5, 2.0)
    scene.next("float", 10, [(1, "head", place), (0, 20, place)])
    control = window.asked[1][3]
    assert control is not None
    assert [(target.person, target.joint) for target in control.targets] == [(1, 15), (0, 20)]
    origin = INTERHUMAN.joints(window(*window.asked[0]))[0, 0, 0]  # of the first, who faces Z+ already
    fading = torch.tensor([(1 + math.cos(math.pi * frame / 10)) / 2 for frame in range(6, 11)])
    for target in control.targets:
        assert list(target.frames) == [OVERLAP + 5 + frame for frame in range(5)]
        expected = torch.tensor(place).repeat(5, 1)
        expected[:, 0] -= origin[0]
        expected[:, 1] -= FLOATING[target.person] * fading
        expected[:, 2] -= origin[2]
        torch.testing.assert_close(target.positions, expected, atol=1e-4, rtol=0)


def test_a_scene_keeps_the_bones_of_its_first_window() -> None:
    sizes = iter([1.0, 1.2, 0.8])

    def window(prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
        size = next(sizes)
        return torch.stack(
            [from_joints(standing(frames, 0.0, aside, size * tall)) for aside, tall in ((0, 1), (1, 1.5))]
        )

    scene = scene_of(window)
    for frames in (30, 12, 20):
        joints = INTERHUMAN.joints(scene.next("grow", frames))
        shin = (joints[:, :, 7] - joints[:, :, 4]).norm(dim=-1)
        expected = torch.tensor([1.0, 1.5]) * float(torch.as_tensor(REST_POSE[7]).norm())
        torch.testing.assert_close(shin, expected[:, None].float().expand(2, frames), atol=1e-3, rtol=0)


def test_the_room_of_a_window_is_what_the_one_before_leaves() -> None:
    scene = scene_of(Floating(), overlap=15)
    assert (scene.room, scene.later) == (60, 45)
    scene.next("float", 60)
    assert (scene.room, scene.later) == (45, 45)
    with pytest.raises(ValueError, match=r"^frames: expected at most 45 in one window, got 46$"):
        scene.next("float", 46)
    assert scene.next("float", 45).shape[1] == 45


def test_windows_of_segments_have_their_prompts_and_seeds() -> None:
    window = Floating()
    made = [each.shape[1] for each in windows(scene_of(window, seed=7), [("bow", 70), ("turn", 41)])]
    assert made == window_lengths([("bow", 70), ("turn", 41)], 60) == [35, 35, 21, 20]
    assert [(prompt, seed) for prompt, _, seed, _ in window.asked] == [
        ("bow", 7),
        ("bow", 8),
        ("turn", 9),
        ("turn", 10),
    ]
    assert cut(7, 3, 2) == [3, 2, 2]
    assert check_segments((["bow", 3], ("turn", 1))) == [("bow", 3), ("turn", 1)]
    assert check_segments([("a", 500_000), ("b", 500_000)])[1] == ("b", 500_000)
    assert MAX_SEED == 2**62


class Told:
    """A scene that notes what it is told."""

    def __init__(self, representation: Representation = INTERHUMAN) -> None:
        self.representation = representation
        self.told: list[tuple[str, int, list[Any]]] = []

    def next(self, prompt: str, frames: int, leads: Sequence[Any] = ()) -> Tensor:
        self.told.append((prompt, frames, list(leads)))
        return torch.zeros(2, frames, 262)


def test_a_live_scene_is_told_its_prompt_and_leads_until_they_change() -> None:
    scene, asked = Told(), []
    live = Live(scene, asked.append, "bow", 13)  # type: ignore[arg-type]
    lead = (1, "head", (0.0, 1.0, 2.0))
    assert next(live).shape == (2, 13, 22, 3)
    live.aim([lead])
    next(live), next(live)
    with pytest.raises(ValueError, match="person: expected one of 0 to 1, got 2"):
        live.aim([(2, "head", (0.0, 1.0, 2.0))])
    live.send("turn")
    twin = copy.deepcopy(live)
    next(live)
    live.aim([])
    next(live)
    assert scene.told == [
        ("bow", 13, []), ("bow", 13, [lead]), ("bow", 13, [lead]), ("turn", 13, [lead]), ("turn", 13, [])
    ]  # fmt: skip
    assert asked == ["bow", "turn"]
    next(twin)  # which was copied before the last two
    assert twin._scene.told == [*scene.told[:3], ("turn", 13, [lead])]  # type: ignore[attr-defined]
    assert twin._turn is not live._turn
    assert (CHUNK, STEPS) == (20, 4)
    alone = Live(Told(SOLO), asked.append, "bow", 13)  # type: ignore[arg-type]
    alone.aim([(0, "head", (0.0, 1.0, 2.0))])
    with pytest.raises(ValueError, match="person: expected one of 0 to 0, got 1"):
        alone.aim([lead])
