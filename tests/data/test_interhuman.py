import io
import re
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from intermoe.data import InterHumanDataset, collate
from intermoe.data.batching import gather
from intermoe.data.items import DatasetReport, ItemError
from intermoe.data.statistics import compute_statistics
from intermoe.motion.interhuman import joints, process_pair


@pytest.fixture
def make_set(tmp_path):
    """Writes a small set of given lengths: item "a0" has 40 frames and so on; returns its folder."""

    def make(lengths=(40, 60, 30), split="train"):
        rng = np.random.default_rng(0)
        for folder in ("motions_processed/person1", "motions_processed/person2", "annots", "split"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        names = []
        for i, frames in enumerate(lengths):
            names.append(f"a{i}")
            for person in ("person1", "person2"):
                motion = rng.normal(size=(frames, 492)).astype(np.float32)
                np.save(tmp_path / "motions_processed" / person / f"a{i}.npy", motion)
            (tmp_path / "annots" / f"a{i}.txt").write_text(f"the first dancer turns left {i}\none turns right {i}\n")
        (tmp_path / "split" / f"{split}.txt").write_text("\n".join(names))
        return tmp_path

    return make


def same(one, other):
    return (
        one["name"] == other["name"]
        and one["caption"] == other["caption"]
        and torch.equal(one["motion"], other["motion"])
    )


def test_a_summary_names_five_of_a_kind() -> None:
    report = DatasetReport(total=9)
    for number in range(6):
        report.add(ItemError("no caption", f"a{number}"))
    told = "6 of 9 items cannot be used\n  no caption: 6 (a0, a1, a2, a3, a4"
    assert report.summary() == f"{told}, and 1 more)"
    assert report.summary(names=6) == f"{told}, a5)"


def test_reads_the_right_columns(make_set):
    root = make_set(split="val")
    item = InterHumanDataset(root, "val")[0]
    raw = [
        np.load(root / "motions_processed" / p / "a0.npy")[:, [*range(66), *range(186, 312)]]
        for p in ("person1", "person2")
    ]
    expected = np.stack(process_pair(*raw))
    assert item["name"] == "a0"
    assert item["caption"] == "the first dancer turns left 0"
    assert item["motion"].dtype == torch.float32
    assert item["motion"].shape == (2, 39, 262)
    np.testing.assert_array_equal(item["motion"].numpy(), expected)


def test_evaluation_takes_the_first_frames_and_caption(make_set):
    dataset = InterHumanDataset(make_set(split="val"), "val", max_frames=16)
    whole = InterHumanDataset(dataset.root, "val")
    for index in range(3):
        assert dataset[index]["motion"].shape[1] == 16
        assert dataset[index]["caption"] == dataset.captions(index)[0]
        # Rotations are local, so they show which frames these are whatever the canonical frame.
        assert torch.equal(dataset[index]["motion"][..., 132:258], whole[index]["motion"][:, :16, 132:258])
        dataset.set_epoch(1)
        assert same(dataset[index], dataset[index])


def test_windows_are_random_canonical_and_inside(make_set):
    dataset = InterHumanDataset(make_set(), "train", min_frames=20, max_frames=20)
    whole = InterHumanDataset(dataset.root, "train", training=False)
    starts, captions = set(), set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        item = dataset[0]
        assert item["motion"].shape == (2, 20, 262)
        assert torch.allclose(joints(item["motion"])[0, 0, 0, [0, 2]], torch.zeros(2), atol=1e-6)
        rotations = whole[0]["motion"][..., 132:258]
        starts |= {s for s in range(20) if torch.equal(rotations[:, s : s + 20], item["motion"][..., 132:258])}
        captions.add(item["caption"])
    assert min(starts) < 5
    assert max(starts) > 14
    assert len(captions) == 2
    with pytest.warns(UserWarning, match="shorter than 33 frames: 1"):
        assert len(InterHumanDataset(dataset.root, "train", min_frames=32, max_frames=32)) == 2


@pytest.mark.parametrize(("frames", "window"), [(21, 20), (22, 20)])  # one possible window; two
def test_every_window_can_be_drawn(make_set, frames, window):
    dataset = InterHumanDataset(make_set((frames,)), "train", min_frames=window, max_frames=window)
    rotations = InterHumanDataset(dataset.root, "train", training=False)[0]["motion"][..., 132:258]
    starts = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        window_rotations = dataset[0]["motion"][..., 132:258]
        starts |= {s for s in range(frames - window) if torch.equal(rotations[:, s : s + window], window_rotations)}
    assert starts == set(range(frames - window))


def test_augmentation_moves_captions_with_motion(make_set):
    dataset = InterHumanDataset(make_set((40,)), "train", mirror=True, swap_persons=True)
    plain = InterHumanDataset(dataset.root, "train", training=False)
    seen = set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        item = dataset[0]
        if "dancer" not in item["caption"]:
            continue
        mirrored, swapped = "right" in item["caption"], "second" in item["caption"]
        seen.add((mirrored, swapped))
        rotations = item["motion"][..., 132:258]
        if swapped:
            rotations = rotations.flip(0)
        expected = plain[0]["motion"][..., 132:258]
        assert torch.equal(rotations, expected) is not mirrored
        if mirrored:  # the left knee's rotation is the mirrored right knee's
            signs = torch.tensor([1, -1, -1, 1, -1, 1.0])
            assert torch.equal(rotations[..., 18:24], expected[..., 24:30] * signs)
    assert len(seen) == 4


def test_randomness_is_a_function_of_seed_epoch_and_index(make_set):
    root = make_set()
    options = {"min_frames": 20, "max_frames": 20, "mirror": True, "swap_persons": True}
    dataset = InterHumanDataset(root, "train", **options, seed=3)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append([dataset[i] for i in range(3)])
    assert not all(map(same, *epochs))
    other_seed = InterHumanDataset(root, "train", **options, seed=4)
    assert not all(same(other_seed[i], epochs[0][i]) for i in range(3))
    # Workers that stay alive over epochs, and other orders, give the same items.
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (1, 0):
        dataset.set_epoch(epoch)
        assert all(map(same, loader, epochs[epoch]))
        assert all(same(dataset[i], epochs[epoch][i]) for i in (2, 0, 1))


def break_set(root):
    """One item for each problem; "a0" stays good."""
    person1, person2 = (root / "motions_processed" / p for p in ("person1", "person2"))
    (person2 / "a1.npy").unlink()
    (person1 / "a2.npy").write_bytes(b"not an array")
    np.save(person1 / "a3.npy", np.zeros((40, 262), np.float32))
    motion = np.load(person1 / "a4.npy")
    motion[7, 190] = np.nan
    np.save(person1 / "a4.npy", motion)
    (root / "annots" / "a5.txt").write_text("\n")
    (root / "annots" / "a6.txt").unlink()
    np.save(person2 / "a8.npy", np.tile(np.load(person2 / "a8.npy")[:1], (41, 1)))
    np.save(person1 / "a9.npy", np.array([{}], dtype=object), allow_pickle=True)
    for person in (person1, person2):
        (person / "a10.npy").unlink()


def test_problems_are_reported_by_name(make_set):
    root = make_set((40,) * 7 + (15,) + (40,) * 4)
    break_set(root)
    (root / "ignore_list.txt").write_text("a11\n")
    with pytest.warns(UserWarning, match="10 of 11 items cannot be used"):
        dataset = InterHumanDataset(root, "train")
    assert dataset.names == ["a0"]
    assert dataset.report.ignored == 1
    names = {
        kind: [detail.split(":")[0].split()[0] for detail in details]
        for kind, details in dataset.report.problems.items()
    }
    assert names == {
        "missing partner": ["a1"],
        "unreadable file": ["a2", "a9"],
        "wrong shape": ["a3"],
        "not finite": ["a4"],
        "no caption": ["a5", "a6"],
        "shorter than 16 frames": ["a7"],
        "persons of different length": ["a8"],
        "no motion file": ["a10"],
    }
    summary = dataset.report.summary()
    assert "no caption: 2 (a5: no text in annots/a5.txt, a6: no file annots/a6.txt)" in summary
    assert "no caption: 2 (a5: no text in annots/a5.txt, and 1 more)" in dataset.report.summary(names=1)
    for label in (
        "a1: no file person2/a1.npy",
        "a2: .*person1/a2.npy: expected a ",
        "a3: person1/a3.npy: ",
        "a10: no file ",
    ):
        assert re.search(rf"[(, ]{label}", summary), label
    assert not any("pickle.load" in detail for detail in dataset.report.problems["unreadable file"])
    assert "frame 7" in dataset.report.problems["not finite"][0]
    with pytest.raises(ValueError, match="10 of 11 items cannot be used"):
        InterHumanDataset(root, "train", strict=True)


def array_bytes(array, **header):
    """A .npy file of ``array`` that says something else of itself."""
    file = io.BytesIO()
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue() + array.tobytes()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (array_bytes(np.zeros((0, 492), np.float32)), "no frame: 1 (a1: person1/a1.npy)"),
        (
            array_bytes(np.zeros((40, 492), np.float32)),
            "no facing direction: 1 (a1: person1/a1.npy: the hips of frame 0",
        ),
        (array_bytes(np.full((40, 492), 1e30, np.float32)), "out of range: 1 (a1: person1/a1.npy: frame 0 holds 1e+30"),
        (array_bytes(np.full((40, 492), 1e300)), "not finite: 1 (a1: person1/a1.npy: frame 0)"),
        (array_bytes(np.zeros((40, 492), np.int32)), "unreadable file: 1 (a1: person1/a1.npy: expected floating-point"),
        (array_bytes(np.zeros((40, 492), complex)), "unreadable file: 1 (a1: "),
        (array_bytes(np.zeros(9, np.float32), shape=(10**14, 492)), "unreadable file: 1 (a1: "),
        (array_bytes(np.zeros((40, 492), np.float32), shape=(-1, 492)), "unreadable file: 1 (a1: "),
        (array_bytes(np.zeros((40, 492), np.float32))[:-1], "unreadable file: 1 (a1: "),
        (b"", "unreadable file: 1 (a1: "),
        (None, "missing partner: 1 (a1: no file person1/a1.npy)"),  # a folder
    ],
)
def test_one_bad_array_is_told_by_item_and_file_and_the_others_are_used(make_set, content, problem):
    root = make_set((40,) * 3)
    path = root / "motions_processed" / "person1" / "a1.npy"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.warns(UserWarning, match=re.escape(problem)):
        dataset = InterHumanDataset(root, "train", mirror=True, swap_persons=True)
    assert dataset.names == ["a0", "a2"]
    if "unreadable" in problem:
        assert "person1/a1.npy" in dataset.report.summary()
    assert compute_statistics(dataset, passes=4).mean.shape == (262,)


