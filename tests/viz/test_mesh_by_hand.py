"""What triangles and cells of pictures are, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from intermoe.viz import Grid
from intermoe.viz.mesh import RINGS, SEGMENTS, capsule


@pytest.mark.parametrize("axis", [(0.0, 0.7, 0.0), (0.3, -0.2, 0.5), (0.0, -0.4, 0.0)])
def test_a_capsule_is_as_thick_as_it_is_at_each_of_its_ends(axis: tuple[float, float, float]) -> None:
    ends = np.array([[0.1, 0.2, 0.3], np.add((0.1, 0.2, 0.3), axis)])
    vertices, normals, faces = capsule(ends, np.array([0.05, 0.2]))
    low, high = np.split(vertices, [1 + RINGS * SEGMENTS])
    np.testing.assert_allclose(np.linalg.norm(low - ends[0], axis=-1), 0.05)
    np.testing.assert_allclose(np.linalg.norm(high - ends[1], axis=-1), 0.2)
    along = np.array(axis) / np.linalg.norm(axis)
    assert ((low - ends[0]) @ along).max() < 1e-9 < ((high - ends[1]) @ along).max()
    assert ((high - ends[1]) @ along).min() > -1e-9
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1)
    assert sorted(set(faces.ravel().tolist())) == list(range(len(vertices))), "every vertex is part of a triangle"


def test_a_short_motion_of_a_grid_waits_at_its_last_frame() -> None:
    class Plain:
        size, fps = (2, 2), 30.0

        def __init__(self, length: int) -> None:
            self.length = length

        def __len__(self) -> int:
            return self.length

        def frame(self, index: int) -> np.ndarray:
            return np.full((2, 2, 3), index, dtype=np.uint8)

    grid = Grid([Plain(5), Plain(2)])
    assert [frame[0, 2, 0] for frame in grid.frames()] == [0, 1, 1, 1, 1]
