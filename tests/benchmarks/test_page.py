"""What the benchmark of a page shows and looks for in a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest

from intermoe.benchmarks.page import _coloured, walking


def test_people_beside_each_other_who_go_on() -> None:
    joints = walking(3, 5)
    assert joints.shape == (3, 5, 22, 3)
    np.testing.assert_allclose(np.diff(joints, axis=1), np.tile([0, 0, 0.02], (3, 4, 22, 1)), atol=1e-12)
    np.testing.assert_allclose(np.diff(joints, axis=0), np.tile([0.9, 0, 0], (2, 5, 22, 1)), atol=1e-12)
    assert (joints[..., 1] > -0.1).all()


def test_figures_are_blue_or_orange_between_caption_and_controls() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.full((200, 4, 3), 200, dtype=np.uint8)
    pixels[100, 0], pixels[100, 1], pixels[100, 2] = (31, 90, 145), (194, 87, 26), (100, 120, 160)
    pixels[59, 0] = pixels[140, 0] = (0, 0, 255)  # a link in the caption, a control
    data = io.BytesIO()
    image.fromarray(pixels).save(data, "png")
    seen = _coloured(data.getvalue())
    assert seen.shape == (80, 4)
    assert np.argwhere(seen).tolist() == [[40, 0], [40, 1]]
