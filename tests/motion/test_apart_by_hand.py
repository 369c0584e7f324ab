"""What moves bodies out of each other, part by part and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from intermoe.motion import apart
from intermoe.motion.apart import REACH, SWEEPS, with_bodies_apart
from intermoe.motion.bones import bone_lengths
from intermoe.motion.capsules import CAPSULES, deepest
from intermoe.motion.interhuman import joints
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS
from tests.motion.test_apart import meeting, standing

J = JOINT_NAMES.index
NUMBER = {(JOINT_NAMES[start], JOINT_NAMES[end]): number for number, (start, end, _) in enumerate(CAPSULES)}
TRUNK = [NUMBER["pelvis", "spine3"], NUMBER["spine3", "neck"], NUMBER["neck", "head"]]
THIGH, SHIN, FOREARM = (
    NUMBER["left_hip", "left_knee"],
    NUMBER["left_knee", "left_ankle"],
    NUMBER["right_elbow", "right_wrist"],
)


def fade(distance: int) -> float:
    """Half a wave of cosine from 1 down to 0 at ``REACH``."""
    return 0.5 + 0.5 * math.cos(math.pi * min(abs(distance), REACH) / REACH)


def test_a_limb_goes_all_the_way_out_of_a_trunk_and_half_of_it_out_of_another() -> None:
    depth = torch.ones(4, len(CAPSULES), len(CAPSULES))
    fixed = torch.tensor([False, True, False, True])
    other = torch.tensor([False, False, True, True])
    free, own, theirs, both = apart._share(fixed, other, depth)
    for row in range(len(CAPSULES)):
        for column in range(len(CAPSULES)):
            trunks = (row in TRUNK, column in TRUNK)
            assert free[row, column] == {(True, False): 0.0, (False, True): 1.0}.get(trunks, 0.5)
    assert (own == 0).all()
    assert (theirs == 1).all()
    assert (both == 0).all()


def pushed(*pushes: tuple[int, tuple[float, float, float], float]) -> torch.Tensor:
    """Displacements of the joints of one frame by capsule, way, and place on the capsule."""
    push, place = torch.zeros(1, len(CAPSULES), 2, 3), torch.zeros(1, len(CAPSULES), 2)
    for capsule, way, s in pushes:
        column = int(push[0, capsule].any())
        push[0, capsule, column], place[0, capsule, column] = torch.tensor(way), s
    return apart._moved(push, place)[0]


def expected(whole: tuple[float, float, float] = (0, 0, 0), **joint: tuple[float, float, float]) -> torch.Tensor:
    moved = torch.tensor(whole, dtype=torch.float32).repeat(NUM_JOINTS, 1)
    for name, way in joint.items():
        moved[J(name)] += torch.tensor(way)
    return moved


def test_ends_of_a_limb_move_so_that_the_place_that_is_pushed_goes_the_way() -> None:
    """At a quarter: 3/4 of start and 1/4 of end, each by its share over 9/16 + 1/16, are the way."""
    way = (0.1, 0.2, -0.3)
    start, end = (tuple(4 * share / 0.625 * x for x in way) for share in (0.75, 0.25))
    assert 0.75 * 0.75 / 0.625 + 0.25 * 0.25 / 0.625 == 1
    torch.testing.assert_close(pushed((SHIN, way, 0.25)), expected(left_knee=start, left_ankle=end))
    torch.testing.assert_close(pushed((FOREARM, way, 1.0)), expected(right_wrist=tuple(4 * x for x in way)))


def test_what_moves_the_trunk_moves_all_along_the_ground() -> None:
    for capsule in TRUNK:
        torch.testing.assert_close(pushed((capsule, (0.1, 0.2, -0.3), 0.5)), expected((0.2, 0.0, -0.6)))
    # the beginning of a thigh is the trunk's; its end is its own
    start, end = (0.75 / 0.625, 0.25 / 0.625)
    torch.testing.assert_close(
        pushed((THIGH, (0.1, 0.2, -0.3), 0.25)),
        expected((0.2 * start, 0, -0.6 * start), left_knee=(0.4 * end, 0.8 * end, -1.2 * end)),
    )


def test_the_strongest_push_of_a_capsule_counts_and_a_joint_goes_the_mean_of_its_limbs() -> None:
    torch.testing.assert_close(
        pushed((SHIN, (0.1, 0, 0), 1.0), (SHIN, (0, 0, 0.3), 1.0)), expected(left_ankle=(0, 0, 1.2))
    )
    both = pushed((SHIN, (0.1, 0, 0), 0.0), (THIGH, (0, 0, 0.3), 1.0))
    torch.testing.assert_close(both, expected(left_knee=(0.2, 0, 0.6)))
    torch.testing.assert_close(
        pushed((TRUNK[0], (0.1, 0, 0), 0.5), (TRUNK[2], (0, 0, -0.2), 0.5)), expected((0, 0, -0.4))
    )


def test_nobody_moves_where_they_are_fixed_and_all_the_way_from_some_frames_on() -> None:
    fixed = torch.zeros(2, 50, dtype=torch.bool)
    fixed[0, 20] = fixed[0, 23] = True
    free = apart._free(fixed)
    assert (free[1] == 1).all()
    wanted = torch.tensor([1 - max(fade(t - 20), fade(t - 23)) for t in range(50)])
    torch.testing.assert_close(free[0], wanted, rtol=0, atol=1e-6)
    assert free[0, [20, 23]].tolist() == [0, 0]


def faded(displacements: dict[int, tuple[float, float, float]], frames: int = 60) -> torch.Tensor:
    """Of one joint."""
    shift = torch.zeros(1, frames, NUM_JOINTS, 3)
    for frame, way in displacements.items():
        shift[0, frame, 5] = torch.tensor(way)
    found = apart._faded(shift)[0]
    assert not found[:, [joint for joint in range(NUM_JOINTS) if joint != 5]].any()
    return found[:, 5]


def test_a_displacement_fades() -> None:
    one = torch.tensor([[0.1 * fade(t - 30), 0, 0] for t in range(60)])
    torch.testing.assert_close(faded({30: (0.1, 0, 0)}), one, rtol=0, atol=1e-6)


def test_a_long_displacement_is_as_long_as_it_was_and_none_is_longer_than_a_step() -> None:
    for length, wanted in ((0.1, 0.1), (0.2, 0.2), (0.5, 0.2)):
        found = faded(dict.fromkeys(range(10, 50), (0, 0, length)))
        torch.testing.assert_close(found[20:40, 2], torch.full((20,), wanted), rtol=0, atol=1e-5)


def test_ways_that_cancel_lead_past() -> None:
    """Midway between a and b, four frames from each: their sum by half, which is shorter than their lengths' sum."""
    assert fade(4) == pytest.approx(0.5)
    found = faded({26: (0.12, 0, 0), 34: (-0.04, 0, 0)})[30]
    way, length = 0.5 * (0.12 - 0.04), 0.5 * (0.12 + 0.04)
    far = way * 1.3 * length / (way + 0.3 * length)  # half of the length left: more than half as far
    torch.testing.assert_close(found, torch.tensor([far, 0, 0]))
    torch.testing.assert_close(faded({26: (0.1, 0, 0), 34: (-0.1, 0, 0)})[30], torch.zeros(3), rtol=0, atol=1e-7)


