"""What is said of numbers and files that cannot be used: which kind of problem, where, and how large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intermoe.data.items import (
    DatasetReport,
    ItemError,
    absent,
    check_values,
    read_captions,
    read_lines,
    read_motion,
    read_named,
)
from intermoe.motion.arrays import LARGEST


def told(values: np.ndarray, label: str = "a: x.npy") -> str:
    with pytest.raises(ItemError) as error:
        check_values(values, label)
    return str(error.value)


def test_numbers_that_cannot_be_right_are_told_by_the_first_frame_that_has_one() -> None:
    """The largest number of that frame, whatever its sign, and of it alone."""
    values = np.zeros((6, 2, 3), np.float32)
    check_values(values, "a")
    values[2, 1, 0], values[2, 0, 2] = -2 * LARGEST, 1.5 * LARGEST
    values[4, 0, 0] = 7 * LARGEST
    assert told(values) == "out of range: a: x.npy: frame 2 holds 20000, expected at most 10000"
    values[5, 1, 1] = np.inf
    assert told(values) == "not finite: a: x.npy: frame 5"
    values[3, 0, 2] = np.nan
    assert told(values) == "not finite: a: x.npy: frame 3"
    assert told(values[:0], "b") == "no frame: b"
    check_values(np.full((1, 4), -LARGEST, np.float32), "a")


def test_a_report_names_the_kinds_by_the_alphabet_and_how_many_more_there_are() -> None:
    report = DatasetReport(total=20, ignored=2, known_missing=["x"])
    for problem, number in (("wrong shape", 2), ("no caption", 8)):
        for index in range(number):
            report.add(ItemError(problem, f"{problem[0]}{index}"))
    assert report.count == 10
    assert report.summary(names=3).splitlines() == [
        "10 of 20 items cannot be used",
        "  no caption: 8 (n0, n1, n2, and 5 more)",
        "  wrong shape: 2 (w0, w1)",
    ]
    error = ItemError("no frame", "a: x.npy")
    assert (str(error), error.problem, error.detail) == ("no frame: a: x.npy", "no frame", "a: x.npy")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_of_motion_is_float32_whatever_it_holds(tmp_path: Path, dtype: type[np.floating]) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2.5], [3, -4], [5, 6]], dtype))
    found = read_motion(tmp_path / "a.npy", "a", 2)
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2.5], [3, -4], [5, 6]]


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3, 2)])
def test_a_file_of_motion_of_another_shape_is_told(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "person1").mkdir()
    np.save(tmp_path / "person1" / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(ItemError) as error:
        read_motion(tmp_path / "person1" / "a.npy", "a", 2)
    assert str(error.value) == f"wrong shape: a: person1/a.npy: expected (T, 2), got {shape}"


def test_a_file_of_whole_numbers_is_told_with_their_type(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.int16))
    with pytest.raises(ItemError, match=r"a\.npy: expected floating-point numbers, got int16"):
        read_motion(tmp_path / "a.npy", "a", 2)


@pytest.mark.parametrize("name", ["/a", "../a", "a/../b", "\\a", "a\\..\\b", "C:a", "C:\\a", "//host/share/a"])
def test_names_that_lead_out_are_not_read(name: str) -> None:
    with pytest.raises(ItemError, match="name that leads out of the folder"):
        read_named(name, lambda: pytest.fail("was read"))


@pytest.mark.parametrize("name", ["a", "my/own/a", "a..b", "...", "ä"])
def test_names_that_stay_within_are_read(name: str) -> None:
    assert read_named(name, lambda: 3) == 3


def test_lines_are_stripped_and_empty_ones_none(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("  a \n\n\tb\n \nc", encoding="utf-8")
    assert read_lines(tmp_path / "x.txt", "Its") == ["a", "b", "c"]
    assert read_captions(tmp_path, "x") == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError, match=r"y\.txt: no such file \(expected Its's layout\)"):
        read_lines(tmp_path / "y.txt", "Its")
    assert absent(tmp_path, "z", "x.txt", "y/x.txt") == ["z", "y/x.txt"]
