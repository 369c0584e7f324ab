"""What a take accepts, and what it makes of joints beyond the body and of a model's motion."""

from __future__ import annotations

from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.export import npz
from intermoe.export import take as module
from intermoe.export.take import Take, read_take
from intermoe.motion.rotations import about_axis
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS

RNG = np.random.default_rng(0)
JOINTS = RNG.uniform(0.1, 1, (2, 5, 22, 3)).astype(np.float32)
MOTION = RNG.uniform(size=(2, 5, 262)).astype(np.float32)
MOTION[..., :66] = JOINTS.reshape(2, 5, 66)


def test_what_is_not_said_of_a_take() -> None:
    take = Take(JOINTS.astype(np.float64).tolist())  # type: ignore[arg-type]
    assert (take.fps, take.names, take.prompt, take.motion, take.rotations) == (
        30,
        ("person 1", "person 2"),
        "",
        None,
        None,
    )
    assert (take.details, take.view) == ({}, export.View())
    assert take.joints.dtype == np.float32
    np.testing.assert_array_equal(take.joints, JOINTS)
    kept = Take(JOINTS, motion=MOTION.astype(np.float64))
    assert kept.motion is not None
    assert kept.motion.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fps": 0.0011}, None),
        ({"fps": 0.0009}, "fps: expected a positive number from 0.001 to 1e+06, got 0.0009"),
        ({"fps": 0.99e6}, None),
        ({"fps": 1.01e6}, "fps: expected a positive number from 0.001 to 1e+06, got 1010000.0"),
        ({"fps": True}, "fps: expected a positive number from 0.001 to 1e+06, got True"),
        ({"fps": np.float32(30)}, None),
        ({"names": ("Bo", "Bo")}, "names: expected 2 names, all different, got ['Bo', 'Bo']"),
        ({"names": ("Bo", " ")}, "names: expected 2 names, all different, got ['Bo', ' ']"),
        ({"names": ("Bo",)}, "names: expected 2 names, all different, got ['Bo']"),
        ({"names": ("A", "B", "C")}, "names: expected 2 names, all different, got ['A', 'B', 'C']"),
        ({"motion": MOTION + 0.9e-3}, None),
        (
            {"motion": MOTION - 1.2e-3},
            "motion: expected that of joints, got another one: places are up to 0.0012 m apart",
        ),
        ({"motion": RNG.uniform(size=(2, 5, 3, 262))}, None),  # another model's, whose columns say no places
        ({"motion": RNG.uniform(size=(2, 5, 7))}, None),
        ({"motion": RNG.uniform(size=(2, 4, 7))}, "motion: expected shape (2, 5) + (width,), got (2, 4, 7)"),
        ({"motion": RNG.uniform(size=(1, 5, 7))}, "motion: expected shape (2, 5) + (width,), got (1, 5, 7)"),
        ({"motion": RNG.uniform(size=(2, 5))}, "motion: expected shape (2, 5) + (width,), got (2, 5)"),
        ({"motion": np.full((2, 5, 7), np.inf)}, "motion: expected finite values, got NaN or infinity"),
        ({"rotations": np.zeros((2, 5, 21, 3, 3))}, None),
        (
            {"rotations": np.zeros((2, 5, 22, 3, 3))},
            "rotations: expected shape (2, 5, 21, 3, 3), got (2, 5, 22, 3, 3)",
        ),
        ({"rotations": np.full((2, 5, 21, 3, 3), np.nan)}, "rotations: expected finite values, got NaN or infinity"),
        ({"joints": JOINTS[:, :, :21]}, "joints: expected shape (P >= 1, T >= 1, joints >= 22, 3), got (2, 5, 21, 3)"),
        ({"joints": JOINTS[:0]}, "joints: expected shape (P >= 1, T >= 1, joints >= 22, 3), got (0, 5, 22, 3)"),
        ({"joints": JOINTS[:, :0]}, "joints: expected shape (P >= 1, T >= 1, joints >= 22, 3), got (2, 0, 22, 3)"),
        ({"joints": JOINTS[0]}, "joints: expected shape (P >= 1, T >= 1, joints >= 22, 3), got (5, 22, 3)"),
        ({"joints": JOINTS - 9_999}, None),
        ({"joints": JOINTS - 10_002}, "joints: expected metres up to 10000, got 10001.9"),
        ({"joints": JOINTS + 10_002}, "joints: expected metres up to 10000, got 10003"),
    ],
    ids=count(),
)
def test_what_a_take_accepts(change: dict[str, Any], told: str | None) -> None:
    given = {"joints": JOINTS, **change}
    if told is None:
        Take(**given)
        return
    with pytest.raises(ValueError, match=r"^[a-z]+: expected") as refused:
        Take(**given)
    assert str(refused.value) == told
    with pytest.raises(ValueError, match=r"^x/a\.npz, b\.npz: ") as refused:
        read_take([Path("x/a.npz"), Path("b.npz")], given.pop("joints"), given.pop("fps", 30), **given)
    assert str(refused.value) == f"x/a.npz, b.npz: {told}"


def test_a_body_with_hands_is_set_on_the_floor_as_one() -> None:
    """By the lowest of all persons' 22 joints over all frames; what is beyond them may be lower."""
    joints = RNG.uniform(0, 1, (2, 3, 25, 3)).astype(np.float32)
    joints[1, 2, 7, 1], joints[0, 0, 24, 1] = -0.5, -3.0
    before = joints.copy()
    take = Take(joints)
    np.testing.assert_allclose(take.body, before[:, :, :22] + np.float32([0, 0.5, 0]), atol=1e-6)
    np.testing.assert_array_equal(take.joints, before)
    low = Take(JOINTS - np.float32([0, 4, 0]))
    np.testing.assert_array_equal(low.body, low.joints)  # of 22 joints the floor is where it is


