"""Noise levels of persons and frames in training: who is clean, how often, whatever the company and the padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.config import ConfigError
from intermoe.diffusion import DiffusionConfig
from intermoe.train.config import SHARES, DenoiserTrainConfig, LevelMixConfig
from intermoe.train.draws import ItemDraws
from intermoe.train.levels import mixed_timesteps

CPU = torch.device("cpu")


def mixed(mix: dict[str, Any], numbers: list[int], frames: list[int]) -> Tensor:
    draws = ItemDraws((7,), numbers, CPU)
    timesteps = (draws.uniform() * 1000).long()
    return mixed_timesteps(LevelMixConfig(**mix), draws, timesteps, frames, 2, DiffusionConfig())


def all_of(kind: str, count: int = 400, **others: Any) -> Tensor:
    return mixed({"one_level": 0.0, kind: 1.0, **others}, list(range(count)), [12] * count)


@pytest.mark.parametrize("kind", SHARES)
def test_levels_of_a_sample_depend_on_neither_batch_nor_padding(kind: str) -> None:
    frames, mix = [9, 5, 16, 7, 12, 3, 8, 11], {"one_level": 0.0, kind: 1.0}
    together = mixed(mix, list(range(8)), frames)
    assert together.shape == (8, 2, 16)
    for number, length in enumerate(frames):
        alone = mixed(mix, [number], [length])
        assert torch.equal(alone[0], together[number, :, :length])


def test_shares_are_met() -> None:
    count = 2000
    mix = {"one_level": 0.2, "independent": 0.1, "person": 0.2, "prefix": 0.1, "frames": 0.25, "gap": 0.15, "run": 1}
    levels = mixed(mix, list(range(count)), [40] * count)
    clean, many = levels == 0, torch.tensor([len(sample.unique()) > 2 for sample in levels])
    one_person = (clean.all(dim=2).sum(dim=1) == 1) & ~clean.all(dim=(1, 2))
    both = (clean[:, 0] == clean[:, 1]).all(dim=1)
    prefix = both & clean.any(dim=(1, 2)) & (clean.int().diff(dim=2) <= 0).all(dim=(1, 2))
    begins = torch.nn.functional.pad((~clean[:, 0]).int(), (1, 0)).diff(dim=1) == 1
    gap = both & clean.any(dim=(1, 2)) & (begins.sum(dim=1) == 1) & ~prefix
    kinds = {
        "independent": many,
        "person": one_person,
        "prefix": prefix,
        "gap": gap,
        "frames": clean.any(dim=(1, 2)) & ~one_person & ~prefix & ~gap & ~many,
    }
    for kind, found in kinds.items():
        assert abs(found.float().mean().item() - mix[kind]) < 0.04, kind


def test_one_level_is_one_and_never_clean() -> None:
    levels = all_of("one_level")
    assert (levels == levels[:, :1, :1]).all()
    assert (levels > 0).all()


def test_independent_levels_change_with_person_and_run() -> None:
    levels = all_of("independent", run=4).unflatten(2, (3, 4))
    assert (levels > 0).all()
    assert (levels == levels[..., :1]).all()
    assert (levels[:, 0, :, 0] != levels[:, 1, :, 0]).float().mean() > 0.99
    assert (levels[:, :, 0, 0] != levels[:, :, 1, 0]).float().mean() > 0.99
    assert abs(levels.double().mean() - 500) < 30


def test_what_is_not_clean_has_one_level_and_random_frames_come_in_runs() -> None:
    for kind in ("person", "prefix", "frames", "gap"):
        levels = all_of(kind)
        assert all(len(sample[sample > 0].unique()) <= 1 for sample in levels)
    runs = (all_of("frames", run=4) == 0).unflatten(2, (3, 4))
    assert (runs == runs[..., :1]).all()
    assert abs(runs.float().mean() - 0.5) < 0.06
    persons = (all_of("person") == 0).all(dim=2)
    assert (persons.sum(dim=1) == 1).all()
    assert abs(persons[:, 0].float().mean() - 0.5) < 0.1


@pytest.mark.parametrize("first", ["one_level", "independent"])
def test_who_is_clean_does_not_hang_on_what_kind_a_sample_is_of(first: str) -> None:
    """A third of the samples, with the largest of the numbers that tell the kinds apart: both persons, every length."""
    count = 1200
    shares = {"one_level": 0.0, first: 2 / 3}
    persons = (mixed({**shares, "person": 1 / 3}, list(range(count)), [12] * count) == 0).all(dim=2)
    assert abs(persons[:, 0].sum() / persons.sum() - 0.5) < 0.1
    levels = mixed({**shares, "prefix": 1 / 3}, list(range(count)), [12] * count)
    lengths = (levels[:, 0] == 0).sum(dim=1)
    counts = lengths[lengths > 0].bincount(minlength=12)[1:]
    assert (counts > 10).all()


def test_a_gap_is_one_stretch_of_all_persons_of_any_length_at_any_place() -> None:
    free = all_of("gap", 1200) > 0
    assert torch.equal(free[:, 0], free[:, 1])
    edges = torch.nn.functional.pad(free[:, 0].int(), (1, 1)).diff(dim=1)
    assert ((edges == 1).sum(dim=1) == 1).all()
    lengths = free[:, 0].sum(dim=1)
    assert (lengths.bincount(minlength=12)[1:] > 60).all()
    assert lengths.max() == 11
    starts = (edges == 1).int().argmax(dim=1)
    short = starts[lengths == 2]
    assert (short.bincount(minlength=11) > 0).all()
    assert short.max() == 10
    assert (mixed({"one_level": 0.0, "gap": 1.0}, [0, 1, 2], [1, 1, 1]) > 0).all()


class _Told(ItemDraws):
    """Numbers that are given: what tells the kind, how much of a sample, and where; a half for each frame's own."""

    def __init__(self, share: float, place: float, count: int) -> None:
        self.told = torch.tensor([[0.5, share, place]]).expand(count, 3)

    def uniform(self, *shape: int) -> Tensor:
        assert shape == (3,)
        return self.told

    def uniform_over(self, frames: Sequence[int], *shape: int) -> Tensor:
        return torch.full((len(frames), max(frames), *shape), 0.5)


