"""Seeds of noise that is drawn beside other noise."""

from __future__ import annotations

import numpy as np


def derived_seed(seed: int, number: int) -> int:
    """A seed in [0, 2**32), another for every ``seed`` and every ``number``, which is in [0, 2**32).

    On a CPU torch's generators look at 32 bits of a seed alone, so that no number can lie in the bits above.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])
