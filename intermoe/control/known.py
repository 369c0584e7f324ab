"""Persons and frames that are given: what a user says, where it lies in a motion, its latents, and the way back.

What is given comes back bit for bit: it takes the place of what was decoded, and its neighbours in time are led to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.config import check_flag, check_integer, check_several
from intermoe.control.targets import Aims, Target
from intermoe.diffusion import KnownLatents
from intermoe.motion.arrays import LARGEST, real_array
from intermoe.motion.bones import bone_lengths, with_rigid_bones
from intermoe.motion.interhuman import with_positions
from intermoe.motion.representation import Representation
from intermoe.motion.smooth import least_jerk

# What other numbers do to given motion and to what is made beside it: `intermoe evaluate control --data DATA`.
BLEND, MOST_BLEND = 16, 1000
WHOLE_GAP = 60
"""Frames between given ones up to which a gap is led from both its ends as a whole."""
RESAMPLING, MOST_RESAMPLING = 3, 100
HOLDING, HELD_SMOOTH = 4, 10.0
"""How often bones beside given frames are held and motion is smoothed, and the weight of its third differences."""


@dataclass(frozen=True, eq=False)
class Known:
    """Motion of one person that is given: all of it (the others react), or some frames (the rest is filled in).

    Args:
        person: who it is, from 0.
        joints: (t, J, 3) metres, Y up, in the model's frame of reference; or
        motion: (t, ...) un-normalised, in the model's representation. An array or a tensor, kept as float32.
        frames: where it goes, ``slice(start, stop)`` of t frames; ``None`` for the first t.
        fps: its rate, where it should be compared with the model's.

    Raises:
        ValueError: not exactly one of joints and motion, no frame, a number that is not finite, or ``frames`` that are
            not a run of t. TypeError: a value of another kind.
    """

    person: int
    joints: Any = None
    motion: Any = None
    frames: slice | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "person", check_integer(self.person, "person", low=0))
        if (self.joints is None) == (self.motion is None):
            raise ValueError("joints, motion: expected one of the two, got both or neither")
        name = "motion" if self.joints is None else "joints"
        values = torch.from_numpy(real_array(getattr(self, name), name).copy())
        if values.dim() < 2 or len(values) == 0:
            raise ValueError(f"{name}: expected frames in the first dimension, got shape {tuple(values.shape)}")
        if name == "joints" and (values.dim() != 3 or values.shape[2] != 3):
            raise ValueError(f"joints: expected shape (t, J, 3), got {tuple(values.shape)}")
        bad = ~(values.flatten(1).abs() <= LARGEST).all(dim=1)  # what is not finite is not within it either
        if bad.any():
            frame = int(bad.nonzero()[0])
            raise ValueError(f"{name}: expected finite numbers up to {LARGEST:g}, got others in frame {frame}")
        object.__setattr__(self, name, values)
        object.__setattr__(self, "frames", _run(self.frames, len(values)))

    @property
    def run(self) -> slice:
        """``frames`` with both its ends."""
        return cast(slice, self.frames)

    def as_motion(self, representation: Representation) -> Tensor:
        """(t, ...) in the representation; of joints alone the rotations are a fit (``intermoe.motion.rig``).

        Raises:
            ValueError: it does not fit the representation.
        """
        if self.fps is not None and self.fps != representation.fps:
            raise ValueError(f"fps: expected {representation.fps}, the model's rate, got {self.fps}")
        if self.joints is None:
            if self.motion.shape[1:] != representation.frame_shape:
                expected = ", ".join(map(str, representation.frame_shape))
                raise ValueError(
                    f"motion: expected shape (t, {expected}) of {representation.name}, got {tuple(self.motion.shape)}"
                )
            return self.motion  # type: ignore[no-any-return]
        if representation.from_joints is None:
            raise ValueError(
                f"joints: expected motion, as {representation.name} does not follow from joints, got joints"
            )
        count = representation.skeleton.num_joints
        if self.joints.shape[1] != count:
            raise ValueError(f"joints: expected {count} joints, got {self.joints.shape[1]}")
        return representation.from_joints(self.joints)


def _run(frames: slice | None, count: int) -> slice:
    if frames is None:
        return slice(0, count)
    if not isinstance(frames, slice):
        raise TypeError(f"frames: expected a slice, got {frames!r}")
    if frames.step not in (None, 1):
        raise ValueError(f"frames: expected a run of frames, got step {frames.step}")
    start = check_integer(0 if frames.start is None else frames.start, "frames: start", low=0)
    stop = check_integer(start + count if frames.stop is None else frames.stop, "frames: stop", low=0)
    if stop - start != count:
        raise ValueError(f"frames: expected {count} frames, as many as are given, got [{start}, {stop})")
    return slice(start, stop)


def check_resampling(value: Any) -> int:
    """``value`` as an ``int``. Raises ``ValueError`` outside [1, ``MOST_RESAMPLING``]."""
    return check_integer(value, "resampling", low=1, high=MOST_RESAMPLING)


@dataclass(frozen=True)
class Control:
    """What a generated motion has to keep.

    Args:
        known: persons and frames that are given.
        blend: frames over which the neighbours of given ones are led to them, 0 for none. A gap of up to ``WHOLE_GAP``
            frames between given ones is led as a whole, by what parts it from them at either end.
        resampling: how often each step is taken by models that keep what is known by replacement
            (``intermoe.diffusion.KnownLatents``). More cost more time and fit better.
        targets: where joints shall be.
        bodies_apart: whether bodies, as capsules, keep out of each other.
        estimate_gaps: whether gaps between given frames, where they are short and nothing has targets, are filled as
            the frames beside them let expect, the same for every prompt and seed, by a model that has learned it
            (``PipelineConfig.between``); otherwise they are drawn like all else.

    Raises:
        ValueError: a value outside its range. TypeError: a value of another kind.
    """

    known: Sequence[Known] = ()
    blend: int = BLEND
    resampling: int = RESAMPLING
    targets: Sequence[Target] = ()
    bodies_apart: bool = False
    estimate_gaps: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", check_several(self.known, "known"))
        object.__setattr__(self, "blend", check_integer(self.blend, "blend", low=0, high=MOST_BLEND))
        object.__setattr__(self, "resampling", check_resampling(self.resampling))
        for known in self.known:
            if not isinstance(known, Known):
                raise TypeError(f"known: expected Known, got {known!r}")
        object.__setattr__(self, "targets", check_several(self.targets, "targets"))
        check_flag(self.bodies_apart, "bodies_apart")
        check_flag(self.estimate_gaps, "estimate_gaps")
        for target in self.targets:
            if not isinstance(target, Target):
                raise TypeError(f"targets: expected Target, got {target!r}")
        if not (self.known or self.aims):
            raise ValueError("known, targets: expected at least one, got none")

    @property
    def aims(self) -> Aims | None:
        """What steers by gradients, if there is any."""
        return Aims(self.targets, self.bodies_apart) if self.targets or self.bodies_apart else None

    def place(self, representation: Representation, num_frames: int, persons: int) -> Given:
        """Where everything lies in a motion of ``persons`` and ``num_frames``.

        Raises:
            ValueError: a person or frames that the motion does not have, that are given twice, or that do not fit the
                representation; names the entry of ``known`` or ``targets``.
        """
        for index, target in enumerate(self.targets):
            try:
                target.check(num_frames, persons)
            except ValueError as error:
                raise ValueError(f"targets[{index}].{error}") from None
        motion = torch.zeros(persons, num_frames, *representation.frame_shape)
        where = torch.zeros(persons, num_frames, dtype=torch.bool)
        for index, known in enumerate(self.known):
            frames = known.run
            if known.person >= persons:
                raise ValueError(f"known[{index}].person: expected one of 0 to {persons - 1}, got {known.person}")
            if frames.stop > num_frames:
                raise ValueError(
                    f"known[{index}].frames: expected within [0, {num_frames}), got [{frames.start}, {frames.stop})"
                )
            if where[known.person, frames].any():
                raise ValueError(f"known[{index}].frames: expected each frame of person {known.person} once, got twice")
            try:
                motion[known.person, frames] = known.as_motion(representation)
            except ValueError as error:
                raise ValueError(f"known[{index}].{error}") from None
            where[known.person, frames] = True
        return Given(representation, motion, where, self.blend)


@dataclass(frozen=True, eq=False)
class Given:
    """What is given of one motion: ``motion`` (P, T, ...) where ``where`` (P, T) says so."""

    representation: Representation
    motion: Tensor
    where: Tensor
    blend: int

    def filled(self, frames: int) -> Tensor:
        """(P, frames, ...) for the encoder: gaps are filled from their two ends, the ends of the motion are held."""
        count = self.where.shape[1]
        filled = torch.stack([_interpolated(*each) for each in zip(self.motion, self.where, strict=True)])
        return torch.cat([filled, filled[:, -1:].expand(-1, frames - count, *filled.shape[2:])], dim=1)

    def with_gaps(self, between: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Given:
        """The same, of InterHuman's layout, with what ``between`` fills as if it were given.

        Args:
            between: joints (P, T, 22, 3) and where (P, T) they are given, to such joints and where they were filled.
        """
        motion = self.filled(self.where.shape[1])
        joints, filled = between(self.representation.joints(motion), self.where)
        moved = filled | F.pad(filled[:, 1:], (0, 1))  # a velocity leads to the next frame
        motion = torch.where(moved[..., None], with_positions(motion, joints), motion)
        return replace(self, motion=motion, where=self.where | filled)

    def paste(self, motion: Tensor) -> Tensor:
        """Decoded motion (P, T, ...) with what is given in its place.

        Up to ``blend`` free frames before and after, or all those of a gap, get a part of what sets the frame beside
        the seam apart from where the given ones lead, less the further away. Then the ``blend`` frames are eased
        (``_eased``): what is decoded may jump where it begins to be free. Velocities follow from positions, contacts
        stay.
        """
        result = motion.clone()
        for row, given, where in zip(result, self.motion, self.where, strict=True):
            if not where.any():
                continue
            decoded, moved = row.clone(), where.clone()
            for anchor, step, weight in _fading(where, self.blend):
                offset = _led_on(given, where, decoded, anchor, step) - decoded[anchor + step]
                if self.representation.contacts is not None:
                    offset[..., self.representation.contacts] = 0.0
                row += offset * weight.view(-1, *[1] * (row.dim() - 1))
                moved |= weight > 0
            row[where] = given[where]
            eased = _eased(row, where, self.blend)
            if self.representation.contacts is not None:
                eased[..., self.representation.contacts] = row[..., self.representation.contacts]
            row[:] = eased
            if not self.representation.root_centred:
                self._follow(row, moved)
                row[where] = given[where]
        return result

    def bone_lengths(self) -> Tensor:
        """Lengths (P, 21) of the bones of what is given in InterHuman's layout, NaN of whom nothing is given."""
        joints = self.representation.joints(self.motion)
        return torch.stack([bone_lengths(each[where]) for each, where in zip(joints, self.where, strict=True)])

    def with_rigid_bones(self, motion: Tensor, lengths: Tensor) -> Tensor:
        """Pasted InterHuman motion (P, T, 262) whose bones keep ``lengths`` (P, 21) beside what is given too.

        What is led and eased there moves joint by joint, and bones that are made right again at the end alone would
        tremble. So frames are held and smoothed in turns (``HOLDING``, ``HELD_SMOOTH``); what is given stays.
        """
        some = self.where.any(dim=1) & ~self.where.all(dim=1)
        if not some.any():
            return motion
        free, result = (some[:, None] & ~self.where)[..., None], motion.clone()
        for _ in range(HOLDING if self.blend else 0):
            result = torch.where(free, with_rigid_bones(result, lengths), result)
            for person in some.nonzero()[:, 0].tolist():
                row, where = result[person], self.where[person]
                joints = self.representation.positions(row)
                distance = _distances(where)
                pull = torch.full((len(where),), 1 / HELD_SMOOTH, dtype=torch.float64)
                pull[(distance == 0) | (distance > self.blend)] = math.inf
                row[:] = with_positions(row, least_jerk(joints.flatten(-2), pull).view_as(joints))
        return torch.where(free, with_rigid_bones(result, lengths), motion)

    def _follow(self, row: Tensor, moved: Tensor) -> None:
        """Velocities of frames (T,) that were moved, and of those before them, are differences to the next frame."""
        moves = self.representation.positions(row).diff(dim=0)
        changed = (moved[:-1] | moved[1:]).nonzero()[:, 0]
        columns = row[..., self.representation.velocity]
        columns[changed] = moves[changed].reshape(columns[changed].shape)


