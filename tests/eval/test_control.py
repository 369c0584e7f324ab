"""What is measured of steering, by cases that are known beforehand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.control import Control, Known
from intermoe.eval import control as evaluation
from intermoe.eval.control import _contacts_met, _nearest_pelvises, _placed, evaluate_control
from intermoe.metrics.bodies import penetration
from intermoe.motion.interhuman import facing_forward, from_joints, joints
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.skeleton import JOINT_NAMES

pytestmark = pytest.mark.filterwarnings("ignore:control. model", "ignore:the model has never seen")


def walk(frames: int, speed: float, away: float) -> Any:
    """Joints (frames, 22, 3) of a body at rest that is carried along Z, ``away`` metres to the side."""
    shift = np.zeros((frames, 1, 3))
    shift[:, 0, 2], shift[:, 0, 0] = speed * np.arange(frames), away
    return (at_rest(REST_POSE) + shift).astype(np.float32)


def test_contacts_are_met_near_in_place_and_time() -> None:
    first, second = np.zeros((60, 22, 3), np.float32), np.full((60, 22, 3), 5.0, np.float32)
    second[30, 20] = first[30, 20] + (0.1, 0, 0)
    pair = np.stack([first, second])
    assert _contacts_met(pair, second) == 1.0
    for frame, place, expected in ((39, 0.19, 1.0), (40, 0.19, 0.0), (21, 0.19, 1.0), (20, 0.19, 0.0), (30, 0.21, 0.0)):
        other = np.full((60, 22, 3), 5.0, np.float32)
        other[frame, 20] = first[frame, 20] + (place, 0, 0)
        # both wrists of the first person are at one place, so each is touched
        assert _contacts_met(pair, other) == expected
    assert math.isnan(_contacts_met(np.stack([first, first + 5]), second))


def test_free_motion_is_placed_where_the_real_one_starts() -> None:
    joints = walk(10, 0.1, 0.0)
    turn = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)
    real = joints @ turn.T + np.float32([1.0, 0.0, 2.0])
    np.testing.assert_allclose(_placed(joints, joints, real), real, atol=1e-5)
    # by somebody else: half a metre to the side of them before and after, whatever turns
    beside = joints + np.float32([0.5, 0.0, 0.0])
    expected = beside @ turn.T + np.float32([1.0, 0.0, 2.0])
    np.testing.assert_allclose(_placed(beside, joints, real), expected, atol=1e-5)
    assert facing_forward(torch.from_numpy(real[0]))[1].tolist() == pytest.approx([1.0, 0.0, 2.0], abs=1e-5)


def test_the_nearest_two_by_hand() -> None:
    three = np.stack([walk(4, 0.0, away) for away in (0.0, 1.0, 3.0)])
    three[2, 2, 0] = three[1, 2, 0] + np.float32([0.2, 0.0, 0.0])
    assert _nearest_pelvises(three) == pytest.approx(0.2)


def test_everything_is_measured(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On two items that are carried evenly, whose gap a line fills without error."""
    monkeypatch.setattr("intermoe.eval.control.GAP", 8)
    monkeypatch.setattr("intermoe.eval.control.SEGMENT", 20)
    monkeypatch.setattr("intermoe.eval.control.SEGMENTS", 2)
    monkeypatch.setattr("intermoe.eval.control.WINDOWS", 1)
    monkeypatch.setattr("intermoe.eval.control.REPEATS", 1)
    motions = [
        torch.stack([from_joints(torch.from_numpy(walk(32, speed, away))) for away in (0.0, 1.0)])
        for speed in (0.01, 0.03)
    ]

    class Items:
        split = "held out"

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return {"motion": motions[index]}

        def num_frames(self, index: int) -> int:
            return 32

        def captions(self, index: int) -> list[str]:
            return ["Two people bow."]

    done: list[tuple[int, int]] = []
    items: Any = Items()
    report = evaluate_control(
        tiny_pipeline, items, best_of=2, seed=3, num_inference_steps=1, progress=lambda *each: done.append(each)
    )
    assert done == [(part, 8) for part in range(1, 9)]
    rows = {row[0]: row for row in report.rows}
    assert rows["gap of 1 s: joint error (cm)"][3] == pytest.approx(0, abs=1e-3)
    errors = []
    for motion in motions:
        ends = (slice(0, 12), slice(20, 32))
        control = Control([Known(p, motion=motion[p, run], frames=run) for p in (0, 1) for run in ends])
        made = tiny_pipeline("Two people bow.", 32, seed=3, num_inference_steps=1, control=control).joints[0]
        errors.append(100 * (made - joints(motion))[:, 12:20].norm(dim=-1).mean().item())
    assert min(errors) > 0
    assert rows["gap of 1 s: joint error (cm)"][1] == pytest.approx(np.mean(errors), rel=1e-4)
    assert rows["gap: velocity jump at seams (m/s)"][3] == pytest.approx(0, abs=1e-3)
    assert rows["reaction: contacts met (%)"][1] is None
    assert rows["live: frames a second"][1] > 0
    nearest = rows["4 persons: nearest pelvises (cm)"]
    assert 0 < nearest[1] <= nearest[3]  # the first two of the four are the pair
    assert rows["first half given: time of a motion (s)"][1] > 0
    assert rows["timeline: memory its second half adds (MB)"][1] < 50
    report.save(tmp_path / "control.json")
    read = json.loads((tmp_path / "control.json").read_text())
    assert read["settings"] == {
        "items": 2, "best_of": 2, "seed": 3, "by_levels": False, "num_inference_steps": 1, "split": "held out",
        "guidance_scale": tiny_pipeline.config.default_guidance,
        "guidance_scale_given": tiny_pipeline.config.default_guidance,
    }  # fmt: skip
    assert read["rows"][0]["value"] == rows["reaction: joint error (cm), best"][1]
    assert report.table()[3][1] == "–"
    with pytest.raises(ValueError, match=r"^limit, best_of: expected 1 or more, got 0 and 10"):
        evaluate_control(tiny_pipeline, items, limit=0)
    with pytest.raises(ValueError, match=r"^dataset: expected two items of 24 frames or more, got 1"):
        evaluate_control(tiny_pipeline, items, limit=1)


