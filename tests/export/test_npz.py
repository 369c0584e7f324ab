"""Names and .npz files of generated motion."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe import export
from intermoe.data.interhuman import DATA_SET, InterHumanReader
from intermoe.export import output_stem, slug
from intermoe.motion.interhuman import joints as joints_of
from intermoe.motion.rotations import from_rot6d, to_rotation_vectors
from intermoe.motion.skeleton import JOINT_NAMES, PARENTS

JOINTS = np.random.default_rng(0).normal(size=(2, 5, 22, 3)).astype(np.float32)
MOTION = np.random.default_rng(1).normal(size=(2, 5, 262)).astype(np.float32)
MOTION[..., :66] = JOINTS.reshape(2, 5, 66)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Two people bow, to each other.", "two-people-bow-to-each-other"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\con\0|<>*?", "c-con"),
        ("Café  déjà-vu", "cafe-deja-vu"),
        ("两个人握手", "motion"),
        ("   ", "motion"),
        ("-" * 300, "motion"),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_slug_is_short() -> None:
    assert slug("turn around " * 100) == "turn-around-turn-around--turn-around-turn-around"
    assert slug("x" * 100) == "x" * 48
    assert slug("y" * 48 + " z") == "y" * 48


def test_slugs_keep_the_last_words() -> None:
    """Prompts of a list often begin alike and end differently."""
    beginning = "two people stand face to face and then the first of them slowly"
    assert slug(f"{beginning} bows") == "two-people-stand-face--first-of-them-slowly-bows"
    slugs = {slug(f"{beginning} {end}") for end in ("bows", "turns away", "takes the other's hand", "sits down")}
    assert len(slugs) == 4
    assert max(map(len, slugs)) <= 48


def test_slugs_are_of_whole_words() -> None:
    words = ["ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"] * 4
    for start in range(6):
        for count in range(8, 18):
            made = slug(" ".join(words[start : start + count]))
            assert set(made.replace("--", "-").split("-")) <= set(words)
            assert 30 < len(made) <= 48


def test_stems_never_meet_an_existing_file(tmp_path: Path) -> None:
    suffixes = (".npz", ".mp4")
    with output_stem(tmp_path, "two people bow", suffixes) as first:
        assert first == tmp_path / "two-people-bow"
        first.with_name(first.name + ".mp4").touch()
    with output_stem(tmp_path, "Two people bow!", suffixes) as second:
        assert second == tmp_path / "two-people-bow-2"
        second.with_name(second.name + ".npz").touch()
    with output_stem(tmp_path, "two people bow", suffixes) as third:
        assert third.name == "two-people-bow-3"
        with output_stem(tmp_path, "two people bow", suffixes) as fourth:
            assert fourth.name == "two-people-bow-4", "another one is at work on the third"
    with output_stem(tmp_path, "two people bow", (".gif",)) as free:
        assert free.name == "two-people-bow"


def test_npz_holds_everything_without_pickle(tmp_path: Path) -> None:
    details = {"seed": 7, "model": "salsa", "guidance_scale": 3.5}
    take = export.Take(JOINTS, 30, prompt="two people bow", motion=MOTION, details=details)
    assert export.save_take(tmp_path / "motion.npz", take) == [tmp_path / "motion.npz"]
    assert [path.name for path in tmp_path.iterdir()] == ["motion.npz"]
    with np.load(tmp_path / "motion.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["joints"], JOINTS)
        np.testing.assert_array_equal(archive["motion"], MOTION)
        assert archive["joints"].dtype == np.float32
        assert str(archive["prompt"]) == "two people bow"
        assert (int(archive["seed"]), str(archive["model"]), int(archive["fps"])) == (7, "salsa", 30)
        assert float(archive["guidance_scale"]) == 3.5
        assert {"version_intermoe", "version_torch"} <= set(archive)
        assert (str(archive["units"]), str(archive["up_axis"])) == ("metres", "Y")
        assert archive["names"].tolist() == ["person 1", "person 2"]
        assert archive["joint_names"].tolist() == list(JOINT_NAMES)
        assert archive["parents"].tolist() == list(PARENTS)
        assert archive["rest_offsets"].shape == (2, 22, 3)


def test_rest_offsets_are_the_skeleton_of_a_capture(duets: Path) -> None:
    """The capture's own rest pose, which its motion does not hold, is found from joints and rotations."""
    file = duets / "skeleton.json"
    wanted = np.array(json.loads(file.read_text(encoding="utf-8"))["rest_offsets_m"])
    clip = InterHumanReader(duets).read("train", "181202")[0]
    motion = DATA_SET.convert(clip.source).transpose(1, 0, 2)
    rig = export.Take(joints_of(motion), motion=motion).rig
    assert not rig.fitted
    assert rig.sliding == ()
    np.testing.assert_allclose(rig.rest, np.stack([wanted, wanted]), atol=5e-4)
    own = from_rot6d(motion[..., 132:258].reshape(*motion.shape[:2], 21, 6))
    ours = rig.rotations[:, :, 1:]
    missed = np.degrees(np.linalg.norm(to_rotation_vectors(np.swapaxes(own, -1, -2) @ ours), axis=-1))
    assert missed.max() < 0.5