def _interpolated(motion: Tensor, where: Tensor) -> Tensor:
    """Frames (T, ...), between those that are given on a line, before and after them as the nearest."""
    given = where.nonzero()[:, 0]
    if len(given) == 0:
        return motion
    time = torch.arange(len(where))
    after = torch.searchsorted(given, time).clamp(max=len(given) - 1)
    before = (torch.searchsorted(given, time, right=True) - 1).clamp(min=0)
    low, high = given[before], given[after]
    share = ((time - low) / (high - low).clamp(min=1)).clamp(0, 1).view(-1, *[1] * (motion.dim() - 1))
    return torch.lerp(motion[low], motion[high], share)


def _led_on(given: Tensor, where: Tensor, decoded: Tensor, anchor: int, step: int) -> Tensor:
    """Where the given frames (T, ...) that end at ``anchor`` lead: as fast as they end, or one alone as decoded."""
    before = anchor - step
    if 0 <= before < len(where) and where[before]:
        return 2 * given[anchor] - given[before]
    return given[anchor] + decoded[anchor + step] - decoded[anchor]


def _fading(where: Tensor, blend: int) -> list[tuple[int, int, Tensor]]:
    """For each end of a given run its frame, the way on, and the weights (T,) by which free frames beyond follow."""
    frames = len(where)
    result = []
    for seam in where.int().diff().nonzero()[:, 0].tolist():
        anchor, step = (seam, 1) if where[seam] else (seam + 1, -1)
        gap = 0
        while 0 <= anchor + step * (gap + 1) < frames and not where[anchor + step * (gap + 1)]:
            gap += 1
        whole = 0 <= anchor + step * (gap + 1) < frames and blend > 0 and gap <= WHOLE_GAP
        reach = max(gap - 1, 0) if whole else min(blend, gap)  # the weights of a whole gap's two ends add up to 1
        weight = torch.zeros(frames)
        for distance in range(reach):
            weight[anchor + step * (distance + 1)] = (1 + math.cos(math.pi * distance / reach)) / 2
        if whole and gap == 1:
            weight[anchor + step] = 0.5
        result.append((anchor, step, weight))
    return result


