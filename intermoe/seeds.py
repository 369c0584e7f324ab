"""Seeds of noise that is drawn beside other noise."""

from __future__ import annotations

import numpy as np
import torch


def derived_seed(seed: int, number: int) -> int:
    """A seed in [0, 2**32), another for every ``seed`` and every ``number``, which is in [0, 2**32).

    On a CPU torch's generators look at 32 bits of a seed alone, so that no number can lie in the bits above.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])


def generator_of(seed: int) -> torch.Generator:
    """A CPU's generator for a seed in [0, 2**63), of which every bit counts; below 2**32 it is torch's own."""
    return torch.Generator().manual_seed(seed if seed < 2**32 else derived_seed(seed, 0))