def test_two_go_apart_by_what_they_are_in_each_other() -> None:
    """Limbs half of it each, in opposite directions, where their axes are nearest."""
    whole = joints(meeting())
    first = int(deepest(whole).argmax())
    positions = whole[:, first : first + 10]
    nobody = torch.zeros(2, 10, dtype=torch.bool)
    one = apart._ways_out(positions, nobody)
    exchanged = apart._ways_out(positions.flip(0), nobody).flip(0)
    torch.testing.assert_close(one, exchanged)
    alone = apart._ways_out(positions, torch.tensor([[True], [False]]).expand(2, 10))
    assert not alone[0].any()
    assert alone[1].norm() > one[1].norm()


def test_two_of_one_place_part_to_the_sides() -> None:
    """Along X, one to each side, by as much as their thickness."""
    here = joints(standing([[0.0, 0.0], [0.0, 0.0]], frames=2))
    shift = apart._ways_out(here, torch.zeros(2, 2, dtype=torch.bool))
    torch.testing.assert_close(shift[0], -shift[1])
    assert (shift[0, :, J("pelvis")] > 0.1).any(dim=-1).all()
    assert not shift[..., 1:].any()


def test_bones_have_their_lengths_after_the_first_displacement_and_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    ways, bones = apart._ways_out, apart._with_bones
    monkeypatch.setattr(apart, "_ways_out", lambda *given: (order.append("way"), ways(*given))[1])
    monkeypatch.setattr(apart, "_with_bones", lambda *given: (order.append("bones"), bones(*given))[1])
    motion = meeting()
    with_bodies_apart(motion)
    assert order == ["way", "bones", *["way"] * (SWEEPS - 1), "bones"]
    order.clear()
    with_bodies_apart(standing([[0.0, 0.0], [3.0, 0.0]]))
    assert order == ["way"]


