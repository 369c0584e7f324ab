import re

import numpy as np
import pytest

from intermoe.data import InterHumanDataset
from intermoe.metrics.turns import SEVERAL, TurnAgreement, TurnClaim, agreement, count_turns, parse_turns, turns, yaw
from intermoe.motion.interhuman import joints

# Hips and shoulders a hand's breadth wide, the left side at X+ when facing Z+; the other joints do not matter here.
POSE = np.zeros((22, 3))
POSE[:, 1] = 1.0
POSE[[1, 16], 0], POSE[[2, 17], 0] = 0.1, -0.1


def rotating(*parts, sway=0.0):
    """A person who turns by each (degrees, frames) in order, positive to the left, walking and swaying on top."""
    angles, last = [], 0.0
    for degrees, frames in parts:
        angles.append(last + degrees * np.arange(1, frames + 1) / frames)
        last += degrees
    heading = np.radians(np.concatenate(angles) + 40.0)
    heading += np.radians(sway) * np.sin(np.arange(len(heading)) * 0.7)
    cos, sin, zero, one = np.cos(heading), np.sin(heading), np.zeros(len(heading)), np.ones(len(heading))
    # About Y+, seen from above counterclockwise: Z+ (forward) moves towards X+ (the left side).
    turn = np.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], axis=-1).reshape(-1, 3, 3)
    walk = np.linspace(0, 1, len(heading))[:, None, None] * (1.0, 0.0, -2.0)
    return POSE @ turn.transpose(0, 2, 1) + walk


def test_yaw_is_the_heading():
    heading = yaw(rotating((90, 30)))
    np.testing.assert_allclose(heading, 40 + 3.0 * np.arange(1, 31), atol=1e-6)
    heading = yaw(rotating((-1080, 90)))
    assert heading[-1] - heading[0] == pytest.approx(-1080 * 89 / 90)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(360, 40)], [360]),
        ([(-360, 40)], [-360]),
        ([(720, 60)], [720]),
        ([(0, 20), (-360, 30), (0, 20), (360, 30)], [-360, 360]),  # does not cancel
        ([(360, 30), (-360, 30)], [360, -360]),  # without a pause
        ([(-380, 30), (0, 15), (-350, 30)], [-380, -350]),  # two turns, not one of 730
        ([(180, 30), (-180, 30)], []),  # half turns
        ([(400, 300)], []),  # 40 degrees a second: walking in a circle
    ],
)
@pytest.mark.parametrize("sway", [0.0, 5.0])
def test_turns(parts, expected, sway):
    found = turns(rotating((0, 15), *parts, (0, 15), sway=sway))
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=35)


def test_turns_at_the_edges_of_the_clip_and_small_ones():
    assert turns(rotating((360, 30))) == pytest.approx([360], abs=20)
    assert turns(rotating((0, 20), (90, 20), (0, 20)), min_degrees=45) == pytest.approx([90], abs=15)


def test_a_turn_ends_where_its_direction_does():
    """12 degrees a frame, there and back: the way of the frames in between, and not a frame more."""
    assert turns(rotating((360, 30))) == pytest.approx([360 - 12])
    assert turns(rotating((360, 30), (-360, 30))) == pytest.approx([348, -348])
    assert turns(rotating((-360, 30), (0, 30))) == pytest.approx([-348])
    (angle,) = turns(rotating((0, 20), (300, 20), (0, 20)))
    assert turns(rotating((0, 20), (300, 20), (0, 20)), min_degrees=angle) == [angle]


@pytest.mark.parametrize("fps", [30, 24])
def test_speed_is_that_of_a_heading_smoothed_over_three_frames(fps):
    """A step of the heading becomes a Gaussian bell of speed, whose height tells whether it counts, at an end too."""
    bell = np.exp(-0.5 * (np.arange(-30, 31) / 3.0) ** 2)
    bell /= bell.sum()
    within, at_end = 60 / (fps * (bell[30] + bell[31]) / 2), 60 / (fps * bell[30])
    for step, before in ((within, 20), (at_end, 1)):
        for sign in (1, -1):
            below, above = (rotating((0, before), (sign * share * step, 1), (0, 20)) for share in (0.985, 1.015))
            assert turns(below, min_degrees=5, fps=fps) == []
            assert turns(above, min_degrees=5, fps=fps) == pytest.approx([sign * 1.015 * step])
            if fps == 30:  # where nobody says
                assert turns(below, min_degrees=5) == []
                assert len(turns(above, min_degrees=5)) == 1


