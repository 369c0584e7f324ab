"""Schedule, loss and sampling against their formulas, written out here once more; and what each value changes."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.diffusion import (
    PLAIN,
    SCHEDULERS,
    DiffusionConfig,
    ErrorMetrics,
    GuidedApart,
    KnownLatents,
    Sampler,
    _noised_back,
    build_scheduler,
    distilled,
    guided_estimate,
    sample,
    scaled_input,
    shifted_timesteps,
    training_loss,
)


def alpha_bars(steps: int, max_beta: float = 0.999) -> Tensor:
    """cos^2((t / T + 0.008) / 1.008 * pi / 2), by betas that are at most ``max_beta``."""
    level = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    betas = [min(1 - level[t + 1] / level[t], max_beta) for t in range(steps)]
    return torch.tensor([1 - beta for beta in betas], dtype=torch.float64).cumprod(0)


@pytest.mark.parametrize(("steps", "max_beta"), [(1000, 0.999), (200, 0.999), (1000, 0.002)])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmsolver++", "unipc"])
def test_every_scheduler_has_the_schedule_of_the_configuration(name: str, steps: int, max_beta: float) -> None:
    scheduler = build_scheduler(name, DiffusionConfig(num_train_timesteps=steps, max_beta=max_beta))
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alpha_bars(steps, max_beta), rtol=1e-4, atol=1e-9)
    assert scheduler.config.num_train_timesteps == steps
    assert scheduler.config.prediction_type == "sample"


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_steps_are_spread_evenly_and_end_at_zero(name: str) -> None:
    scheduler = build_scheduler(name, DiffusionConfig())
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(980, -1, -20))


class Network:
    """A linear "denoiser": a x + b * text, that writes down its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def __call__(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls.append((x, timesteps, text, mask))
        return 0.5 * x + 0.25 * text.mean(dim=1)[:, None, None, None]


@pytest.mark.parametrize(("scale", "until", "latent_scale"), [(3.0, 0.0, 1.0), (1.0, 0.0, 0.5), (2.0, 0.3, 0.5)])
def test_ddim_by_hand(scale: float, until: float, latent_scale: float) -> None:
    """x0 = s c + (1 - s) u; x' = sqrt(a') x0 + sqrt(1 - a') (x - sqrt(a) x0) / sqrt(1 - a), x0 scaled, at 500 and 0."""
    text, noise = torch.tensor([[1.0, 3.0], [-2.0, 0.0]]), torch.randn(2, 2, 3, 4)
    network, levels = Network(), alpha_bars(1000).float()
    result = sample(
        network, text, (2, 2, 3, 4), noise=noise,
        sampler=Sampler(DiffusionConfig(guidance_until=until, latent_scale=latent_scale), "ddim", 2, scale),
    )  # fmt: skip
    x, push = noise, 0.25 * text.mean(dim=1)[:, None, None, None]
    for t, before in ((500, levels[0]), (0, torch.tensor(1.0))):
        guided = scale > 1 and t >= until * 1000
        estimate = 0.5 * x + push * (scale if guided else 1.0)
        clean, level = latent_scale * estimate, levels[t]
        x = before.sqrt() * clean + (1 - before).sqrt() * (x - level.sqrt() * clean) / (1 - level).sqrt()
    torch.testing.assert_close(result, x / latent_scale, rtol=1e-4, atol=1e-4)
    sizes = [len(call[0]) for call in network.calls]
    assert sizes == [2 if scale == 1 else 4, 2 if scale == 1 or until > 0 else 4]
    for x, timesteps, condition, _ in network.calls:
        assert len(timesteps) == len(condition) == len(x)
        torch.testing.assert_close(condition[:2], text)
        assert not condition[2:].any()


def test_one_seed_a_sample_and_noise_of_its_own_in_every_step() -> None:
    def run(seeds: list[int], name: str = "ddpm") -> Tensor:
        return sample(
            Network(), torch.zeros(len(seeds), 2), (len(seeds), 2, 3, 4), Sampler(DiffusionConfig(), name, 3),
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        )  # fmt: skip

    first = run([1, 2])
    torch.testing.assert_close(run([2, 3])[0], first[1])
    noise = torch.randn((1, 2, 3, 4), generator=torch.Generator().manual_seed(1))
    given = sample(Network(), torch.zeros(1, 2), (1, 2, 3, 4), Sampler(num_inference_steps=3), noise=noise)
    torch.testing.assert_close(run([1], "ddim"), given)


@pytest.mark.parametrize("gamma", [0.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_by_hand(gamma: float, masked: bool) -> None:
    """The mean over valid frames of (1 + min(SNR, gamma)) times the squared error of x0."""
    latents, noise, text = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4), torch.ones(2, 2)
    timesteps, levels = torch.tensor([100, 700]), alpha_bars(1000).float()
    mask = torch.tensor([[True, True, True], [True, False, False]]) if masked else None
    network = Network()
    loss = training_loss(
        network, latents, text, mask, scheduler=build_scheduler("ddpm", DiffusionConfig()),
        diffusion=replace(PLAIN, snr_gamma=gamma, latent_scale=0.5), timesteps=timesteps, noise=noise,
    )  # fmt: skip
    total, count = 0.0, 0
    for sample_index, t in enumerate(timesteps.tolist()):
        level = levels[t]
        noisy = level.sqrt() * 0.5 * latents[sample_index] + (1 - level).sqrt() * noise[sample_index]
        valid = slice(None) if mask is None else mask[sample_index]  # what padding holds is of no account
        torch.testing.assert_close(network.calls[0][0][sample_index][:, valid], noisy[:, valid], rtol=1e-4, atol=1e-5)
        error = (0.5 * noisy + 0.25 - latents[sample_index]).square().mean(dim=(0, 2))
        weight = 1 + min((level / (1 - level)).item(), gamma)
        for frame in range(3):
            if mask is None or mask[sample_index, frame]:
                total, count = total + weight * error[frame].item(), count + 1
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert torch.equal(network.calls[0][1], timesteps)
    assert network.calls[0][3] is mask


def test_random_timesteps_reach_from_the_first_to_the_last() -> None:
    network, generator = Network(), torch.Generator().manual_seed(0)
    scheduler = build_scheduler("ddpm", DiffusionConfig(num_train_timesteps=5))
    training_loss(
        network, torch.zeros(300, 1, 1, 1), torch.ones(300, 2), None, scheduler=scheduler, generator=generator
    )
    drawn = network.calls[0][1]
    assert sorted(set(drawn.tolist())) == [0, 1, 2, 3, 4]
    assert (drawn.bincount() > 40).all()


def test_conditions_are_dropped_with_their_probability() -> None:
    for probability in (0.0, 0.25, 1.0):
        network, generator = Network(), torch.Generator().manual_seed(0)
        training_loss(
            network, torch.zeros(400, 1, 1, 1), torch.ones(400, 2), None,
            diffusion=DiffusionConfig(condition_dropout=probability),
            scheduler=build_scheduler("ddpm", DiffusionConfig()), generator=generator,
        )  # fmt: skip
        dropped = (network.calls[0][2] == 0).all(dim=1)
        assert dropped.float().mean().item() == pytest.approx(probability, abs=0.06)
        assert (network.calls[0][2][~dropped] == 1).all()


@pytest.mark.parametrize(("shift", "share"), [(1.0, 0.5), (3.0, 0.75), (0.5, 1 / 3)])
def test_shifted_timesteps_by_the_formula(shift: float, share: float) -> None:
    """s u / (1 + (s - 1) u) at u = 1/2 is s / (1 + s); 0 and 1 stay."""
    shares = torch.tensor([0.0, 0.5, 1 - 1e-7])
    assert shifted_timesteps(shares, 1000, shift).tolist() == [0, int(1000 * share + 1e-6), 999]


@pytest.mark.parametrize(
    ("name", "expected", "refused", "taken"),
    [
        ("latent_scale", "> 0", [0.0, -1.0], [1e-6]), ("timestep_shift", "> 0", [0.0, -1.0], [1e-6]),
        ("snr_gamma", ">= 0", [-0.1], [0.0]), ("loss_std_floor", ">= 0", [-0.1], [0.0]),
        ("num_train_timesteps", ">= 1", [0], [1]), ("max_beta", "a value in (0, 1)", [0.0, 1.0], [0.999]),
        ("condition_dropout", "a value in [0, 1]", [-0.1, 1.1], [0.0, 1.0]),
        ("guidance_until", "a value in [0, 1]", [-0.1, 1.1], [0.0, 1.0]),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, expected: str, refused: list[Any], taken: list[Any]) -> None:
    for value in refused:
        with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: expected {expected}, got {value!r}')}$"):
            DiffusionConfig(**{name: value})
    assert [getattr(DiffusionConfig(**{name: value}), name) for value in taken] == taken


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "unipc"])
def test_only_ddpm_draws_after_the_first_noise(name: str) -> None:
    noise = torch.randn(1, 2, 3, 4)

    def run(seed: int, kind: str) -> Tensor:
        torch.manual_seed(seed)
        sampler = Sampler(scheduler=kind, num_inference_steps=4)
        return sample(Network(), torch.ones(1, 2), (1, 2, 3, 4), sampler, noise=noise)

    assert torch.equal(run(1, name), run(2, name))
    assert not torch.equal(run(1, "ddpm"), run(2, "ddpm"))


def test_padding_of_a_sample_is_that_of_both_its_halves_and_starts_at_zero() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    network, noise = Network(), torch.randn(2, 2, 3, 4)
    sample(
        network, torch.ones(2, 2), (2, 2, 3, 4), mask=mask, noise=noise,
        sampler=Sampler(num_inference_steps=1, guidance_scale=2.0),
    )  # fmt: skip
    ((x, _, _, doubled),) = network.calls
    assert doubled is not None
    assert doubled.tolist() == mask.tolist() * 2
    padded = torch.where(mask[:, None, :, None], noise, torch.zeros(()))
    assert torch.equal(x, torch.cat([padded, padded]))


@pytest.mark.parametrize("resampling", [1, 2])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_padded_sample_is_what_it_is_alone(name: str, resampling: int) -> None:
    """Noise that a step draws is a sample's own, for its valid frames and no others."""
    torch.manual_seed(0)
    noise, counts, where = torch.randn(3, 2, 4, 3), (4, 2, 3), torch.zeros(3, 2, 4, dtype=torch.bool)
    where[:, 0, 1] = True
    mask = torch.arange(4) < torch.tensor(counts)[:, None]

    def made(rows: slice, frames: int, mask: Tensor | None) -> Tensor:
        known = KnownLatents(torch.ones(3, 2, 4, 3)[rows, :, :frames], where[rows, :, :frames], False, resampling)
        return sample(
            lambda x, *_: 0.4 * x.flip(1) + 0.1, torch.ones(3, 2)[rows], tuple(noise[rows, :, :frames].shape),
            Sampler(DiffusionConfig(latent_scale=0.5), name, 4, 1.0), mask=mask, noise=noise[rows, :, :frames],
            generators=[torch.Generator().manual_seed(seed) for seed in range(3)][rows], known=known,
        )  # fmt: skip

    together = made(slice(None), 4, mask)
    for row, count in enumerate(counts):
        alone = made(slice(row, row + 1), count, None)[0]
        torch.testing.assert_close(together[row, :, :count], alone, msg=f"sample {row}")


def test_a_step_that_is_taken_back_by_hand() -> None:
    """DDIM's step keeps the noise in x, and as much fresh noise as it took off takes its result back."""
    scheduler, levels = build_scheduler("ddpm", DiffusionConfig()), alpha_bars(1000).float()
    clean, kept, fresh = torch.randn(3, 1, 2, 4, 5).unbind(0)
    here, there = levels[700], levels[300]
    x = here.sqrt() * clean + (1 - here).sqrt() * kept
    back = _noised_back(scheduler, x, clean, torch.tensor(700), torch.tensor(300), fresh)
    step = there.sqrt() * clean + (1 - there).sqrt() * kept
    torch.testing.assert_close(back, (here / there).sqrt() * step + (1 - here / there).sqrt() * fresh)


def test_resampled_steps_need_generators() -> None:
    known = KnownLatents(torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, dtype=torch.bool), False, 2)
    words = "generators: expected one for each sample where steps are resampled, got None"
    with pytest.raises(ValueError, match=f"^{words}$"):
        sample(
            Network(), torch.ones(1, 2), (1, 2, 3, 4), Sampler(DiffusionConfig(), "ddim", 2),
            noise=torch.zeros(1, 2, 3, 4), known=known,
        )  # fmt: skip


