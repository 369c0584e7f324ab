"""BVH, read back by a reader that is not ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.export.skeletons import body_joints, metres_per_unit, upright, y_up_to_z_up
from intermoe.motion.rotations import from_rot6d, to_rotation_vectors
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS, PARENTS


def degrees(matrices: np.ndarray) -> np.ndarray:
    return np.degrees(np.linalg.norm(to_rotation_vectors(matrices), axis=-1))


def joints_by_bvhio(path: Path) -> np.ndarray:
    """World positions (T, 22, 3) in metres."""
    bvhio = pytest.importorskip("bvhio", reason="bvhio reads BVH for comparison")
    root = bvhio.readAsHierarchy(str(path))
    nodes = {joint.Name: joint for joint, _, _ in root.layout()}
    assert len(bvhio.readAsBvh(str(path)).Root.Keyframes) == len(root.Keyframes)
    frames = []
    for frame in range(len(root.Keyframes)):
        root.loadPose(frame)
        frames.append([list(nodes[name].PositionWorld) for name in JOINT_NAMES])
    return np.array(frames) / 100


def test_another_reader_finds_the_joints(motion: Any, tmp_path: Path) -> None:
    paths = export.save(tmp_path / "pair.bvh", motion.joints, motion=motion.motion)
    assert [path.name for path in paths] == ["pair.person1.bvh", "pair.person2.bvh"]
    for path, joints in zip(paths, motion.joints, strict=True):
        found = joints_by_bvhio(path)
        assert found.shape == joints.shape
        assert np.linalg.norm(found - joints, axis=-1).max() < 1e-3


def test_our_reader_finds_the_joints(motion: Any, tmp_path: Path) -> None:
    export.save(tmp_path / "pair.bvh", motion.joints, fps=29.97, motion=motion.motion)
    take = export.load(tmp_path / "pair.bvh")
    assert take.fps == pytest.approx(29.97, rel=1e-6)
    assert np.linalg.norm(take.joints - motion.joints, axis=-1).max() < 1e-3


def test_rotations_do_not_flip(motion: Any) -> None:
    """No joint turns by more than 30 degrees a frame, or than the motion itself turns bones, or says that it turns."""
    rotations = export.Take(motion.joints, motion=motion.motion).rig.rotations
    steps = degrees(np.swapaxes(rotations[:, :-1], -1, -2) @ rotations[:, 1:])
    bones = motion.joints[:, :, 1:] - motion.joints[:, :, list(PARENTS[1:])]
    bones /= np.linalg.norm(bones, axis=-1, keepdims=True)
    turned = np.degrees(np.arccos(np.clip((bones[:, 1:] * bones[:, :-1]).sum(-1), -1, 1)))
    allowed = 30 + 2 * turned.max(-1)
    if motion.motion is not None:
        own = from_rot6d(motion.motion[..., 132:258].reshape(*motion.motion.shape[:2], 21, 6))
        allowed += degrees(np.swapaxes(own[:, :-1], -1, -2) @ own[:, 1:]).max(-1)
    assert (steps.max(-1) <= allowed).all()


def test_angles_go_on_beyond_half_a_turn(tmp_path: Path) -> None:
    """Programs interpolate angles: 179 after -179 degrees would spin a figure that turns on the spot."""
    spin = np.linspace(0, 4 * np.pi, 90)
    cos, sin = np.cos(spin), np.sin(spin)
    turns = np.stack(
        [np.stack([cos, 0 * cos, sin], -1), np.tile([0, 1, 0], (90, 1)), np.stack([-sin, 0 * sin, cos], -1)], -2
    )
    standing = export.Take(np.zeros((1, 1, 22, 3)) + _standing()).joints[0, 0]
    path = export.save(tmp_path / "spin.bvh", (turns @ standing.T).swapaxes(-1, -2)[None])[0]
    values = np.array([line.split() for line in path.read_text().split("Frame Time:")[1].splitlines()[1:]], dtype=float)
    assert path.name == "spin.bvh"
    assert np.abs(np.diff(values[:, 3:], axis=0)).max() < 10
    assert np.ptp(values[:, 5]) == pytest.approx(720, abs=1)


def test_the_file_says_what_it_holds(two_people: np.ndarray, tmp_path: Path) -> None:
    text = export.save(tmp_path / "one.bvh", two_people[:1], fps=30)[0].read_text()
    assert re.findall(r"(?:ROOT|JOINT) (\S+)", text)[0] == "pelvis"
    assert sorted(re.findall(r"(?:ROOT|JOINT) (\S+)", text)) == sorted(JOINT_NAMES)
    assert text.count("End Site") == 5
    assert float(re.search(r"Frame Time: (\S+)", text)[1]) == 1 / 30
    assert text.count("Xposition") == 1  # bones of constant length: only the root has a place
    assert "\r" not in text


def test_joints_that_slide_have_places(tmp_path: Path, two_people: np.ndarray) -> None:
    """A decoder's hips move against the pelvis; such joints alone are written with their places."""
    moved = two_people.copy()
    moved[0, 5:, [1, 4, 7, 10]] += 0.02 * np.array([1, 0.5, 0], dtype=np.float32)
    text = export.save(tmp_path / "pair.bvh", moved)[0].read_text()
    placed = re.findall(r"(?:ROOT|JOINT) (\S+)\s*{\s*OFFSET [^\n]*\s*CHANNELS 6", text)
    assert placed[0] == "pelvis"
    assert "left_hip" in placed
    assert set(placed) <= {"pelvis", "left_hip", "right_hip", "spine1"}


