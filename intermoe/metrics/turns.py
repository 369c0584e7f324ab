"""Turns of the whole body: measured in motion, read from captions, and compared.

Angles are in degrees, positive to the left (counterclockwise seen from above).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intermoe.metrics.clips import Metric, Numbers, Sample
from intermoe.metrics.frames import body_frames, require_finite
from intermoe.motion.interhuman import FPS

Floats = npt.NDArray[np.floating]

# A turn is a stretch of one direction at more than this speed, so that turns with a pause between them count apart.
MIN_SPEED = 60.0
# Frames; wide enough to hide the sway of single steps.
_SMOOTHING = 3.0
# Three quarters of a full turn: dancers end a "full turn" facing each other, not where it began.
FULL_TURN = 270.0
# What "turns to the left" without a number asks for at least.
PART_TURN = 45.0
SEVERAL = 3


def yaw(joints: Floats) -> npt.NDArray[np.float64]:
    """Heading (T,) in degrees, unwrapped, of one person (T, 22, 3): the mean direction of hips and shoulders, Y up."""
    if joints.ndim != 3 or joints.shape[1:] != (22, 3) or joints.shape[0] < 2:
        raise ValueError(f"joints: expected shape (T >= 2, 22, 3), got {joints.shape}")
    require_finite(joints)
    forward = body_frames(joints)[:, 2]
    return np.degrees(np.unwrap(np.arctan2(forward[:, 0], forward[:, 2])))


def turns(joints: Floats, *, min_degrees: float = FULL_TURN, fps: float = FPS) -> list[float]:
    """Signed angles of one person's turns in order of time, positive to the left.

    A turn is a stretch in which the smoothed heading moves in one direction faster than ``MIN_SPEED`` degrees a second
    and covers at least ``min_degrees``. A turn to the right and one to the left are two turns, not none.

    Args:
        joints: (T, 22, 3), metres, Y up.
    """
    heading = yaw(joints)
    speed = np.gradient(_smooth(heading)) * fps
    direction = np.where(np.abs(speed) > MIN_SPEED, np.sign(speed), 0.0)
    edges: list[int] = np.flatnonzero(np.diff(direction, prepend=0.0, append=0.0)).tolist()
    stretches = [
        (start, min(stop, len(heading) - 1)) for start, stop in itertools.pairwise(edges) if direction[start] != 0
    ]
    angles = [float(heading[stop] - heading[start]) for start, stop in stretches]
    return [angle for angle in angles if abs(angle) >= min_degrees]


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    reach = int(4 * _SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _SMOOTHING) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def count_turns(angles: Sequence[float]) -> int:
    """Full turns in words: each turn counts as its whole number of rounds, at least one."""
    return sum(max(1, round(abs(angle) / 360.0)) for angle in angles)


@dataclass(frozen=True)
class TurnClaim:
    """What a caption says about turning.

    Attributes:
        dancer: 0 or 1; None where the caption leaves open who turns.
        direction: "left", "right" or None.
        count: full turns; ``SEVERAL`` with ``at_least`` for "several"; None where none is named.
    """

    dancer: int | None
    direction: str | None
    count: int | None
    at_least: bool = False


_NUMBERS = {"once": 1, "twice": 2, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_VERB = r"(?:turn|spin|twirl|rotat|pirouette|revolv|whirl)"
_NOUN = r"(?:turn|spin|twirl|rotation|pirouette|revolution|whirl)"
_TURNING = re.compile(rf"\b{_VERB}\w*", re.I)
_CLAUSES = re.compile(r"[;:,.]|\b(?:and|while|as|then|before|after)\b", re.I)
_EACH = re.compile(r"\b(?:both|each)\b", re.I)
_ORDINAL = re.compile(
    r"\b(?:the )?(first|second)(?: (?:dancer|person|partner|one))?(?=\W|$)|\b(?:dancer|person) ([12])\b", re.I
)
_SOMEONE = re.compile(r"\b(?:one|a|an|the other|another)(?: (?:of|dancer|person|partner|one))", re.I)
_LEFT_RIGHT = rf"(left|right)(?:ward(?:s)?)?\b(?![ -](?:hand|arm|leg|foot|shoulder|knee|elbow|of)s?\b(?! {_VERB}))"
_DIRECTION = re.compile(
    rf"\b(?:to|towards?) (?:the|his|her|their|its) {_LEFT_RIGHT}"
    rf"|\b{_VERB}\w* (?:around |over )?{_LEFT_RIGHT}"
    rf"|\b(left|right)(?:[ -]hand(?:ed)?)? {_VERB}\w*"
    r"|\b((?:counter|anti)[- ]?)?(clockwise)\b",
    re.I,
)
_KIND = r"(?:(?:full|complete|whole|quick|left|right|hand|360|degree)[ -])*"
_MANY = r"(two|three|four|five|six|\d{1,2})"
# "one turn" is a number, "one turns" is a person who turns.
_ONE = re.compile(rf"\b(?:a|an|one|1) {_KIND}{_NOUN}\b|\ball the way (?:around|round)\b", re.I)
_NUMBER = re.compile(rf"\b(once|twice)\b|(?<!person )(?<!dancer )\b{_MANY} (?:{_KIND}{_NOUN}s|times)\b", re.I)
_SEVERAL = re.compile(rf"\b(?:several|many|multiple|a few)(?: \w+)? (?:times|{_VERB}\w*)", re.I)


def parse_turns(caption: str) -> list[TurnClaim]:
    """Claims about turning that name a direction or a number of full turns.

    Clauses are read one by one; a clause without a subject continues with the one before. Clockwise, seen from above,
    is a turn to the right. "turning around each other" or "turned away" claim neither and yield nothing.
    """
    claims: list[TurnClaim] = []
    dancers: tuple[int | None, ...] = (None,)
    for clause in _CLAUSES.split(caption):
        dancers = _subject(clause) or dancers
        if not _TURNING.search(clause):
            continue
        direction, (count, at_least) = _direction(clause), _count(clause)
        if direction is None and count is None:
            continue
        claims += [TurnClaim(dancer, direction, count, at_least) for dancer in dancers]
    return claims


def _subject(clause: str) -> tuple[int | None, ...] | None:
    verb = _TURNING.search(clause)
    before = clause[: verb.start()] if verb else clause
    if _EACH.search(before):
        return (0, 1)
    if match := _ORDINAL.search(before):
        word = (match[1] or match[2]).lower()
        return (0,) if word in ("first", "1") else (1,)
    return (None,) if _SOMEONE.search(before) else None


def _direction(clause: str) -> str | None:
    match = _DIRECTION.search(clause)
    if match is None:
        return None
    if match[5]:
        return "left" if match[4] else "right"
    return (match[1] or match[2] or match[3]).lower()


def _count(clause: str) -> tuple[int | None, bool]:
    if _SEVERAL.search(clause):
        return SEVERAL, True
    if match := _NUMBER.search(clause):
        word = (match[1] or match[2]).lower()
        return int(word) if word.isdigit() else _NUMBERS[word], False
    return (1 if _ONE.search(clause) else None), False


@dataclass(frozen=True)
class TurnAgreement:
    """Whether a motion does what a caption says: None where the caption says nothing about it."""

    direction: bool | None
    count: bool | None


def agreement(joints: Floats, caption: str, *, fps: float = FPS) -> TurnAgreement:
    """Compare the turns of two persons (2, T, 22, 3) with a caption; every claim of the caption must hold.

    A dancer turns in a named direction if most of the angle of their turns lies in it, or, where the caption lets the
    same dancer turn both ways, any turn does. Turns are those of at least ``FULL_TURN`` degrees where the caption names
    a number, ``PART_TURN`` otherwise. The count is that of turns in the named direction, of all turns where none is
    named. Where the caption leaves open who turns, the direction is that of the dancer who turns most, and the count
    must be that of either.
    """
    if joints.ndim != 4 or joints.shape[0] != 2:
        raise ValueError(f"joints: expected shape (2, T, 22, 3), got {joints.shape}")
    claims = parse_turns(caption)
    directions, counts = [], []
    for claim in claims:
        least = PART_TURN if claim.count is None else FULL_TURN
        angles = [turns(person, min_degrees=least, fps=fps) for person in joints]
        if claim.direction is not None:
            own = max(angles, key=_total) if claim.dancer is None else angles[claim.dancer]
            both_ways = any(c.dancer == claim.dancer and c.direction not in (None, claim.direction) for c in claims)
            directions.append(bool(_named(own, claim)) if both_ways else sum(own) * _SIGNS[claim.direction] > 0)
        if claim.count is not None:
            numbers = [count_turns(_named(own, claim)) for own in angles]
            possible = numbers if claim.dancer is None else [numbers[claim.dancer]]
            counts.append(any(n >= claim.count if claim.at_least else n == claim.count for n in possible))
    return TurnAgreement(all(directions) if directions else None, all(counts) if counts else None)


def _agreements(sample: Sample) -> Numbers:
    verdicts = [agreement(c.joints, caption, fps=sample.fps) for c in sample.clips for caption in c.captions]
    found: Numbers = {}
    for name in ("direction", "count"):
        told = [verdict for each in verdicts if (verdict := getattr(each, name)) is not None]
        found[f"turn_{name}"] = 100 * sum(told) / len(told) if told else None
        found[f"turn_{name}_captions"] = len(told)
    return found


TURNS = Metric(
    {"turn_direction": "turn direction as in caption (%)", "turn_count": "turn count as in caption (%)"}, _agreements
)
"""Shares of the captions that name a direction or a number of turns."""

_SIGNS = {"left": 1.0, "right": -1.0}


def _total(angles: Sequence[float]) -> float:
    return sum(map(abs, angles))


def _named(angles: Sequence[float], claim: TurnClaim) -> list[float]:
    return [angle for angle in angles if claim.direction is None or angle * _SIGNS[claim.direction] > 0]