def test_a_missing_diffusers_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    words = re.escape("diffusers is needed for diffusion: pip install 'intermoe[generate]'")
    with pytest.raises(ModuleNotFoundError, match=f"^{words}$"):
        build_scheduler("ddim", DiffusionConfig())


def loss_of(error: Tensor, **options: Any) -> float:
    """The loss of an estimate that is off by ``error`` (B, P, T', X)."""
    latents, options = torch.zeros_like(error), {"timesteps": torch.zeros(len(error), dtype=torch.int64), **options}
    return training_loss(
        lambda x, *_: error, latents, torch.ones(len(error), 2, dtype=error.dtype), None, noise=latents,
        scheduler=build_scheduler("ddpm", DiffusionConfig()), **options,
    ).item()  # fmt: skip


def test_the_loss_of_one_frame_is_its_own_and_of_none_is_0() -> None:
    latents, mask = torch.zeros(1, 1, 3, 2), torch.tensor([[True, False, False]])
    for valid, expected in ((mask, 9.0), (mask & False, 0.0)):
        for timesteps in (torch.tensor([5]), torch.tensor([[[5]]])):
            loss = training_loss(
                lambda x, *_: torch.full_like(x, 3.0), latents, torch.ones(1, 2), valid, noise=latents,
                timesteps=timesteps, scheduler=build_scheduler("ddpm", DiffusionConfig()),
            )  # fmt: skip
            assert loss.item() == expected


