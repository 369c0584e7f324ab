"""Several motions in one picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from intermoe.viz import Grid


class Plain:
    """An animation whose frames are filled with ``value`` + index."""

    def __init__(self, value: int, length: int, size: tuple[int, int] = (4, 2), fps: float = 30) -> None:
        self.value, self.length, self.size, self.fps = value, length, size, fps

    def __len__(self) -> int:
        return self.length

    def frame(self, index: int) -> np.ndarray:
        assert index < self.length
        return np.full((self.size[1], self.size[0], 3), self.value + index, dtype=np.uint8)

    def frames(self) -> Iterator[np.ndarray]:
        return (self.frame(index) for index in range(len(self)))


def test_three_motions_lie_in_two_rows_and_short_ones_wait() -> None:
    grid = Grid([Plain(10, 5), Plain(50, 2), Plain(90, 4)])
    assert (len(grid), grid.size, grid.fps) == (5, (8, 4), 30)
    cells = grid.frame(3)[::2, ::4, 0]
    np.testing.assert_array_equal(cells, [[13, 51], [93, 255]])
    assert [frame.shape for frame in grid.frames()] == [(4, 8, 3)] * 5
    assert Grid([Plain(0, 1)] * 3, columns=3).size == (12, 2)


@pytest.mark.parametrize(
    ("scenes", "columns", "told"),
    [
        ([], None, "scenes: expected at least one"),
        ([Plain(0, 1), Plain(0, 1, size=(6, 2))], None, "scenes: expected one size and rate"),
        ([Plain(0, 1), Plain(0, 1, fps=20)], None, "scenes: expected one size and rate"),
        ([Plain(0, 1)], 0, "columns: expected at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(scenes: list[Plain], columns: int | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Grid(scenes, columns)
