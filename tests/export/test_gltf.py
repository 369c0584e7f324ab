"""GLB, judged by Khronos' validator and evaluated by hand."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.export.gltf import _Document
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS
from intermoe.viz.figures import PERSON_COLOURS

_TYPES = {5126: "<f4", 5121: "<u1", 5123: "<u2"}
_SHAPES = {"SCALAR": (), "VEC3": (3,), "VEC4": (4,), "MAT4": (4, 4)}


class Glb:
    """What a file says, read by the letter of the specification."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, version, length, text = struct.unpack("<4sIII", data[:16])
        assert (magic, version, length) == (b"glTF", 2, len(data))
        self.json = json.loads(data[20 : 20 + text])
        self.binary = data[28 + text :]

    def array(self, index: int) -> np.ndarray:
        accessor = self.json["accessors"][index]
        view = self.json["bufferViews"][accessor["bufferView"]]
        shape = (accessor["count"], *_SHAPES[accessor["type"]])
        kind = np.dtype(_TYPES[accessor["componentType"]])
        return np.frombuffer(self.binary, kind, int(np.prod(shape)), view["byteOffset"]).reshape(shape)

    def matrices(self, person: int, key: int) -> dict[int, np.ndarray]:
        """World matrices of the nodes at a key of a person's animation."""
        moved: dict[int, dict[str, np.ndarray]] = {}
        animation = self.json["animations"][person]
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            target = channel["target"]
            moved.setdefault(target["node"], {})[target["path"]] = self.array(sampler["output"])[key].astype(float)
        world: dict[int, np.ndarray] = {}

        def visit(node: int, above: np.ndarray) -> None:
            said = {**self.json["nodes"][node], **moved.get(node, {})}
            x, y, z, w = said.get("rotation", (0, 0, 0, 1))
            local = np.eye(4)
            local[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
            local[:3, 3] = said.get("translation", (0, 0, 0))
            world[node] = above @ local
            for child in said.get("children", ()):
                visit(child, world[node])

        for root in self.json["scenes"][0]["nodes"]:
            visit(root, np.eye(4))
        return world


def test_nodes_are_where_the_joints_are(motion: Any, tmp_path: Path) -> None:
    (path,) = export.save(tmp_path / "pair.glb", motion.joints, fps=30, motion=motion.motion)
    glb = Glb(path)
    frames = motion.joints.shape[1]
    for person, skin in enumerate(glb.json["skins"]):
        assert [glb.json["nodes"][node]["name"] for node in skin["joints"]] == list(JOINT_NAMES)
        # what a program shows that plays no animation stands where the motion begins
        pelvis = glb.json["nodes"][skin["joints"][0]]["translation"]
        np.testing.assert_allclose(pelvis, motion.joints[person, 0, 0], atol=1e-3)
        for key in {0, frames // 3, frames - 1}:
            world = glb.matrices(person, key)
            found = np.array([world[node][:3, 3] for node in skin["joints"]])
            assert np.linalg.norm(found - motion.joints[person, key], axis=-1).max() < 1e-3
    for animation in glb.json["animations"]:
        times = glb.array(animation["samplers"][0]["input"])
        assert len(times) == frames
        assert times[-1] == pytest.approx((frames - 1) / 30)
        for sampler in animation["samplers"]:
            values = glb.array(sampler["output"])
            if values.shape[1] == 4:  # neighbours of one sign, or programs turn the long way round
                assert ((values[1:] * values[:-1]).sum(-1) > 0).all()


def test_the_skin_lies_around_the_bones(motion: Any, tmp_path: Path) -> None:
    glb = Glb(export.save(tmp_path / "pair.glb", motion.joints, motion=motion.motion)[0])
    key = motion.joints.shape[1] - 1
    for person, mesh in enumerate(glb.json["meshes"]):
        skin = glb.json["skins"][person]
        inverse = glb.array(skin["inverseBindMatrices"]).swapaxes(1, 2).astype(float)
        world = glb.matrices(person, key)
        bones = np.array([world[node] for node in skin["joints"]]) @ inverse
        joints = motion.joints[person, key]
        for primitive in mesh["primitives"]:
            arrays = {name: glb.array(index) for name, index in primitive["attributes"].items()}
            np.testing.assert_array_equal(arrays["WEIGHTS_0"], np.eye(4)[[0] * len(arrays["WEIGHTS_0"])])
            chosen = bones[arrays["JOINTS_0"][:, 0]]
            skinned = (chosen[:, :3, :3] @ arrays["POSITION"][..., None])[..., 0] + chosen[:, :3, 3]
            nearest = np.linalg.norm(skinned[:, None] - joints, axis=-1).min(1)
            assert nearest.max() < 0.32  # half of the longest bone and its radius
            faces = glb.array(primitive["indices"]).reshape(-1, 3)
            corners = arrays["POSITION"][faces]
            outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            assert (outward * arrays["NORMAL"][faces].sum(1)).sum(-1).min() > 0


def test_figures_and_colours_have_names(two_people: np.ndarray, tmp_path: Path) -> None:
    said = Glb(export.save(tmp_path / "pair.glb", two_people, names=("Ann", "Bo"), prompt="they bow")[0]).json
    assert [mesh["name"] for mesh in said["meshes"]] == ["Ann", "Bo"]
    assert [animation["name"] for animation in said["animations"]] == ["Ann", "Bo"]
    roots = [said["nodes"][root]["name"] for root in said["scenes"][0]["nodes"]]
    assert roots == ["Ann", "Ann, body", "Bo", "Bo, body"]
    assert said["asset"]["extras"] == {"prompt": "they bow"}
    materials = {
        material["name"]: material["pbrMetallicRoughness"]["baseColorFactor"] for material in said["materials"]
    }
    for person, name in enumerate(("Ann", "Bo")):
        linear = np.array(materials[f"{name}, body"][:3])
        shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(255 * shown, PERSON_COLOURS[person], atol=0.01)
    surfaces = [material["pbrMetallicRoughness"] for material in said["materials"]]
    assert {(surface["metallicFactor"], surface["roughnessFactor"]) for surface in surfaces} == {(0.0, 0.7)}


def test_trimesh_loads_it(two_people: np.ndarray, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="trimesh loads GLB for comparison")
    scene = trimesh.load(export.save(tmp_path / "pair.glb", two_people)[0])
    assert len(scene.geometry) == 8  # four tones of two persons
    assert all(mesh.is_watertight for mesh in scene.geometry.values())


def test_khronos_validator_finds_nothing(motion: Any, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node, which runs Khronos' validator, is not installed")
    ask = "try { console.log(require.resolve('gltf-validator')) } catch (error) { process.exit(3) }"
    if subprocess.run(["node", "-e", ask], capture_output=True, timeout=60).returncode == 3:
        pytest.skip("gltf-validator is not installed: npm install gltf-validator, and NODE_PATH to its node_modules")
    (path,) = export.save(tmp_path / "pair.glb", motion.joints, motion=motion.motion)
    script = (
        "const validator = require('gltf-validator'); const data = require('fs').readFileSync(process.argv[1]);"
        "validator.validateBytes(new Uint8Array(data)).then(report => console.log(JSON.stringify(report)))"
    )
    run = subprocess.run(["node", "-e", script, str(path)], capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(run.stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["animationCount"] == 2


def test_every_array_begins_where_its_numbers_may() -> None:
    """At a multiple of 4 bytes, whatever came before; the buffer is as long as what is in it."""
    document = _Document()
    for values in (np.zeros(3, "u2"), np.ones((2, 4), "u1"), np.ones(3, "u2"), np.ones((1, 3), "f4")):
        document.array(values)
    views = document.root["bufferViews"]
    assert [view["byteOffset"] for view in views] == [0, 8, 16, 24]
    assert [view["byteLength"] for view in views] == [6, 8, 6, 12]
    content = document.to_bytes()
    assert document.root["buffers"][0]["byteLength"] == 36
    assert np.frombuffer(content[-12:], "f4").tolist() == [1.0] * 3


def test_each_persons_nodes_are_their_own(tmp_path: Path) -> None:
    """Skeleton, skin and animation of a person speak of that person's joints, and of nobody else's."""
    places = np.array([[x, 0.95, 0] for x in (-1.0, 0.0, 1.0)])
    joints = (at_rest(REST_POSE) + places[:, None])[:, None].repeat(3, axis=1)
    names = ["Ann", "Bo", "Cid"]
    root = Glb(export.save(tmp_path / "bow.glb", joints, names=names)[0]).json
    taken: set[int] = set()
    for person, name in enumerate(names):
        skin, animation = root["skins"][person], root["animations"][person]
        own = skin["joints"]
        assert [root["nodes"][node]["name"] for node in own] == list(JOINT_NAMES)
        assert skin["skeleton"] == own[0]
        assert {channel["target"]["node"] for channel in animation["channels"]} == set(own)
        for joint, node in enumerate(own):
            below = root["nodes"][node].get("children", [])
            assert below == [own[child] for child, parent in enumerate(PARENTS) if parent == joint]
        (figure,) = [node for node in root["nodes"] if node["name"] == name]
        (body,) = [node for node in root["nodes"] if node["name"] == f"{name}, body"]
        assert figure["children"] == [own[0]]
        assert (body["skin"], root["meshes"][body["mesh"]]["name"]) == (person, name)
        assert (skin["name"], animation["name"]) == (name, name)
        assert taken.isdisjoint(own)
        taken |= set(own)
