"""Steering: which items, seeds and settings are asked for, and numbers of cases where items and persons differ."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.control import Control
from intermoe.eval import control as evaluation
from intermoe.eval.control import ControlReport, _contacts_met, _mean, _peak_memory, evaluate_control
from intermoe.metrics.bodies import penetration
from intermoe.motion.rig import REST_POSE, at_rest

OPTIONS: dict[str, Any] = {"num_inference_steps": 7, "guidance_scale": 1.5}
PARTS = ("reactions", "gaps", "targets", "timeline", "length", "live", "persons", "cost")


def standing(frames: int, *places: float) -> Any:
    """Joints (P, frames, 22, 3) of bodies at rest at ``places`` along X."""
    return np.stack([np.add(at_rest(REST_POSE)[None].repeat(frames, 0), (away, 0.0, 0.0)) for away in places])


def item(joints: Any, caption: str = "they bow") -> Any:
    motion = torch.zeros(*joints.shape[:2], 262)
    motion[..., :66] = torch.as_tensor(joints).flatten(-2)
    return evaluation._Item(motion, caption)


def made(joints: Any) -> Any:
    return SimpleNamespace(joints=torch.as_tensor(np.asarray(joints)).float()[None])


class Items:
    split = "val"

    def __init__(self, *frames: int) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Any:
        return {"motion": torch.full((2, self.frames[index], 262), float(index))}

    def num_frames(self, index: int) -> int:
        return self.frames[index]

    def captions(self, index: int) -> list[str]:
        return [f"first {index}", f"second {index}"]


def steered(**changes: Any) -> Any:
    """A pipeline of everything, whose guidance is 2 without and 3 with what is given."""
    values = {
        "representation": SimpleNamespace(persons=2), "controls": ("known", "targets"), "trained_with_levels": True,
        "default_guidance": lambda control=None: 2.0 if control is None else 3.0,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(("guidance", "settled"), [(None, (2.0, 3.0)), (1.5, (1.5, 1.5))])
def test_items_are_the_first_that_are_long_enough(
    guidance: float | None, settled: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the gap at least: of 89 to 200 frames the second and the third."""
    told: dict[str, Any] = {}
    for part in PARTS:
        monkeypatch.setattr(evaluation, f"_{part}", lambda *given, name=part: told.update({name: given}) or [])
    items: Any = Items(89, 90, 91, 200)
    pipeline = steered()
    report = evaluate_control(
        pipeline, items, limit=2, best_of=4, seed=5, num_inference_steps=7, guidance_scale=guidance
    )
    options = {"num_inference_steps": 7, "guidance_scale": guidance}
    chosen = told["gaps"][1]
    assert [each.caption for each in chosen] == ["first 1", "first 2"]
    assert [each.motion.shape[1] for each in chosen] == [90, 91]
    assert told["reactions"] == (pipeline, chosen, 4, 5, options)
    assert told["live"] == (pipeline, chosen, 5)
    for part in ("gaps", "targets", "timeline", "length", "persons", "cost"):
        assert told[part] == (pipeline, chosen, 5, options)
    assert report.settings == {
        "items": 2, "best_of": 4, "seed": 5, "by_levels": True, "guidance_scale": settled[0],
        "guidance_scale_given": settled[1], "num_inference_steps": 7, "split": "val",
    }  # fmt: skip
    for limit, best_of in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError, match=rf"^limit, best_of: expected 1 or more, got {limit} and {best_of}$"):
            evaluate_control(pipeline, items, limit=limit, best_of=best_of)
    with pytest.raises(ValueError, match=r"^dataset: expected two items of 90 frames or more, got 1$"):
        evaluate_control(pipeline, Items(89, 300), limit=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^model: expected one that makes two persons"):
        evaluate_control(
            steered(representation=SimpleNamespace(persons=1), config=SimpleNamespace(system="one")), items
        )


def test_the_best_of_all_reactions_counts_and_strangers_are_the_next_clip() -> None:
    """Clips of 24, 20 and 30 frames; what is made is 30, 10 or 20 cm too high with what is given, and 40, 20 or 60 cm
    without; the last clip's stranger is the first."""
    pairs = [standing(frames, 0.0, 1.0 + number) for number, frames in enumerate((24, 20, 30))]
    items = [item(pair, f"clip {number}") for number, pair in enumerate(pairs)]
    for number, each in enumerate(items):
        each.motion[0, :, 100] = number + 1.0
    asked: list[Any] = []

    def reacting(prompt: str, frames: int, *, seed: int, control: Control | None, **options: Any) -> Any:
        own = int(prompt[-1])
        given = None
        if control is not None:
            (known,) = control.known
            given = (known.person, known.motion.shape[0], int(known.motion[0, 100]) - 1)
        asked.append((own, frames, seed, given, options))
        raised = pairs[own].copy()
        raised[..., 1] += ((0.4, 0.2, 0.6) if control is None else (0.3, 0.1, 0.2))[seed - 5]
        return made(raised)

    rows = evaluation._reactions(reacting, items, 3, 5, OPTIONS)  # type: ignore[arg-type]
    others = {0: (0, 20, 1), 1: (0, 20, 2), 2: (0, 24, 0)}
    expected = [
        (number, len(items[number].joints[0]), 5 + k, given, {**OPTIONS, "num_persons": None})
        for number, own in enumerate(((0, 24, 0), (0, 20, 1), (0, 30, 2)))
        for given in (own, None, others[number])
        for k in range(3)
    ]
    assert asked == expected
    assert (rows[0][1], rows[0][3], rows[1][1]) == pytest.approx((10, 20, 20), abs=1e-3)
    assert (rows[2][1], rows[2][3]) == (None, None)  # nobody touches


def test_a_touch_at_the_start_is_met_from_the_start_on() -> None:
    """Of two contacts, 14.9 cm apart in frame 3 and 15.1 in frame 30, one is one; it is met in frame 0."""
    first, second = np.zeros((60, 22, 3), np.float32), np.full((60, 22, 3), 5.0, np.float32)
    first[:, 21] = (9.0, 0.0, 0.0)
    second[3, 20] = first[3, 20] + (0.149, 0, 0)
    second[30, 21] = first[30, 21] + (0.151, 0, 0)
    reacting = np.full((60, 22, 3), 5.0, np.float32)
    reacting[0, 20] = first[0, 20] + (0.19, 0, 0)
    assert _contacts_met(np.stack([first, second]), reacting) == 1.0
    reacting[0, 20], reacting[0, 21] = 5.0, first[0, 20]  # by another hand
    assert _contacts_met(np.stack([first, second]), reacting) == 0.0


@pytest.mark.parametrize("person", [0, 1])
@pytest.mark.parametrize(("frame", "seam"), [(28, False), (29, True), (30, True), (31, False), (58, False),
                                             (59, True), (60, True), (61, False)])  # fmt: skip
def test_jumps_are_looked_for_at_both_ends_of_a_gap(person: int, frame: int, seam: bool) -> None:
    """One joint of one person moves on at 0.2 m a frame from one frame on, in 90 frames with a gap from 30 to 60."""
    pair = standing(90, 0.0, 2.0)
    items = [item(pair)]

    def kinked(*_: Any, **__: Any) -> Any:
        moved = pair.copy()
        moved[person, :, 5, 2] += 0.2 * np.maximum(np.arange(90) - frame, 0)
        return made(moved)

    _, jump = evaluation._gaps(kinked, items, 0, OPTIONS)  # type: ignore[arg-type]
    assert jump[1] == pytest.approx(0.2 * 30 if seam else 0.0, abs=1e-3)


def test_jumps_of_the_data_are_those_of_one_frame_in_a_hundred() -> None:
    """Of 88 changes of velocity two are of 0.2 m a frame: 99 % lie below, by the 87th of them; of others none is."""
    moving, still = standing(90, 0.0, 2.0), standing(90, 0.0, 2.0)
    moving[1, 70:, 5, 0] += 0.2
    asked: list[Any] = []

    def playing(prompt: str, frames: int, **options: Any) -> Any:
        asked.append((prompt, frames, options["seed"], options["guidance_scale"], len(options["control"].known)))
        return made(still)

    _, jump = evaluation._gaps(playing, [item(moving), item(still, "they nod")], 4, OPTIONS)  # type: ignore[arg-type]
    assert asked == [("they bow", 90, 4, 1.5, 4), ("they nod", 90, 4, 1.5, 4)]
    assert jump[3] == pytest.approx((0.2 * 30 + 0) / 2, rel=1e-4)


def test_a_timeline_takes_captions_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two items; the second person alone jumps where windows meet, by a metre, and stands 10 cm lower."""
    monkeypatch.setattr(evaluation, "SEGMENT", 20)
    monkeypatch.setattr(evaluation, "SEGMENTS", 3)
    pair = standing(60, 0.0, 2.0)
    pair[..., 1] -= pair[..., 1].min()
    pair[1, ..., 1] -= 0.1
    pair[1, [20, 40], :, 1] += 1.0
    asked: list[Any] = []

    def timeline(segments: Any, **options: Any) -> Any:
        asked.append((segments, options))
        return made(pair)

    pipeline: Any = SimpleNamespace(timeline=timeline, config=SimpleNamespace(max_frames=60))
    fast = standing(8, 0.0, 2.0)
    fast[..., 1] += (0.001 * np.arange(8) ** 3)[:, None]
    rows = evaluation._timeline(pipeline, [item(fast), item(standing(8, 0.0, 2.0), "they nod")], 9, OPTIONS)
    assert asked == [([("they bow", 20), ("they nod", 20), ("they bow", 20)], {"seed": 9, **OPTIONS})]
    # third differences of a jump are 1, 3, 3 and 1 of it, of one of two persons, in six frames at each of two seams
    assert (rows[0][1], rows[0][3]) == pytest.approx((30**3 * 8 / 6 / 2, 0.0), abs=1e-6)
    assert rows[1][1] == pytest.approx((0.006 * 30**3 + 0) / 2, rel=1e-3)  # every item's jerk alike
    lowest, apart = rows[2], rows[3]
    assert (lowest[1], lowest[3]) == pytest.approx((100 * (19 * -0.1 + 0) / 20, -10.0), abs=1e-3)
    assert (apart[1], apart[3]) == pytest.approx(
        ((19 * 100 * math.hypot(2, 0.1) + 100 * math.hypot(2, 0.9)) / 20, 100 * math.hypot(2, 0.1)), rel=1e-4
    )


def test_scenes_are_asked_for_with_their_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = evaluation.WINDOWS
    monkeypatch.setattr(evaluation, "WINDOWS", 1)
    asked: list[Any] = []

    class Scene:
        def __next__(self) -> Any:
            return np.zeros((2, 10, 22, 3))

        def send(self, prompt: str) -> None:
            asked.append(prompt)

    pipeline: Any = SimpleNamespace(
        live=lambda prompt, **options: (asked.append((prompt, options)), Scene())[1], config=SimpleNamespace(fps=30)
    )
    items = [item(standing(8, 0.0, 2.0), caption) for caption in ("they bow", "they nod", "they wave")]
    evaluation._length(pipeline, items, 6, OPTIONS)
    evaluation._live(pipeline, items, 7)
    assert asked == [("they bow", {"seed": 6, **OPTIONS}), ("they bow", {"seed": 7}), "they wave"]
    assert (evaluation.SEGMENT, evaluation.SEGMENTS, windows) == (10 * 30, 6, 20)  # a minute, and each half of a scene
    monkeypatch.setattr(evaluation.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 1024))
    assert _peak_memory() == 3.0


def test_persons_of_all_items_are_counted_together() -> None:
    """Pairs 40 cm apart in the first item and 3 m in the second; groups of four the other way round."""
    places = {(0, 2): (0.0, 0.4), (1, 2): (0.0, 3.0), (0, 4): (0.0, 3.0, 6.0, 9.0), (1, 4): (0.0, 0.1, 6.0, 9.0)}
    crowds = {key: standing(4 + 4 * key[0], *row) for key, row in places.items()}

    def crowding(prompt: str, frames: int, *, seed: int, num_persons: int, **options: Any) -> Any:
        assert (seed, options) == (3, {**OPTIONS, "control": None})
        return made(crowds[int(prompt), num_persons])

    items = [item(crowds[number, 2], str(number)) for number in (0, 1)]
    depth, share, nearest = evaluation._persons(crowding, items, 3, OPTIONS)  # type: ignore[arg-type]
    assert (nearest[1], nearest[3]) == pytest.approx((10, 40), rel=1e-4)
    inside = {count: sum(penetration(crowds[n, count].astype(np.float32)).inside for n in (0, 1)) for count in (2, 4)}
    assert share[1] == pytest.approx(100 * inside[4] / (6 * (4 + 8)))
    assert share[3] == pytest.approx(100 * inside[2] / (4 + 8))
    assert inside[4] == 8
    assert depth[1] == pytest.approx(penetration(crowds[1, 4].astype(np.float32)).mean_depth_cm)


@pytest.mark.parametrize(("guidance", "used"), [(None, 2.0), (1.5, 1.5)])
def test_the_fastest_motion_whose_first_half_is_given(
    guidance: float | None, used: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 22 frames in groups of four 8 are given of 16; three times each, by turns, guided alike."""
    durations = [5.0, 1.0, 3.0, 4.0, 9.0, 2.0]  # given and free by turns
    instants = [instant for n, last in enumerate(durations) for instant in (100.0 * n, 100.0 * n + last)]
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=iter(instants).__next__))
    one = item(standing(22, 0.0, 2.0))
    one.motion[..., 100] = torch.arange(22.0) + 1000 * torch.arange(2.0)[:, None]
    asked: list[Any] = []

    def making(prompt: str, frames: int, *, control: Control | None, **options: Any) -> Any:
        known = [] if control is None else [(k.person, k.motion[:, 100].tolist()) for k in control.known]
        asked.append((prompt, frames, options, known))
        return made(standing(frames, 0.0, 2.0))

    pipeline: Any = making
    monkeypatch.setattr(making, "default_guidance", lambda control=None: 2.0 if control is None else 3.0, raising=False)
    monkeypatch.setattr(making, "frame_multiple", 4, raising=False)
    (row,) = evaluation._cost(pipeline, [one, one], 8, {"num_inference_steps": 7, "guidance_scale": guidance})
    assert (row[1], row[3]) == (3.0, 1.0)
    options = {"num_inference_steps": 7, "guidance_scale": used, "seed": 8, "num_persons": None}
    halves = [(person, [1000.0 * person + frame for frame in range(8)]) for person in (0, 1)]
    assert asked == [("they bow", 16, options, known) for known in (halves, [])] * 3


def test_numbers_of_a_report() -> None:
    rows = (("a (cm)", 1234.56, "b", 0.0123456), ("c (%)", None, "", None), ("d", 0.0, "e", 7.0))
    assert ControlReport(rows, {"items": 2}).table() == [
        ["measured", "value", "beside", "that"],
        ["a (cm)", "1.23e+03", "b", "0.0123"],
        ["c (%)", "–", "", "–"],
        ["d", "0", "e", "7"],
    ]
    assert ControlReport(rows, {"items": 2}).to_dict() == {
        "settings": {"items": 2},
        "rows": [{"measured": m, "value": v, "beside": b, "that": t} for m, v, b, t in rows],
    }
    assert _mean([0.0, math.nan, 1.0], 100) == 50.0
    assert _mean([3.0, 4.0]) == 3.5
    assert _mean([math.nan]) is None
