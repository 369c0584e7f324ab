"""BVH, number by number."""

from __future__ import annotations

import re
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.export import bvh
from intermoe.export.skeletons import body_joints, metres_per_unit, unequal, upright, y_up_to_z_up, z_up_to_y_up
from intermoe.motion.rig import REST_POSE, at_rest, forward_kinematics
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS

ORDER = (0, 1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12, 15, 13, 16, 18, 20, 14, 17, 19, 21)
"""A joint, then all below it, the first child first."""
ENDS = {10: "0 0 7", 11: "0 0 7", 15: "0 18 0", 20: "8 0 0", 21: "-8 0 0"}
"""Centimetres from the last joint to where foot, head or hand ends."""


def test_every_line_of_every_persons_file(posed: Any, tmp_path: Path) -> None:
    """Root and sliding joints have places, in centimetres from the parent; all have angles Z X Y in degrees."""
    rig, angles = posed
    paths = [tmp_path / "a.bvh", tmp_path / "b.bvh"]
    bvh.write(paths, SimpleNamespace(rig=rig, fps=29.97))
    for person, path in enumerate(paths):
        content = path.read_bytes().decode("ascii")
        assert content.endswith("\n")
        assert "\r" not in content
        head, motion = content.split("MOTION\n")
        lines = iter(head.splitlines())
        assert next(lines) == "HIERARCHY"
        open_joints: list[int] = []
        for joint in ORDER:
            while open_joints and open_joints[-1] != PARENTS[joint]:
                open_joints.pop()
                assert next(lines) == "\t" * len(open_joints) + "}"
            tabs = "\t" * len(open_joints)
            assert next(lines) == f"{tabs}{'JOINT' if joint else 'ROOT'} {JOINT_NAMES[joint]}"
            assert next(lines) == f"{tabs}{{"
            assert next(lines) == f"{tabs}\tOFFSET {_five(100 * rig.rest[person, joint])}"
            moved = "6 Xposition Yposition Zposition" if joint in (0, 6, 20) else "3"
            assert next(lines) == f"{tabs}\tCHANNELS {moved} Zrotation Xrotation Yrotation"
            if joint in ENDS:
                end = _five(np.array(ENDS[joint].split(), dtype=float))
                told = [next(lines) for _ in range(4)]
                assert told == [f"{tabs}\t{line}" for line in ("End Site", "{", f"\tOFFSET {end}", "}")]
            open_joints.append(joint)
        assert list(lines) == ["\t" * tabs + "}" for tabs in reversed(range(len(open_joints)))]
        length, pause, *rows = motion.splitlines()
        assert (length, pause) == ("Frames: 3", f"Frame Time: {1 / 29.97!r}")
        assert re.fullmatch(r"-?\d+\.\d{5}( -?\d+\.\d{5})*", rows[0])
        parts = [
            part
            for joint in ORDER
            for part in [100 * rig.offsets[person, :, joint]] * (joint in (0, 6, 20)) + [angles[person, :, joint]]
        ]
        found = np.array([row.split() for row in rows], dtype=float)
        np.testing.assert_allclose(found, np.concatenate(parts, axis=1), atol=5.1e-6, rtol=0)


def _five(values: np.ndarray) -> str:
    return " ".join(f"{value:.5f}" for value in values)


def test_joints_of_any_channels_in_any_order() -> None:
    """A place stands for the offset; turns are about the joint's own axes, one after the other."""
    nodes = [
        bvh._Node("root", -1, (1.0, 2.0, 3.0), ("Yposition", "Xrotation", "Zposition", "Yrotation")),
        bvh._Node("arm", 0, (0.0, 0.0, 2.0), ("Zrotation",)),
        bvh._Node("hand", 1, (1.0, 0.0, 0.0), ("Xposition",)),
        bvh._Node("other", 0, (5.0, 0.0, 0.0), ()),
    ]
    places, rest = bvh._forward(nodes, np.array([[7, 90, 8, 90, 90, 4], [0, 0, 0, 0, 0, 3.0]]))
    np.testing.assert_allclose(rest, [[1, 2, 3], [1, 2, 5], [2, 2, 5], [6, 2, 3]])
    # Rx(90) Ry(90): x to y, y to z, z to x; the arm's Rz(90) before: x to y to z
    np.testing.assert_allclose(places[0], [[1, 7, 8], [3, 7, 8], [3, 7, 12], [1, 12, 8]], atol=1e-12)
    np.testing.assert_allclose(places[1], [[1, 0, 0], [1, 0, 2], [4, 0, 2], [6, 0, 0]], atol=1e-12)