PARTS = ("reactions", "gaps", "targets", "timeline", "length", "live", "persons", "cost")


@pytest.mark.parametrize(
    ("controls", "left_out"),
    [
        (("known", "targets"), ()),
        (("known",), ("targets",)),
        (("reaction",), (*PARTS[1:6], "cost")),
        ((), (*PARTS[:6], "cost")),
    ],
)
def test_what_a_system_does_not_follow_is_left_out(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch, controls: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    monkeypatch.setattr(tiny_pipeline, "controls", controls)
    for part in PARTS:
        monkeypatch.setattr(evaluation, f"_{part}", lambda *_, name=part: [(name, 1.0, "", None)])
    motion = torch.zeros(2, 90, 262)
    items: Any = type(
        "Items",
        (),
        {
            "split": "val",
            "__len__": lambda self: 2,
            "__getitem__": lambda self, index: {"motion": motion},
            "num_frames": lambda self, index: 90,
            "captions": lambda self, index: ["they bow"],
        },
    )()
    report = evaluate_control(tiny_pipeline, items)
    assert [row[0] for row in report.rows] == [part for part in PARTS if part not in left_out]


class Played:
    """Motion of one kind, whatever is asked for; notes the seeds."""

    config = SimpleNamespace(max_frames=300)

    def __init__(self, joints: Any) -> None:
        self.joints, self.seeds = torch.from_numpy(joints), []

    def __call__(self, prompt: str, frames: int, *, seed: int, **options: Any) -> Any:
        self.seeds.append((seed, options["control"] is not None))
        return SimpleNamespace(joints=self.joints[None, :, :frames])

    def timeline(self, segments: Any, **options: Any) -> Any:
        return SimpleNamespace(joints=self.joints[None, :, : sum(frames for _, frames in segments)])


def test_every_trial_of_a_reaction_has_noise_of_its_own() -> None:
    pair = np.stack([walk(24, 0.01, away) for away in (0.0, 1.0)])
    motion = torch.stack([from_joints(torch.from_numpy(each)) for each in pair])
    items: Any = [evaluation._Item(motion, "they bow")] * 2
    played: Any = Played(pair)
    evaluation._reactions(played, items, 3, 7, {})
    once = [(7 + k, given) for given in (True, False, True) for k in range(3)]
    assert played.seeds[: len(once)] == once
    assert played.seeds == 2 * once


def test_free_motion_is_compared_by_the_start_of_either_person() -> None:
    """The second person of what is made stands 1 m beside the first, that of the data 3 m, and both do not move on."""
    made, real = (
        np.stack([at_rest(REST_POSE)[None].repeat(8, 0) + np.array([away, 0.0, 0.0]) for away in (0, x)])
        for x in (1, 3)
    )
    motion = torch.stack([from_joints(torch.from_numpy(each).float()) for each in real])
    played: Any = Played(made.astype(np.float32))
    rows = evaluation._reactions(played, [evaluation._Item(motion, "they bow")] * 2, 2, 0, {})
    assert [rows[0][1], rows[0][3]] == pytest.approx([200.0, 0.0], abs=1e-3)
    assert rows[1][1] == pytest.approx(200.0, abs=1e-3)


def test_reactions_are_compared_with_their_own_clip() -> None:
    """A model that knows each second person by the first: its reactions are right, those to another clip are not.

    In each clip wrists touch where nobody touches in the other; without a first person, people walk at another speed.
    """
    pairs = [np.stack([walk(24, speed, away) for away in (0.0, 2.0)]) for speed in (0.01, 0.03)]
    for number, pair in enumerate(pairs):
        pair[1, 6 + 12 * number, 20] = pair[0, 6 + 12 * number, 21] + np.float32([0.1, 0.0, 0.0])
    items: Any = [
        evaluation._Item(torch.stack([from_joints(torch.from_numpy(each)) for each in pair]), f"clip {number}")
        for number, pair in enumerate(pairs)
    ]
    asked = []

    def reacting(prompt: str, frames: int, *, control: Control | None, **options: Any) -> Any:
        of = None
        if control is not None:
            (known,) = control.known
            (of,) = (i for i, item in enumerate(items) if torch.equal(known.motion, item.motion[0]))
            assert known.person == 0
        asked.append((prompt, frames, of))
        made = np.stack([walk(24, 0.02, 9.0)] * 2) if of is None else items[of].joints
        return SimpleNamespace(joints=torch.from_numpy(made[None]))

    rows = {row[0]: row for row in evaluation._reactions(reacting, items, 1, 7, {})}  # type: ignore[arg-type]
    assert asked == [(f"clip {n}", 24, of) for n in (0, 1) for of in (n, None, 1 - n)]
    best, met = rows["reaction: joint error (cm), best"], rows["reaction: contacts met (%)"]
    assert best[1] == pytest.approx(0, abs=1e-4)
    assert best[3] > 1
    assert (met[1], met[3]) == (100, 0)


def test_gaps_by_hand() -> None:
    """People at 0.001 m times the frame squared, whose gap a model fills 0.5 m beside them.

    Second differences are 0.002 m everywhere, and 0.5 m beside it at the seams; a line between the ends of 30 frames is
    0.001 i (31 - i) metres off in the i-th of them.
    """
    pair = np.stack([walk(90, 0.0, away) for away in (0.0, 2.0)])
    pair[..., 2] += (0.001 * np.arange(90, dtype=np.float32) ** 2)[:, None]
    item = evaluation._Item(torch.stack([from_joints(torch.from_numpy(each)) for each in pair]), "they run")
    given: list[tuple[int, slice]] = []

    def filling(prompt: str, frames: int, *, control: Control, **options: Any) -> Any:
        for known in control.known:
            assert torch.equal(known.motion, item.motion[known.person, known.run])
            given.append((known.person, known.run))
        made = torch.from_numpy(pair.copy())
        made[:, 30:60, :, 0] += 0.5
        return SimpleNamespace(joints=made[None])

    error, jump = evaluation._gaps(filling, [item], 7, {})  # type: ignore[arg-type]
    assert given == [(person, run) for person in (0, 1) for run in (slice(0, 30), slice(60, 90))]
    assert error[1] == pytest.approx(50, rel=1e-4)
    assert error[3] == pytest.approx(100 * np.mean([0.001 * i * (31 - i) for i in range(1, 31)]), rel=1e-3)
    assert jump[1] == pytest.approx(30 * math.hypot(0.5, 0.002), rel=1e-3)
    assert jump[3] == pytest.approx(30 * 0.002, rel=1e-2)


def test_targets_by_hand() -> None:
    """A wrist, then the other, then the pelvis, 15 cm along X and Z from free motion, are each missed by 3 cm."""
    free = np.stack([walk(90, 0.01, away) for away in (0.0, 2.0)])
    led = np.stack([walk(90, 0.02, away) for away in (0.0, 2.0)])
    motion = torch.stack([from_joints(torch.from_numpy(each)) for each in free])
    asked = []

    def leading(prompt: str, frames: int, *, control: Control | None, **options: Any) -> Any:
        made = free if control is None else led.copy()
        if control is not None:
            (target,) = control.targets
            asked.append((target.person, target.joint, target.frames))
            places = free[1, [30, 60], target.joint] + np.float32([0.15, 0.0, 0.15])
            np.testing.assert_allclose(target.positions, places, atol=1e-6)
            made[1, [30, 60], target.joint] = places + np.float32([0.0, 0.03, 0.0])
        return SimpleNamespace(joints=torch.from_numpy(made[None]))

    items = [evaluation._Item(motion, "they walk")] * 3
    missed, sliding = evaluation._targets(leading, items, 7, {})  # type: ignore[arg-type]
    assert asked == [(1, JOINT_NAMES.index(name), (30, 60)) for name in ("left_wrist", "right_wrist", "pelvis")]
    assert missed[1] == pytest.approx(3, rel=1e-3)
    # two balls of the foot of two persons, all below the floor, over 89 steps
    assert sliding[1] == pytest.approx(4 * 89 * 0.02, rel=1e-3)
    assert sliding[3] == pytest.approx(4 * 89 * 0.01, rel=1e-3)


def test_last_segments_are_compared_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three segments of 20 frames, 1 cm higher and half a metre further apart each."""
    monkeypatch.setattr(evaluation, "SEGMENT", 20)
    monkeypatch.setattr(evaluation, "SEGMENTS", 3)
    segment = np.repeat(np.arange(3), 20).astype(np.float32)
    pair = np.stack([walk(60, 0.0, 0.0), walk(60, 0.0, 1.0)])
    pair[..., 1] += 0.01 * segment[:, None] - pair[0, 0, :, 1].min()
    pair[1, ..., 0] += 0.5 * segment[:, None]
    played: Any = Played(pair)
    item = evaluation._Item(torch.stack([from_joints(torch.from_numpy(walk(8, 0.1, 0.0)))] * 2), "they bow")
    *_, lowest, apart = evaluation._timeline(played, [item], 0, {})
    assert (lowest[1], lowest[3]) == pytest.approx((2, 0), abs=1e-3)
    assert (apart[1], apart[3]) == pytest.approx((200, 100), rel=1e-4)


def test_four_persons_are_compared_with_two() -> None:
    """Of four in a row two are within each other; of two none is."""
    places = {2: (0.0, 3.0), 4: (0.0, 3.0, 6.0, 6.25)}
    made = {count: np.stack([walk(8, 0.0, away) for away in row]) for count, row in places.items()}
    motion = torch.stack([from_joints(torch.from_numpy(each)) for each in made[2]])

    def crowding(prompt: str, frames: int, *, num_persons: int, **options: Any) -> Any:
        return SimpleNamespace(joints=torch.from_numpy(made[num_persons][None]))

    items = [evaluation._Item(motion, "they stand")] * 2
    depth, share, nearest = evaluation._persons(crowding, items, 7, {})  # type: ignore[arg-type]
    assert depth[1] == penetration(made[4]).mean_depth_cm
    assert depth[3] is None  # nobody of the two is within 60 cm
    assert share[3] == penetration(made[2]).share
    assert share[1] == penetration(made[4]).share
    assert share[1] > share[3] == 0
    assert (nearest[1], nearest[3]) == pytest.approx((25, 300), rel=1e-4)


def test_jerk_is_the_third_derivative_by_seconds() -> None:
    """All joints at 0.5 t^3 metres: 3 m/s^3, at seams and inside."""
    frames = evaluation.SEGMENT * evaluation.SEGMENTS
    shift = (0.5 * (np.arange(frames) / 30) ** 3)[:, None, None] * np.array([0.0, 1.0, 0.0])
    pair = np.stack([at_rest(REST_POSE) + shift] * 2)
    played: Any = Played(pair)
    item = evaluation._Item(torch.stack([from_joints(torch.from_numpy(walk(8, 0.1, 0.0)))] * 2), "they bow")
    rows = {row[0]: row for row in evaluation._timeline(played, [item], 0, {})}
    seams = rows["timeline: jerk at seams (m/s³)"]
    assert (seams[1], seams[3]) == pytest.approx((3.0, 3.0), rel=1e-6)


def test_contacts_are_means_over_all_reactions_to_either_clip() -> None:
    """Who reacts touches where the real one did with three seeds of four, and is far away with the fourth."""
    pair = np.stack([walk(24, 0.01, away) for away in (0.0, 1.0)])
    pair[1, 8:12, 20] = pair[0, 8:12, 20]
    far = pair + np.float32([0.0, 0.0, 5.0])
    motion = torch.stack([from_joints(torch.from_numpy(each)) for each in pair])

    class Touching(Played):
        def __call__(self, prompt: str, frames: int, *, seed: int, **options: Any) -> Any:
            made = np.stack([pair[0], far[1] if seed == 3 else pair[1]])
            return SimpleNamespace(joints=torch.from_numpy(made)[None, :, :frames])

    items: Any = [evaluation._Item(motion, "they bow")] * 2
    row = evaluation._reactions(Touching(pair), items, 4, 0, {})[-1]  # type: ignore[arg-type]
    assert (row[1], row[3]) == pytest.approx((75, 75))


def test_jerk_is_looked_for_where_windows_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 60 frames makes a second prompt of 60 in two windows; people jump where each begins, nowhere else."""
    monkeypatch.setattr(evaluation, "SEGMENT", 60)
    monkeypatch.setattr(evaluation, "SEGMENTS", 2)
    shift = np.isin(np.arange(120), (60, 90))[:, None, None] * np.array([0.0, 1.0, 0.0])
    played: Any = Played(np.stack([at_rest(REST_POSE) + shift] * 2))
    played.config = SimpleNamespace(max_frames=60)
    item = evaluation._Item(torch.stack([from_joints(torch.from_numpy(walk(8, 0.1, 0.0)))] * 2), "they bow")
    row = next(row for row in evaluation._timeline(played, [item], 0, {}) if "seams" in row[0])
    # third differences of a jump are 1, 3, 3 and 1 of it, and six frames at each of two seams are looked at
    assert (row[1], row[3]) == pytest.approx((30**3 * 8 / 6, 0.0))


class Scene:
    """A live scene of 10 frames a window, that notes what it is told."""

    def __init__(self) -> None:
        self.windows, self.told = 0, []

    def __next__(self) -> Any:
        self.windows += 1
        return torch.zeros(2, 10, 22, 3)

    def send(self, prompt: str) -> None:
        self.told.append((self.windows, prompt))


def two_items() -> Any:
    motion = torch.stack([from_joints(torch.from_numpy(walk(8, 0.1, 0.0)))] * 2)
    return [evaluation._Item(motion, caption) for caption in ("they bow", "they wave")]


def played_live(monkeypatch: pytest.MonkeyPatch, instants: list[float]) -> tuple[Any, Scene, list[str]]:
    """A pipeline whose scene is told by a clock that shows ``instants``."""
    scene, asked = Scene(), []
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=iter(instants).__next__))
    pipeline = SimpleNamespace(
        config=SimpleNamespace(fps=20), live=lambda caption, **_: (asked.append(caption), scene)[1]
    )
    return pipeline, scene, asked


def test_halves_of_a_long_scene_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 frames in 2 and in 6 seconds, at 20 a second, after a window that does not count."""
    pipeline, scene, asked = played_live(monkeypatch, [5.0, 7.0, 11.0, 17.0])
    monkeypatch.setattr(evaluation, "WINDOWS", 3)
    monkeypatch.setattr(evaluation, "_peak_memory", iter([100.0, 130.0, 180.0]).__next__)
    duration, memory = evaluation._length(pipeline, two_items(), 0, {})
    assert (duration[1], duration[3]) == pytest.approx((6 / 1.5, 2 / 1.5))
    assert (memory[1], memory[3]) == (50.0, 30.0)
    assert (scene.windows, asked) == (1 + 3 + 3, ["they bow"])


def test_live_motion_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 frames in 2 seconds, and the first window after another prompt half a second later."""
    pipeline, scene, asked = played_live(monkeypatch, [5.0, 7.0, 11.0, 11.5])
    (row,) = evaluation._live(pipeline, two_items(), 0)
    assert (row[1], row[3]) == pytest.approx((25.0, 0.5))
    assert (scene.windows, asked, scene.told) == (7, ["they bow"], [(6, "they wave")])