@pytest.mark.parametrize(("speed", "direction"), [(62, True), (58, False)])
def test_who_turns_slowly_does_not_turn(speed, direction):
    """In degrees a second, at 30 frames where nobody says."""
    person = rotating((speed * 2, 60))
    assert agreement(np.stack([person, STILL[:60]]), "the first dancer turns left").direction is direction


@pytest.mark.parametrize(("angles", "count"), [([], 0), ([280], 1), ([-530], 1), ([550], 2), ([-400, -700], 3)])
def test_count(angles, count):
    assert count_turns(angles) == count


@pytest.mark.parametrize(
    ("caption", "claims"),
    [
        ("the second dancer makes two full turns to the left", [TurnClaim(1, "left", 2)]),
        ("Salsa dancing: one of them spins once to the right.", [TurnClaim(None, "right", 1)]),
        ("one of them spins three times under a raised arm", [TurnClaim(None, None, 3)]),
        ("one partner turns all the way around while the two trade places", [TurnClaim(None, None, 1)]),
        ("the second dancer makes several full turns", [TurnClaim(1, None, SEVERAL, at_least=True)]),
        ("one of them spins twice to the right while the other one turns around too", [TurnClaim(None, "right", 2)]),
        (
            "facing each other; the second dancer makes one full turn to the right, "
            "and the first dancer makes two full turns to the left",
            [TurnClaim(1, "right", 1), TurnClaim(0, "left", 2)],
        ),
        (
            "the first person makes a left turn, then two right-hand turns",
            [TurnClaim(0, "left", 1), TurnClaim(0, "right", 2)],
        ),
        ("The first person turns left and walks away", [TurnClaim(0, "left", None)]),
        ("one person turns to his right", [TurnClaim(None, "right", None)]),
        ("both spin clockwise", [TurnClaim(0, "right", None), TurnClaim(1, "right", None)]),
        ("person 2 spins counter-clockwise 3 times", [TurnClaim(1, "left", 3)]),
        ("she does a 360 degree spin to the left", [TurnClaim(None, "left", 1)]),
        ("the one in front turns twice", [TurnClaim(None, None, 2)]),
        ("person 2 turns to the left", [TurnClaim(1, "left", None)]),
        ("dancer two, one turns to the left", [TurnClaim(None, "left", None)]),
        ("dancer 2 turns a full turn", [TurnClaim(1, None, 1)]),
        ("the second turns to the right of the first", []),
        ("the second person turns to her left shoulder", []),
        ("the second person does a left hand turn", [TurnClaim(1, "left", 1)]),
        ("she whirls towards their left", [TurnClaim(None, "left", None)]),
        ("each person rotates five times", [TurnClaim(0, None, 5), TurnClaim(1, None, 5)]),
        ("both dancers revolve four times", [TurnClaim(0, None, 4), TurnClaim(1, None, 4)]),
        ("dancer 1 pirouettes six times anti-clockwise", [TurnClaim(0, "left", 6)]),
        ("person 2 twirls around right", [TurnClaim(1, "right", None)]),
        ("the first partner spins a few times", [TurnClaim(0, None, SEVERAL, at_least=True)]),
        ("the second one makes many turns rightwards", [TurnClaim(1, "right", SEVERAL, at_least=True)]),
        ("the first person bows, another dancer makes multiple spins", [TurnClaim(None, None, SEVERAL, at_least=True)]),
        ("the first person spins 12 times", [TurnClaim(0, None, 12)]),
        (
            "the first makes a complete turn: the other partner a whirl",
            [TurnClaim(0, None, 1), TurnClaim(None, None, 1)],
        ),
        *(
            (
                f"the first person spins once{word} the second person spins twice to the left",
                [TurnClaim(0, None, 1), TurnClaim(1, "left", 2)],
            )
            for word in (" as", " before", " after", " while", ",", ".", " and then")
        ),
        # No claims: no turning of a body, or neither direction nor number.
        ("Two people dance salsa turning around each other", []),
        ("the second dancer mostly turned away from the first", []),
        ("the second dancer spins under the raised right arm", []),
        ("the first person turns his left hand", []),
        ("they circle around once", []),
        ("she steps to the left", []),
        ("one of them makes a half turn", []),
        ("", []),
    ],
)
def test_parsing(caption, claims):
    assert parse_turns(caption) == claims


RIGHT_TWICE = rotating((0, 10), (-720, 60), (0, 10))
LEFT_ONCE = rotating((0, 10), (360, 30), (0, 40))
STILL = rotating((0, 80))


