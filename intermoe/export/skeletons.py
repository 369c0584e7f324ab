"""Skeletons of other programs: which of their joints are ours, how large their unit is, and which way is up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from intermoe.motion.rotations import Array, unit
from intermoe.motion.skeleton import JOINT_NAMES

# Names of the 22 joints in the order of JOINT_NAMES, without case, signs and prefixes such as "mixamorig:".
_FAMILIES: dict[str, tuple[str, ...]] = {
    "SMPL": tuple(name.replace("_", "") for name in JOINT_NAMES),
    "SMPL, short": (
        "pelvis", "lhip", "rhip", "spine1", "lknee", "rknee", "spine2", "lankle", "rankle", "spine3", "lfoot", "rfoot",
        "neck", "lcollar", "rcollar", "head", "lshoulder", "rshoulder", "lelbow", "relbow", "lwrist", "rwrist",
    ),
    "Mixamo": (
        "hips", "leftupleg", "rightupleg", "spine", "leftleg", "rightleg", "spine1", "leftfoot", "rightfoot", "spine2",
        "lefttoebase", "righttoebase", "neck", "leftshoulder", "rightshoulder", "head", "leftarm", "rightarm",
        "leftforearm", "rightforearm", "lefthand", "righthand",
    ),
    "LAFAN1": (
        "hips", "leftupleg", "rightupleg", "spine", "leftleg", "rightleg", "spine1", "leftfoot", "rightfoot", "spine2",
        "lefttoe", "righttoe", "neck", "leftshoulder", "rightshoulder", "head", "leftarm", "rightarm", "leftforearm",
        "rightforearm", "lefthand", "righthand",
    ),
    "Unreal": (
        "pelvis", "thighl", "thighr", "spine01", "calfl", "calfr", "spine02", "footl", "footr", "spine03", "balll",
        "ballr", "neck01", "claviclel", "clavicler", "head", "upperarml", "upperarmr", "lowerarml", "lowerarmr",
        "handl", "handr",
    ),
}  # fmt: skip

# A leg, spine, neck and head: what a grown-up of 1.7 m has 1.4 m of, in whatever pose; the least, that, the most.
_CHAIN = ((1, 4), (4, 7), (0, 3), (3, 6), (6, 9), (9, 12), (12, 15))
_CHAIN_METRES = (0.6, 1.4, 2.4)
_UNITS = {"metres": 1.0, "centimetres": 0.01, "inches": 0.0254, "millimetres": 0.001}


def body_joints(names: Sequence[str]) -> list[int]:
    """Where each of the 22 joints is among ``names``.

    Raises:
        ValueError: the names are of no family that is known; says what the nearest one misses.
    """
    plain = [re.sub(r"[^a-z0-9]", "", name.rpartition(":")[2].lower()) for name in names]
    places = {name: place for place, name in reversed(list(enumerate(plain)))}
    missing = {family: [name for name in wanted if name not in places] for family, wanted in _FAMILIES.items()}
    family = min(missing, key=lambda name: len(missing[name]))
    if missing[family]:
        raise ValueError(
            f"skeleton: expected the 22 joints of one of {', '.join(_FAMILIES)}, got {len(names)} joints; "
            f"of {family}'s are missing: {', '.join(missing[family])}"
        )
    return [places[name] for name in _FAMILIES[family]]


def metres_per_unit(joints: Array) -> float:
    """The unit of joints (22, 3), in metres, that makes the body most like a grown-up's.

    Raises ``ValueError`` where it is like none in any unit.
    """
    size = sum(float(np.linalg.norm(joints[a] - joints[b])) for a, b in _CHAIN)
    fitting = {unit: size * metres for unit, metres in _UNITS.items()}
    fitting = {unit: metres for unit, metres in fitting.items() if _CHAIN_METRES[0] <= metres <= _CHAIN_METRES[2]}
    if not fitting:
        raise ValueError(
            f"units: expected a body in {', '.join(_UNITS)}, got one whose leg, spine and neck are {size:g}"
        )
    return _UNITS[min(fitting, key=lambda unit: abs(np.log(fitting[unit] / _CHAIN_METRES[1])))]


def unequal(paths: Sequence[Path], lengths: Sequence[int], rates: Sequence[float]) -> str:
    """What to say of persons who do not fit together."""
    told = zip(paths, lengths, rates, strict=True)
    listed = ", ".join(f"{path.name}: {length} frames, {fps:g} fps" for path, length, fps in told)
    return f"persons: expected the same length and rate, got {listed}"


def upright(joints: Array, rest: Array) -> Array:
    """Joints (T, 22, 3) with Y up: as they are, or turned if their skeleton at ``rest`` (22, 3) stands along Z.

    Where it does not stand at rest, it is upright as it mostly is in motion.
    """
    spine, leg = unit(rest[15] - rest[0]), unit(rest[7] + rest[8] - 2 * rest[0])
    up = spine if spine @ leg < -0.5 else unit((joints[:, 15] - joints[:, 0]).mean(0))
    return z_up_to_y_up(joints) if up[2] > 0.8 else joints


def z_up_to_y_up(vectors: Array) -> Array:
    """(x, y, z) to (x, z, -y), for (..., 3)."""
    return np.stack([vectors[..., 0], vectors[..., 2], -vectors[..., 1]], axis=-1)


def y_up_to_z_up(vectors: Array) -> Array:
    """(x, y, z) to (x, -z, y), for (..., 3)."""
    return np.stack([vectors[..., 0], -vectors[..., 2], vectors[..., 1]], axis=-1)
