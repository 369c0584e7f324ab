"""What becomes of a caption when the motion is mirrored or the two persons change places."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from intermoe.data.sides import is_side

_KEPT = 2**16  # training asks for the same captions again and again

_SIDES = re.compile(r"\b(?:(left|right)(wards?|most|-?hand(?:ed)?\b)?|((?:counter|anti)[- ]?)?clockwise)\b", re.I)

_PERSON = (
    "dancer|person|partner|performer|individual|man|woman|guy|girl|boy|player|fighter|athlete|actor|figure|human|one"
)
_NOT_A_PERSON = "time|times|step|steps|beat|move|movement|moment|round|turn|spin|attempt|half|part|place|phase|stage"
_ORDINALS = re.compile(
    rf"\b(?:(?<=the )(first|second)(?! (?:{_NOT_A_PERSON})\b)|(first|second)(?= (?:{_PERSON})\b))\b", re.I
)


@functools.lru_cache(_KEPT)
def mirror_caption(caption: str) -> str:
    """Exchange left and right, clockwise and counterclockwise; whole words, case preserved.

    "counter-clockwise" and "anticlockwise" are understood. What means no side stays (``intermoe.data.sides``): "left
    the room", "is left standing", "right away", "all right".
    """
    return _SIDES.sub(_keep_case(_mirrored), caption)


@functools.lru_cache(_KEPT)
def swap_caption(caption: str) -> str:
    """Exchange "first" and "second" where they mean a person ("the first dancer", "away from the second").

    Captions that tell the persons apart by nothing else ("one of them") need no change. Its own inverse.
    """
    return _ORDINALS.sub(_keep_case(lambda match: "second" if match[0].lower() == "first" else "first"), caption)


def _mirrored(match: re.Match[str]) -> str:
    if match[1]:
        if not match[2] and not is_side(match.string[: match.start()], match[1], match.string[match.end() :]):
            return match[0]
        return ("right" if match[1].lower() == "left" else "left") + (match[2] or "").lower()
    return "clockwise" if match[3] else "counterclockwise"


def _keep_case(replace: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
    def replaced(match: re.Match[str]) -> str:
        word = replace(match)
        if match[0].isupper():
            return word.upper()
        return word.capitalize() if match[0][0].isupper() else word

    return replaced
