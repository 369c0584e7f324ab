"""AMASS's .npz of one person, for programs that pose SMPL bodies: axis-angle, Z up.

``trans`` (T, 3) is the place of the pelvis, ``root_orient`` (T, 3) its rotation in the world, ``pose_body`` (T, 63) the
rotations of joints 1..21 relative to their parents; ``betas`` are 0, since motion tells no shape of a body. Beyond what
AMASS has, ``rest_offsets`` (22, 3) is the skeleton that was moved (Y up, as SMPL's template), ``rotations_fitted`` says
whether the twist of bones was chosen by rule, and ``offsets`` (T, 22, 3), where bones slide, holds the offset of each
joint from its parent at each frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from intermoe.export.format import Format
from intermoe.export.npz import number
from intermoe.export.skeletons import unequal, y_up_to_z_up, z_up_to_y_up
from intermoe.export.take import Take, read_take
from intermoe.files import write_arrays
from intermoe.motion.rig import REST_POSE, forward_kinematics
from intermoe.motion.rotations import Array, about_axis, rotation_matrices, to_rotation_vectors
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS, PARENTS
from intermoe.reading import read_archive

_TO_Z_UP = about_axis(0, np.array(np.pi / 2))
_NUM_BETAS = 16


def write(paths: list[Path], take: Take) -> None:
    """One file per person."""
    rig = take.rig
    for person, path in enumerate(paths):
        vectors = to_rotation_vectors(rig.rotations[person, :, 1:])
        entries: dict[str, Any] = {
            "trans": y_up_to_z_up(rig.offsets[person, :, 0]),
            "root_orient": to_rotation_vectors(_TO_Z_UP @ rig.rotations[person, :, 0]),
            "pose_body": vectors.reshape(len(vectors), -1),
            "betas": np.zeros(_NUM_BETAS),
            "gender": "neutral",
            "mocap_framerate": float(take.fps),
            "surface_model_type": "smplh",
            "rotations_fitted": rig.fitted,
            "rest_offsets": rig.rest[person],
            "joint_names": np.array(JOINT_NAMES),
            "parents": np.array(PARENTS),
            "prompt": take.prompt,
        }
        if rig.sliding:
            entries["offsets"] = np.concatenate(
                [np.zeros_like(rig.offsets[person, :, :1]), rig.offsets[person, :, 1:]], axis=1
            )
        write_arrays(path, entries)


def is_amass(path: Path) -> bool:
    """Whether an .npz, whatever its name, holds a person as AMASS does."""
    entries = read_archive(path)
    return "joints" not in entries and "trans" in entries


def read(paths: list[Path]) -> Take:
    """Files of AMASS, one per person: SMPL+H's ``poses`` or ``root_orient`` and ``pose_body``; fingers are left out.

    AMASS's own files hold no skeleton, which is then one of a usual grown-up: joints are near those of the SMPL body,
    not on them.

    Raises:
        ValueError: a missing entry, a wrong shape, persons of different length or rate; names the file.
    """
    persons, rotations, rates, prompts = [], [], [], []
    for path in paths:
        entries = read_archive(path)
        try:
            with np.errstate(all="ignore"):  # what is not finite then is refused
                joints, own, fps = _read_person(entries)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        persons.append(joints)
        rotations.append(own)
        rates.append(fps)
        prompts.append(str(entries.get("prompt", "")))
    if len({(len(joints), fps) for joints, fps in zip(persons, rates, strict=True)}) > 1:
        raise ValueError(unequal(paths, [len(joints) for joints in persons], rates))
    return read_take(paths, np.stack(persons), rates[0], prompt=prompts[0], rotations=np.stack(rotations))


def _read_person(entries: dict[str, Any]) -> tuple[Array, Array, float]:
    rate = entries.get("mocap_framerate", entries.get("mocap_frame_rate"))
    if rate is None:
        raise ValueError("expected an entry 'mocap_framerate', got none")
    trans = _columns(entries, "trans", 3)
    if "pose_body" in entries:
        root, body = _columns(entries, "root_orient", 3), _columns(entries, "pose_body", 3 * (NUM_JOINTS - 1))
    else:
        poses = _columns(entries, "poses", 3 * NUM_JOINTS)
        root, body = poses[:, :3], poses[:, 3:]
    if not len(trans) == len(root) == len(body):
        raise ValueError(f"expected as many rotations as places, got {len(root)}, {len(body)} and {len(trans)}")
    rotations = np.concatenate([root[:, None], body.reshape(len(body), -1, 3)], axis=1)
    turns = rotation_matrices(rotations)
    turns[:, 0] = _TO_Z_UP.T @ turns[:, 0]
    skeleton = np.asarray(entries.get("offsets", entries.get("rest_offsets", REST_POSE)))
    if skeleton.dtype.kind not in "fiu" or skeleton.shape not in ((NUM_JOINTS, 3), (len(body), NUM_JOINTS, 3)):
        raise ValueError(f"offsets: expected numbers (T, {NUM_JOINTS}, 3), got {skeleton.dtype} {skeleton.shape}")
    offsets = np.array(np.broadcast_to(skeleton, (len(body), NUM_JOINTS, 3)), dtype=np.float64)
    offsets[:, 0] = z_up_to_y_up(trans)
    return forward_kinematics(offsets, turns), turns[:, 1:], number(rate, "mocap_framerate")


def _columns(entries: dict[str, Any], name: str, width: int) -> Array:
    if name not in entries:
        raise ValueError(f"expected an entry {name!r}, got {', '.join(entries) or 'none'}")
    values = entries[name]
    if values.ndim != 2 or values.shape[1] < width or not len(values) or values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected shape (T >= 1, {width}), got {values.dtype} {values.shape}")
    return values[:, :width].astype(np.float64)


FORMAT = Format(".amass.npz", write, read, per_person=True)
