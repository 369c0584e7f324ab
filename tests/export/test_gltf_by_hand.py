"""GLB, byte by byte and number by number."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe.export import gltf
from intermoe.motion.rig import at_rest
from intermoe.motion.rotations import about_axis, from_quaternions
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS
from intermoe.viz.colours import linear
from intermoe.viz.figures import tinted
from intermoe.viz.mesh import body_meshes

KINDS = {5126: "<f4", 5121: "<u1", 5123: "<u2"}
WIDTHS = {"SCALAR": (), "VEC3": (3,), "VEC4": (4,), "MAT4": (4, 4)}
VERTICES, INDICES = 34962, 34963
NAMES = ("Ann", "Bö")


@pytest.fixture(scope="module")
def content(posed: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("glb") / "pair.glb"
    gltf.write([path], SimpleNamespace(rig=posed.rig, fps=12.5, names=NAMES, prompt="they bow"))
    return path.read_bytes()


@pytest.fixture(scope="module")
def root(content: bytes) -> Any:
    return json_of(content)


@pytest.fixture(scope="module")
def arrays(content: bytes) -> list[np.ndarray]:
    return arrays_of(content)


def json_of(content: bytes) -> Any:
    (length,) = struct.unpack_from("<I", content, 12)
    return json.loads(content[20 : 20 + length])


def arrays_of(content: bytes) -> list[np.ndarray]:
    root, binary = json_of(content), content[28 + struct.unpack_from("<I", content, 12)[0] :]
    found = []
    for accessor in root["accessors"]:
        view = root["bufferViews"][accessor["bufferView"]]
        raw = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        found.append(np.frombuffer(raw, KINDS[accessor["componentType"]]).reshape(-1, *WIDTHS[accessor["type"]]))
    return found


def test_a_file_is_a_header_and_two_chunks(content: bytes, root: Any) -> None:
    magic, version, total, text, kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, total, kind) == (b"glTF", 2, len(content), b"JSON")
    assert text % 4 == 0
    said = content[20 : 20 + text]
    assert 0 <= len(said) - len(said.rstrip(b" ")) < 4
    assert said.rstrip(b" ").endswith(b"}")
    size, kind = struct.unpack_from("<I4s", content, 20 + text)
    assert (size, kind) == (len(content) - 28 - text, b"BIN\0")
    assert root["buffers"] == [{"byteLength": size}]
    assert root["asset"] == {"version": "2.0", "generator": "intermoe", "extras": {"prompt": "they bow"}}
    assert root["scene"] == 0
    assert len(root["scenes"]) == 1


def test_words_of_any_length_are_filled_up(posed: Any, tmp_path: Path) -> None:
    """Four lengths, one after the other; without words on what is done there is no place for them."""
    for number in range(4):
        gltf.write([tmp_path / "a.glb"], SimpleNamespace(rig=posed.rig, fps=30, names=NAMES, prompt="x" * number))
        content = (tmp_path / "a.glb").read_bytes()
        (length,) = struct.unpack_from("<I", content, 12)
        assert length % 4 == 0
        asset = json.loads(content[20 : 20 + length])["asset"]
        assert asset.get("extras") == ({"prompt": "x" * number} if number else None)
        assert content[24 + length : 28 + length] == b"BIN\0"


def test_accessors_say_what_their_arrays_are(root: Any, arrays: list[np.ndarray]) -> None:
    """Each array lies behind the one before, at a multiple of four; bounds are those of its columns."""
    end = 0
    for accessor, values in zip(root["accessors"], arrays, strict=True):
        view = root["bufferViews"][accessor["bufferView"]]
        assert (view["buffer"], view["byteOffset"], view["byteLength"]) == (0, end, values.nbytes)
        assert accessor["count"] == len(values)
        end += -(-values.nbytes // 4) * 4
        if "min" in accessor:
            assert accessor["min"] == np.atleast_1d(values.min(0)).tolist()
            assert accessor["max"] == np.atleast_1d(values.max(0)).tolist()
    assert root["buffers"][0]["byteLength"] == end
    # as the specification wants: of positions and of the times of keys
    wanted = {primitive["attributes"]["POSITION"] for mesh in root["meshes"] for primitive in mesh["primitives"]}
    wanted |= {sampler["input"] for animation in root["animations"] for sampler in animation["samplers"]}
    assert {index for index, accessor in enumerate(root["accessors"]) if "min" in accessor} == wanted


def test_keys_are_the_frames_of_each_joint(posed: Any, root: Any, arrays: list[np.ndarray]) -> None:
    """Every joint turns, root and sliding ones move as well; times are in seconds from 0."""
    rig = posed.rig
    for person, (name, skin, animation) in enumerate(zip(NAMES, root["skins"], root["animations"], strict=True)):
        assert (skin["name"], animation["name"]) == (name, name)
        keys = {}
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            assert sampler["interpolation"] == "LINEAR"
            np.testing.assert_allclose(arrays[sampler["input"]], [0, 0.08, 0.16], rtol=1e-6)
            joint = skin["joints"].index(channel["target"]["node"])
            keys[joint, channel["target"]["path"]] = arrays[sampler["output"]]
        moved = {(joint, "translation") for joint in (0, 6, 20)}
        assert keys.keys() == {(joint, "rotation") for joint in range(22)} | moved
        assert len(keys) == len(animation["channels"]) == len(animation["samplers"])
        for joint in range(22):
            quaternions = keys[joint, "rotation"]
            matrices = from_quaternions(quaternions[:, [3, 0, 1, 2]].astype(float))
            np.testing.assert_allclose(matrices, rig.rotations[person, :, joint], atol=1e-6)
            assert ((quaternions[1:] * quaternions[:-1]).sum(-1) > 0).all()
        for joint, path in moved:
            np.testing.assert_allclose(keys[joint, path], rig.offsets[person, :, joint], atol=1e-6)


def test_the_skeleton_is_the_one_at_rest_where_it_begins(posed: Any, root: Any, arrays: list[np.ndarray]) -> None:
    rig = posed.rig
    tops = []
    for person, (name, skin) in enumerate(zip(NAMES, root["skins"], strict=True)):
        nodes = [root["nodes"][node] for node in skin["joints"]]
        assert [node["name"] for node in nodes] == list(JOINT_NAMES)
        assert skin["skeleton"] == skin["joints"][0]
        for joint, node in enumerate(nodes):
            place = rig.offsets[person, 0, 0] if joint == 0 else rig.rest[person, joint]
            np.testing.assert_allclose(node["translation"], place)
            below = [skin["joints"][child] for child in range(22) if PARENTS[child] == joint]
            assert node.get("children", []) == below
            assert node.keys() == {"name", "translation"} | ({"children"} if below else set())
        bound = np.tile(np.eye(4), (22, 1, 1))
        bound[:, :3, 3] = at_rest(rig.rest[person])
        inverse = arrays[skin["inverseBindMatrices"]].swapaxes(1, 2)  # columns are stored one after the other
        np.testing.assert_allclose(inverse @ bound, np.tile(np.eye(4), (22, 1, 1)), atol=1e-6)
        (figure,) = (index for index, node in enumerate(root["nodes"]) if node["name"] == name)
        (skinned,) = (index for index, node in enumerate(root["nodes"]) if node["name"] == f"{name}, body")
        assert root["nodes"][figure] == {"name": name, "children": [skin["joints"][0]]}
        assert root["nodes"][skinned] == {"name": f"{name}, body", "mesh": person, "skin": person}
        tops += [figure, skinned]
    assert root["scenes"][0]["nodes"] == tops


def test_a_skin_is_the_body_of_its_person_in_its_colours(posed: Any, root: Any, arrays: list[np.ndarray]) -> None:
    for person, (name, mesh) in enumerate(zip(NAMES, root["meshes"], strict=True)):
        assert mesh["name"] == name
        wanted = body_meshes(posed.rig.rest[person])
        for part, primitive, tone in zip(wanted, mesh["primitives"], ("body", "left", "right", "skin"), strict=True):
            material = root["materials"][primitive["material"]]
            assert material["name"] == f"{name}, {tone}"
            surface = material["pbrMetallicRoughness"]
            assert surface["baseColorFactor"] == [*linear(tinted(person, part.tone)), 1.0]
            assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0.0, 0.7)
            given = primitive["attributes"]
            assert given.keys() == {"POSITION", "NORMAL", "JOINTS_0", "WEIGHTS_0"}
            np.testing.assert_allclose(arrays[given["POSITION"]], part.vertices, atol=1e-6)
            np.testing.assert_allclose(arrays[given["NORMAL"]], part.normals, atol=1e-6)
            np.testing.assert_array_equal(arrays[given["JOINTS_0"]], np.outer(part.joints, [1, 0, 0, 0]))
            np.testing.assert_array_equal(arrays[given["WEIGHTS_0"]], np.tile([1, 0, 0, 0], (len(part.joints), 1)))
            np.testing.assert_array_equal(arrays[primitive["indices"]], part.faces.ravel())
            views = {key: root["accessors"][index]["bufferView"] for key, index in given.items()}
            assert {root["bufferViews"][view].get("target") for view in views.values()} == {VERTICES}
            indices = root["bufferViews"][root["accessors"][primitive["indices"]]["bufferView"]]
            assert indices["target"] == INDICES
    targeted = sum("target" in view for view in root["bufferViews"])
    assert targeted == 2 * 4 * 5  # of what is no mesh there is nothing to tell


def test_neighbours_in_time_have_quaternions_of_one_sign(posed: Any, tmp_path: Path) -> None:
    """Joints that spin, each from another angle and at another speed: programs turn the short way between keys."""
    angles = np.arange(9)[:, None] * np.radians(45 * (1 + np.arange(22) % 3)) + np.arange(22)
    turns = about_axis(1, np.stack([angles, -angles]))
    rig = replace(posed.rig, offsets=posed.rig.rest[:, None].repeat(9, axis=1), rotations=turns, sliding=())
    gltf.write([tmp_path / "a.glb"], SimpleNamespace(rig=rig, fps=30, names=NAMES, prompt=""))
    content = (tmp_path / "a.glb").read_bytes()
    root, arrays = json_of(content), arrays_of(content)
    for person, animation in enumerate(root["animations"]):
        keys = [arrays[animation["samplers"][channel["sampler"]]["output"]] for channel in animation["channels"]]
        turned = np.stack([values for values in keys if values.shape[1] == 4], axis=1).astype(float)
        np.testing.assert_allclose(from_quaternions(turned[..., [3, 0, 1, 2]]), turns[person], atol=1e-6)
        assert ((turned[1:] * turned[:-1]).sum(-1) > 0.3).all()
