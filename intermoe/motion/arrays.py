"""Types of the arrays that hold motion."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float32]
ArrayOrTensor = TypeVar("ArrayOrTensor", npt.NDArray[np.floating], torch.Tensor)