def _standing() -> np.ndarray:
    from intermoe.motion.rig import REST_POSE, forward_kinematics

    return forward_kinematics(REST_POSE + np.eye(22, 1) * (0, 0.95, 0), np.tile(np.eye(3), (22, 1, 1)))


MIXAMO = (
    "Hips", "LeftUpLeg", "RightUpLeg", "Spine", "LeftLeg", "RightLeg", "Spine1", "LeftFoot", "RightFoot", "Spine2",
    "LeftToeBase", "RightToeBase", "Neck", "LeftShoulder", "RightShoulder", "Head", "LeftArm", "RightArm",
    "LeftForeArm", "RightForeArm", "LeftHand", "RightHand",
)  # fmt: skip


def renamed(text: str) -> str:
    return re.sub(
        r"(ROOT|JOINT) (\w+)", lambda match: f"{match[1]} mixamorig:{MIXAMO[JOINT_NAMES.index(match[2])]}", text
    )


def test_other_names_units_and_axes_are_read(two_people: np.ndarray, tmp_path: Path) -> None:
    """The same person as another program tells: Mixamo's names, metres, Z up."""
    text = renamed(export.save(tmp_path / "one.bvh", two_people[:1])[0].read_text())
    (tmp_path / "named.bvh").write_text(text)
    np.testing.assert_allclose(export.load(tmp_path / "named.bvh").joints, two_people[:1], atol=1e-4)

    head, _, tail = text.partition("MOTION")
    lines = tail.splitlines()
    values = np.array([line.split() for line in lines[3:]], dtype=float)
    values[:, :3] = values[:, [0, 2, 1]] * (0.01, -0.01, 0.01)

    def turned(match: re.Match[str]) -> str:
        x, y, z = (float(value) / 100 for value in match[1].split())
        return f"OFFSET {x} {-z} {y}"

    # Angles Z, X, Y become turns about Y, X, -Z... of axes that are turned: Z -> -Y, X -> X, Y -> Z.
    head = re.sub(r"OFFSET ([^\n]*)", turned, head).replace(
        "Zrotation Xrotation Yrotation", "Yrotation Xrotation Zrotation"
    )
    values[:, 3::3] *= -1
    rows = [" ".join(map(str, row)) for row in values.tolist()]
    (tmp_path / "z_up.bvh").write_text(head + "MOTION\n" + "\n".join([*lines[1:3], *rows]) + "\n")
    np.testing.assert_allclose(export.load(tmp_path / "z_up.bvh").joints, two_people[:1], atol=1e-4)


@pytest.mark.parametrize("twice", [[0], [15, 20], list(range(NUM_JOINTS))], ids=len)
def test_of_joints_that_are_called_alike_the_first_is_the_bodys(twice: list[int]) -> None:
    """What hangs on a body, or another body, comes after it."""
    body, others = [f"mixamorig:{name}" for name in MIXAMO], [f"prop:{MIXAMO[joint]}" for joint in twice]
    assert body_joints([*body, "sword", *others]) == list(range(NUM_JOINTS))
    assert body_joints(["world", *body, *reversed(others)]) == list(range(1, 1 + NUM_JOINTS))


