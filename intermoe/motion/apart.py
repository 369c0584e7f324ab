"""Bodies that are not in each other."""

from __future__ import annotations

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from intermoe.motion.bones import bone_lengths, hold_bone_lengths
from intermoe.motion.capsules import CAPSULES, between, together
from intermoe.motion.interhuman import joints, with_positions
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS

SWEEPS = 5
REACH = 8
"""Frames before and after a displacement over which it fades, a quarter of a second."""
_LIMBS, _BODIES = 4.0, 2.0
"""Over-relaxation of what moves a limb, which its bones take back in part, and a body: what is spread over time is a
mean, and less than is needed where most is."""
_TRUNK = 3
"""So many of ``CAPSULES``, the first, are the trunk and the head; they move the whole body."""
_STARTS, _ENDS, _ = zip(*CAPSULES, strict=True)
_ROOTED = [number for number, start in enumerate(_STARTS) if JOINT_NAMES[start].endswith(("_hip", "_shoulder"))]
"""Those that begin at the trunk; what moves their beginning moves the whole body."""
_FURTHEST = 0.2
"""Metres that a joint is moved at once."""
_CANCELLED = 0.3
"""Share of the length below which ways that cancel each other lead less far."""
_NEAREST = 1e-6
_BETWEEN = 2 * CAPSULES[0][2]
"""Metres between two pelvises whose trunks touch; who comes nearer walks through the other."""
_ROOM = 0.35
"""Metres between the pelvises of two who pass each other, arms and all."""
_PASSES = 3
"""How often those who are led past each other are looked at again: who is led past one may come near another."""
_STANDING = 0.1
"""Metres along the ground below which two do not pass each other."""


def with_bodies_apart(motion: Tensor, fixed: Tensor | None = None) -> Tensor:
    """InterHuman motion (P, T, 262), un-normalised, whose persons' bodies are out of each other.

    Bodies are capsules around bones (``intermoe.motion.capsules``). Where two are in each other, position-based
    dynamics (Müller et al. 2007) move them by the shortest way out, half of it each: trunks along the ground, with all
    that hangs on them; limbs alone, and all the way where they are in a trunk. Each of up to ``SWEEPS`` displacements
    fades over ``REACH`` frames, and bones have their lengths again. Who walks through somebody is led past them first,
    and again in the end: no pelvis of who may move is nearer to another's than two trunks are thick. Velocities are the
    differences of the positions (the last frame's stays); other columns stay. Frames that are not moved stay as they
    are.

    Args:
        fixed: (P, T) bool, who is not moved when; others go all the way then.

    Raises:
        ValueError: not (P, T, 262).
    """
    positions = joints(motion)
    if positions.dim() != 4:
        raise ValueError(f"motion: expected shape (P, T, {motion.shape[-1]}), got {tuple(motion.shape)}")
    if fixed is None:
        fixed = torch.zeros(positions.shape[:2], dtype=torch.bool)
    fixed = fixed.to(positions.device)
    moved = _moved_apart(positions, fixed)
    changed = (moved != positions).flatten(-2).any(dim=-1)
    changed = changed | F.pad(changed[:, 1:], (0, 1))  # a velocity leads to the next frame
    return torch.where((changed & ~fixed)[..., None], with_positions(motion, moved), motion)


def _moved_apart(positions: Tensor, fixed: Tensor) -> Tensor:
    """Joints (P, T, 22, 3) out of each other; bones have their lengths again after the first sweep and in the end."""
    lengths, free, touched = bone_lengths(positions), _free(fixed), torch.zeros_like(fixed)
    positions = _led_past(positions, fixed, free)
    for sweep in range(SWEEPS):
        shift = _ways_out(positions, fixed)
        if not shift.any():
            break
        shift = free[..., None, None] * _faded(shift)
        positions = positions + shift
        touched |= shift.flatten(-2).any(dim=-1)
        if sweep == 0:
            positions = _with_bones(positions, touched, lengths)
    return _led_past(_with_bones(positions, touched, lengths) if touched.any() else positions, fixed, free)


