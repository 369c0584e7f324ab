"""The body of capsules as triangles, each vertex bound to one joint: what programs with skinning draw."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intermoe.motion.rig import at_rest
from intermoe.motion.rotations import shortest_arc, unit
from intermoe.viz.body import build_body
from intermoe.viz.camera import Array

SEGMENTS = 12
RINGS = 3


class Mesh(NamedTuple):
    """Triangles of one tone: ``vertices`` and unit ``normals`` (V, 3), ``joints`` (V,), ``faces`` (F, 3) outward."""

    tone: int
    vertices: Array
    normals: Array
    joints: npt.NDArray[np.int64]
    faces: npt.NDArray[np.int64]


def body_meshes(rest: Array) -> list[Mesh]:
    """A mesh of each tone for a body whose joints lie at offsets ``rest`` (22, 3) from their parents; pelvis at 0."""
    body = build_body(at_rest(rest)[None, None])
    meshes = []
    for tone in sorted(set(body.tones.tolist())):
        chosen = np.flatnonzero(body.tones == tone)
        parts = [capsule(body.ends[0, 0, which], body.radii[which]) for which in chosen]
        counts = [len(vertices) for vertices, _, _ in parts]
        starts = np.cumsum([0, *counts[:-1]])
        meshes.append(
            Mesh(
                tone,
                np.concatenate([vertices for vertices, _, _ in parts]),
                np.concatenate([normals for _, normals, _ in parts]),
                np.repeat(body.joints[chosen], counts),
                np.concatenate([faces + start for (_, _, faces), start in zip(parts, starts, strict=True)]),
            )
        )
    return meshes


def capsule(ends: Array, radii: Array) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Vertices, normals and faces of two half spheres around ``ends`` (2, 3) and the wall between them."""
    axis = unit(ends[1] - ends[0])
    is_ball = not axis.any()
    turn = np.eye(3) if is_ball else shortest_arc(np.array([0.0, 1.0, 0.0]), axis)
    half = np.linspace(0, np.pi / 2, RINGS + 1)[:-1]
    latitudes = np.concatenate([-half[::-1], half[int(is_ball) :]])  # a ball has one equator, a capsule two
    longitudes = np.arange(SEGMENTS) * (2 * np.pi / SEGMENTS)
    ring = np.stack([np.cos(longitudes), np.zeros(SEGMENTS), -np.sin(longitudes)], axis=-1)
    rings = np.cos(latitudes)[:, None, None] * ring + np.sin(latitudes)[:, None, None] * np.array([0.0, 1.0, 0.0])
    normals = np.concatenate([[[0.0, -1.0, 0.0]], rings.reshape(-1, 3), [[0.0, 1.0, 0.0]]]) @ turn.T
    upper = np.arange(len(normals)) > RINGS * SEGMENTS
    vertices = np.where(upper[:, None], ends[1] + radii[1] * normals, ends[0] + radii[0] * normals)
    around, after = np.arange(SEGMENTS), np.roll(np.arange(SEGMENTS), -1)
    last = len(vertices) - 1
    bands = [1 + SEGMENTS * band for band in range(len(latitudes))]
    faces = [np.stack([np.zeros_like(around), bands[0] + after, bands[0] + around], axis=-1)]
    for low, high in pairwise(bands):
        faces.append(np.stack([low + around, low + after, high + after], axis=-1))
        faces.append(np.stack([low + around, high + after, high + around], axis=-1))
    faces.append(np.stack([np.full_like(around, last), bands[-1] + around, bands[-1] + after], axis=-1))
    return vertices, normals, np.concatenate(faces)