def test_a_rig_has_the_rotations_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are given before those of a motion in InterHuman's columns 132 to 258; other motion tells none."""
    monkeypatch.setattr(module, "fit_rig", lambda body, own: (body, own))
    turns = about_axis(2, RNG.uniform(-2, 2, (2, 5, 21))) @ about_axis(0, RNG.uniform(-2, 2, (2, 5, 21)))
    motion = MOTION.copy()
    motion[..., 132:258] = turns[..., :2].reshape(2, 5, 126)  # r00 r01 r10 r11 r20 r21
    given = np.broadcast_to(np.eye(3), (2, 5, 21, 3, 3))
    body, own = Take(JOINTS, motion=motion).rig
    np.testing.assert_allclose(own, turns, atol=1e-6)
    np.testing.assert_array_equal(body, JOINTS)
    assert body.dtype == np.float64
    assert Take(JOINTS, motion=motion, rotations=given).rig[1] is given
    assert Take(JOINTS, motion=motion[..., :261]).rig[1] is None
    assert Take(JOINTS).rig[1] is None
    more = Take(np.concatenate([JOINTS, JOINTS[:, :, :3] - 2], axis=2))
    np.testing.assert_array_equal(more.rig[0], more.body)


def test_every_entry_of_an_npz(tmp_path: Path) -> None:
    take = Take(JOINTS, 29.97, ("Bo", "Ann"), "they bow", MOTION, details={"seed": 7, "model": "salsa", "quick": True})
    npz.write([tmp_path / "a.npz"], take)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        found = dict(archive)
    for name, values in (("joints", JOINTS), ("motion", MOTION), ("rest_offsets", take.rig.rest.astype(np.float32))):
        np.testing.assert_array_equal(found[name], values)
        assert found.pop(name).dtype == np.float32
    assert {name: values.tolist() for name, values in found.items()} == {
        "fps": 29.97, "units": "metres", "up_axis": "Y", "names": ["Bo", "Ann"], "prompt": "they bow",
        "joint_names": list(JOINT_NAMES), "parents": list(PARENTS), "seed": 7, "model": "salsa", "quick": True,
        **{f"version_{name}": version for name, version in npz.versions().items()},
    }  # fmt: skip
    again = export.load(tmp_path / "a.npz")
    assert (again.fps, again.names, again.prompt) == (29.97, ("Bo", "Ann"), "they bow")
    assert again.details == {"seed": 7, "model": "salsa", "quick": True}
    npz.write([tmp_path / "b.npz"], Take(JOINTS))
    with np.load(tmp_path / "b.npz") as archive:
        assert "motion" not in archive


def test_versions_are_those_of_what_determines_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "diffusers":
            raise metadata.PackageNotFoundError
        return f"{name} 1"

    monkeypatch.setattr(npz.metadata, "version", version)
    assert npz.versions() == {
        "intermoe": "intermoe 1", "torch": "torch 1", "diffusers": "not installed", "numpy": "numpy 1",
    }  # fmt: skip


def test_an_npz_of_joints_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", joints=JOINTS)
    take = export.load(tmp_path / "a.npz")
    assert (take.fps, take.names, take.prompt, take.motion) == (30, ("person 1", "person 2"), "", None)
    assert take.details == {}


def test_joints_of_the_body_are_put_in_order_before_the_others(tmp_path: Path) -> None:
    order = RNG.permutation(22)
    joints = RNG.uniform(size=(2, 5, 25, 3)).astype(np.float32)
    mixed = np.concatenate([joints[:, :, order], joints[:, :, 22:]], axis=2)
    np.savez(tmp_path / "a.npz", joints=mixed, joint_names=np.array(JOINT_NAMES)[order])
    np.testing.assert_array_equal(export.load(tmp_path / "a.npz").joints, joints)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"joints": JOINTS > 0.5}, r"joints: expected another kind of array, got bool \(2, 5, 22, 3\)"),
        ({"joints": JOINTS + 1j}, r"joints: expected another kind of array, got complex64 \(2, 5, 22, 3\)"),
        ({"joints": JOINTS[0]}, r"joints: expected another kind of array, got float32 \(5, 22, 3\)"),
        ({"motion": MOTION > 0.5}, r"motion: expected another kind of array, got bool \(2, 5, 262\)"),
        ({"names": np.array([1.0, 2.0])}, r"names: expected another kind of array, got float64 \(2,\)"),
        ({"names": np.array([["Bo", "Ann"]])}, r"names: expected another kind of array, got <U3 \(1, 2\)"),
        ({"joint_names": np.arange(22)}, r"joint_names: expected another kind of array, got int64 \(22,\)"),
        ({"joint_names": np.array([JOINT_NAMES])}, r"joint_names: expected another kind of array, got <U14 \(1, 22\)"),
        ({"fps": np.array([30, 30])}, r"fps: expected a number, got int64 \(2,\)"),
        ({"fps": np.array(True)}, r"fps: expected a number, got bool \(\)"),
        ({"fps": "30"}, r"fps: expected a number, got <U2 \(\)"),
    ],
    ids=count(),
)
def test_entries_of_another_kind_are_told(entry: dict[str, Any], told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"joints": JOINTS, **entry})
    with pytest.raises(ValueError, match=rf"a\.npz: {told}$"):
        export.load(tmp_path / "a.npz")
    if "fps" not in entry:
        return
    np.savez(tmp_path / "a.npz", joints=JOINTS, fps=np.array([29.97]))  # as some programs write a number
    assert export.load(tmp_path / "a.npz").fps == 29.97