def _led_past(positions: Tensor, fixed: Tensor, free: Tensor) -> Tensor:
    """Joints (P, T, 22, 3) with whole bodies moved along the ground, so that no two pelvises are within ``_BETWEEN``.

    While two are nearer, they keep ``_ROOM`` at one side of each other, which fades over ``REACH`` frames around: at
    that on which they are when they are nearest, across their way, or straight apart if they do not pass. Each goes
    half of it, or all where the other is ``fixed`` (P, T); ``free`` as of ``_free``.
    """
    for _ in range(_PASSES):
        shift = torch.zeros_like(positions[:, :, 0])
        for one, other in combinations(range(len(positions)), 2):
            offset = positions[one, :, 0] - positions[other, :, 0]
            for begin, end in _runs(torch.linalg.vector_norm(offset, dim=-1) < _BETWEEN):
                way = _past(offset, begin, end)
                held = fixed[[one, other], max(begin - REACH, 0) : end + REACH].any(dim=1).tolist()
                share = 0.5 if held[0] == held[1] else float(held[1])
                shift[one] += share * way
                shift[other] -= (1 - share) * way
        if not shift.any():
            break
        positions = positions + (free[..., None] * shift)[:, :, None]
    return positions


def _runs(where: Tensor) -> list[tuple[int, int]]:
    """First frame and the one after the last of each run of (T,); those with up to ``REACH`` frames between are one."""
    runs: list[tuple[int, int]] = []
    for frame in where.nonzero()[:, 0].tolist():
        begin = runs.pop()[0] if runs and frame - runs[-1][1] <= REACH else frame
        runs.append((begin, frame + 1))
    return runs


def _past(offset: Tensor, begin: int, end: int) -> Tensor:
    """By what (T, 3) an offset of two pelvises grows so that along the ground it is ``_ROOM`` in [begin, end)."""
    ground = offset[:, [0, 2]]
    here = ground[begin:end]
    nearest = here[torch.linalg.vector_norm(here, dim=-1).argmin()]
    x, z = (ground[min(end, len(ground) - 1)] - ground[max(begin - 1, 0)]).tolist()
    across = ground.new_tensor([-z, x]) if math.hypot(x, z) > _STANDING else nearest
    side = across / torch.linalg.vector_norm(across).clamp(min=_NEAREST)
    side = side if float(side @ nearest) >= 0 else -side
    along = here @ ground.new_tensor([-side[1], side[0]])
    needed = (_ROOM**2 - along.square()).clamp(min=0).sqrt() - here @ side
    frames = torch.arange(len(ground), device=ground.device)
    beyond = torch.maximum(begin - frames, frames - (end - 1)).clamp(min=0, max=REACH)
    weight = (1 + torch.cos(torch.pi * beyond / REACH)) / 2
    way = (needed.amax().clamp(min=0) * weight)[:, None] * side
    return torch.stack([way[:, 0], torch.zeros_like(weight), way[:, 1]], dim=-1)


def _with_bones(positions: Tensor, where: Tensor, lengths: Tensor) -> Tensor:
    """Joints (P, T, 22, 3), ``where`` (P, T) with bones of ``lengths`` (P, 21)."""
    frames = where.any(dim=0)
    here = positions[:, frames]
    held = positions.clone()
    held[:, frames] = torch.where(where[:, frames, None, None], hold_bone_lengths(here, lengths), here)
    return held


def _ways_out(positions: Tensor, fixed: Tensor) -> Tensor:
    """By what joints (P, T, 22, 3) are moved out of others' bodies, frame by frame."""
    shift = torch.zeros_like(positions)
    for one, other in combinations(range(len(positions)), 2):
        way, s, t = between(positions[one], positions[other])
        distance = torch.linalg.vector_norm(way, dim=-1)
        depth = (together(way) - distance).clamp(min=0)
        if not depth.any():
            continue
        out = way / distance.clamp(min=_NEAREST)[..., None]
        out = torch.where(distance[..., None] < _NEAREST, out.new_tensor([1.0, 0.0, 0.0]), out)  # of one place, X
        own = _share(fixed[one], fixed[other], depth)
        shift[one] += _moved((own * depth)[..., None] * out, s)
        theirs = _share(fixed[other], fixed[one], depth).mT
        shift[other] += _moved(-((theirs * depth)[..., None] * out).transpose(1, 2), t.mT)
    return shift