def test_the_loss_is_in_float32_and_its_metric_on_the_right() -> None:
    assert loss_of(torch.full((1, 2, 3, 4), 300.0, dtype=torch.float16)) == 90000.0  # infinite in float16
    error = torch.tensor([2.0, 5.0]).expand(1, 1, 1, 2)
    assert loss_of(error, metrics=ErrorMetrics(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))) == 2.0  # (e M)^2 = (0, 4)


def test_where_something_is_known_errors_of_places_count_as_well() -> None:
    """Of two samples only the second has a clean frame; its noisy one is off by (2, 5), which is 3 by the map."""
    error = torch.tensor([2.0, 5.0]).expand(2, 1, 2, 2)
    timesteps = torch.tensor([[[5, 5]], [[0, 5]]])
    by_map = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])  # squares (9, 0), mean 4.5
    assert loss_of(error, timesteps=timesteps) == 14.5
    for metric, expected in ((None, 14.5), (0.0 * by_map, 14.5), (by_map, 14.5 + 4.5 / 3)):
        assert loss_of(error, timesteps=timesteps, metrics=ErrorMetrics(known=metric)) == pytest.approx(expected)
    alone = loss_of(error, timesteps=torch.tensor([5, 5]), metrics=ErrorMetrics(known=by_map))
    assert alone == loss_of(error, timesteps=torch.tensor([5, 5])) == 14.5