@pytest.mark.parametrize(
    ("persons", "caption", "direction", "count"),
    [
        ((STILL, RIGHT_TWICE), "the second dancer makes two full turns to the right", True, True),
        ((STILL, RIGHT_TWICE), "the second dancer makes one full turn to the right", True, False),
        ((STILL, RIGHT_TWICE), "the second dancer makes two full turns to the left", False, False),
        ((STILL, RIGHT_TWICE), "the first dancer makes two full turns to the right", False, False),
        ((RIGHT_TWICE, LEFT_ONCE), "one of them spins twice to the right", True, True),
        ((LEFT_ONCE, RIGHT_TWICE), "one of them spins once to the left", False, True),
        ((LEFT_ONCE, RIGHT_TWICE), "the first dancer spins once to the left, the second twice", True, True),
        ((LEFT_ONCE, RIGHT_TWICE), "the first dancer spins once to the left, the second spins twice", True, True),
        ((STILL, STILL), "one of them spins once to the right", False, False),
        ((LEFT_ONCE, STILL), "one of them spins once", None, True),
        ((LEFT_ONCE, STILL), "they dance", None, None),
        ((rotating((0, 50), (-90, 30)), STILL), "the first person turns right", True, None),
    ],
)
def test_agreement(persons, caption, direction, count):
    assert agreement(np.stack(persons), caption) == TurnAgreement(direction, count)


def test_a_dancer_may_be_asked_to_turn_both_ways():
    person = rotating((0, 10), (-720, 60), (0, 10), (360, 30))
    caption = "the first dancer spins twice to the right and then once to the left"
    assert agreement(np.stack([person, person]), caption) == TurnAgreement(True, True)


@pytest.mark.parametrize(("split", "direction", "count"), [("val", 1.0, 1.0), ("train", 0.93, 0.85)])
def test_real_turns_agree_with_their_captions(salsa, split, direction, count):
    dataset = InterHumanDataset(salsa, split, training=False)
    mirror = np.array([-1.0, 1.0, 1.0])
    exchanged = [0, 2, 1, *range(3, 16), 17, 16, *range(18, 22)]
    verdicts, mirrored = [], []
    for index in range(len(dataset)):
        positions = joints(dataset[index]["motion"]).numpy()
        for caption in dataset.captions(index):
            verdicts.append(agreement(positions, caption))
            mirrored.append(agreement(positions[:, :, exchanged] * mirror, caption))

    def share(values):
        named = [value for value in values if value is not None]
        return sum(named) / len(named)

    assert share([v.direction for v in verdicts]) >= direction
    assert share([v.count for v in verdicts]) >= count
    assert share([v.direction for v in mirrored]) < 0.1


def test_bad_input():
    with pytest.raises(ValueError, match="joints: expected shape"):
        turns(np.zeros((5, 21, 3)))
    for shape in ((5, 22, 3), (2, 22, 3), (1, 5, 22, 3)):
        with pytest.raises(ValueError, match=rf"^joints: expected shape \(2, T, 22, 3\), got {re.escape(str(shape))}$"):
            agreement(np.zeros(shape), "turns left")
    lost = rotating((90, 30))
    lost[9] = np.nan
    with pytest.raises(ValueError, match="joints: expected finite numbers, got others in 1 frames, first in 9"):
        turns(lost)


@pytest.mark.parametrize(
    ("degrees", "part", "full"), [(44, False, False), (46, True, False), (269, True, False), (271, True, True)]
)
def test_the_least_of_a_part_of_a_turn_and_of_a_full_one(degrees, part, full):
    for side, sign in (("left", 1), ("right", -1)):
        person = rotating((0, 20), (sign * degrees, 5), (0, 20))
        pair = np.stack([STILL[:45], person])
        assert agreement(pair, f"the second dancer turns {side}") == TurnAgreement(part, None)
        assert agreement(pair, f"the second dancer turns once to the {side}") == TurnAgreement(full, full)
        assert len(turns(person)) == full


def test_who_turns_most_turns_most_in_both_directions_together():
    """200 degrees to the left and back are more than 300 to the left, and have no direction."""
    there_and_back = rotating((0, 10), (200, 20), (0, 10), (-210, 20), (0, 10))
    once = rotating((0, 20), (300, 30), (0, 20))
    for pair in ((there_and_back, once), (once, there_and_back)):
        assert agreement(np.stack(pair), "one of them turns to the left").direction is False
        assert agreement(np.stack(pair), "one of them turns to the right").direction is True