def test_a_lost_track_of_either_person_in_any_frame_is_found(make_set):
    root = make_set((40,) * 3)
    for person, name, frame in (("person1", "a0", 12), ("person2", "a2", 38)):
        path = root / "motions_processed" / person / f"{name}.npy"
        motion = np.load(path)
        motion[frame] = 0
        np.save(path, motion)
    with pytest.warns(UserWarning, match="2 of 3 items cannot be used"):
        dataset = InterHumanDataset(root, "train")
    assert dataset.report.problems == {
        "no facing direction": [
            "a0: person1/a0.npy: the hips of frame 12 lie above each other",
            "a2: person2/a2.npy: the hips of frame 38 lie above each other",
        ]
    }


@pytest.mark.parametrize("name", ["../outside", "a0/../../outside", "{root}/../outside", "..\\outside", "C:\\outside"])
def test_names_do_not_lead_out_of_the_folder(make_set, name, tmp_path_factory):
    root = make_set((40,) * 2)
    outside = root / "motions_processed" / "outside.npy"
    outside.write_bytes((root / "motions_processed" / "person1" / "a0.npy").read_bytes())
    (root / "outside.txt").write_text("outside\n")
    name = name.format(root=root / "annots")
    (root / "split" / "train.txt").write_text(f"a0\n{name}\na1\n")
    with pytest.warns(UserWarning, match="name that leads out of the folder: 1"):
        dataset = InterHumanDataset(root, "train")
    assert dataset.names == ["a0", "a1"]
    assert repr(name) in dataset.report.summary()
    with pytest.raises(ValueError, match="name that leads out of the folder"):
        InterHumanDataset(root, "train", strict=True)