def test_only_who_was_moved_gets_their_bones_again() -> None:
    positions = joints(meeting())[:, :4]
    lengths = bone_lengths(positions)
    where = torch.tensor([[True, False, False, True], [False, True, False, True]])
    held = apart._with_bones(2 * positions, where, lengths)
    for person in range(2):
        for frame in range(4):
            if not where[person, frame]:
                assert torch.equal(held[person, frame], 2 * positions[person, frame])
                continue
            torch.testing.assert_close(
                bone_lengths(held[person, frame][None, None])[0], lengths[person], rtol=0, atol=1e-4
            )


@pytest.mark.parametrize(
    ("frame", "held"),
    [(29 - REACH, False), (30 - REACH, True), (29, True), (32, True), (34 + REACH, True), (35 + REACH, False)],
)
@pytest.mark.parametrize("who", [0, 1])
def test_who_is_fixed_near_a_meeting_is_not_led_past_and_the_other_goes_all_the_way(
    frame: int, held: bool, who: int
) -> None:
    """Near is where what leads past fades. Two of one place but for 10 cm meet in frames 30 to 34."""
    places = torch.zeros(2, 70, NUM_JOINTS, 3)
    places[1, :, :, 0] = 1.0
    places[1, 30:35, :, 0] = 0.1
    fixed = torch.zeros(2, 70, dtype=torch.bool)
    fixed[who, frame] = True
    moved = (apart._led_past(places, fixed, torch.ones(2, 70)) - places)[:, 32, 0, 0]
    needed = apart._ROOM - 0.1
    share = (0.0 if who == 0 else 1.0) if held else 0.5
    assert moved.tolist() == pytest.approx([-share * needed, (1 - share) * needed], abs=1e-6)


def test_two_who_are_both_fixed_near_a_meeting_go_half_of_it_each() -> None:
    places = torch.zeros(2, 70, NUM_JOINTS, 3)
    places[1, :, :, 0] = 1.0
    places[1, 30:35, :, 0] = 0.1
    fixed = torch.zeros(2, 70, dtype=torch.bool)
    fixed[0, 28] = fixed[1, 37] = True
    moved = (apart._led_past(places, fixed, torch.ones(2, 70)) - places)[:, 32, 0, 0]
    assert moved.tolist() == pytest.approx([-0.5 * (apart._ROOM - 0.1), 0.5 * (apart._ROOM - 0.1)], abs=1e-6)


@pytest.mark.parametrize(
    ("between", "runs"), [(REACH, [(5, 15 + REACH)]), (REACH + 1, [(5, 10), (11 + REACH, 16 + REACH)])]
)
def test_meetings_with_few_frames_between_are_one(between: int, runs: list[tuple[int, int]]) -> None:
    near = torch.zeros(40, dtype=torch.bool)
    near[5:10] = near[10 + between : 15 + between] = True
    assert apart._runs(near) == runs
    assert apart._runs(near & False) == []


