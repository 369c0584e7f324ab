"""What every reader says of its folder: splits, names, the files that clips are made of, and what is absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intermoe.data import DATA_SETS, prepare, sets
from intermoe.data.activities import shipped_wordings
from intermoe.data.items import DataSet, ItemError, Reader, read_named, read_sequence
from intermoe.data.solo import SoloReader
from intermoe.motion.arrays import Array

KINDS = ("interhuman", "interx", "humanml3d", "solo")
FILES = {
    "interhuman": [
        *(f"motions_processed/person{person}/{name}.npy" for person in (1, 2) for name in "ab"),
        *(f"annots/{name}.txt" for name in "ab"), "split/train.txt", "split/val.txt", "ignore_list.txt",
    ],
    "interx": ["motions/train.h5", "motions/val.h5", "splits/train.txt", "splits/val.txt",
               *(f"texts_processed/{name}.txt" for name in "ab")],
    "humanml3d": [*(f"new_joint_vecs/{name}.npy" for name in "ab"), *(f"texts/{name}.txt" for name in "ab"),
                  "train.txt", "val.txt"],
    "solo": [*(f"motions/{name}.npz" for name in "ab"), *(f"annots/{name}.txt" for name in "ab"),
             "split/train.txt", "split/val.txt"],
}  # fmt: skip
LAYOUTS = {"interhuman": "InterHuman's", "interx": "Inter-X's", "humanml3d": "HumanML3D's", "solo": "a solo folder's"}
ABSENT = {
    "interhuman": ["split/test.txt"],
    "interx": ["splits/test.txt", "motions/test.h5"],
    "humanml3d": ["test.txt"],
    "solo": ["split/test.txt"],
}


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Reader:
    """Of one sequence ``a`` to train with and one ``b`` to validate with, beside files that say nothing."""
    kind: str = request.param
    if kind == "solo":
        root = tmp_path / "solo"
        for folder in ("motions", "annots", "split"):
            (root / folder).mkdir(parents=True)
        for split, name in (("train", "a"), ("val", "b")):
            columns = {"pos": np.arange(66).reshape(1, 22, 3), "rot6d": np.tile([8192, 0, 0, 0, 8192, 0], (1, 21, 1))}
            np.savez(root / "motions" / f"{name}.npz", **{k: v.repeat(20, axis=0) for k, v in columns.items()})
            (root / "annots" / f"{name}.txt").write_text("a person waves\n")
            (root / "split" / f"{split}.txt").write_text(f"{name}\n")
    else:
        make: Callable[..., Path] = request.getfixturevalue(f"{kind}_folder")
        item: Any = np.random.default_rng(0).normal(size=(20, 55, 24)) if kind == "interx" else 20
        root = make({"train": {"a": item}, "val": {"b": item}})
    if kind == "interhuman":
        (root / "ignore_list.txt").write_text("z\n")
    (root / "notes.md").write_text("nothing")
    return DATA_SETS[kind].reader(root)


@pytest.mark.parametrize("reader", KINDS, indirect=True)
def test_a_reader_knows_its_splits_its_files_and_what_is_absent(
    reader: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kind = next(kind for kind in KINDS if kind == DATA_SETS[kind].name and (tmp_path / kind).is_dir())
    assert reader.splits() == ["train", "val"]
    assert [reader.names(split) for split in ("train", "val")] == [(["a"], 0), (["b"], 0)]
    assert sorted(str(path.relative_to(reader.root)) for path in reader.files()) == sorted(FILES[kind])
    assert reader.absent("train") == []
    assert reader.absent("test") == ABSENT[kind]
    with pytest.raises(FileNotFoundError, match=rf"test\.txt: no such file \(expected {LAYOUTS[kind]} layout\)"):
        reader.names("test")
    (clip,) = reader.read("val", "b")[:1]
    assert (clip.name, clip.source.shape[1:], clip.source.dtype) == ("b", DATA_SETS[kind].source_shape, np.float32)
    converted = DATA_SETS[kind].convert(clip.source)
    assert (converted.dtype, len(clip.source) - converted.shape[0]) == (np.float32, DATA_SETS[kind].lost_frames)
    check_parts(DATA_SETS[kind], clip.source)


@pytest.mark.parametrize(
    ("kind", "folder", "motion"),
    [("interhuman", "split", None), ("solo", "split", None), ("humanml3d", "", None), ("interx", "splits", "motions")],
)
def test_splits_are_told_by_the_alphabet(kind: str, folder: str, motion: str | None, tmp_path: Path) -> None:
    names = ["m", "z", "b", "y", "a", "x", "c"]
    for name in names:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.txt").touch()
        if motion is not None:
            (tmp_path / motion).mkdir(exist_ok=True)
            (tmp_path / motion / f"{name}.h5").touch()
    assert DATA_SETS[kind].reader(tmp_path).splits() == sorted(names)


@pytest.mark.parametrize("by_columns", [True, False])
def test_rotations_come_in_rows_however_a_file_has_them(
    by_columns: bool, interhuman_folder: Callable[..., Path]
) -> None:
    """The same turns about all axes, written in either order, of both persons; positions stay as they are."""
    root = interhuman_folder({"train": {"1": 20}})
    expected = []
    for seed, person in enumerate(("person1", "person2")):
        turns = np.linalg.qr(np.random.default_rng(seed).normal(size=(20, 21, 3, 3)))[0].astype(np.float32)
        columns = turns[..., :2]  # r00 r01, r10 r11, r20 r21
        rows = columns.reshape(20, 126)
        path = root / "motions_processed" / person / "1.npy"
        motion = np.load(path)
        motion[:, 186:312] = columns.swapaxes(2, 3).reshape(20, 126) if by_columns else rows
        np.save(path, motion)
        expected.append(np.concatenate([motion[:, :66], rows], axis=1))
    (clip,) = DATA_SETS["interhuman"].reader(root).read("train", "1")
    np.testing.assert_array_equal(clip.source, np.stack(expected, axis=1))


def test_persons_of_different_length_are_told_in_their_order(interhuman_folder: Callable[..., Path]) -> None:
    root = interhuman_folder({"train": {"1": 20}})
    path = root / "motions_processed" / "person2" / "1.npy"
    np.save(path, np.load(path)[:17])
    with pytest.raises(ItemError, match="persons of different length: 1: 20 and 17 frames"):
        read_sequence(DATA_SETS["interhuman"].reader(root), "train", "1")


def check_parts(data_set: DataSet, source: Array) -> None:
    """Some frames alone, mirrored too, are those of the whole."""
    floor = None if data_set.floor is None else data_set.floor(source)
    for mirrored in (False, True) if data_set.mirror is not None else (False,):
        whole = data_set.convert(data_set.mirror(source) if mirrored and data_set.mirror else source)
        assert data_set.convert_part is not None
        part = data_set.convert_part(source, slice(2, 7), mirrored, floor)
        np.testing.assert_allclose(part, whole[2:7], rtol=1e-5, atol=1e-6)
    if floor is not None:  # which is not that of these frames
        assert data_set.convert_part is not None
        lifted = data_set.convert_part(source, slice(2, 7), False, floor - 1)
        assert not np.allclose(lifted, data_set.convert(source)[2:7])


def test_what_the_system_says_of_a_file_is_told_with_its_item() -> None:
    def read() -> None:
        raise PermissionError(13, "Permission denied", "a.npy")

    with pytest.raises(ItemError, match=r"^unreadable file: 7: \[Errno 13\] Permission denied: 'a.npy'$"):
        read_named("7", read)


def test_frames_at_the_bounds_of_what_is_possible_are_read(
    interhuman_folder: Callable[..., Path],
) -> None:
    """A number that is as large as any may be is none too large."""
    from intermoe.motion.arrays import LARGEST

    root = interhuman_folder({"train": {"1": 20}})
    path = root / "motions_processed" / "person1" / "1.npy"
    motion = np.load(path)
    motion[3, 7] = LARGEST
    np.save(path, motion)
    reader = DATA_SETS["interhuman"].reader(root)
    assert read_sequence(reader, "train", "1")[0].source[3, 0, 7] == LARGEST
    motion[3, 7] = np.nextafter(np.float32(LARGEST), np.float32(np.inf))
    np.save(path, motion)
    with pytest.raises(ItemError, match=r"out of range: 1: person1/1\.npy: frame 3 holds"):
        read_sequence(reader, "train", "1")


def test_options_that_a_data_set_does_not_have_are_refused_with_those_that_it_has(
    interhuman_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = interhuman_folder({"train": {"1": 20}})
    with pytest.raises(ValueError, match="options: expected none for interhuman, got colour, source_fps"):
        prepare(DATA_SETS["interhuman"], root, tmp_path / "cache", source_fps=30, colour=1)
    with pytest.raises(ValueError, match="options: expected any of skeleton, source_fps for interx, got colour"):
        prepare(DATA_SETS["interx"], root, tmp_path / "cache", source_fps=30, colour=1)


@pytest.mark.parametrize(("sequences", "workers"), [(3, 1), (4, 7), (5, 7)])
def test_processes_are_as_many_as_cores_where_it_is_worth_it(
    sequences: int,
    workers: int,
    interhuman_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequences of all splits count; statistics are taken by as many processes."""
    root = interhuman_folder({"train": {str(n): 20 for n in range(sequences - 1)}, "val": {"last": 20}})
    asked = []

    def write(*_: Any, statistics: Callable[[Path], None], workers: int, **__: Any) -> None:
        asked.append(workers)
        statistics(tmp_path)

    def compute(_: Any, *, workers: int, **__: Any) -> Any:
        asked.append(workers)
        raise InterruptedError

    monkeypatch.setattr(sets, "_FEW", 4)
    monkeypatch.setattr(sets, "available_cores", lambda: 7)
    monkeypatch.setattr(sets, "write_cache", write)
    monkeypatch.setattr(sets, "MotionDataset", lambda *_, **__: None)
    monkeypatch.setattr(sets, "compute_statistics", compute)
    (tmp_path / sets.INDEX).write_bytes(b"{}")
    with pytest.raises(InterruptedError):
        prepare(DATA_SETS["interhuman"], root, tmp_path / "cache", workers=None)
    assert asked == [workers, workers]


