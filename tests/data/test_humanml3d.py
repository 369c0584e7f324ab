"""HumanML3D: clips and captions as published, and joints against an own encoding of a walking body."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from intermoe.data import DATA_SETS, MotionDataset
from intermoe.data.humanml3d import HumanML3DReader
from intermoe.data.items import ItemError
from intermoe.motion.humanml3d import root_centred_joints, world_joints

HUMANML3D = DATA_SETS["humanml3d"]


def _about_y(angle: np.ndarray) -> np.ndarray:
    cos, sin, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], axis=-1).reshape(-1, 3, 3)


def test_joints_of_an_encoded_walk_come_back() -> None:
    """The encoding by its definition: everything is seen from the root, which turns by ``heading`` about Y."""
    rng = np.random.default_rng(0)
    frames = 50
    heading = np.concatenate([[0.0], np.cumsum(rng.normal(scale=0.1, size=frames - 1))])
    place = np.cumsum(rng.normal(scale=0.03, size=(frames, 3)), axis=0)
    place[:, 1] = 0.9
    place[:, [0, 2]] -= place[0, [0, 2]]
    turn = _about_y(heading)
    local = rng.normal(scale=0.3, size=(frames, 22, 3))
    local[:, 0] = 0
    world = np.einsum("tij,tkj->tki", turn, local) + place[:, None]
    motion = np.zeros((frames, 263))
    # quaternion of the turn from one frame to the next, seen by a body that turns against it: half the angle, negative
    motion[:-1, 0] = -np.diff(heading) / 2
    motion[:-1, 1:3] = np.einsum("tji,tj->ti", turn[1:], np.diff(place, axis=0))[:, [0, 2]]
    motion[:, 3] = place[:, 1]
    seen = local.copy()
    seen[:, 1:, 1] += place[:, None, 1]  # heights are those above the ground
    motion[:, 4:67] = seen[:, 1:].reshape(frames, -1)
    np.testing.assert_allclose(world_joints(torch.from_numpy(motion)), world, atol=1e-9)
    centred = root_centred_joints(torch.from_numpy(motion)).numpy()
    np.testing.assert_allclose(np.einsum("tij,tkj->tki", turn, centred) + place[:, None] * [1, 0, 1], world, atol=1e-9)


def test_clips_are_sequences_and_the_parts_that_captions_describe(humanml3d_folder) -> None:
    root = humanml3d_folder({"train": {"000001": 120, "M000001": 60}})
    (root / "texts" / "000001.txt").write_text(
        "a man walks.#a/DET man/NOUN#0.0#0.0\nhe sits#he/PRON#1.0#4.5\nhe rises#he/PRON#1.0#4.5\n"
        "late#late/ADV#8.0#9.0\nhe begins#he/PRON#0.0#2.0\n"
    )
    clips = HumanML3DReader(root).read("train", "000001")
    motion = np.load(root / "new_joint_vecs" / "000001.npy")
    assert [clip.name for clip in clips] == ["000001", "000001@1-4.5", "000001@0-2"]
    assert [clip.captions for clip in clips] == [("a man walks.",), ("he sits", "he rises"), ("he begins",)]
    np.testing.assert_array_equal(clips[0].source[:, 0], motion)
    np.testing.assert_array_equal(clips[1].source[:, 0], motion[20:90])
    np.testing.assert_array_equal(clips[2].source[:, 0], motion[:40])
    dataset = MotionDataset(HUMANML3D, root, "train", training=False)
    assert dataset.names == ["000001", "000001@1-4.5", "000001@0-2", "M000001"]
    assert dataset[3]["motion"].shape == (1, 60, 263)
    assert dataset.captions(3) == ("a man walks.", "a person strolls")


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [  # times of 20 frames a second, whole frames of which count
        ("1.03", "4.58", (20, 91)),  # 20.6 and 91.6
        ("0.049", "0.1", (0, 2)),
        ("0.0", "0.05", (0, 1)),
        ("2.0", "0.0", None),
        ("2.0", "2.0", None),
        ("5.95", "99.0", (119, 120)),
        ("6.0", "7.0", None),  # from the end on
        ("nan", "1.0", (0, 20)),
    ],
)
def test_a_part_is_cut_at_whole_frames(humanml3d_folder, start: str, end: str, frames: tuple[int, int] | None) -> None:
    root = humanml3d_folder({"train": {"a": 120}})
    (root / "texts" / "a.txt").write_text(f"a man walks#x#0.0#0.0\nhe sits#x#{start}#{end}\n")
    motion = np.load(root / "new_joint_vecs" / "a.npy")
    whole, *parts = HumanML3DReader(root).read("train", "a")
    assert (whole.name, len(whole.source)) == ("a", 120)
    assert len(parts) == (frames is not None)
    if frames is not None:
        np.testing.assert_array_equal(parts[0].source[:, 0], motion[slice(*frames)])
        assert parts[0].name == f"a@{0.0 if start == 'nan' else float(start):g}-{float(end):g}"


@pytest.mark.parametrize(("time", "read"), [("999999", True), ("1000000", False), ("-0.001", False)])
def test_times_that_no_sequence_has(humanml3d_folder, time: str, read: bool) -> None:
    root = humanml3d_folder({"train": {"a": 60}})
    (root / "texts" / "a.txt").write_text(f"he sits#x#0.0#{time}\n")
    if read:
        assert [len(clip.source) for clip in HumanML3DReader(root).read("train", "a")] == [60]
        return
    with pytest.raises(ItemError, match=r"unreadable caption file: a: texts/a\.txt: expected caption#tokens#start#end"):
        HumanML3DReader(root).read("train", "a")


def test_long_sequences_become_windows(humanml3d_folder) -> None:
    root = humanml3d_folder({"train": {"000001": 199}})
    dataset = MotionDataset(HUMANML3D, root, "train")
    motion = np.load(root / "new_joint_vecs" / "000001.npy")
    starts = set()
    for epoch in range(30):
        drawn = dataset.draw(0, epoch)["motion"][0].numpy()
        assert len(drawn) == 196
        starts |= {s for s in range(4) if (motion[s : s + 196] == drawn).all()}
    assert starts == {0, 1, 2, 3}


def test_a_broken_folder_is_reported_by_name(humanml3d_folder) -> None:
    root = humanml3d_folder({"train": dict.fromkeys("abcdef", 60)})
    np.save(root / "new_joint_vecs" / "b.npy", np.zeros((60, 262), np.float32))
    (root / "texts" / "c.txt").write_text("no tags\n")
    (root / "new_joint_vecs" / "d.npy").unlink()
    (root / "texts" / "e.txt").write_text("late#late/ADV#8.0#9.0\n")
    np.save(root / "new_joint_vecs" / "f.npy", np.zeros((20, 263), np.float32))
    with pytest.warns(UserWarning, match="5 of 6 items cannot be used"):
        dataset = MotionDataset(HUMANML3D, root, "train")
    problems = {kind: [name.split(":")[0] for name in names] for kind, names in dataset.report.problems.items()}
    assert problems == {
        "wrong shape": ["b"],
        "unreadable caption file": ["c"],
        "no motion file": ["d"],
        "no frame": ["e"],
        "shorter than 40 frames": ["f"],
    }
    with pytest.raises(ValueError, match="swap_persons: expected false for humanml3d"):
        MotionDataset(HUMANML3D, root, "train", swap_persons=True)
    with pytest.raises(FileNotFoundError, match=r"test\.txt: no such file \(expected HumanML3D's layout\)"):
        MotionDataset(HUMANML3D, root, "test")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("#a/DET#0.0#0.0", "no caption: 1 (b: no line of texts/b.txt has a caption before its first #)"),
        ("a man walks#a/DET#inf#0.0", "unreadable caption file: 1 (b: texts/b.txt: expected caption#tokens#start#end"),
        ("a man walks#a/DET#-1#2", "unreadable caption file: 1 (b: texts/b.txt: "),
        ("a man walks#a/DET#0#1e400", "unreadable caption file: 1 (b: texts/b.txt: "),
        ("a man walks#a/DET#3#1", "no frame: 1 (b: "),
    ],
)
def test_a_caption_that_describes_nothing_is_told(humanml3d_folder, line: str, problem: str) -> None:
    root = humanml3d_folder({"train": dict.fromkeys("abc", 60)})
    (root / "texts" / "b.txt").write_text(f"{line}\n")
    with pytest.warns(UserWarning, match=re.escape(problem)):
        dataset = MotionDataset(HUMANML3D, root, "train")
    assert dataset.names == ["a", "c"]
    (root / "texts" / "b.txt").write_text("#a/DET#0.0#0.0\n a man walks #a/DET#nan#nan\n")
    assert MotionDataset(HUMANML3D, root, "train", strict=True).captions(1) == ("a man walks",)