def _distances(where: Tensor) -> Tensor:
    """How many frames each of (T,) is from the nearest that is given, of which there is one."""
    given = where.nonzero()[:, 0]
    return (torch.arange(len(where))[:, None] - given).abs().amin(dim=1)


def _eased(row: Tensor, where: Tensor, blend: int) -> Tensor:
    """Frames x (T, ...) with those at a distance d of 1 to ``blend`` from given ones by ``least_jerk``, pulled to x by
    (d / (blend + 1))^4: beside what is given the path of least jerk, further away what was decoded.
    """
    distance = _distances(where)
    pull = (distance / (blend + 1)).double() ** 4
    pull[(distance == 0) | (distance > blend)] = math.inf
    return least_jerk(row.flatten(1), pull).view_as(row)


def known_latents(
    given: Sequence[Given], encode: Callable[[Tensor], Tensor], multiple: int, *, by_levels: bool, resampling: int = 1
) -> KnownLatents:
    """The latents of what is given of each motion of a batch, padded to the longest.

    Only runs of ``multiple`` frames that are given as a whole have known latents; what is left is pasted alone.

    Args:
        given: of each motion.
        encode: motion (1, P, T, ...) to latents (1, P, T / multiple, X).
        by_levels, resampling: see ``KnownLatents``.
    """
    rows = []
    for each in given:
        count = -(-each.where.shape[1] // multiple)
        latents = encode(each.filled(count * multiple)[None])[0].flatten(2)
        spare = count * multiple - each.where.shape[1]
        padded = torch.cat([each.where, each.where[:, -1:].expand(-1, spare)], dim=1)
        rows.append((latents, padded.unflatten(1, (count, multiple)).all(dim=2)))
    longest = max(where.shape[1] for _, where in rows)
    persons, _, width = rows[0][0].shape
    latents = rows[0][0].new_zeros(len(rows), persons, longest, width)
    known = torch.zeros(len(rows), persons, longest, dtype=torch.bool, device=latents.device)
    for index, (values, where) in enumerate(rows):
        latents[index, :, : values.shape[1]] = values
        known[index, :, : where.shape[1]] = where.to(latents.device)
    return KnownLatents(latents, known, by_levels, resampling)