def test_joints_come_back(motion: Any, tmp_path: Path) -> None:
    export.save(tmp_path / "a.npz", motion.joints, 24, ["Ann", "Bo"], "they dance", motion=motion.motion)
    take = export.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(take.joints, motion.joints)
    assert (take.fps, take.names, take.prompt) == (24, ("Ann", "Bo"), "they dance")
    assert (take.motion is None) == (motion.motion is None)


def test_details_come_back(tmp_path: Path) -> None:
    export.save_take(tmp_path / "a.npz", export.Take(JOINTS, details={"seed": 3, "model": "duets"}))
    assert export.load(tmp_path / "a.npz").details == {"seed": 3, "model": "duets"}


def test_joints_beyond_the_body_are_kept(tmp_path: Path) -> None:
    joints = np.random.default_rng(0).normal(size=(2, 5, 55, 3)).astype(np.float32)
    take = export.Take(joints)
    assert take.body.shape == (2, 5, 22, 3)
    assert take.body[..., 1].min() == 0
    export.save_take(tmp_path / "a.npz", take)
    np.testing.assert_array_equal(export.load(tmp_path / "a.npz").joints, joints)


def test_joints_in_another_order_are_put_right(two_people: np.ndarray, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(22)
    np.savez(tmp_path / "a.npz", joints=two_people[:, :, order], joint_names=np.array(JOINT_NAMES)[order])
    np.testing.assert_array_equal(export.load(tmp_path / "a.npz").joints, two_people)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"motion": MOTION}, "expected an entry 'joints', got motion"),
        ({"joints": JOINTS[..., :2]}, r"joints: expected shape .* got \(2, 5, 22, 2\)"),
        ({"joints": JOINTS[:, :, :21]}, "joints: expected shape"),
        ({"joints": JOINTS[:, :0]}, "joints: expected shape"),
        ({"joints": np.full_like(JOINTS, np.nan)}, "joints: expected finite"),
        ({"joints": JOINTS, "fps": 0}, "fps: expected a positive number from 0.001 to .*, got 0"),
        ({"joints": JOINTS, "fps": 1e300}, "fps: expected a positive number .*, got 1e.300"),
        ({"joints": JOINTS, "fps": 1e-300}, "fps: expected a positive number .*, got 1e-300"),
        ({"joints": JOINTS, "units": "inches"}, "units: expected 'metres', got 'inches'"),
        ({"joints": JOINTS, "up_axis": "Z"}, "up_axis: expected 'Y', got 'Z'"),
        ({"joints": JOINTS, "names": ["Ann"]}, "names: expected 2 names, all different, got"),
        ({"joints": JOINTS, "motion": MOTION[:, 1:]}, "motion: expected shape"),
        ({"joints": JOINTS, "motion": MOTION[..., 0]}, "motion: expected shape"),
        (
            {"joints": JOINTS + 0.01, "motion": MOTION},
            "motion: expected that of joints, got another one: places are up to",
        ),
        ({"joints": JOINTS * 1e6}, "joints: expected metres up to 10000, got"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, entries: dict[str, Any], told: str) -> None:
    np.savez(tmp_path / "a.npz", **entries)
    with pytest.raises(ValueError, match=rf"a\.npz: {told}"):
        export.load(tmp_path / "a.npz")


def test_what_is_no_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.npz: expected an \.npz of plain arrays"):
        export.load(path)
    np.savez(path, joints=np.array([object()]))
    with pytest.raises(ValueError, match=r"a\.npz: expected an \.npz of plain arrays"):
        export.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        export.load(tmp_path / "b.npz")


def test_bad_values_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="details: expected names other than"):
        export.save_take(tmp_path / "a.npz", export.Take(JOINTS, details={"fps": 3}))
    with pytest.raises(ValueError, match=r"path: expected a suffix of \.npz, \.bvh, \.glb"):
        export.save(tmp_path / "a.fbx", JOINTS)
    with pytest.raises(ValueError, match="path: expected a file to read of"):
        export.load(tmp_path / "a.glb")
    assert list(tmp_path.iterdir()) == []