@pytest.mark.parametrize(
    ("kind", "share", "place", "long", "short"),
    [
        # of 10 and of 4 latent frames: the number of clean ones is the share's whole part, never all of them
        ("prefix", 0.05, 0.0, "..........", "...."),
        ("prefix", 0.35, 0.0, "CCC.......", "C..."),
        ("prefix", 0.999, 0.0, "CCCCCCCCC.", "CCC."),
        # 1 + whole part of 9 or of 3 times the share are free, at the first place, the middle one and the last
        ("gap", 0.0, 0.0, ".CCCCCCCCC", ".CCC"),
        ("gap", 0.0, 0.999, "CCCCCCCCC.", "CCC."),
        ("gap", 0.5, 0.5, "CCC.....CC", "C..C"),
        ("gap", 0.999, 0.999, "C.........", "C..."),
        # each frame's own number is 0.5
        ("frames", 0.4, 0.0, "..........", "...."),
        ("frames", 0.6, 0.0, "CCCCCCCCCC", "CCCC"),
    ],
)
def test_which_frames_are_clean_by_hand(kind: str, share: float, place: float, long: str, short: str) -> None:
    mix = LevelMixConfig(**{"one_level": 0.0, kind: 1.0})
    levels = mixed_timesteps(mix, _Told(share, place, 2), torch.tensor([700, 0]), [10, 4], 2, DiffusionConfig())
    for sample, cells, level in zip(levels, (long, short), (700, 1), strict=True):
        wanted = torch.tensor([0 if cell == "C" else level for cell in cells])
        assert torch.equal(sample[:, : len(cells)], wanted.expand(2, -1))


@pytest.mark.parametrize(("share", "person"), [(0.0, 0), (0.499, 0), (0.5, 1), (0.999, 1)])
def test_which_person_is_clean_by_hand(share: float, person: int) -> None:
    mix = LevelMixConfig(one_level=0.0, person=1.0)
    (levels,) = mixed_timesteps(mix, _Told(share, 0.0, 1), torch.tensor([700]), [10], 2, DiffusionConfig())
    assert (levels[person] == 0).all()
    assert (levels[1 - person] == 700).all()


def test_levels_are_validated() -> None:
    assert not LevelMixConfig().mixed
    for values, name in (
        ({"person": 0.5}, "one_level"),
        ({"one_level": 1.5, "person": -0.5}, "person"),
        ({"run": 0}, "run"),
    ):
        with pytest.raises(ConfigError, match=rf"^{name}: expected"):
            LevelMixConfig(**values)
    data = {"representation": "humanml3d", "mirror": False, "swap_persons": False}
    with pytest.raises(ConfigError, match=r"levels\.person: expected 0 for humanml3d"):
        DenoiserTrainConfig.from_dict({"data": data, "levels": {"one_level": 0.5, "person": 0.5}})


def test_levels_of_parts_are_shifted_as_those_of_samples_are() -> None:
    """A half of the schedule moved to s / (1 + s) of it, for each person and run."""
    mix = LevelMixConfig(one_level=0.0, independent=1.0)
    for shift, level in ((1.0, 50), (3.0, 75)):
        diffusion = DiffusionConfig(num_train_timesteps=100, timestep_shift=shift)
        levels = mixed_timesteps(mix, _Told(0.0, 0.0, 1), torch.tensor([7]), [5], 2, diffusion)
        assert torch.equal(levels, torch.full((1, 2, 5), level))


def test_frames_of_one_run_share_their_numbers() -> None:
    """Runs of three of eight latent frames: 0 to 2, 3 to 5, and the two that are left."""

    class Rising(_Told):
        def uniform_over(self, frames: Sequence[int], *shape: int) -> Tensor:
            time = torch.arange(max(frames)) / 10
            assert shape == (2, 2)
            return time[None, :, None, None].expand(len(frames), -1, 2, 2)

    mix = {"one_level": 0.0, "run": 3}
    levels = mixed_timesteps(
        LevelMixConfig(**mix, independent=1.0), Rising(0.0, 0.0, 1), torch.tensor([7]), [8], 2, DiffusionConfig()
    )
    assert levels[0, 1].tolist() == [1, 1, 1, 300, 300, 300, 600, 600]  # the least level is 1
    clean = mixed_timesteps(
        LevelMixConfig(**mix, frames=1.0), Rising(0.35, 0.0, 1), torch.tensor([7]), [8], 2, DiffusionConfig()
    )
    assert clean[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 7, 7]
