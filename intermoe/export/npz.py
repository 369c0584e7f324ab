"""The project's own .npz: joints with their skeleton, the motion they came from, and how to repeat them.

Read without pickle. ``joints`` (P, T, J, 3) float32, ``fps``, ``units`` ("metres"), ``up_axis`` ("Y"), ``names`` of the
persons, ``prompt``; of the first 22 joints ``joint_names``, ``parents`` (the root's is -1) and ``rest_offsets``
(P, 22, 3), each from its parent in a T-pose that faces Z+; ``motion`` where it is known; further entries are numbers
and words on how it was made, and versions of what made it.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intermoe.export.format import Format
from intermoe.export.skeletons import body_joints
from intermoe.export.take import Take
from intermoe.files import write_arrays
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS
from intermoe.reading import read_archive

_LISTS = ("names", "joint_names")
_SCALARS = ("fps", "prompt", "units", "up_axis")
_VERSIONED = ("intermoe", "torch", "diffusers", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that determine a result."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(paths: list[Path], take: Take) -> None:
    """One file. Raises ``ValueError`` where a name of ``take.details`` is one of the file's own entries."""
    entries: dict[str, Any] = {
        "joints": take.joints,
        "fps": take.fps,
        "units": "metres",
        "up_axis": "Y",
        "names": np.array(take.names),
        "prompt": take.prompt,
        "joint_names": np.array(JOINT_NAMES),
        "parents": np.array(PARENTS),
        "rest_offsets": take.rig.rest.astype(np.float32),
    }
    if take.motion is not None:
        entries["motion"] = take.motion
    entries |= {f"version_{name}": version for name, version in versions().items()}
    taken = sorted(entries.keys() & take.details.keys())
    if taken:
        raise ValueError(f"details: expected names other than {sorted(entries)}, got {taken}")
    write_arrays(paths[0], {**entries, **take.details})


def read(paths: list[Path]) -> Take:
    """A file of this format, or any .npz whose ``joints`` are (P, T, 22, 3) in metres with Y up.

    Raises:
        ValueError: no such file, no joints, or joints of other units, axes or names; names the file.
    """
    entries = read_archive(paths[0])
    try:
        if "joints" not in entries:
            raise ValueError(f"expected an entry 'joints', got {', '.join(entries) or 'none'}")
        for name, wanted in (("units", "metres"), ("up_axis", "Y")):
            if name in entries and str(entries[name]) != wanted:
                raise ValueError(f"{name}: expected {wanted!r}, got {str(entries[name])!r}")
        for name, kinds, dimensions in (("joints", "fiu", 4), ("motion", "fiu", None), *((n, "U", 1) for n in _LISTS)):
            values = entries.get(name)
            if values is not None and (values.dtype.kind not in kinds or values.ndim != (dimensions or values.ndim)):
                raise ValueError(f"{name}: expected another kind of array, got {values.dtype} {values.shape}")
        joints = entries["joints"]
        if "joint_names" in entries:
            order = body_joints([str(name) for name in entries["joint_names"]])
            joints = joints[:, :, [*order, *range(len(order), joints.shape[2])]]
        return Take(
            joints,
            number(entries["fps"], "fps") if "fps" in entries else 30,
            tuple(str(name) for name in entries.get("names", ())),
            str(entries.get("prompt", "")),
            entries.get("motion"),
            details={name: value.item() for name, value in entries.items() if _is_detail(name, value)},
        )
    except ValueError as error:
        raise ValueError(f"{paths[0]}: {error}") from error


def _is_detail(name: str, value: npt.NDArray[Any]) -> bool:
    """Whether an entry is one of ``Take.details``: a number or words on how the motion was made."""
    plain = value.dtype.kind in "biuU" or (value.dtype.kind == "f" and bool(np.isfinite(value).all()))
    return value.ndim == 0 and plain and name not in _SCALARS and not name.startswith("version_")


def number(value: npt.NDArray[Any], name: str) -> float:
    """The number that an entry of a file is. Raises ``ValueError`` where it is something else."""
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected a number, got {value.dtype} {value.shape}")
    return float(value.item())


FORMAT = Format(".npz", write, read)