def test_scaled_input_has_unit_variance_at_every_level() -> None:
    scheduler, levels = build_scheduler("ddpm", DiffusionConfig()), alpha_bars(1000).float()
    torch.manual_seed(0)
    latents, noise = torch.randn(3, 2, 60, 64), torch.randn(3, 2, 60, 64)
    timesteps = torch.tensor([10, 400, 950])
    noisy = scheduler.add_noise(0.2 * latents, noise, timesteps)
    assert noisy[0].std().item() < 0.3
    for row in scaled_input(scheduler, noisy, timesteps, 0.2):
        assert row.std().item() == pytest.approx(1.0, abs=0.03)
    by_hand = noisy / (levels[timesteps] * 0.04 + 1 - levels[timesteps]).sqrt()[:, None, None, None]
    torch.testing.assert_close(scaled_input(scheduler, noisy, timesteps, 0.2), by_hand)
    torch.testing.assert_close(scaled_input(scheduler, noisy, timesteps, 1.0), noisy)  # nothing to undo


def test_training_scales_every_run_by_its_own_level_and_what_is_known_to_the_latents_themselves() -> None:
    latents, noise, levels = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3), alpha_bars(1000).float()
    timesteps, network = torch.tensor([[[0, 300], [700, 0]]]), Network()
    training_loss(
        network, latents, torch.zeros(1, 2), None, scheduler=build_scheduler("ddpm", DiffusionConfig()),
        diffusion=replace(PLAIN, latent_scale=0.25, scale_input=True), timesteps=timesteps, noise=noise,
    )  # fmt: skip
    ((seen, _, _, _),) = network.calls
    torch.testing.assert_close(seen[0, 0, :2], latents[0, 0, :2])
    torch.testing.assert_close(seen[0, 1, 2:], latents[0, 1, 2:])
    for person, frames, t in ((0, slice(2, 4), 300), (1, slice(0, 2), 700)):
        level = levels[t]
        noisy = level.sqrt() * 0.25 * latents[0, person, frames] + (1 - level).sqrt() * noise[0, person, frames]
        expected = noisy / (level / 16 + 1 - level).sqrt()
        torch.testing.assert_close(seen[0, person, frames], expected, rtol=1e-4, atol=1e-4)


