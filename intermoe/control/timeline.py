"""Several prompts, one after the other, in one scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from intermoe.config import check_integer, check_several
from intermoe.control.scene import OVERLAP, Scene
from intermoe.export import MOST_FRAMES

Segments = Sequence[tuple[str, int]]
"""Prompts, each with its number of frames."""


def check_segments(segments: Segments) -> list[tuple[str, int]]:
    """``segments`` with numbers of frames that are integers.

    Raises:
        ValueError: none, an entry that is no pair, or fewer than one frame, named; more than ``MOST_FRAMES`` in all.
        TypeError: no list or the like, or no integer.
    """
    segments = check_several(segments, "segments")
    if not segments:
        raise ValueError("segments: expected pairs of a prompt and a number of frames, got none")
    checked = []
    for index, segment in enumerate(segments):
        segment = check_several(segment, f"segments[{index}]")
        if len(segment) != 2 or not isinstance(segment[0], str):
            raise ValueError(f"segments[{index}]: expected a prompt and a number of frames, got {segment!r}")
        checked.append((segment[0], check_integer(segment[1], f"segments[{index}]: frames", low=1)))
    total = sum(frames for _, frames in checked)
    if total > MOST_FRAMES:
        raise ValueError(f"segments: expected at most {MOST_FRAMES} frames in all, got {total}")
    return checked


def cut(frames: int, first: int, later: int) -> list[int]:
    """``frames`` as lengths of the fewest windows, as equal as can be; the first holds ``first``, others ``later``."""
    more = max(-(-(frames - first) // later), 0)
    begin = max(-(-frames // (more + 1)), frames - more * later)
    rest = frames - begin
    return [begin, *(rest // more + (index < rest % more) for index in range(more))]


def windows(scene: Scene, segments: Segments) -> Iterator[Tensor]:
    """Motion (P, t, ...) of a scene's segments, window after window."""
    for prompt, frames in segments:
        for count in cut(frames, scene.room, scene.later):
            yield scene.next(prompt, count)


def window_lengths(segments: Segments, max_frames: int) -> list[int]:
    """Frames of each window that ``windows`` makes of a scene of a model of up to ``max_frames``."""
    lengths: list[int] = []
    for _, frames in segments:
        lengths += cut(frames, max_frames - OVERLAP if lengths else max_frames, max_frames - OVERLAP)
    return lengths
