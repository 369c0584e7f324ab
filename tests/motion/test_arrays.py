"""Numbers of every kind as rows of float32, and no copy where they are that."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from intermoe.motion.arrays import real_array


def test_rows_of_float32_are_taken_as_they_are() -> None:
    values = np.ones((3, 2), np.float32)
    assert np.shares_memory(real_array(values, "values"), values)
    tensor = torch.arange(6.0).view(3, 2)
    assert np.shares_memory(real_array(tensor, "values"), tensor.numpy())
    turned = real_array(tensor.T, "values")
    assert turned.flags["C_CONTIGUOUS"]
    assert turned.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_shapes_stay_and_numbers_that_are_too_large_become_infinite_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert real_array(3, "values").shape == ()
        assert real_array(np.zeros((0, 3)), "values").shape == (0, 3)
        large = real_array([1e39, -1e39, 1.5], "values")
    assert large.dtype == np.float32
    assert large.tolist() == [np.inf, -np.inf, 1.5]
    assert real_array(torch.tensor([1.5], dtype=torch.float64), "values").dtype == np.float32
    assert real_array(torch.tensor([7, -7]), "values").tolist() == [7, -7]


def test_what_is_masked_is_refused_and_a_mask_of_nothing_is_none() -> None:
    some = np.ma.masked_array([1.0, 2.0], mask=[False, True])
    with pytest.raises(TypeError, match=r"^joints: expected real numbers, got masked ones$"):
        real_array(some, "joints")
    assert real_array(np.ma.masked_array([1.0, 2.0]), "joints").tolist() == [1.0, 2.0]
    with pytest.raises(TypeError, match=r"^joints: expected real numbers, got bool$"):
        real_array([True], "joints")