def test_lists_and_captions_of_other_editors(make_set):
    root = make_set((40,) * 4)
    (root / "split" / "train.txt").write_bytes(b"\xef\xbb\xbfa0\r\n\x0ca1\ra2\r\na3")
    (root / "ignore_list.txt").write_bytes(b"\xef\xbb\xbfa2\r\n")
    (root / "annots" / "a0.txt").write_bytes("\ufefftwo people\u2028bow\r\n\x0c\r\nthey walk\x0c".encode())
    (root / "annots" / "a1.txt").write_bytes("one bows\ncaf\u00e9".encode("latin-1"))
    with pytest.warns(UserWarning, match=r"a1: .*annots/a1\.txt: line 2: expected UTF-8 text, got byte 0xe9"):
        dataset = InterHumanDataset(root, "train")
    assert dataset.names == ["a0", "a3"]
    assert dataset.captions(0) == ("two people bow", "they walk")
    for path in (root / "ignore_list.txt", root / "split" / "train.txt"):
        path.write_text("a0\na1\n", encoding="utf-16")
        with pytest.raises(ValueError, match=rf"{path.name}: line 1: expected UTF-8 text, got UTF-16"):
            InterHumanDataset(root, "train")


def test_nan_in_unused_columns_is_harmless(make_set):
    root = make_set((40,))
    path = root / "motions_processed" / "person1" / "a0.npy"
    motion = np.load(path)
    motion[:, 66:186] = np.nan
    np.save(path, motion)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(InterHumanDataset(root, "train", strict=True)) == 1