@pytest.mark.parametrize("along", [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_a_skeleton_that_does_not_stand_at_rest_is_upright_as_it_moves(along: tuple[float, float, float]) -> None:
    """All of its bones lie along one line, as some programs have it; a handstand for a frame is no other up."""
    rest = np.arange(22)[:, None] * np.array(along)
    standing = np.stack([_standing()] * 20)
    standing[0] = -standing[0]
    np.testing.assert_array_equal(upright(standing, rest), standing)
    np.testing.assert_array_equal(upright(y_up_to_z_up(standing), rest), standing)


def test_a_skeleton_that_sits_at_rest_is_upright_as_it_moves() -> None:
    """Its legs are not below its spine: that lies along Z, as somebody's who sits on a wall."""
    rest = _standing()
    rest[[3, 6, 9, 12, 15]] = rest[0] + np.outer([0.1, 0.2, 0.3, 0.5, 0.6], [0.0, 0.0, 1.0])
    standing = np.stack([_standing()] * 3)
    np.testing.assert_array_equal(upright(standing, rest), standing)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("MOTION", "NOTHING"), "sections HIERARCHY and MOTION"),
        (("left_elbow", "left_something"), "are missing: leftelbow"),
        (("Frames: 40", "Frames: 41"), "expected 41 frames of 69 finite numbers, got 2760 numbers"),
        (("Frame Time: 0.0333", "Frame Time: -0.0333"), "expected 40 frames"),
        (("Xrotation", "Wrotation"), "CHANNELS: expected .* got Wrotation"),
        (("}\nMOTION", "MOTION"), "as many closing as opening braces|joints in braces"),
        (("JOINT head", "BONE head"), "HIERARCHY: expected ROOT"),
        (("OFFSET 0.00000", "OFFSET zero"), "could not convert"),
    ],
)
def test_broken_files_are_named(two_people: np.ndarray, tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = export.save(tmp_path / "one.bvh", two_people[:1])[0]
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=rf"one\.bvh: .*{told}" if "|" not in told else told):
        export.load(path)


def test_text_of_other_editors(two_people: np.ndarray, tmp_path: Path) -> None:
    path = export.save(tmp_path / "one.bvh", two_people[:1])[0]
    joints, text = export.load(path).joints, path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r").encode())
    np.testing.assert_array_equal(export.load(path).joints, joints)
    for content, told in (
        (text.encode("utf-16"), r"one\.bvh: line 1: expected UTF-8 text, got UTF-16"),
        (
            text.replace("pelvis", "b\u00fcste").encode("latin-1"),
            r"one\.bvh: line 2: expected UTF-8 text, got byte 0xfc",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            export.load(path)


@pytest.mark.parametrize("metres", [1.0, 0.01, 0.0254, 0.001])
@pytest.mark.parametrize("height", [0.75, 1.0, 1.25])  # of the drawn bodies: a child, a grown-up, somebody very tall
def test_every_unit_is_told_by_the_size_of_the_body(two_people: np.ndarray, metres: float, height: float) -> None:
    body = two_people[0, 0]
    leg, spine = ((1, 4), (4, 7)), ((0, 3), (3, 6), (6, 9), (9, 12), (12, 15))
    chain = sum(np.linalg.norm(body[a] - body[b]) for a, b in leg + spine)
    assert metres_per_unit(body * height * 1.4 / chain / metres) == metres


def test_a_body_of_no_unit_is_refused(two_people: np.ndarray, tmp_path: Path) -> None:
    path = export.save(tmp_path / "one.bvh", two_people[:1])[0]
    text = path.read_text()
    path.write_text(re.sub(r"OFFSET ([^\n]*)", "OFFSET 1 1 1", text))
    with pytest.raises(ValueError, match="units: expected a body in metres"):
        export.load(path)


def test_pairs_must_fit(two_people: np.ndarray, tmp_path: Path) -> None:
    first = export.save(tmp_path / "a.bvh", two_people[:1])[0]
    shorter = export.save(tmp_path / "b.bvh", two_people[1:, 5:])[0]
    with pytest.raises(ValueError, match=r"same length and rate, got a\.bvh: 40 frames, 30 fps, b\.bvh: 35 frames"):
        export.load([first, shorter])
    slower = export.save(tmp_path / "c.bvh", two_people[1:], fps=29.7)[0]
    with pytest.raises(ValueError, match="same length and rate"):
        export.load([first, slower])
    rounded = export.save(tmp_path / "e.bvh", two_people[1:], fps=29.999)[0]  # by a program that writes few digits
    np.testing.assert_allclose(export.load([first, rounded]).joints, two_people, atol=1e-4)
    second = export.save(tmp_path / "d.bvh", two_people[1:])[0]
    np.testing.assert_allclose(export.load([first, second]).joints, two_people, atol=1e-4)
