"""Seeds that are derived are others to the generators of any device."""

from __future__ import annotations

import itertools

import torch

from intermoe.pipeline import MotionPipeline
from intermoe.seeds import derived_seed, generator_of


def test_every_seed_and_number_draws_others() -> None:
    """Also those that are exchanged, or differ in bits that a generator does not look at."""
    keys = list(itertools.product((0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1), (0, 1, 2, 4799)))
    seeds = [derived_seed(*key) for key in keys]
    drawn = {tuple(torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in seeds}
    assert len(drawn) == len(keys)
    assert seeds == [derived_seed(*key) for key in keys]
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**63 - 1]
    drawn = {tuple(torch.rand(4, generator=generator_of(seed)).tolist()) for seed in seeds}
    assert len(drawn) == len(seeds)
    for seed in (0, 7, 2**32 - 1):
        own = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.rand(4, generator=generator_of(seed)), own)


def test_seeds_of_a_pipeline_are_told_apart_by_their_high_bits(tiny_pipeline: MotionPipeline) -> None:
    first, second = (tiny_pipeline("two people bow", 16, seed=seed, num_inference_steps=2) for seed in (5, 5 + 2**32))
    assert not torch.equal(first.motion, second.motion)