def test_sets_beyond_the_memory_limit_are_read_again(make_set, monkeypatch):
    kept = InterHumanDataset(make_set(), "train")
    monkeypatch.setattr("intermoe.data.dataset._MEMORY_BYTES", 2 * 40 * 192 * 4)
    reread = InterHumanDataset(kept.root, "train")
    assert [source is None for source in reread._clips._sources] == [False, True, True]
    assert all(same(kept[i], reread[i]) for i in range(3))
    for person in ("person1", "person2"):
        path = kept.root / "motions_processed" / person / "a1.npy"
        np.save(path, np.load(path)[:59])
    with pytest.raises(ValueError, match="changed since it was checked"):
        reread[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_frames": 0}, "min_frames: expected a value in"),
        ({"min_frames": 400}, "min_frames: expected a value in"),
        ({"min_frames": 16, "max_frames": 15}, r"min_frames: expected a value in \[1, max_frames=15\], got 16"),
        ({"seed": -1}, "seed: expected >= 0"),
        ({"min_frames": 100}, "3 of 3 items cannot be used"),
    ],
)
def test_bad_arguments(make_set, options, message):
    with pytest.raises(ValueError, match=message):
        InterHumanDataset(make_set(), "train", **options)


def test_missing_split_empty_split_and_bad_index(make_set):
    root = make_set()
    with pytest.raises(FileNotFoundError, match=r"test\.txt"):
        InterHumanDataset(root, "test")
    (root / "split" / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected items in split 'empty', got none"):
        InterHumanDataset(root, "empty")
    dataset = InterHumanDataset(root, "train")
    with pytest.raises(IndexError, match="index"):
        dataset[3]
    with pytest.raises(ValueError, match="epoch"):
        dataset.set_epoch(-1)


def test_gathered_items_are_the_items_and_make_the_same_batch(make_set, nan_filled_memory):
    dataset = InterHumanDataset(make_set(), "train")
    items = [dataset[index] for index in (1, 0, 2, 1)]
    gathered = gather(iter(items), [item["motion"].shape[1] for item in items])
    expected, batch = collate(items), collate(gathered)
    assert batch["motion"] is gathered.motion
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value
    for item, moved in zip(items, gathered, strict=True):
        assert item.keys() == moved.keys()
        assert torch.equal(item["motion"], moved["motion"])


def test_gathered_items_are_of_the_lengths_that_were_told(make_set):
    dataset = InterHumanDataset(make_set(), "train")
    with pytest.raises(ValueError, match=r"items: expected motion \(2, 18, 262\), got \(2, 39, 262\)"):
        gather([dataset[0]], [18])
    assert gather([{"codes": 1}, {"codes": 2}], [18, 19]) == [{"codes": 1}, {"codes": 2}]


def test_collate_pads_to_a_multiple_of_four(make_set):
    dataset = InterHumanDataset(make_set(), "train")
    batch = collate([dataset[i] for i in (0, 2)])
    assert batch["motion"].shape == (2, 2, 40, 262)
    assert batch["lengths"].tolist() == [39, 29]
    assert batch["names"] == ["a0", "a2"]
    assert len(batch["captions"]) == 2
    assert torch.equal(batch["motion"][1, :, :29], dataset[2]["motion"])
    assert not batch["motion"][1, :, 29:].any()
    with pytest.raises(ValueError, match="items: expected at least one"):
        collate([])


@pytest.mark.parametrize(("split", "count"), [("train", 85), ("val", 10)])
def test_real_data_is_complete(salsa, split, count):
    dataset = InterHumanDataset(salsa, split, strict=True, training=False)
    assert len(dataset) == count
    assert dataset.report.problems == {}
    heights = [joints(dataset[i]["motion"])[..., 15, 1].median().item() for i in range(0, count, 5)]
    assert all(1.3 < height < 1.7 for height in heights)  # heads of two standing people
    assert all(len(dataset.captions(i)) == 3 for i in range(count))