def test_a_written_body_comes_back_joint_by_joint(posed: Any, tmp_path: Path) -> None:
    """Whatever slides, to a hundredth of a millimetre."""
    rig, _ = posed
    bvh.write([tmp_path / "a.bvh", tmp_path / "b.bvh"], SimpleNamespace(rig=rig, fps=12.5))
    take = bvh.read([tmp_path / "b.bvh", tmp_path / "a.bvh"])
    assert take.fps == 12.5
    np.testing.assert_allclose(take.joints, forward_kinematics(rig.offsets, rig.rotations)[::-1], atol=1e-6)


def test_names_of_joints_may_hold_the_name_of_a_section(posed: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "a.bvh", tmp_path / "b.bvh"]
    bvh.write(paths, SimpleNamespace(rig=posed[0], fps=30))
    plain = bvh.read(paths).joints
    for path in paths:
        text = path.read_text(encoding="ascii")
        first = JOINT_NAMES[0]
        assert text.count(f"ROOT {first}\n") == 1
        path.write_text(text.replace(f"ROOT {first}\n", f"ROOT MOTION:{first}\n"), encoding="ascii")
    np.testing.assert_array_equal(bvh.read(paths).joints, plain)


def file_of(
    tmp_path: Path, name: str = "a.bvh", *, fps: float = 30, turn: np.ndarray | None = None, frames: int = 4
) -> Path:
    """Somebody who stands, turned by ``turn``."""
    one = at_rest(REST_POSE) + np.array([0.3, 0.95, -0.2])
    joints = np.tile(one if turn is None else one @ turn.T, (1, frames, 1, 1))
    return export.save(tmp_path / name, joints, fps)[0]


def test_a_motion_that_lies_is_not_taken_for_one_with_another_up(tmp_path: Path) -> None:
    """Head towards Z+ from the first frame on: which way is up is told by the skeleton at rest."""
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    joints = export.load(file_of(tmp_path, turn=turn)).joints[0, 0]
    assert joints[15, 2] - joints[0, 2] > 0.5
    np.testing.assert_allclose(joints, (at_rest(REST_POSE) + np.array([0.3, 0.95, -0.2])) @ turn.T, atol=1e-4)


def test_a_skeleton_without_offsets_is_as_large_as_it_moves(tmp_path: Path) -> None:
    """Some programs write places for every joint, and nothing of its rest."""
    rows = np.tile(100 * REST_POSE + np.eye(22, 1) * (30.0, 95.0, -20.0), (2, 1, 1))
    lines, depth = ["HIERARCHY"], 0
    for place, joint in enumerate(ORDER):
        lines += [f"{'JOINT' if joint else 'ROOT'} {JOINT_NAMES[joint]}", "{", "OFFSET 0 0 0"]
        lines.append("CHANNELS 3 Xposition Yposition Zposition")
        depth += 1
        following = PARENTS[ORDER[place + 1]] if place + 1 < 22 else None
        above: int | None = joint
        while depth and above != following:
            lines.append("}")
            depth -= 1
            above = PARENTS[above] if above else None
    numbers = rows[:, list(ORDER)].reshape(2, -1)
    lines += ["MOTION", "Frames: 2", "Frame Time: 0.05", *(" ".join(map(str, row)) for row in numbers.tolist())]
    (tmp_path / "a.bvh").write_text("\n".join(lines))
    take = export.load(tmp_path / "a.bvh")
    assert take.fps == 20
    np.testing.assert_allclose(take.joints[0, 1], at_rest(REST_POSE) + np.array([0.3, 0.95, -0.2]), atol=1e-6)


@pytest.mark.parametrize(
    ("pause", "fps"),
    [("0.0333333", 30.0), ("0.033333", 30.0003), ("0.0333667", 29.97), ("0.08", 12.5), ("0.016683350", 59.94)],
)
def test_a_rate_is_rounded_to_four_digits(pause: str, fps: float, tmp_path: Path) -> None:
    path = file_of(tmp_path)
    path.write_text(re.sub(r"Frame Time: .*", f"Frame Time: {pause}", path.read_text()))
    assert export.load(path).fps == fps