def test_a_file_of_ones_own_comes_before_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_wordings("duets", "wordings").name == "duets_wordings.tsv"
    assert shipped_wordings("mine.tsv", "wordings") == Path("mine.tsv")
    Path("duets").write_text("bow\tthey bow\n")
    assert shipped_wordings("duets", "wordings") == Path("duets")


def test_a_clip_alone_is_float32_in_metres(tmp_path: Path) -> None:
    for folder in ("motions", "annots", "split"):
        (tmp_path / folder).mkdir()
    body = np.random.default_rng(0).integers(-5000, 5000, size=(20, 22, 3))
    np.savez(tmp_path / "motions" / "a.npz", pos=body, rot6d=np.tile([8192, 0, 0, 0, 8192, 0], (20, 21, 1)))
    (tmp_path / "annots" / "a.txt").write_text("a person waves\n")
    clip = SoloReader(tmp_path).read("a")
    np.testing.assert_array_equal(clip.positions, (body.reshape(20, 66) * 2e-4).astype(np.float32))
    assert (clip.positions.dtype, clip.rotations.dtype, clip.rotations.max()) == (np.float32, np.float32, 1)


@pytest.mark.parametrize(("kind", "passes"), [("interhuman", 4), ("solo", 4), ("interx", 4), ("humanml3d", 1)])
def test_statistics_of_a_cache_go_through_what_is_drawn_of_its_items(
    kind: str, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several times where anything is: a mirror image, or persons in each other's place."""
    opened: list[Any] = []
    asked: dict[str, Any] = {}

    def compute(dataset: Any, **options: Any) -> Any:
        asked.update(options)
        raise InterruptedError

    monkeypatch.setattr(sets, "MotionDataset", lambda *given, **options: opened.append((given, options)))
    monkeypatch.setattr(sets, "compute_statistics", compute)
    (tmp_path / sets.INDEX).write_bytes(b"{}")
    data_set = DATA_SETS[kind]
    with pytest.raises(InterruptedError):
        sets._write_statistics(data_set, True, 3, tmp_path)
    unfinished = asked.pop("unfinished")
    assert asked == {"passes": passes, "workers": 3}
    assert (unfinished.parent, unfinished.name[:5]) == (tmp_path, "sums-")
    augmented = {"mirror": kind in ("interhuman", "solo"), "swap_persons": kind in ("interhuman", "interx")}
    assert opened == [((data_set, tmp_path, "train"), {**augmented, "training": True})]
    sets._write_statistics(data_set, False, 3, tmp_path)  # nothing to train with: nothing to take them from
    assert len(opened) == 1
