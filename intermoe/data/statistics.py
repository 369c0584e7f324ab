"""Statistics of a data set, taken from its items as training sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from intermoe.data.dataset import MotionDataset
from intermoe.motion.statistics import STD_FLOOR, Statistics


def compute_statistics(dataset: MotionDataset | Sequence[dict[str, torch.Tensor]], *, passes: int = 1) -> Statistics:
    """Mean and deviation (C,) of the motion's last dimension over everything else, deviations floored at ``STD_FLOOR``.

    Takes the items as the data set yields them, augmentation included. ``passes`` > 1 goes through that many epochs,
    for a data set that draws windows or mirrors at random.
    """
    if passes < 1:
        raise ValueError(f"passes: must be >= 1, got {passes}")
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for epoch in range(passes):
        for index in range(len(dataset)):
            item = dataset.draw(index, epoch) if isinstance(dataset, MotionDataset) else dataset[index]
            motion = item["motion"].double().flatten(0, -2).numpy()
            count += motion.shape[0]
            total = total + motion.sum(0)
            squares = squares + (motion**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return Statistics(mean.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32))
