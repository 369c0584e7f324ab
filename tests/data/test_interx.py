"""Inter-X: forward kinematics against homogeneous transforms, the three forms of its files, what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from intermoe.data import DATA_SETS, MotionDataset
from intermoe.data.interx import InterXReader, load_skeleton
from intermoe.data.items import ItemError
from intermoe.data.sets import prepare
from intermoe.motion.interx import raw_motion
from intermoe.motion.rotations import rotation_matrices
from intermoe.motion.skeleton import WHOLE_BODY

INTERX = DATA_SETS["interx"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _rest(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(scale=0.3, size=(55, 3)).astype(np.float32)


def _raw(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Smooth: a walk of angles and translations."""
    return np.cumsum(rng.normal(scale=0.05, size=(frames, 56, 6)), axis=0).astype(np.float32)


def test_parents_are_smplxs() -> None:
    body = [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    left = [20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38]
    right = [21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53]
    assert list(WHOLE_BODY.parents[1:]) == body + left + right


def test_matrices_are_the_exponentials_of_their_axes(rng: np.random.Generator) -> None:
    vectors = np.concatenate([rng.normal(scale=2, size=(20, 3)), np.zeros((1, 3)), [[1e-9, 0, 0]], [[np.pi, 0, 0]]])
    cross = np.zeros((len(vectors), 3, 3))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[:, j, i], cross[:, i, j] = vectors[:, k], -vectors[:, k]
    expected = torch.matrix_exp(torch.from_numpy(cross))
    np.testing.assert_allclose(rotation_matrices(vectors), expected, atol=1e-12)


def test_positions_are_a_chain_of_rigid_transforms(rng: np.random.Generator) -> None:
    rest, raw = _rest(rng), _raw(rng, 4)
    motion = raw_motion(raw[:, None, :55, :3], raw[:, None, 55, :3], rest)
    assert motion.shape == (4, 1, 55, 12)
    for frame in range(4):
        chain = []
        for joint, parent in enumerate(WHOLE_BODY.parents):
            local = np.eye(4)
            local[:3, :3] = rotation_matrices(raw[frame, joint, :3].astype(np.float64))
            local[:3, 3] = rest[joint] - (rest[parent] if parent >= 0 else 0)
            chain.append(local if parent < 0 else chain[parent] @ local)
        expected = np.stack([transform[:3, 3] for transform in chain]) + raw[frame, 55, :3]
        np.testing.assert_allclose(motion[frame, 0, :, :3], expected, atol=1e-5)
    np.testing.assert_allclose(motion[:-1, 0, :, 3:6], np.diff(motion[:, 0, :, :3], axis=0), atol=1e-5)
    assert (motion[-1, ..., 3:6] == 0).all()
    matrices = rotation_matrices(raw[:, :55, :3].astype(np.float64))
    np.testing.assert_allclose(motion[:, 0, :, 6:9], matrices[..., 0, :], atol=1e-6)
    np.testing.assert_allclose(motion[:, 0, :, 9:12], matrices[..., 1, :], atol=1e-6)


def test_the_three_forms_of_a_file_give_the_same_motion(rng: np.random.Generator, interx_folder, tmp_path) -> None:
    rest, raw = _rest(rng), _raw(rng, 30)
    persons = np.stack([raw[..., :3], raw[..., 3:]], axis=1)
    motion = raw_motion(persons[:, :, :55], persons[:, :, 55], rest)
    root = interx_folder({"train": {"G1": raw}})
    read = InterXReader(root, skeleton=rest).read("train", "G1")[0]
    assert read.captions == ("the first person waves to the left", "they hug")
    np.testing.assert_array_equal(read.source, motion)
    # the processed form is taken where it is: position, velocity, axis-angle of one person, then of the other
    axis_angle = np.concatenate([motion[..., :6], persons[:, :, :55]], axis=-1)
    interx_folder({"train": {"G1": np.concatenate([axis_angle[:, 0], axis_angle[:, 1]], -1)}}, suffix="_global")
    np.testing.assert_allclose(InterXReader(root).read("train", "G1")[0].source, motion, atol=1e-6)
    interx_folder({"train": {"G1": np.concatenate([motion[:, 0], motion[:, 1]], -1)}}, suffix="_global")
    np.testing.assert_array_equal(InterXReader(root).read("train", "G1")[0].source, motion)


def test_recordings_at_120_keep_every_fourth_frame(rng: np.random.Generator, interx_folder) -> None:
    rest, raw = _rest(rng), _raw(rng, 122)
    root = interx_folder({"train": {"G1": raw}})
    fast = InterXReader(root, skeleton=rest, source_fps=120).read("train", "G1")[0].source
    root = interx_folder({"train": {"G1": raw[::4]}})
    np.testing.assert_array_equal(fast, InterXReader(root, skeleton=rest).read("train", "G1")[0].source)
    with pytest.raises(ValueError, match="source_fps: expected a multiple of 30, got 100"):
        InterXReader(root, source_fps=100)


def test_dataset_of_a_prepared_folder(rng: np.random.Generator, interx_folder, tmp_path) -> None:
    rest = _rest(rng)
    root = interx_folder({"train": {"G1": _raw(rng, 40), "G2": _raw(rng, 170)}, "test": {"G3": _raw(rng, 30)}})
    np.save(tmp_path / "rest.npy", rest)
    with pytest.raises(ValueError, match=r"skeleton: .*rotations without positions"):
        prepare(INTERX, root, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    prepared = prepare(INTERX, root, tmp_path / "cache", skeleton=tmp_path / "rest.npy")
    assert {split: report.total for split, report in prepared.reports.items()} == {"test": 1, "train": 2}
    dataset = MotionDataset(INTERX, tmp_path / "cache", "train", swap_persons=True)
    assert [dataset.num_frames(i) for i in range(2)] == [40, 150]
    plain = MotionDataset(INTERX, tmp_path / "cache", "train", training=False)[0]["motion"]
    assert plain.shape == (2, 40, 55, 12)
    items = [dataset.draw(0, epoch) for epoch in range(12)]
    swapped = [torch.equal(item["motion"], plain.flip(0)) for item in items]
    assert any(swapped)
    for item, is_swapped in zip(items, swapped, strict=True):
        assert is_swapped or torch.equal(item["motion"], plain)
        assert ("second" in item["caption"]) is (is_swapped and "person" in item["caption"])
    with pytest.raises(ValueError, match="mirror: expected false for interx"):
        MotionDataset(INTERX, tmp_path / "cache", "train", mirror=True)


def test_a_broken_folder_is_reported_by_name(rng: np.random.Generator, interx_folder) -> None:
    good = rng.normal(size=(30, 55, 24))
    bad = good.copy()
    bad[3, 5, 7] = np.nan
    items = {"G1": good, "G2": good[:, :, :10], "G3": bad, "G4": good[:4]}
    root = interx_folder({"train": items})
    with (root / "splits" / "train.txt").open("a") as file:
        file.write("\nG5\nG6")
    (root / "texts_processed" / "G5.txt").write_text("a#b/X#0.0#0.0\n")
    with pytest.warns(UserWarning, match="5 of 6 items cannot be used"):
        dataset = MotionDataset(INTERX, root, "train")
    assert dataset.names == ["G1"]
    problems = {kind: [name.split(":")[0] for name in names] for kind, names in dataset.report.problems.items()}
    assert problems == {
        "wrong shape": ["G2"],
        "not finite": ["G3"],
        "shorter than 24 frames": ["G4"],
        "no motion": ["G5"],
        "no caption": ["G6"],
    }


def test_an_odd_entry_is_told_and_the_others_are_used(rng: np.random.Generator, interx_folder, tmp_path) -> None:
    h5py = pytest.importorskip("h5py")
    good = rng.normal(size=(30, 55, 24)).astype(np.float32)
    root = interx_folder({"train": {"G1": good, "G9": good}})
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["secret"] = good
    (tmp_path / "outside.bin").write_bytes(good.tobytes())
    with h5py.File(root / "motions" / "train.h5", "a") as file:
        file.create_group("group")["x"] = good
        file["text"] = "hello"
        file["whole"] = good.astype(np.int64)
        file["nowhere"] = h5py.SoftLink("/absent")
        file["inside"] = h5py.SoftLink("/G1")
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "outside.h5"), "secret")
        file["through"] = h5py.ExternalLink(str(tmp_path / "outside.h5"), "/")
        outside = [(str(tmp_path / "outside.bin"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("raw", shape=good.shape, dtype="f4", external=outside)
        layout = h5py.VirtualLayout(good.shape, "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "outside.h5", "secret", good.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", shape=(10**9, 55, 24), dtype="f4", chunks=(1, 55, 24))
        file["positions"] = rng.normal(size=(30, 56, 6)).astype(np.float32)
        names = [*file, "through/secret", "/G1"]
    (root / "splits" / "train.txt").write_text("\n".join(names))
    for name in names:
        if not name.startswith("/") and "/" not in name:
            (root / "texts_processed" / f"{name}.txt").write_text("they bow#they/PRON#0#0\n")
    (root / "texts_processed" / "through").mkdir()
    (root / "texts_processed" / "through" / "secret.txt").write_text("they bow\n")
    with pytest.warns(UserWarning, match="12 of 15 items cannot be used"):
        dataset = MotionDataset(INTERX, root, "train")
    assert sorted(dataset.names) == ["G1", "G9", "inside"]
    problems = {
        kind.split(":")[0]: sorted(detail.split(":")[0] for detail in details)
        for kind, details in dataset.report.problems.items()
    }
    assert problems == {
        "unreadable array": ["group", "nowhere", "text", "whole"],
        "array of another file": ["elsewhere", "raw", "through", "through/secret", "virtual"],
        "wrong shape": ["huge"],
        "skeleton": ["positions"],
        "name that leads out of the folder": ["'/G1'"],
    }
    with pytest.raises(ValueError, match="12 of 15 items cannot be used"):
        MotionDataset(INTERX, root, "train", strict=True)


def test_a_line_without_a_caption_is_none(rng: np.random.Generator, interx_folder) -> None:
    root = interx_folder({"train": dict.fromkeys(("G1", "G2"), rng.normal(size=(30, 55, 24)))})
    (root / "texts_processed" / "G1.txt").write_text("#a/DET#0#0\nthey bow#they/PRON#0#0\n")
    (root / "texts_processed" / "G2.txt").write_text("#a/DET#0#0\n \n")
    with pytest.warns(UserWarning, match=r"G2: no line of texts_processed/G2\.txt has a caption before its first #"):
        dataset = MotionDataset(INTERX, root, "train")
    assert [dataset.captions(i) for i in range(len(dataset))] == [("they bow",)]


def test_files_that_are_no_hdf5_and_absent_ones(interx_folder, rng: np.random.Generator) -> None:
    root = interx_folder({"train": {"G1": _raw(rng, 30)}}, texts="texts")
    assert InterXReader(root, skeleton=_rest(rng)).read("train", "G1")[0].captions[1] == "they hug"
    (root / "motions" / "train.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train\.h5: expected a readable HDF5 file"):
        MotionDataset(INTERX, root, "train")
    with pytest.raises(FileNotFoundError, match=r"val\.txt: no such file \(expected Inter-X's layout\)"):
        MotionDataset(INTERX, root, "val")
    with pytest.raises(ItemError, match="no caption"):
        InterXReader(root).read("train", "G9")


def test_skeleton_files(tmp_path, rng: np.random.Generator) -> None:
    rest = _rest(rng)
    np.save(tmp_path / "rest.npy", rest)
    np.testing.assert_array_equal(load_skeleton(tmp_path / "rest.npy"), rest)
    # SMPL-X's own file: a regressor of joints from vertices, among much else, some of it pickled
    vertices = rng.normal(size=(100, 3))
    regressor = rng.uniform(size=(55, 100))
    pickled = np.array([{}], dtype=object)
    np.savez(tmp_path / "model.npz", J_regressor=regressor, v_template=vertices, part2num=pickled)
    np.testing.assert_allclose(load_skeleton(tmp_path / "model.npz"), regressor @ vertices, rtol=1e-5)
    np.save(tmp_path / "short.npy", rest[:22])
    np.savez(tmp_path / "other.npz", a=vertices)
    np.savez(tmp_path / "thin.npz", J_regressor=regressor, v_template=vertices[:9])
    np.save(tmp_path / "nowhere.npy", np.where(np.arange(55)[:, None] == 54, np.nan, rest))
    for name, message in (
        ("short.npy", r"expected \(55, 3\) joint positions .*, got shape \(22, 3\)"),
        ("nowhere.npy", r"expected \(55, 3\) joint positions .*, in metres, got shape \(55, 3\)"),
        ("other.npz", "expected a readable archive of the arrays .'J_regressor', 'v_template'."),
        ("thin.npz", r"expected \(55, 3\) joint positions .*, got shapes \(55, 100\) and \(9, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_skeleton(tmp_path / name)


def test_without_h5py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'intermoe\[interx\]'"):
        InterXReader(tmp_path)


def test_processed_texts_are_taken_where_both_are(interx_folder, rng: np.random.Generator) -> None:
    items = {"train": {"G1": rng.normal(size=(30, 55, 24))}}
    root = interx_folder(items)
    interx_folder(items, texts="texts")
    (root / "texts" / "G1.txt").write_text("as it was written first\n")
    assert InterXReader(root).read("train", "G1")[0].captions == ("the first person waves to the left", "they hug")


def test_a_cache_of_another_rate_or_skeleton_is_made_again(rng: np.random.Generator, interx_folder, tmp_path) -> None:
    root, cache = interx_folder({"train": {"G1": _raw(rng, 120)}}), tmp_path / "cache"
    for name, rest in (("a", _rest(rng)), ("b", _rest(rng))):
        np.save(tmp_path / f"{name}.npy", rest)
    for options in ({"skeleton": "a"}, {"skeleton": "b"}, {"skeleton": "b", "source_fps": 120}):
        given = {**options, "skeleton": tmp_path / f"{options['skeleton']}.npy"}
        assert prepare(INTERX, root, cache, **given).written
        assert not prepare(INTERX, root, cache, **given).written


def test_a_position_beyond_ten_kilometres_is_none_of_a_skeleton(rng: np.random.Generator, tmp_path) -> None:
    rest = _rest(rng)
    rest[54, 2] = -1e4
    np.save(tmp_path / "far.npy", rest)
    with pytest.raises(ValueError, match=r"far\.npy: expected \(55, 3\) joint positions"):
        load_skeleton(tmp_path / "far.npy")
    rest[54, 2] = -9999
    np.save(tmp_path / "far.npy", rest)
    assert load_skeleton(tmp_path / "far.npy").dtype == np.float32


def test_an_array_that_is_longer_than_any_recording_is_not_read(interx_folder, rng: np.random.Generator) -> None:
    """A million frames might be; one more is refused before there is room made for it."""
    h5py = pytest.importorskip("h5py")
    root = interx_folder({"train": {"G1": rng.normal(size=(30, 55, 24))}})
    with h5py.File(root / "motions" / "train.h5", "a") as file:
        file.create_dataset("G2", shape=(10**6 + 1, 55, 24), dtype="f4", chunks=(1, 55, 24))
    (root / "texts_processed" / "G2.txt").write_text("they bow\n")
    with pytest.raises(ItemError, match=r"wrong shape: G2: train\.h5: expected .*, got \(1000001, 55, 24\)"):
        InterXReader(root).read("train", "G2")


@pytest.mark.parametrize("fps", [0, -30, 15, 45])
def test_rates_that_no_frames_can_be_kept_of(tmp_path, fps: int) -> None:
    with pytest.raises(ValueError, match=f"source_fps: expected a multiple of 30, got {fps}"):
        InterXReader(tmp_path, source_fps=fps)


def test_a_list_without_its_file_of_motion_is_no_split(interx_folder, rng: np.random.Generator) -> None:
    root = interx_folder({"train": {"G1": rng.normal(size=(30, 55, 24))}, "val": {"G2": rng.normal(size=(30, 55, 24))}})
    (root / "motions" / "val.h5").unlink()
    reader = InterXReader(root)
    assert reader.splits() == ["train"]
    assert reader.absent("val") == ["motions/val.h5"]
    (root / "motions" / "val_global.h5").touch()
    assert reader.splits() == ["train", "val"]
    assert reader.absent("val") == []


def test_converted_motion_is_a_copy(rng: np.random.Generator) -> None:
    """What is done to it does not reach the source, nor a cache's read-only pages."""
    source = rng.normal(size=(30, 2, 55, 12)).astype(np.float32)
    source.setflags(write=False)
    for motion in (INTERX.convert(source), INTERX.convert_part(source, slice(3, 9), False, None)):
        motion += 1
        assert not np.shares_memory(motion, source)
