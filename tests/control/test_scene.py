"""A scene that goes on: no seam, no growth, in one world, and the same again from the same seed."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.control.known import BLEND, Control
from intermoe.control.live import Live
from intermoe.control.scene import OVERLAP, TAIL, Scene
from intermoe.control.timeline import cut, window_lengths
from intermoe.motion.humanml3d import HUMANML3D
from intermoe.motion.interhuman import INTERHUMAN, facing_forward, from_joints

pytestmark = pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")

SCENE = [("two people bow", 30), ("one of them turns", 50), ("two people bow", 12)]


def walker(frames: int, start: float, turning: float = 0.0) -> Tensor:
    """Joints (frames, 22, 3) of somebody who walks along Z+ from ``start``, on the floor, and turns."""
    generator = torch.Generator().manual_seed(0)
    pose = torch.rand(22, 3, generator=generator) * 0.4
    pose[1], pose[2] = torch.tensor([0.1, 0.9, 0.0]), torch.tensor([-0.1, 0.9, 0.0])
    pose[:, 1] += 0.05 * torch.arange(22)
    pose[0] = torch.tensor([0.0, 0.9, 0.0])
    pose[10, 1] = 0.0
    angle = turning * torch.arange(frames)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([angle.cos(), zero, angle.sin(), zero, one, zero, -angle.sin(), zero, angle.cos()], dim=-1)
    places = torch.stack([zero, zero, start + 0.03 * torch.arange(frames)], dim=-1)
    return torch.einsum("tij,kj->tki", turn.unflatten(-1, (3, 3)), pose) + places[:, None]


def scene_of(window: Any, **options: Any) -> Scene:
    sizes: dict[str, Any] = {"seed": 5, "resampling": 1, "min_frames": 8, "max_frames": 60, **options}
    return Scene(INTERHUMAN, window, **sizes)


def test_windows_begin_at_the_origin_and_go_on_in_the_world() -> None:
    """A model that only walks on from where it is told to be walks one straight line through the scene."""
    seen: list[Control] = []

    def window(prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
        if control is None:
            return torch.stack([from_joints(walker(frames, z)) for z in (0.0, 1.0)])
        seen.append(control)
        given = control.place(INTERHUMAN, frames, 2).motion
        return torch.stack([from_joints(walker(frames, float(z))) for z in given[:, 0, 2]])

    scene = scene_of(window)
    motion = torch.cat([scene.next("walk", frames) for frames in (40, 24, 32)], dim=1)
    found = INTERHUMAN.joints(motion)
    expected = torch.stack([walker(96, z) for z in (0.0, 1.0)])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    for control in seen:
        turn, origin = facing_forward(INTERHUMAN.joints(control.known[0].as_motion(INTERHUMAN))[0])
        torch.testing.assert_close(turn, torch.eye(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(origin, torch.zeros(3), atol=1e-5, rtol=0)
        assert all(known.run == slice(0, OVERLAP) for known in control.known)


def test_joints_are_led_to_places_of_the_scene() -> None:
    """A model that puts a joint where its window is told to puts it where the scene is, whatever way the pair faces."""

    led: list[list[int]] = []

    def window(prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
        assert control is not None
        led.extend(list(target.frames) for target in control.targets)
        given = torch.stack([walker(frames, 0.0, 0.07), walker(frames, 1.0, 0.07)])
        if control.known:
            given[:, :OVERLAP] = INTERHUMAN.joints(
                torch.stack([known.as_motion(INTERHUMAN) for known in control.known])
            )
        for target in control.targets:
            shift = target.positions - given[target.person, list(target.frames), target.joint]
            given[target.person, list(target.frames)] += shift[:, None]  # the whole body, whose bones so stay
        return torch.stack([from_joints(each) for each in given])

    scene = scene_of(window)
    for place, other in (((1.0, 1.2, 3.0), (-0.5, 1.6, 0.4)), ((-2.0, 1.1, 0.5), (3.0, 0.9, 1.0))):
        leads = [(0, "left_wrist", place), (1, 15, other)]
        made = INTERHUMAN.joints(scene.next("walk", 24, leads))
        for person, joint, wanted in ((0, 20, place), (1, 15, other)):
            expected = torch.tensor(wanted).expand(12, 3)
            torch.testing.assert_close(made[person, 12:, joint], expected, atol=2e-3, rtol=0)
    assert led == [[*range(start, start + 12)] for start in (12, 12, OVERLAP + 12, OVERLAP + 12)], (
        "the second half alone"
    )


def test_a_live_scene_refuses_what_cannot_be_led() -> None:
    scene = scene_of(lambda *_: torch.zeros(2, 60, 262))
    live = Live(scene, lambda _: None, "walk", 20)
    for leads, message in (
        ([(2, "head", (0, 1, 0))], "person: expected one of 0 to 1, got 2"),
        ([(0, "nose", (0, 1, 0))], "joint: expected one of pelvis"),
        ([(0, "head", (0, float("nan"), 0))], "positions: expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            live.aim(leads)
    for others, message in (
        (None, "^leads: expected a list or the like, got None"),
        ([5], r"^leads\[0\]: expected a list or the like, got 5"),
        ([(0, "head", (0, 1, 0)), (0, "head")], r"^leads\[1\]: expected a person, a joint and a place"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            live.aim(others)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a system that can be led"):
        Live(scene, lambda _: None, "walk", 20, led=False).aim([(0, "head", (0, 1, 0))])


def test_a_scene_that_turns_is_put_back() -> None:
    def window(prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
        if control is None:
            return torch.stack([from_joints(walker(frames, 0.0, 0.05)), from_joints(walker(frames, 2.0, 0.05))])
        given = control.place(INTERHUMAN, frames, 2).motion
        return given[:, :OVERLAP].repeat(1, 4, 1)[:, :frames]  # the same frames again

    scene = scene_of(window)
    first = INTERHUMAN.joints(scene.next("turn", 40))
    again = INTERHUMAN.joints(scene.next("turn", 16))
    torch.testing.assert_close(again, first[:, 20:36], atol=2e-3, rtol=0)


def test_who_floats_comes_down() -> None:
    def window(prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
        made = torch.stack([from_joints(walker(frames, 0.0) + torch.tensor([0.0, 0.2, 0.0]))] * 2)
        return made if control is None else control.place(INTERHUMAN, frames, 2).motion[:, :1].repeat(1, frames, 1)

    scene = scene_of(window)
    heights = [INTERHUMAN.joints(scene.next("stand", 40))[..., 1].amin(-1) for _ in range(2)]
    torch.testing.assert_close(heights[0], torch.full((2, 40), 0.2), atol=1e-3, rtol=0)
    assert (heights[1].diff(dim=1) <= 1e-6).all()
    torch.testing.assert_close(heights[1][:, -1], torch.zeros(2), atol=2e-3, rtol=0)


def test_what_is_kept_does_not_grow(tiny_pipeline: Any) -> None:
    live = tiny_pipeline.live("two people bow", num_inference_steps=1)
    sizes = []
    for _ in range(4):
        next(live)
        kept = [value for value in vars(live._scene).values() if isinstance(value, Tensor)]
        sizes.append(sum(value.untyped_storage().nbytes() for value in kept))
    assert len(set(sizes)) == 1
    assert sizes[0] < 10 * OVERLAP * 2 * 262 * 4


def test_a_timeline_has_the_frames_that_it_says_and_is_drawn_again(tiny_pipeline: Any) -> None:
    done: list[tuple[int, int]] = []
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}
    found = tiny_pipeline.timeline(SCENE, progress=lambda *each: done.append(each), **options)
    assert found.joints.shape == (1, 2, 92, 22, 3)
    assert found.motion.shape == (1, 2, 92, 262)
    assert found.prompts == ("two people bow; one of them turns; two people bow",)
    assert done == [(step, 10) for step in range(1, 11)]
    assert torch.equal(found.joints, tiny_pipeline.timeline(SCENE, **options).joints)
    assert not torch.equal(found.joints, tiny_pipeline.timeline(SCENE, num_inference_steps=2, seed=4).joints)
    other = tiny_pipeline.timeline([*SCENE[:2], ("one of them turns", 12)], **options)
    assert torch.equal(found.joints[:, :, :80], other.joints[:, :, :80])
    assert not torch.equal(found.joints[:, :, 80:], other.joints[:, :, 80:])


def test_seams_are_smoother_than_what_they_join(tiny_pipeline: Any) -> None:
    """The tiny model makes noise; only that what follows is eased in holds it together."""
    joints = torch.cat(list(itertools.islice(tiny_pipeline.live("two people bow", num_inference_steps=1), 3)), dim=1)
    jerk = joints.diff(n=3, dim=1).norm(dim=-1).mean(dim=(0, 2))
    for seam in (20, 40):  # frames seam - 3 to seam + 2 have a third difference across it
        assert jerk[seam - 3 : seam + 3].mean() < 0.3 * jerk.mean()


def test_live_changes_its_prompt(tiny_pipeline: Any) -> None:
    live, same = (tiny_pipeline.live("two people bow", seed=1, num_inference_steps=2) for _ in range(2))
    assert torch.equal(next(live), next(same))
    live.send("one of them turns")
    first, second = next(live), next(same)
    assert first.shape == (2, 20, 22, 3)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match=r"^prompts: expected words in every prompt, got"):
        live.send(" ")
    assert live.prompt == "one of them turns"


def test_prompts_longer_than_a_window_are_cut_into_equal_ones() -> None:
    assert cut(92, 40, 20) == [32, 20, 20, 20]
    assert cut(50, 20, 20) == [17, 17, 16]
    assert cut(40, 40, 20) == [40]
    assert cut(41, 40, 20) == [21, 20]
    for frames in range(1, 200):
        lengths = cut(frames, 40, 20)
        assert len(lengths) == 1 + max(-(-(frames - 40) // 20), 0)
        assert min(lengths) > 0
        assert sum(lengths) == frames
        assert lengths[0] <= 40
        assert max(lengths[1:], default=0) <= 20
    assert window_lengths([("a", 30), ("b", 50), ("c", 12)], 40) == [30, 17, 17, 16, 12]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], r"^segments: expected pairs"),
        (iter(()), r"^segments: expected pairs"),
        ("two people bow", r"^segments: expected a list or the like, got 'two"),
        ({"two people bow": 30}, r"^segments: expected a list or the like, got {'two"),
        (["two people bow"], r"^segments\[0\]: expected a list or the like, got 'two"),
        ([30], r"^segments\[0\]: expected a list or the like, got 30"),
        ([("two people bow",)], r"^segments\[0\]: expected a prompt and a number of frames"),
        ([("two people bow", 30), ("they turn", 0)], r"^segments\[1\]: frames: expected a value >= 1, got 0"),
        ([("two people bow", 7)], r"^num_frames: expected a value in \[8, 40\]"),
        (
            [("two people bow", 30), ("they turn", 10**6)],
            r"^segments: expected at most 1000000 frames in all, got 1000030",
        ),
        ([("two people bow", 30), (" ", 20)], r"^prompts: expected words in every prompt, got"),
    ],
)
def test_segments_that_are_none(tiny_pipeline: Any, segments: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tiny_pipeline.timeline(segments, num_inference_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, r"^prompts: expected text, got None"),
        ({"guidance_scale": 0.5}, r"^guidance_scale: expected >= 1 and finite, got 0.5"),
        ({"guidance_scale": "strong"}, r"^guidance_scale: expected a number, got 'strong'"),
        ({"scheduler": "euler-ish"}, r"^scheduler: expected one of"),
    ],
)
def test_what_no_chunk_can_be_made_with_is_refused_before_the_first(
    tiny_pipeline: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tiny_pipeline.live(**{"prompt": "two people bow", **options})


def test_what_cannot_go_on_is_refused(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^chunk: expected a value in \[8, 20\], got 4"):
        tiny_pipeline.live("two people bow", chunk=4)
    with pytest.raises(ValueError, match=r"^representation: expected one whose motion can be moved, got humanml3d"):
        Scene(HUMANML3D, lambda *_: torch.zeros(0), seed=0, resampling=1, min_frames=8, max_frames=60)
    short = copy.copy(tiny_pipeline)  # windows of which half at least would be of the one before
    short.config = dataclasses.replace(tiny_pipeline.config, max_frames=2 * OVERLAP - 1)
    with pytest.raises(
        ValueError, match=f"^scene: expected max_frames >= {2 * OVERLAP} of the model, got {2 * OVERLAP - 1}"
    ):
        short._scene(0, 1, 1.0, None, None, 1)
    short.config = dataclasses.replace(tiny_pipeline.config, max_frames=2 * OVERLAP)
    short._scene(0, 1, 1.0, None, None, 1)
    monkeypatch.setattr(type(tiny_pipeline), "controls", ())
    with pytest.raises(ValueError, match=r"^scene: expected a system that goes on from given frames, got intermoe"):
        tiny_pipeline.timeline(SCENE)


def test_each_window_has_the_next_seed_and_the_options_of_the_scene() -> None:
    asked: list[tuple[int, int, Control | None]] = []

    def window(prompt: str, frames: int, seed: int, control: Control | None) -> Tensor:
        asked.append((frames, seed, control))
        return torch.stack([from_joints(walker(frames, z)) for z in (0.0, 1.0)])

    scene = scene_of(window, seed=11, resampling=4, min_frames=36, overlap=20)
    assert [scene.next("walk", frames).shape[1] for frames in (30, 4, 25, 38)] == [30, 4, 25, 38]
    # each is longer by what its last frames are smoothed by, as far as the model goes
    assert [(frames, seed) for frames, seed, _ in asked] == [(36, 11), (36, 12), (25 + 20 + TAIL, 13), (60, 14)]
    first, *later = (control for _, _, control in asked)
    assert first is None
    for control in later:
        assert control is not None
        assert (control.resampling, control.blend) == (4, BLEND)
        assert [known.run for known in control.known] == [slice(0, 20)] * 2  # also where the last piece was shorter


def test_threads_that_take_from_one_live_scene_get_a_chunk_each(tiny_pipeline: Any) -> None:
    """Each chunk begins with the end of the one before: two made at once would both begin with the same."""
    start = lambda: tiny_pipeline.live("two people bow", seed=3, num_inference_steps=1)  # noqa: E731
    alone, together = start(), start()
    expected = [next(alone) for _ in range(4)]
    barrier, taken = threading.Barrier(4), []

    def take() -> None:
        barrier.wait()
        taken.append(next(together))

    threads = [threading.Thread(target=take, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert all(any(torch.equal(one, other) for other in taken) for one in expected)


def test_a_copy_of_a_live_scene_goes_on_as_it_does(tiny_pipeline: Any) -> None:
    live = tiny_pipeline.live("two people bow", seed=3, num_inference_steps=1)
    next(live)
    twin = copy.deepcopy(live)
    assert torch.equal(next(twin), next(live))