def test_another_rate_is_interpolated(two_people: np.ndarray, tmp_path: Path) -> None:
    export.save(tmp_path / "a.npz", two_people, fps=60)
    half = export.load(tmp_path / "a.npz", fps=30)
    assert half.fps == 30
    np.testing.assert_allclose(half.joints, two_people[:, ::2], atol=1e-6)
    more = export.load(tmp_path / "a.npz", fps=120).joints
    assert more.shape[1] == 2 * two_people.shape[1] - 1
    np.testing.assert_allclose(more[:, 1::2], (two_people[:, 1:] + two_people[:, :-1]) / 2, atol=1e-6)
    export.save(tmp_path / "tape.npz", two_people[:, :23], fps=59.94)  # 22 * 29.97 / 59.94 is a little less than 11
    np.testing.assert_allclose(export.load(tmp_path / "tape.npz", fps=29.97).joints, two_people[:, :23:2], atol=1e-6)
    export.save(tmp_path / "b.npz", two_people[:, :1], fps=60)
    np.testing.assert_array_equal(export.load(tmp_path / "b.npz", fps=30).joints, two_people[:, :1])
    turns = np.broadcast_to(np.eye(3), (*two_people.shape[:2], 21, 3, 3))
    export.save_take(tmp_path / "c.amass.npz", export.Take(two_people, 60, rotations=turns))
    files = sorted(tmp_path.glob("c.*"))
    assert export.load(files).rotations is not None
    assert export.load(files, fps=30).rotations is None, "rotations are not interpolated"


@pytest.mark.parametrize(
    ("joints", "names", "told"),
    [
        (JOINTS.astype(np.complex64), None, "joints: expected real numbers, got complex64"),
        (JOINTS.astype(str), None, "joints: expected real numbers, got <U"),
        (np.ma.masked_array(JOINTS, mask=True), None, "joints: expected real numbers, got masked ones"),
        ([[[1.0], [2.0, 3.0]]], None, "joints: expected real numbers, got others"),
        (JOINTS, [1, 2], "names: expected 2 names, all different, got"),
    ],
)
def test_values_of_other_kinds_are_refused(tmp_path: Path, joints: object, names: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        export.save(tmp_path / "a.npz", joints, names=names)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fps": "30"}, "fps"),
        ({"fps": None}, "fps"),
        ({"fps": True}, "fps"),
        ({"prompt": 5}, "prompt"),
        ({"view": "side"}, "view"),
    ],
)
def test_settings_of_other_kinds_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}: expected"):
        export.save(tmp_path / "a.npz", JOINTS, **change)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    export.save(tmp_path / "a.npz", np.repeat(JOINTS, 3, axis=1))
    with pytest.raises(ValueError, match=r"a\.npz: fps: expected a rate of at most 1000000 frames"):
        export.load(tmp_path / "a.npz", fps=1e12)


def test_entries_of_any_name_and_kind_are_read_and_written_again(tmp_path: Path) -> None:
    """What another program put beside the joints stops nothing, and no file is written that cannot be read."""
    entries = {
        "joints": JOINTS,
        "file": np.int64(3),  # names of arguments of numpy's own writer
        "allow_pickle": np.array("words"),
        "when": np.datetime64("2020-01-01"),
        "span": np.timedelta64(3, "s"),
        "raw": np.void(b"ab"),
        "missing": np.array(np.nan),
        "share": np.array(0.5),
        "trans": np.zeros((5, 3)),  # as AMASS's files have it, which hold no joints
    }
    with zipfile.ZipFile(tmp_path / "theirs.npz", "w") as archive:
        for name, value in entries.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(value))
    take = export.load(tmp_path / "theirs.npz")
    assert take.details == {"file": 3, "allow_pickle": "words", "share": 0.5}
    export.save_take(tmp_path / "ours.npz", take)
    assert export.load(tmp_path / "ours.npz").details == take.details


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, np.datetime64("2020-01-01")])
def test_details_that_are_no_numbers_or_words_are_not_written(value: Any, tmp_path: Path) -> None:
    take = export.Take(JOINTS, details={"extra": value})
    with pytest.raises((ValueError, FloatingPointError), match=r"own\.npz: expected .*'extra'"):
        export.save_take(tmp_path / "own.npz", take)
    assert list(tmp_path.iterdir()) == []
