import hashlib
import json
import struct

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.data.statistics import compute_statistics
from intermoe.motion.statistics import STD_FLOOR, Statistics


def items(seed=0):
    generator = torch.Generator().manual_seed(seed)
    motions = [torch.randn(frames, 2, 262, generator=generator) * 3 + 1 for frames in (17, 30)]
    for motion in motions:
        motion[..., 5] = 0.25  # a constant column
    return [{"motion": motion} for motion in motions]


def test_mean_and_deviation_over_frames_of_both_persons():
    frames = torch.cat([item["motion"].reshape(-1, 262) for item in items()]).double()
    statistics = compute_statistics(items())
    np.testing.assert_allclose(statistics.mean, frames.mean(0), rtol=1e-5)
    expected = np.maximum(frames.std(0, correction=0).numpy(), STD_FLOOR)
    np.testing.assert_allclose(statistics.std, expected, rtol=1e-5)
    assert statistics.std[5] == np.float32(STD_FLOOR)
    with pytest.raises(ValueError, match="passes: expected >= 1"):
        compute_statistics(items(), passes=0)


@pytest.mark.parametrize("kind", ["made up", "real"])
def test_normalising_motion_that_is_drawn(kind, request, two_people, tmp_path):
    folder = tmp_path / "pairs"
    if kind == "made up":
        two_people(folder, {"train": {str(i): 40 + i for i in range(4)}}, "the first turns left")
    else:
        folder = request.getfixturevalue("salsa")
    dataset = InterHumanDataset(folder, "train", mirror=True, swap_persons=True)
    dataset.set_epoch(5)
    statistics = compute_statistics(dataset, passes=2)
    motion = dataset[3]["motion"]
    normalised = statistics.normalise(motion)
    assert normalised.abs().max() < 30
    assert torch.allclose(statistics.denormalise(normalised), motion, atol=1e-5)


