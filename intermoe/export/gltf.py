"""Binary glTF 2.0 (GLB): one file, a skinned figure and an animation for each person; metres, Y up, as glTF has it.

The figures are those of the video: capsules, in the same colours, bound to the 22 joints in a T-pose. A key per frame.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intermoe.export.format import Format
from intermoe.export.take import Take
from intermoe.files import replacing
from intermoe.motion.rig import CHILDREN, Rig, at_rest
from intermoe.motion.rotations import of_one_sign, to_quaternions
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS
from intermoe.viz.body import TONE_NAMES
from intermoe.viz.colours import linear
from intermoe.viz.figures import tinted
from intermoe.viz.mesh import body_meshes

_FLOAT, _BYTE, _SHORT = 5126, 5121, 5123
_COMPONENTS = {np.dtype("f4"): _FLOAT, np.dtype("u1"): _BYTE, np.dtype("u2"): _SHORT}
_SHAPES = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
_VERTICES, _INDICES = 34962, 34963


def write(paths: list[Path], take: Take) -> None:
    """One file with all persons."""
    gltf = _Document()
    times = gltf.array((np.arange(take.rig.offsets.shape[1]) / take.fps).astype("f4"), bounds=True)
    for person, name in enumerate(take.names):
        _add_person(gltf, take.rig, person, name, times)
    gltf.root["asset"] = {"version": "2.0", "generator": "intermoe"}
    if take.prompt:
        gltf.root["asset"]["extras"] = {"prompt": take.prompt}
    with replacing(paths[0]) as temporary:
        temporary.write_bytes(gltf.to_bytes())


def _add_person(gltf: _Document, rig: Rig, person: int, name: str, times: int) -> None:
    rest = rig.rest[person]
    inverse = np.tile(np.eye(4), (NUM_JOINTS, 1, 1))
    inverse[:, 3, :3] = -at_rest(rest)  # column after column, as glTF stores matrices
    first = len(gltf.root["nodes"])
    for joint in range(NUM_JOINTS):
        place = rig.offsets[person, 0, 0] if joint == 0 else rest[joint]
        node: dict[str, Any] = {"name": JOINT_NAMES[joint], "translation": place.tolist()}
        if CHILDREN[joint]:
            node["children"] = [first + child for child in CHILDREN[joint]]
        gltf.root["nodes"].append(node)
    skin = gltf.add(
        "skins",
        {
            "name": name,
            "joints": [first + joint for joint in range(NUM_JOINTS)],
            "skeleton": first,
            "inverseBindMatrices": gltf.array(inverse.astype("f4")),
        },
    )
    mesh = gltf.add("meshes", {"name": name, "primitives": _primitives(gltf, rest, person, name)})
    # A parent of its own keeps the skeletons of two persons apart in programs that join what has no parent (Blender).
    figure = gltf.add("nodes", {"name": name, "children": [first]})
    skinned = gltf.add("nodes", {"name": f"{name}, body", "mesh": mesh, "skin": skin})
    gltf.root["scenes"][0]["nodes"] += [figure, skinned]
    channels: list[dict[str, Any]] = []
    samplers: list[dict[str, Any]] = []

    def animate(joint: int, path: str, values: npt.NDArray[np.float64]) -> None:
        channels.append({"sampler": len(samplers), "target": {"node": first + joint, "path": path}})
        samplers.append({"input": times, "output": gltf.array(values.astype("f4")), "interpolation": "LINEAR"})

    turns = of_one_sign(to_quaternions(rig.rotations[person]), axis=0)[..., [1, 2, 3, 0]]
    for joint in range(NUM_JOINTS):
        animate(joint, "rotation", turns[:, joint])
        if joint == 0 or joint in rig.sliding:
            animate(joint, "translation", rig.offsets[person, :, joint])
    gltf.add("animations", {"name": name, "channels": channels, "samplers": samplers})


def _primitives(gltf: _Document, rest: npt.NDArray[np.float64], person: int, name: str) -> list[dict[str, Any]]:
    primitives = []
    for mesh in body_meshes(rest):
        joints = np.zeros((len(mesh.joints), 4), "u1")
        joints[:, 0] = mesh.joints
        weights = np.zeros((len(mesh.joints), 4), "f4")
        weights[:, 0] = 1
        colour = linear(tinted(person, mesh.tone))
        material = gltf.add(
            "materials",
            {
                "name": f"{name}, {TONE_NAMES[mesh.tone]}",
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*colour, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.7,
                },
            },
        )
        attributes = {
            "POSITION": gltf.array(mesh.vertices.astype("f4"), _VERTICES, bounds=True),
            "NORMAL": gltf.array(mesh.normals.astype("f4"), _VERTICES),
            "JOINTS_0": gltf.array(joints, _VERTICES),
            "WEIGHTS_0": gltf.array(weights, _VERTICES),
        }
        indices = gltf.array(mesh.faces.ravel().astype("u2"), _INDICES)
        primitives.append({"attributes": attributes, "indices": indices, "material": material})
    return primitives


class _Document:
    """The JSON of a glTF file, and the bytes that it refers to."""

    def __init__(self) -> None:
        self.root: dict[str, Any] = {"scene": 0, "scenes": [{"nodes": []}], "nodes": []}
        self._chunks: list[bytes] = []
        self._length = 0

    def add(self, name: str, item: dict[str, Any]) -> int:
        """Add ``item`` to the list of this name and say at which place."""
        items: list[dict[str, Any]] = self.root.setdefault(name, [])
        items.append(item)
        return len(items) - 1

    def array(self, values: npt.NDArray[Any], target: int | None = None, *, bounds: bool = False) -> int:
        """An accessor of (N, ...) ``values``; ``target`` says what of a mesh they are; with bounds as glTF may want."""
        data = np.ascontiguousarray(values).tobytes()
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self._length, "byteLength": len(data)}
        if target is not None:
            view["target"] = target
        accessor: dict[str, Any] = {
            "bufferView": self.add("bufferViews", view),
            "componentType": _COMPONENTS[values.dtype],
            "count": len(values),
            "type": _SHAPES[values.shape[1:]],
        }
        if bounds:
            accessor["min"] = np.atleast_1d(values.min(0)).tolist()
            accessor["max"] = np.atleast_1d(values.max(0)).tolist()
        padding = -len(data) % 4
        self._chunks.append(data + bytes(padding))
        self._length += len(data) + padding
        return self.add("accessors", accessor)

    def to_bytes(self) -> bytes:
        """The file: header, JSON, binary data."""
        self.root["buffers"] = [{"byteLength": self._length}]
        text = json.dumps(self.root, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._length
        head = struct.pack("<4sII", b"glTF", 2, total) + struct.pack("<I4s", len(text), b"JSON")
        return b"".join([head, text, struct.pack("<I4s", self._length, b"BIN\0"), *self._chunks])


FORMAT = Format(".glb", write)
