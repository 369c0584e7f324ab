"""A control file says what it says, and everything that it cannot say is refused by its name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe import export
from intermoe.control import Control
from intermoe.control.file import reaction_to, read_control
from intermoe.motion.interhuman import INTERHUMAN, facing_forward, from_joints, turned

FRAMES = 20


def body(seed: int) -> np.ndarray[Any, Any]:
    """Joints (FRAMES, 22, 3) of somebody who walks."""
    rng = np.random.default_rng(seed)
    pose = np.column_stack([rng.uniform(-0.3, 0.3, 22), np.linspace(0.9, 1.7, 22), rng.uniform(-0.2, 0.2, 22)])
    walk = np.arange(FRAMES)[:, None, None] * rng.uniform(-0.02, 0.02, 3) * (1, 0, 1)
    return (pose + walk).astype(np.float32)


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    joints = np.stack([body(0), body(1)])
    export.save(tmp_path / "pair.npz", joints, motion=np.stack([from_joints(torch.tensor(j)) for j in joints]))
    return joints


def written(folder: Path, *known: Any, **rest: Any) -> Path:
    path = folder / "control.json"
    path.write_text(json.dumps({"known": list(known), **rest}))
    return path


def test_entries_are_where_they_say(tmp_path: Path, pair: Any) -> None:
    first = {"person": 0, "file": "pair.npz", "of": 1, "start": 3, "frames": [8, 14]}
    control = read_control(
        written(tmp_path, first, {"person": 1, "file": "pair.npz"}, blend=3, resampling=4, estimate_gaps=False),
        INTERHUMAN,
    )
    given = control.place(INTERHUMAN, 30, 2)
    assert (control.blend, control.resampling, control.estimate_gaps) == (3, 4, False)
    assert given.where.int().sum(dim=1).tolist() == [6, FRAMES]
    assert given.where[0, 8:14].all()
    assert given.where[1, :FRAMES].all()
    found = INTERHUMAN.joints(given.motion)
    assert torch.equal(found[0, 8:14], torch.tensor(pair[1, 3:9]))
    assert torch.equal(found[1, :FRAMES], torch.tensor(pair[0]))


@pytest.mark.parametrize("name", ["pair.npz", "joints.npz"])  # with motion of the representation, and without
def test_a_reaction_is_to_the_first_who_starts_as_the_model_has_it(tmp_path: Path, pair: Any, name: str) -> None:
    export.save(tmp_path / "joints.npz", pair)
    control = reaction_to(tmp_path / name, INTERHUMAN, resample=False, max_frames=12)
    (known,) = control.known
    joints = INTERHUMAN.joints(known.as_motion(INTERHUMAN))
    assert (known.person, known.run) == (0, slice(0, 12))
    turn, origin = facing_forward(joints[0])
    torch.testing.assert_close(turn, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(origin, torch.zeros(3), atol=1e-5, rtol=0)
    across = np.linalg.norm(pair[0, 0, 2] - pair[0, 5, 17])
    assert float((joints[0, 2] - joints[5, 17]).norm()) == pytest.approx(across, abs=1e-5)
    aligned = tmp_path / "aligned.npz"
    export.save(aligned, joints[None].numpy())
    (again,) = reaction_to(aligned, INTERHUMAN, resample=False, max_frames=300).known
    assert torch.equal(again.joints, joints)  # who stands there already is kept bit for bit


def test_persons_of_a_file_are_moved_together(tmp_path: Path, pair: Any) -> None:
    entries = [{"person": p, "file": "pair.npz", "of": p, "start": 4, "align": True} for p in (0, 1)]
    given = read_control(written(tmp_path, *entries), INTERHUMAN).place(INTERHUMAN, FRAMES - 4, 2)
    joints = INTERHUMAN.joints(given.motion)
    apart = np.linalg.norm(pair[0, 4:] - pair[1, 4:], axis=-1)
    np.testing.assert_allclose((joints[0] - joints[1]).norm(dim=-1), apart, atol=1e-5)
    assert facing_forward(joints[0, 0])[1].abs().max() < 1e-5


def test_turned_motion_is_that_of_turned_joints() -> None:
    motion = from_joints(torch.tensor(body(2)))
    turn, origin = facing_forward(INTERHUMAN.joints(motion)[0])
    found = turned(motion, turn, origin)
    again = from_joints((INTERHUMAN.joints(motion) - origin) @ turn.T)
    torch.testing.assert_close(found[:, :132], again[:, :132], atol=1e-5, rtol=0)
    assert torch.equal(found[:, 132:], motion[:, 132:])


def test_another_rate_is_resampled_only_when_told(tmp_path: Path) -> None:
    export.save(tmp_path / "slow.npz", body(0)[None], fps=15)
    path = written(tmp_path, {"person": 0, "file": "slow.npz"})
    with pytest.raises(ValueError, match=r"known\[0\]\.resample: expected true for .* of 15 .* 30, got false"):
        read_control(path, INTERHUMAN)
    with pytest.raises(ValueError, match=r"resample: expected true"):
        reaction_to(tmp_path / "slow.npz", INTERHUMAN, resample=False, max_frames=300)
    control = read_control(written(tmp_path, {"person": 0, "file": "slow.npz", "resample": True}), INTERHUMAN)
    joints = control.known[0].joints
    assert len(joints) == 2 * FRAMES - 1
    np.testing.assert_allclose(joints[1], (body(0)[0] + body(0)[1]) / 2, atol=1e-6)


def test_files_of_other_programs_are_read(tmp_path: Path, pair: Any) -> None:
    export.save(tmp_path / "one.bvh", pair[:1])
    export.save(tmp_path / "one.amass.npz", pair[:1])
    for name in ("one.bvh", "one.amass.npz"):
        control = read_control(written(tmp_path, {"person": 1, "file": name}), INTERHUMAN)
        np.testing.assert_allclose(control.known[0].joints, pair[0], atol=1e-4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"of": 2}, r"known\[0\]\.of: expected one of 0 to 1, the persons of .*pair\.npz, got 2"),
        ({"start": 18, "frames": [0, 4]}, r"known\[0\]\.frames: expected 1 to 2, what .*from 18 on, got 4"),
        ({"start": 20}, r"known\[0\]\.frames: expected 1 to 0"),
        ({"frames": [4, 4]}, r"known\[0\]\.frames: expected \[start, stop\]"),
        ({"frames": 4}, r"known\[0\]\.frames: expected a list"),
        ({"person": -1}, r"known\[0\]\.person: expected >= 0"),
        ({"persons": 1}, r"known\[0\]: unknown key 'persons'"),
        ({"file": "absent.bvh"}, r"control\.json: known\[0\]\.file: .*absent\.bvh"),
        ({"file": "folder.npz"}, r"control\.json: known\[0\]\.file: .*folder\.npz"),
        ({"file": "nan.npz"}, r"known\[0\]\..*nan\.npz: joints: expected finite values"),
        ({"file": "pair.txt"}, r"known\[0\]\.file: expected a suffix"),
        (
            {"file": "dot.npz", "align": True},
            r"known\[0\]\.file: .*dot\.npz: joints: expected a pose that faces somewhere",
        ),
    ],
)
def test_what_a_file_cannot_say(tmp_path: Path, pair: Any, entry: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "nan.npz", joints=np.where(np.arange(3) == 1, np.nan, pair))
    np.savez(tmp_path / "dot.npz", joints=0 * pair)
    (tmp_path / "folder.npz").mkdir()
    path = written(tmp_path, {"person": 0, "file": "pair.npz", **entry})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_control(path, INTERHUMAN)


def test_what_is_wrong_with_somebody_reacted_to_is_told_by_the_file(tmp_path: Path, pair: Any) -> None:
    np.savez(tmp_path / "dot.npz", joints=0 * pair)
    with pytest.raises(ValueError, match=r"^.*/dot\.npz: joints: expected a pose that faces somewhere"):
        reaction_to(tmp_path / "dot.npz", INTERHUMAN, resample=False, max_frames=60)


def target(**values: Any) -> str:
    return json.dumps({"targets": [{"person": 0, "joint": "head", "frames": [3], "positions": [[0, 1, 0]], **values}]})


def test_targets_are_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    path.write_text(target(positions=None, to_person=1, to_joint="left_wrist", distance=0.5, apart=True))
    (found,) = read_control(path, INTERHUMAN).targets
    assert (found.person, found.joint, found.frames, found.to) == (0, 15, (3,), (1, 20))
    assert (found.distance, found.apart) == (0.5, True)
    path.write_text('{"bodies_apart": true}')
    assert read_control(path, INTERHUMAN).bodies_apart
    path.write_text(target())
    assert read_control(path, INTERHUMAN).targets[0].positions.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"control\.json: .*expected a mapping"),
        ("{}", r"control\.json: known: expected at least one entry"),
        ('{"known": []}', r"control\.json: known: expected at least one entry"),
        ('{"known": {}}', r"control\.json: known: expected a list"),
        ('{"targets": [{"person": 0, "joint": "head"}]}', r"targets\[0\]: missing key 'frames'"),
        (target(joint="nose"), r"control\.json: targets\[0\]\.joint: expected one of pelvis"),
        (target(positions=[[0, 1]]), r"control\.json: targets\[0\]\.positions: expected 3 numbers each"),
        (target(to_person=1), r"control\.json: targets\[0\]\.to_joint: expected given with to_person"),
        (
            target(to_person=1, to_joint="head"),
            r"targets\[0\]\.positions, to: expected one of the two, got both or neither",
        ),
        (target()[:-1] + ', "blend": 1001}', r"control\.json: blend: expected a value in \[0, 1000\], got 1001"),
        (target()[:-1] + ', "resampling": 1000000}', r"resampling: expected a value in \[1, 100\], got 1000000"),
        ('{"known": [], "known": []}', r"control\.json: expected valid JSON: key 'known' is there twice"),
    ],
)
def test_what_is_no_control_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "control.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_control(path, INTERHUMAN)


def test_a_reaction_is_resampled_when_told(tmp_path: Path) -> None:
    export.save(tmp_path / "slow.npz", body(0)[None], fps=15)
    (known,) = reaction_to(tmp_path / "slow.npz", INTERHUMAN, resample=True, max_frames=11).known
    assert known.run == slice(0, 11)
    before, joints = body(0), known.joints
    expected = np.linalg.norm(before[2, 5] - (before[0, 20] + before[1, 20]) / 2)
    assert float((joints[4, 5] - joints[1, 20]).norm()) == pytest.approx(expected, abs=1e-5)


def test_entries_are_named_by_their_number(tmp_path: Path, pair: Any) -> None:
    good = {"person": 0, "file": "pair.npz"}
    with pytest.raises(ValueError, match=r"control\.json: known\[1\]\.of: expected one of 0 to 1"):
        read_control(written(tmp_path, good, {**good, "of": 2}), INTERHUMAN)
    with pytest.raises(FileNotFoundError, match=r"control\.json: known\[2\]\.file: .*absent\.bvh"):
        read_control(written(tmp_path, good, good, {**good, "file": "absent.bvh"}), INTERHUMAN)
    aim = {"person": 0, "joint": "head", "frames": [3], "positions": [[0, 1, 0]]}
    with pytest.raises(ValueError, match=r"control\.json: targets\[1\]\.joint: expected one of pelvis"):
        read_control(written(tmp_path, targets=[aim, {**aim, "joint": "nose"}]), INTERHUMAN)


def test_what_a_file_does_not_say_is_as_a_control_has_it(tmp_path: Path, pair: Any) -> None:
    control = read_control(written(tmp_path, {"person": 1, "file": "pair.npz"}), INTERHUMAN)
    assert control == dataclasses.replace(Control(control.known))
    (known,) = control.known
    assert (known.person, known.run) == (1, slice(0, FRAMES))
    np.testing.assert_array_equal(INTERHUMAN.joints(known.as_motion(INTERHUMAN)), pair[0])  # the first, not moved


def test_who_is_nearly_where_the_model_has_them_is_left_to_the_bit(tmp_path: Path) -> None:
    """Up to a millimetre, or a thousandth of a radian; on the ground alone."""
    joints = body(0)
    turn, origin = facing_forward(torch.tensor(joints[0]))
    joints = ((torch.tensor(joints) - origin) @ turn.T).numpy()
    for shift, stays in (((0.0009, 0.0, 0.0), True), ((0.0, 0.7, -0.0009), True), ((0.0, 0.0, 0.0012), False)):
        moved = joints + np.float32(shift)
        export.save(tmp_path / "one.npz", moved[None])
        (known,) = reaction_to(tmp_path / "one.npz", INTERHUMAN, resample=False, max_frames=60).known
        assert np.array_equal(known.joints.numpy(), moved) == stays
        if not stays:
            np.testing.assert_allclose(known.joints.numpy(), joints, atol=1e-5)
