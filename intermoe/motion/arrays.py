"""Types of the arrays that hold motion."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float32]
# In metres and radians nothing that people do comes near: beyond it a number is broken, and the next sum infinite.
LARGEST = 1e4
ArrayOrTensor = TypeVar("ArrayOrTensor", npt.NDArray[np.floating], torch.Tensor)