@pytest.mark.parametrize("convert", [lambda x: x, torch.from_numpy, lambda x: torch.from_numpy(x).double()])
def test_normalise_keeps_kind_and_dtype(convert):
    statistics = Statistics(np.arange(4), np.arange(1, 5))
    x = convert(np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32))
    normalised = statistics.normalise(x)
    assert type(normalised) is type(x)
    assert normalised.dtype == x.dtype
    np.testing.assert_allclose(normalised, (np.asarray(x) - np.arange(4)) / np.arange(1, 5), rtol=1e-5)
    np.testing.assert_allclose(statistics.denormalise(normalised), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_files_come_back_exactly(tmp_path, suffix):
    statistics = compute_statistics(items())
    path = tmp_path / f"statistics.{suffix}"
    statistics.save(path)
    loaded = Statistics.load(path)
    np.testing.assert_array_equal(loaded.mean, statistics.mean)
    np.testing.assert_array_equal(loaded.std, statistics.std)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    path.write_bytes(b"{}")
    with pytest.raises(ValueError, match=rf"statistics\.{suffix}: expected "):
        Statistics.load(path)


def test_an_edited_file_is_told(tmp_path):
    path = tmp_path / "statistics.json"
    Statistics(np.array([0.5, 1.5]), np.array([1.0, 2.0])).save(path)
    whole = path.read_text()
    path.write_text(whole.replace("1.5", "1.25"))
    with pytest.raises(ValueError, match=r"statistics\.json: not as it was saved"):
        Statistics.load(path)
    path.write_text(json.dumps({"mean": [0.5, 1.25], "std": [1, 2]}))  # from elsewhere, without a hash
    assert Statistics.load(path).mean.tolist() == [0.5, 1.25]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"mean": [1, 2], "std": [1]}', "std: expected the shape of mean"),
        ('{"mean": [1, "2"], "std": [1, 1]}', "mean: expected a vector of finite numbers, got <U21"),
        ('{"mean": [1, null], "std": [1, 1]}', "mean: expected a vector of finite numbers, got object"),
        ('{"mean": [[1], [1, 2]], "std": [1, 1]}', "inhomogeneous shape"),
        ('{"mean": [1e39], "std": [1]}', "mean: expected a vector of finite numbers"),
        ('{"mean": [NaN], "std": [1]}', "mean: expected a vector of finite numbers"),
        ('{"mean": [], "std": []}', "mean: expected a vector of finite numbers"),
        ('{"mean": [true], "std": [1]}', "mean: expected a vector of finite numbers, got bool"),
        ('[["mean"], ["std"]]', ", mean and std"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, content, message):
    path = tmp_path / "own.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"own\.json: expected motion statistics.*{message}"):
        Statistics.load(path)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (np.zeros(3), np.ones(4), "std: expected the shape of mean"),
        (np.zeros(3), np.zeros(3), "std: expected positive"),
        (np.full(3, np.nan), np.ones(3), "mean: expected a vector of finite"),
        (np.array([0, np.nan, 0]), np.ones(3), "mean: expected a vector of finite"),
        (np.zeros(3), np.array([1, np.inf, 1]), "std: expected a vector of finite"),
        (np.zeros(3), np.array([1, 0, 1]), "std: expected positive"),
        (np.zeros(3), np.array([1, 1, -1]), "std: expected positive"),
        (np.zeros((3, 1)), np.ones((3, 1)), "mean: expected a vector"),
    ],
)
def test_bad_values(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Statistics(mean, std)


def test_bad_use(tmp_path):
    statistics = Statistics(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="x: expected last dimension 3"):
        statistics.normalise(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"path: expected a .json or .npz file"):
        statistics.save(tmp_path / "statistics.pkl")
    with pytest.raises(ValueError, match="read-only"):
        statistics.mean[0] = 1.0


@pytest.mark.parametrize("changed", ["mean", "std"])
def test_a_digest_is_of_mean_and_deviation(changed: str) -> None:
    own = {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}
    other = own | {changed: own[changed] + np.array([0, 0, 0.25], np.float32)}
    assert Statistics(**own).digest() != Statistics(**other).digest()
    assert Statistics(**own).digest() == Statistics(**own).digest()


def test_what_was_never_seen_is_brought_near() -> None:
    """Within four deviations nothing changes, beyond it is cut; a column that did not vary has its mean."""
    statistics = Statistics(np.float32([1.0, 2.0, 3.0]), np.float32([0.5, 1e-3, 0.1]))
    seen = statistics.familiar(torch.tensor([[2.5, 2.0, 3.3], [9.0, 2.7, -9.0]]))
    torch.testing.assert_close(seen, torch.tensor([[2.5, 2.0, 3.3], [3.0, 2.0, 2.6]]))


def test_a_column_varies_from_twice_the_floor_on() -> None:
    """Just below it has its mean, just above four deviations of it."""
    statistics = Statistics(np.float32([1.0, -1.0]), np.float32([1.9e-3, 2.1e-3]))
    seen = statistics.familiar(torch.tensor([[2.0, 1.0], [0.0, -3.0]]))
    torch.testing.assert_close(seen, torch.tensor([[1.0, -1.0 + 4 * 2.1e-3], [1.0, -1.0 - 4 * 2.1e-3]]))


def test_a_digest_is_a_blake2_of_little_endian_numbers() -> None:
    content = struct.pack("<4f", 0.5, -1.5, 1.0, 2.0)
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert Statistics(np.array([0.5, -1.5]), np.array([1, 2])).digest() == expected


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_file_that_is_there_is_replaced_only_where_that_is_asked(tmp_path, suffix):
    path = tmp_path / f"statistics.{suffix}"
    first, second = (Statistics(np.full(2, value), np.ones(2)) for value in (1.0, 2.0))
    first.save(path, exclusive=True)
    with pytest.raises(FileExistsError):
        second.save(path, exclusive=True)
    assert Statistics.load(path).mean.tolist() == [1.0, 1.0]
    second.save(path)
    assert Statistics.load(path).mean.tolist() == [2.0, 2.0]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_numbers_are_a_copy_and_of_whole_numbers_too():
    mean = np.array([1.0, 2.0], np.float32)
    statistics = Statistics(mean, np.array([1, 3]))
    mean += 5
    assert statistics.mean.tolist() == [1.0, 2.0]
    assert statistics.std.dtype == statistics.mean.dtype == np.float32
    assert statistics.normalise(np.float32([[3.0, 8.0]])).tolist() == [[2.0, 2.0]]
