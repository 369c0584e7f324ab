"""What the network sees of known latents, step by step, and that they stay."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.diffusion import SCHEDULERS, DiffusionConfig, KnownLatents, Sampler, build_scheduler, by_runs, sample

SHAPE = (2, 2, 6, 3)


def a_known(by_levels: bool) -> KnownLatents:
    where = torch.zeros(SHAPE[:3], dtype=torch.bool)
    where[0, 1] = where[1, 0, 2:4] = True
    return KnownLatents(torch.randn(SHAPE), where, by_levels)


def sampled(known: KnownLatents | None, scheduler: str = "ddim", **diffusion: Any) -> tuple[Tensor, list[Any]]:
    seen: list[Any] = []

    def network(x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        seen.append((x, timesteps))
        return 0.3 * x.flip(1) + 0.1

    made = sample(
        network,
        torch.ones(2, 5),
        SHAPE,
        Sampler(DiffusionConfig(**diffusion), scheduler, 6),
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
        known=known,
    )
    return made, seen


@pytest.mark.parametrize("by_levels", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_known_latents_stay_and_the_rest_follows(scheduler: str, by_levels: bool) -> None:
    known = a_known(by_levels)
    made, _ = sampled(known, scheduler, latent_scale=0.5)
    free, _ = sampled(None, scheduler, latent_scale=0.5)
    assert torch.equal(made[known.where], known.latents[known.where])
    partner = known.where.flip(1)  # which this network makes of the other person
    assert not (made == free)[partner].any()
    torch.testing.assert_close(made[~partner & ~known.where], free[~partner & ~known.where])


def test_by_levels_the_network_sees_them_clean_at_level_0() -> None:
    known = a_known(by_levels=True)
    _, seen = sampled(known, latent_scale=0.5)
    expected = torch.where(known.where, 0, 1)[:, :, ::2]  # three runs of two frames tell
    for x, levels in seen:
        assert torch.equal(x.chunk(2)[0][known.where], 0.5 * known.latents[known.where])
        assert levels.shape == (4, 2, 3)
        assert torch.equal((levels > 0).int(), expected.repeat(2, 1, 1).int())
    # the last step's 0 would say that all is known
    assert [int(levels.max()) for _, levels in seen] == [830, 664, 498, 332, 166, 1]


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "unipc"])
def test_by_replacement_they_have_the_noise_of_the_step(scheduler: str) -> None:
    """alpha z + sigma e with the sample's own noise e, which these solvers keep."""
    known = a_known(by_levels=False)
    _, seen = sampled(known, scheduler, latent_scale=0.5)
    noise = torch.cat([torch.randn((1, *SHAPE[1:]), generator=torch.Generator().manual_seed(i)) for i in range(2)])
    share = build_scheduler("ddpm", DiffusionConfig()).alphas_cumprod
    for x, timesteps in seen:
        kept = share[timesteps[:2]].view(2, 1, 1, 1)
        expected = kept.sqrt() * 0.5 * known.latents + (1 - kept).sqrt() * noise
        torch.testing.assert_close(x.chunk(2)[0][known.where], expected[known.where], atol=1e-4, rtol=1e-4)


def test_as_many_runs_as_can_tell() -> None:
    timestep = torch.tensor(500)
    for row, runs in (("000000", "0"), ("111111", "1"), ("111000", "10"), ("110011", "101"), ("100000", "100000")):
        where = torch.tensor([[[each == "1" for each in row]]])
        levels = KnownLatents(torch.zeros(1, 1, 6, 3), where, True).levels(timestep)
        assert levels.tolist() == [[[0 if each == "1" else 500 for each in runs]]]


def test_levels_of_a_batch_are_told_by_as_few_runs_as_can_tell_them() -> None:
    levels = torch.tensor([[[5, 5, 5, 0, 0, 0], [5, 5, 5, 5, 5, 5]], [[7, 7, 7, 7, 7, 7], [0, 0, 0, 0, 0, 0]]])
    assert by_runs(levels).tolist() == [[[5, 0], [5, 5]], [[7, 7], [0, 0]]]
    assert by_runs(levels[:, 1:]).shape == (2, 1, 1)
    levels[1, 1, 2] = 9
    assert torch.equal(by_runs(levels), levels)  # 2 and 3 runs cannot tell where one of six frames differs


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_resampled_steps_begin_again_with_the_noise_of_the_step(scheduler: str) -> None:
    """Every pass of a step sees what is known at its level, with other noise than the pass before."""
    known = dataclasses.replace(a_known(by_levels=False), resampling=3)
    known = dataclasses.replace(known, latents=torch.full(SHAPE, 4.0))
    made, seen = sampled(known, scheduler)
    passes = [int(levels[0]) for _, levels in seen]
    assert passes == [level for level in passes[:-1:3] for _ in range(3)] + passes[-1:]
    assert len(set(passes)) == 6
    share = build_scheduler("ddpm", DiffusionConfig()).alphas_cumprod
    noises = []
    for x, timesteps in seen[:-1]:
        kept = share[timesteps[0]]
        noises.append((x.chunk(2)[0][known.where] - kept.sqrt() * 4) / (1 - kept).sqrt())
        assert 0.5 < noises[-1].std() < 1.6
        assert noises[-1].mean().abs() < 0.8
    for first, second in zip(noises[::3], noises[1::3], strict=True):
        assert (first - second).abs().max() > 0.1
    assert torch.equal(made[known.where], known.latents[known.where])
    assert torch.equal(made, sampled(known, scheduler)[0])


def test_levels_need_no_resampling() -> None:
    _, seen = sampled(dataclasses.replace(a_known(by_levels=True), resampling=3))
    assert len(seen) == 6


def test_resampling_helps_the_rest_to_follow() -> None:
    """A posterior mean of two numbers that agree, one of them given: with more passes the other comes nearer to it."""
    where = torch.tensor([True, False]).view(1, 1, 2).expand(64, 1, 2)
    spread, share = torch.tensor([[1.0, 0.99], [0.99, 1.0]]), build_scheduler("ddpm", DiffusionConfig()).alphas_cumprod

    def network(x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        kept = share[timesteps[0]]
        gain = kept.sqrt() * spread @ torch.linalg.inv(kept * spread + (1 - kept) * torch.eye(2))
        return (x[..., 0] @ gain.T)[..., None]

    errors = []
    for resampling in (1, 10):
        known = KnownLatents(torch.full((64, 1, 2, 1), 2.0), where, False, resampling)
        made = sample(
            network,
            torch.ones(64, 5),
            (64, 1, 2, 1),
            Sampler(num_inference_steps=10, guidance_scale=1),
            generators=[torch.Generator().manual_seed(i) for i in range(64)],
            known=known,
        )
        errors.append((made[:, 0, 1, 0] - 1.98).square().mean().sqrt())
    assert errors[1] < 0.5 * errors[0]
