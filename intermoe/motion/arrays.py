"""Types of the arrays that hold motion."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from intermoe.reading import first_line

Array = npt.NDArray[np.float32]
# In metres and radians nothing that people do comes near: beyond it a number is broken, and the next sum infinite.
LARGEST = 1e4
ArrayOrTensor = TypeVar("ArrayOrTensor", npt.NDArray[np.floating], torch.Tensor)


def real_array(values: Any, name: str) -> Array:
    """Real numbers as float32, in rows: a tensor, an array, or sequences of these or of numbers; no copy if they are.

    Raises:
        TypeError: anything else, as complex numbers, truth values, words, rows of unequal length, masked values, sparse
            tensors or those without data.
    """
    if np.ma.is_masked(values):
        raise TypeError(f"{name}: expected real numbers, got masked ones")
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.is_floating_point() else values).resolve_neg().resolve_conj().numpy()
        array = np.asarray(values)
    except Exception as error:  # of what is no array numpy and torch raise whatever they stumble over
        raise TypeError(f"{name}: expected real numbers, got others: {first_line(error)}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):  # what is infinite then is the caller's to refuse
        return np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)