@pytest.mark.parametrize("along", [(0.0, 1.0), (1.0, 0.0), (-0.6, 0.8)])
def test_who_passes_keeps_to_the_side_on_which_they_are_when_nearest(along: tuple[float, float]) -> None:
    """Within 11 frames a person comes by at 5, 2 (on the other side) and 6 cm; the way leads 12 cm along theirs.

    From the frame before the meeting to the one after it, that is: in the meeting itself it leads 1 cm.
    """
    forward, aside = torch.tensor(along), torch.tensor([along[1], -along[0]])
    ahead = torch.tensor([-0.3] * 4 + [-0.02, 0.04, 0.04, 0.05, 0.1] + [0.3] * 4)
    beside = torch.tensor([0.05] * 5 + [0.05, -0.02, 0.06] + [0.05] * 5)
    ground = ahead[:, None] * forward + beside[:, None] * aside
    offset = torch.stack([ground[:, 0], torch.full((13,), 0.4), ground[:, 1]], dim=-1)
    needed = max(math.sqrt(0.35**2 - a**2) + b for a, b in ((0.04, 0.05), (0.04, -0.02), (0.05, 0.06)))
    far = torch.tensor([needed * fade(max(5 - frame, frame - 7, 0)) for frame in range(13)])
    wanted = -far[:, None] * aside
    way = apart._past(offset, 5, 8)
    torch.testing.assert_close(way[:, [0, 2]], wanted, rtol=0, atol=1e-5)
    assert not way[:, 1].any()


def test_who_does_not_pass_goes_straight_apart() -> None:
    """Somebody comes 9 cm near and goes back: less than a step is no passing."""
    ground = torch.tensor([[0.3, 0.4]] * 5 + [[0.03, 0.04]] * 3 + [[0.3, 0.49]] * 5)
    offset = torch.stack([ground[:, 0], torch.zeros(13), ground[:, 1]], dim=-1)
    way = apart._past(offset, 5, 8)
    torch.testing.assert_close(way[6], torch.tensor([0.6, 0.0, 0.8]) * (apart._ROOM - 0.05), rtol=0, atol=1e-5)


def test_who_is_led_past_one_into_another_is_led_past_them_too() -> None:
    """Of three in a row the first two are 10 cm apart; 25 cm between these would bring the second near the third."""
    places = torch.zeros(3, 50, NUM_JOINTS, 3)
    places[:, 20:30, :, 0] = torch.tensor([0.0, 0.1, 0.4])[:, None, None]
    places[:, :20, :, 0] = places[:, 30:, :, 0] = torch.tensor([-3.0, 0.1, 4.0])[:, None, None]
    nobody = torch.zeros(3, 50, dtype=torch.bool)
    pelvis = apart._led_past(places, nobody, torch.ones(3, 50))[:, :, 0, 0]
    assert pelvis.diff(dim=0).min() >= apart._BETWEEN


def test_a_row_of_four_is_led_apart_in_three_turns() -> None:
    """10, 30 and 28 cm: the first two go to 35, which brings the next two to 17.5, and these the last to 19.25."""
    places = torch.zeros(4, 50, NUM_JOINTS, 3)
    places[..., 0] = torch.tensor([-3.0, 0.1, 4.0, 9.0])[:, None, None]
    places[:, 20:30, :, 0] = torch.tensor([0.0, 0.1, 0.4, 0.68])[:, None, None]
    nobody = torch.zeros(4, 50, dtype=torch.bool)
    pelvis = apart._led_past(places, nobody, torch.ones(4, 50))[:, 25, 0, 0]
    assert pelvis.tolist() == pytest.approx([-0.125, 0.1375, 0.40875, 0.75875], abs=1e-5)


def test_displacements_fade_over_a_quarter_of_a_second() -> None:
    assert round(30 * 0.25) == REACH
    assert SWEEPS == 5