def test_sampling_scales_what_the_network_sees_and_nothing_else() -> None:
    noise, levels = torch.randn(1, 1, 4, 3), alpha_bars(1000).float()
    where = torch.tensor([[[True, True, False, False]]])
    known = KnownLatents(torch.full((1, 1, 4, 3), 2.0), where, by_levels=True)
    network = Network()
    result = sample(
        network, torch.zeros(1, 2), (1, 1, 4, 3), noise=noise, known=known,
        sampler=Sampler(DiffusionConfig(latent_scale=0.25, scale_input=True), "ddim", 2, 1.0),
    )  # fmt: skip
    first, second = (call[0] for call in network.calls)
    level, x = levels[500], noise[:, :, 2:]
    torch.testing.assert_close(first[:, :, :2], torch.full((1, 1, 2, 3), 2.0))  # known latents as they are
    torch.testing.assert_close(first[:, :, 2:], x / (level / 16 + 1 - level).sqrt())
    clean, last = 0.25 * 0.5 * first[:, :, 2:], levels[0]
    x = last.sqrt() * clean + (1 - last).sqrt() * (x - level.sqrt() * clean) / (1 - level).sqrt()
    clamped = levels[1]  # what is not known has a level of at least 1
    torch.testing.assert_close(second[:, :, 2:], x / (clamped / 16 + 1 - clamped).sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result[:, :, 2:], 0.5 * second[:, :, 2:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shift", [0.1, 1.0, 7.0, 10.0])
def test_the_largest_share_is_the_last_timestep_though_it_rounds_to_the_next(shift: float) -> None:
    shares = torch.tensor([0.0, 1 - 2**-24])  # what ``torch.rand`` draws at most; shifted by 7 it is 1 in float32
    assert shifted_timesteps(shares, 1000, shift).tolist() == [0, 999]


@pytest.mark.parametrize("latent_scale", [1.0, 0.5])
def test_each_guided_estimate_is_steered_before_what_is_known_takes_its_place(latent_scale: float) -> None:
    """DDIM at 500 and 0: an estimate c + 2 is doubled, then one person's first frame is 7; the last one is the end."""
    text, noise, levels = torch.tensor([[1.0, 3.0]]), torch.randn(1, 2, 3, 4), alpha_bars(1000).float()
    where = torch.zeros(1, 2, 3, dtype=torch.bool)
    where[0, 1, 0] = True
    seen: list[Tensor] = []

    def steer(estimate: Tensor) -> Tensor:
        seen.append(estimate)
        return 2 * estimate

    result = sample(
        Network(), text, (1, 2, 3, 4), noise=noise, steer=steer,
        known=KnownLatents(torch.full((1, 2, 3, 4), 7.0), where, by_levels=False),
        sampler=Sampler(DiffusionConfig(latent_scale=latent_scale), "ddim", 2, 3.0),
    )  # fmt: skip
    kept, x = where[..., None], noise
    for number, (level, before) in enumerate(((levels[500], levels[0]), (levels[0], torch.tensor(1.0)))):
        if number == 0:
            x = torch.where(kept, level.sqrt() * latent_scale * 7.0 + (1 - level).sqrt() * noise, noise)
        estimate = 0.5 * x + 3.0 * 0.25 * 2.0
        torch.testing.assert_close(seen[number], estimate, rtol=1e-4, atol=1e-3)
        clean = latent_scale * torch.where(kept, 7.0, 2 * estimate)
        x = before.sqrt() * clean + (1 - before).sqrt() * (x - level.sqrt() * clean) / (1 - level).sqrt()
    torch.testing.assert_close(result, torch.where(kept, 7.0, x / latent_scale), rtol=1e-4, atol=1e-3)
    assert len(seen) == 2


def test_guided_timesteps_and_others_have_networks_of_their_own() -> None:
    guided, unguided, noise = Network(), Network(), torch.randn(2, 1, 3, 4)
    sample(
        GuidedApart(guided, unguided), torch.ones(2, 2), (2, 1, 3, 4), noise=noise,
        sampler=Sampler(DiffusionConfig(guidance_until=0.3), "ddim", 5, 2.0),
    )  # fmt: skip
    assert [int(call[1][0]) for call in guided.calls] == [800, 600, 400]
    assert [int(call[1][0]) for call in unguided.calls] == [200, 0]
    assert [len(call[0]) for call in guided.calls + unguided.calls] == [4, 4, 4, 2, 2]


def test_the_share_at_which_guidance_ends_is_guided_still() -> None:
    sampler = Sampler(DiffusionConfig(num_train_timesteps=200, guidance_until=0.25), guidance_scale=1.5)
    assert [sampler.is_guided(timestep) for timestep in (49, 50, 199)] == [False, True, True]
    assert not Sampler(guidance_scale=1.0).is_guided(999)


def test_a_half_type_is_the_networks_alone() -> None:
    """What it sees and its text are bfloat16; estimates, guidance, steps and the end are float32."""
    seen: list[torch.dtype] = []

    def network(x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        seen.extend((x.dtype, text.dtype))
        return torch.full_like(x, 0.3) * (text.sum(dim=1) != 0)[:, None, None, None]

    for scale in (1.0, 3.0):
        result = sample(
            network, torch.ones(1, 2, dtype=torch.bfloat16), (1, 1, 2, 3), noise=torch.randn(1, 1, 2, 3),
            sampler=Sampler(num_inference_steps=1, guidance_scale=scale),
        )  # fmt: skip
        assert result.dtype == torch.float32
        # 0.3 is 0.30078125 in bfloat16; three times that is not, and is not rounded again
        torch.testing.assert_close(result, torch.full_like(result, scale * 0.30078125), rtol=0, atol=1e-3)
    assert set(seen) == {torch.bfloat16}
    both = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16)
    made = guided_estimate(network, torch.zeros(1, 1, 1, 1).bfloat16(), torch.zeros(1), both, None, 3.0)
    assert (made.dtype, float(made)) == (torch.float32, 3 * 0.30078125)


@pytest.mark.parametrize(
    ("train", "number", "expected"),
    [(1000, 1, (999,)), (1000, 3, (999, 666, 30)), (100, 4, (99, 74, 49, 3)), (100, 50, tuple(range(99, 0, -2)))],
)
def test_timesteps_of_distilled_steps(train: int, number: int, expected: tuple[int, ...]) -> None:
    """From the noisiest on, at equal distances; the last at three hundredths of the schedule, or where it would be."""
    sampler = distilled(DiffusionConfig(num_train_timesteps=train, latent_scale=0.5), number, 2.5)
    assert sampler.timesteps == expected
    assert (sampler.scheduler, sampler.num_inference_steps, sampler.guidance_scale) == ("ddim", number, 2.5)
    assert sampler.diffusion.latent_scale == 0.5
    assert sampler.start().timesteps.tolist() == list(expected)


def test_a_sampler_starts_again_for_every_call() -> None:
    """Multistep solvers remember estimates of steps before; the second of two calls must not see the first's."""
    noise = torch.randn(1, 1, 2, 3)
    for name in SCHEDULERS[:3]:
        sampler = Sampler(scheduler=name, num_inference_steps=4)
        again = [sample(Network(), torch.ones(1, 2), (1, 1, 2, 3), sampler, noise=noise * k) for k in (1, 5, 1)]
        assert torch.equal(again[0], again[2])