@pytest.mark.parametrize(
    ("rates", "fits"),
    [((30, 29.98, 30), True), ((30, 29.96, 30), False), ((29.98, 30, 30), True), ((30, 30, 30.04), False)],
)
def test_rates_may_differ_by_a_thousandth_and_the_firsts_is_taken(
    rates: tuple[float, ...], fits: bool, tmp_path: Path
) -> None:
    paths = [file_of(tmp_path, f"{number}.bvh", fps=fps) for number, fps in enumerate(rates)]
    if fits:
        assert export.load(paths).fps == rates[0]
    else:
        told = ", ".join(rf"{number}\.bvh: 4 frames, {fps:g} fps" for number, fps in enumerate(rates))
        with pytest.raises(ValueError, match=f"^persons: expected the same length and rate, got {told}$"):
            export.load(paths)


def test_all_files_are_of_one_length(tmp_path: Path) -> None:
    paths = [file_of(tmp_path, f"{number}.bvh", frames=frames) for number, frames in enumerate((4, 4, 3))]
    with pytest.raises(ValueError, match=r"^persons: expected the same length and rate, got .*, 2\.bvh: 3 frames"):
        export.load(paths)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (r"\d+\.\d+\n$", "nan\n", "expected 4 frames of 69 finite numbers, got 276 numbers"),
        (r"\n$", " 1.0\n", "expected 4 frames of 69 finite numbers, got 277 numbers"),
        (r"Frame Time: .*", "Frame Time: 0", "expected 4 frames of 69 finite numbers"),
        (r"Frame Time: .*", "Frame Time: soon", "expected numbers in MOTION: could not convert"),
        (r"(?s)Frames: 4(.*Frame Time: \S+).*", r"Frames: 0\1", "expected 0 frames of 69 finite numbers, got 0"),
        (r"Frames: 4", "Count: 4", "expected 'Frames:' and 'Frame Time:' after MOTION"),
        (r"(JOINT left_foot\s*\{\s*)OFFSET .*", r"\1", "HIERARCHY: expected joints in braces, each with its OFFSET"),
        (r"(?s)(JOINT left_foot\s*\{\s*OFFSET \S+ \S+).*MOTION", r"\1 MOTION", "expected as many closing as opening"),
        (r"Yrotation", "Vrotation", "CHANNELS: expected .*, got Vrotation$"),
        (
            "Zrotation Xrotation",
            "Wrotation Vrotation",
            "CHANNELS: expected Xposition, Yposition, Zposition, Zrotation, Xrotation, Yrotation, "
            "got Vrotation, Wrotation$",
        ),
    ],
    ids=count(),
)
def test_what_is_wrong_with_the_second_file_is_told_of_it(old: str, new: str, told: str, tmp_path: Path) -> None:
    paths = [file_of(tmp_path, name) for name in ("a.bvh", "b.bvh")]
    changed, found = re.subn(old, new, paths[1].read_text(), count=1)
    assert found == 1
    paths[1].write_text(changed)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(paths[1]))}: .*{told}"):
        export.load(paths)


FILES = {
    "SMPL, short": (
        "Pelvis L_Hip L_Knee L_Ankle L_Foot R_Hip R_Knee R_Ankle R_Foot Spine1 Spine2 Spine3 Neck Head L_Collar "
        "L_Shoulder L_Elbow L_Wrist R_Collar R_Shoulder R_Elbow R_Wrist"
    ),
    "SMPL": (
        "pelvis left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot spine1 spine2 "
        "spine3 neck head left_collar left_shoulder left_elbow left_wrist right_collar right_shoulder right_elbow "
        "right_wrist"
    ),
    "Mixamo": (
        "a:b:Hips a:b:LeftUpLeg a:b:LeftLeg a:b:LeftFoot a:b:LeftToeBase a:b:RightUpLeg a:b:RightLeg a:b:RightFoot "
        "a:b:RightToeBase a:b:Spine a:b:Spine1 a:b:Spine2 a:b:Neck a:b:Head a:b:LeftShoulder a:b:LeftArm "
        "a:b:LeftForeArm a:b:LeftHand a:b:RightShoulder a:b:RightArm a:b:RightForeArm a:b:RightHand"
    ),
    "LAFAN1": (
        "Hips LeftUpLeg LeftLeg LeftFoot LeftToe RightUpLeg RightLeg RightFoot RightToe Spine Spine1 Spine2 Neck Head "
        "LeftShoulder LeftArm LeftForeArm LeftHand RightShoulder RightArm RightForeArm RightHand"
    ),
    "Unreal": (
        "pelvis thigh_l calf_l foot_l ball_l thigh_r calf_r foot_r ball_r spine_01 spine_02 spine_03 neck_01 head "
        "clavicle_l upperarm_l lowerarm_l hand_l clavicle_r upperarm_r lowerarm_r hand_r"
    ),
}
"""Names as files of other programs have them, in the order of ``ORDER``."""


