"""Seeds that are derived are others to the generators of any device."""

from __future__ import annotations

import itertools

import torch

from intermoe.seeds import derived_seed


def test_every_seed_and_number_draws_others() -> None:
    """Also those that are exchanged, or differ in bits that a generator does not look at."""
    keys = list(itertools.product((0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1), (0, 1, 2, 4799)))
    seeds = [derived_seed(*key) for key in keys]
    drawn = {tuple(torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in seeds}
    assert len(drawn) == len(keys)
    assert seeds == [derived_seed(*key) for key in keys]
    assert all(0 <= seed < 2**32 for seed in seeds)
