"""A scene that goes on: window after window, each of which begins with the end of the one before.

A model has its first person start at the origin, facing Z+. So each window is made in a frame of its own, in which what
it begins with starts so, and is then put into the scene. What is kept between windows does not grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from intermoe.control.known import Control, Known
from intermoe.control.targets import Target
from intermoe.motion.bones import bone_lengths, with_rigid_bones
from intermoe.motion.interhuman import facing_forward, with_positions
from intermoe.motion.representation import Representation

OVERLAP = 20
"""Frames that two windows have in common."""

TAIL = 4
"""Frames by which a window is made longer where it has room: motion is smoothed by what follows, and its last frames
tremble where nothing does (`intermoe evaluate control`: jerk at the seams of a timeline)."""

MAX_SEED = 2**62
"""Of the first window: the later ones count on from it."""

_UP = torch.tensor([0.0, 1.0, 0.0])

Lead = tuple[int, str | int, Sequence[float]]
"""A person, a joint of theirs and a place in the scene, in metres."""

Window = Callable[[str, int, int, Control | None], Tensor]
"""Prompt, number of frames, seed and control to motion (P, T, ...)."""


class Scene:
    """Makes a scene, some frames at a time, from the first frame on.

    Args:
        representation: one whose motion can be moved in the world.
        window: makes a motion.
        seed: of the first window; each later one has the next.
        overlap: frames that a window begins with.
        resampling: see ``Control``.
        min_frames, max_frames: of a window.

    Raises:
        ValueError: a representation that cannot be moved.
    """

    def __init__(
        self,
        representation: Representation,
        window: Window,
        *,
        seed: int,
        resampling: int,
        min_frames: int,
        max_frames: int,
        overlap: int = OVERLAP,
    ) -> None:
        check_movable(representation)
        self.representation = representation
        self._window = window
        self._seed = seed
        self._resampling = resampling
        self._min_frames, self._max_frames = min_frames, max_frames
        self._overlap = overlap
        self._end: Tensor | None = None
        self._bones: Tensor | None = None

    @property
    def later(self) -> int:
        """Most new frames of a window after the first."""
        return self._max_frames - self._overlap

    @property
    def room(self) -> int:
        """Most frames of the next window."""
        return self._max_frames if self._end is None else self.later

    def next(self, prompt: str, frames: int, leads: Sequence[Lead] = ()) -> Tensor:
        """The next ``frames`` of the scene, at most ``room``: motion (P, frames, ...), un-normalised.

        Args:
            leads: where joints shall be in the second half of these frames.

        Raises:
            ValueError: more than there is room for.
        """
        if frames > self.room:
            raise ValueError(f"frames: expected at most {self.room} in one window, got {frames}")
        motion = (
            self._first(prompt, frames, leads)
            if self._end is None
            else self._following(prompt, frames, self._end, leads)
        )
        if self._bones is None:
            self._bones = bone_lengths(self.representation.joints(motion))
        motion = with_rigid_bones(motion, self._bones)
        there = motion if self._end is None else torch.cat([self._end, motion], dim=1)
        self._end = there[:, -self._overlap :].clone()
        self._seed += 1
        return motion

    def _first(self, prompt: str, frames: int, leads: Sequence[Lead]) -> Tensor:
        late = range(frames // 2, frames)
        targets = [Target(who, joint, late, positions=[place] * len(late)) for who, joint, place in leads]
        control = Control(targets=targets) if targets else None
        return self._window(prompt, self._length(frames), self._seed, control)[:, :frames]

    def _length(self, frames: int) -> int:
        """Of a window of which so many frames are wanted."""
        return max(min(frames + TAIL, self._max_frames), self._min_frames)

    def _following(self, prompt: str, frames: int, end: Tensor, leads: Sequence[Lead]) -> Tensor:
        turned, joints = self.representation.turned, self.representation.joints
        if turned is None:  # refused already
            raise ValueError(self.representation.name)
        turn, origin = facing_forward(joints(end[0, :1])[0])
        floor = joints(end)[..., 1].amin(dim=(1, 2))
        seen, count = (
            torch.stack([turned(each, turn, origin + low * _UP) for each, low in zip(end, floor, strict=True)]),
            end.shape[1],
        )
        known = [Known(person, motion=each) for person, each in enumerate(seen)]
        fading = (1 + torch.cos(torch.pi * torch.arange(1, frames + 1) / frames)) / 2
        late, targets = torch.arange(frames // 2, frames), []
        for who, joint, place in leads:
            # seen from the window, whose floor is this person's and comes back to the scene's
            low = origin + (floor[who] * fading[late])[:, None] * _UP
            there = (torch.tensor(place, dtype=low.dtype) - low) @ turn.T
            targets.append(Target(who, joint, (late + count).tolist(), positions=there))
        control = Control(known, targets=targets, resampling=self._resampling)
        made = self._window(prompt, self._length(count + frames), self._seed, control)[:, count : count + frames]
        made = turned(made, turn.T, -turn @ origin)
        lifted = joints(made) + (floor[:, None] * fading)[..., None, None] * _UP
        return with_positions(made, lifted)


def check_movable(representation: Representation) -> None:
    """Raise ``ValueError`` where motion cannot be put somewhere else in the world."""
    if representation.turned is None:
        raise ValueError(f"representation: expected one whose motion can be moved, got {representation.name}")