@pytest.mark.parametrize("family", FILES, ids=count())
def test_every_familys_names_are_the_joints_that_they_say(family: str) -> None:
    names = ["root", *FILES[family].split()]
    wanted = [1 + ORDER.index(joint) for joint in range(22)]
    assert body_joints(names) == wanted
    assert body_joints([name.upper() for name in names]) == wanted
    missing = names[:4] + names[5:]
    told = rf"of {family}'s are missing: {re.sub('[^a-z0-9]', '', names[4].lower().rpartition(':')[2])}$"
    with pytest.raises(ValueError, match=f"got 22 joints; {told}"):
        body_joints(missing)


@pytest.mark.parametrize(
    ("size", "unit"),
    [
        (0.59, None), (0.61, 1.0), (2.39, 1.0), (2.41, None), (23.5, None), (24.0, 0.0254), (87.0, 0.0254),
        (88.6, 0.01), (239.0, 0.01), (241.0, None), (599.0, None), (601.0, 0.001), (2390.0, 0.001), (2410.0, None),
    ],
)  # fmt: skip
def test_a_unit_is_the_one_by_which_somebody_is_nearest_to_a_grown_up(size: float, unit: float | None) -> None:
    """Leg, spine, neck and head are 1.4 m of a grown-up; 87.6 units are as many times too long as too short."""
    body = at_rest(REST_POSE)
    way = [body[joint] for joint in (1, 4, 7)], [body[joint] for joint in (0, 3, 6, 9, 12, 15)]
    body *= size / sum(float(np.linalg.norm(b - a)) for part in way for a, b in pairwise(part))
    if unit is None:
        with pytest.raises(ValueError, match=rf"units: expected a body in metres, .*, got one .* are {size:g}$"):
            metres_per_unit(body)
    else:
        assert metres_per_unit(body) == unit


def test_what_stands_along_z_at_rest_is_turned_and_nothing_else() -> None:
    standing = at_rest(REST_POSE) + np.array([0.0, 0.95, 0.0])
    motion = standing + np.arange(3)[:, None, None] * np.array([0.1, 0.2, 0.3])
    aside = np.array([4.0, -3.0, 2.0])  # where a skeleton rests says nothing
    np.testing.assert_array_equal(upright(motion, standing + aside), motion)
    np.testing.assert_array_equal(upright(y_up_to_z_up(motion), y_up_to_z_up(standing) + aside), motion)
    for degrees, turned in ((50, False), (60, True), (-90, False)):  # of somebody who rests leaning towards Z+
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        leaning = standing @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]).T
        wanted = z_up_to_y_up(motion) if turned else motion
        np.testing.assert_array_equal(upright(motion, leaning + aside), wanted)
    np.testing.assert_array_equal(z_up_to_y_up(np.array([1.0, 2.0, 3.0])), [1, 3, -2])
    np.testing.assert_array_equal(y_up_to_z_up(np.array([1.0, 2.0, 3.0])), [1, -3, 2])


def test_who_does_not_fit_is_told_with_length_and_rate() -> None:
    told = unequal([Path("x/a.bvh"), Path("y/b.npz")], [4, 5], [29.97, 120.0])
    assert (
        told == "persons: expected the same length and rate, got a.bvh: 4 frames, 29.97 fps, b.npz: 5 frames, 120 fps"
    )