def _share(fixed: Tensor, other: Tensor, depth: Tensor) -> Tensor:
    """What of the way out (T, C, C) the capsules of a body go, which are the rows; fixed (T,) either may be."""
    trunk = torch.arange(depth.shape[-1], device=depth.device) < _TRUNK
    share = torch.full(depth.shape[1:], 0.5, device=depth.device)
    share[~trunk[:, None] & trunk] = 1.0
    share[trunk[:, None] & ~trunk] = 0.0
    share = torch.where(other[:, None, None], 1.0, share)
    return torch.where(fixed[:, None, None], 0.0, share)


def _moved(push: Tensor, place: Tensor) -> Tensor:
    """Joints' displacement (T, 22, 3) by what pushes a body's capsules (T, C, C, 3) at places (T, C, C) of them."""
    strongest = torch.linalg.vector_norm(push, dim=-1).argmax(dim=-1, keepdim=True)
    push = push.gather(2, strongest[..., None].expand(-1, -1, -1, 3))[:, :, 0]
    s = place.gather(2, strongest)[..., 0]
    reach = (s**2 + (1 - s) ** 2)[..., None]
    pushed = push.any(dim=-1)
    at_start, at_end = (weight / reach * push for weight in ((1 - s)[..., None], s[..., None]))
    total = push.new_zeros(len(push), NUM_JOINTS, 3)
    count = push.new_zeros(len(push), NUM_JOINTS, 1)
    for capsule in range(_TRUNK, len(CAPSULES)):
        for joint, moved in ((_STARTS[capsule], at_start), (_ENDS[capsule], at_end)):
            if joint == _STARTS[capsule] and capsule in _ROOTED:
                continue
            total[:, joint] += moved[:, capsule]
            count[:, joint] += pushed[:, capsule, None]
    whole = torch.cat([push[:, :_TRUNK], at_start[:, _ROOTED]], dim=1) * push.new_tensor([1.0, 0.0, 1.0])
    deepest = torch.linalg.vector_norm(whole, dim=-1).argmax(dim=1)
    return _LIMBS * total / count.clamp(min=1) + _BODIES * whole.gather(1, deepest[:, None, None].expand(-1, 1, 3))


def _free(fixed: Tensor) -> Tensor:
    """How far (P, T) each person may be moved, from 0 where it is ``fixed`` to 1 from ``REACH`` frames on."""
    window = torch.hann_window(2 * REACH + 1, periodic=False, device=fixed.device)
    near = F.pad(fixed.float(), (REACH, REACH)).unfold(-1, 2 * REACH + 1, 1)
    return 1 - (near * window).amax(dim=-1)


def _faded(shift: Tensor) -> Tensor:
    """Displacements (P, T, 22, 3) spread over time: as long as those around in the mean, fading where there are none.

    They go where those around go together. Who walks through somebody would be held back at first and pushed on in the
    end; that cancels, and what is left leads past.
    """
    rows = torch.cat([shift, torch.linalg.vector_norm(shift, dim=-1, keepdim=True)], dim=-1).permute(0, 2, 3, 1)
    window = torch.hann_window(2 * REACH + 1, periodic=False, dtype=rows.dtype, device=rows.device).view(1, 1, -1)

    def spread(values: Tensor) -> Tensor:
        return F.conv1d(values.reshape(-1, 1, values.shape[-1]), window, padding=REACH).view(values.shape)

    there = rows[:, :, 3:].ne(0).to(rows)
    way, length = (spread(rows) / spread(there).clamp(min=1)).permute(0, 3, 1, 2).split([3, 1], dim=-1)
    left = torch.linalg.vector_norm(way, dim=-1, keepdim=True)
    far = way * (1 + _CANCELLED) * length / (left + _CANCELLED * length).clamp(min=_NEAREST)
    return far * (_FURTHEST / torch.linalg.vector_norm(far, dim=-1, keepdim=True).clamp(min=_FURTHEST))
