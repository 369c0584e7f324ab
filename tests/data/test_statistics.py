"""Statistics of items by hand, and what is kept of them for an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import statistics
from intermoe.data.statistics import compute_statistics


def test_every_frame_of_every_person_counts_once() -> None:
    """The deviation is that of all of them, not of a sample."""
    first = torch.tensor([[[1.0, 10.0], [2.0, -10.0], [6.0, 30.0]], [[0.0, 5.0], [-1.0, 5.0], [4.0, 20.0]]])
    second = torch.tensor([[[3.0, 0.0]], [[9.0, 40.0]]])
    found = compute_statistics([{"motion": first}, {"motion": second}])
    columns = np.array([[1, 2, 6, 0, -1, 4, 3, 9], [10, -10, 30, 5, 5, 20, 0, 40]])
    np.testing.assert_allclose(found.mean, [3.0, 12.5], rtol=1e-6)
    np.testing.assert_allclose(found.std, np.sqrt(((columns - [[3.0], [12.5]]) ** 2).sum(axis=1) / 8), rtol=1e-6)
    assert (found.mean.dtype, found.std.dtype) == (np.float32, np.float32)
    joints = compute_statistics([{"motion": torch.arange(24.0).view(1, 2, 3, 4)}])  # over all but the last dimension
    np.testing.assert_array_equal(joints.mean, [10, 11, 12, 13])
    with pytest.raises(ValueError, match="passes: expected >= 1, got 0"):
        compute_statistics([{"motion": first}], passes=0)


def test_a_column_that_never_varies_has_the_least_deviation() -> None:
    """Of many a constant the mean of squares, less the square of the mean, is a little below zero."""
    values = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.1
    motion = values.expand(1, 999, 200)
    squares = (motion[0].double() ** 2).numpy().sum(axis=0) / 999
    assert (squares - values.double().numpy() ** 2).min() < 0
    found = compute_statistics([{"motion": motion}])
    np.testing.assert_array_equal(found.std, np.full(200, 1e-3, np.float32))
    np.testing.assert_allclose(found.mean, values, rtol=1e-6)


@pytest.fixture
def items(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """40 of them, each a piece."""
    monkeypatch.setattr(statistics, "PIECE", 1)
    return [{"motion": torch.full((1, 2, 3), float(number))} for number in range(40)]


class Stop(Exception):
    """As Ctrl+C."""


def test_sums_are_kept_every_16_pieces_and_removed_in_the_end(
    items: list[dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, path, taken, last = statistics._sums, tmp_path / "sums.json", [], 0

    def sums(dataset: Any, piece: tuple[int, int, int]) -> statistics.Sums:
        if piece == (0, last, last + 1):
            raise Stop
        taken.append(piece)
        return plain(dataset, piece)

    monkeypatch.setattr(statistics, "_sums", sums)
    for stop, done in ((15, None), (16, 16), (31, 16), (33, 32)):
        last = stop
        with pytest.raises(Stop):
            compute_statistics(items, passes=2, unfinished=path)
        if done is None:
            assert not path.exists()
            continue
        kept = json.loads(path.read_text())
        assert (kept["of"], kept["done"], kept["count"]) == (80, done, 2 * done)
        assert kept["total"] == [2.0 * sum(range(done))] * 3
        assert kept["squares"] == [2.0 * sum(number**2 for number in range(done))] * 3
    last = 99
    taken.clear()
    found = compute_statistics(items, passes=2, unfinished=path)
    assert taken == [*((0, number, number + 1) for number in range(32, 40)), *((1, n, n + 1) for n in range(40))]
    np.testing.assert_allclose(found.mean, np.full(3, 19.5), rtol=1e-6)
    assert not path.exists()


def test_no_more_processes_are_started_than_there_are_pieces(
    items: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def alone(task: Any, context: Any, parts: Any, workers: int) -> Iterator[Any]:
        asked.append(workers)
        return (task(context, part) for part in parts)

    monkeypatch.setattr(statistics, "in_order", alone)
    for passes, workers in ((1, 7), (1, 50), (2, 50), (3, 500)):
        compute_statistics(items, passes=passes, workers=workers)
    assert asked == [7, 40, 50, 120]
