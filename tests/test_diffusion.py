"""Schedules, training loss and sampling loop against the authors' arrays and against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from einops import rearrange

from intermoe import official
from intermoe.diffusion import (
    PLAIN,
    SCHEDULERS,
    DiffusionConfig,
    ErrorMetrics,
    Sampler,
    build_scheduler,
    sample,
    shifted_timesteps,
    training_loss,
)
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import Denoiser

CONFIG = DiffusionConfig()


def persons(array) -> torch.Tensor:
    return rearrange(torch.tensor(array), "b t (p x) -> b p t x", p=2)


@pytest.fixture
def reference(golden):
    archive = golden("denoiser.npz")
    state = {k.removeprefix("state/"): torch.tensor(archive[k]) for k in archive.files if k.startswith("state/")}
    denoiser = official.load_denoiser(state, json.loads(str(archive["config"])))
    return denoiser, torch.tensor(archive["cond"]), torch.tensor(archive["mask"])[..., 0] > 0, golden("diffusion.npz")


def test_schedule_equals_the_authors(golden, relative_error) -> None:
    archive = golden("diffusion.npz")
    scheduler = build_scheduler("ddim", CONFIG)
    assert relative_error(scheduler.betas, archive["betas_1000"]) < 1e-6
    assert relative_error(scheduler.alphas_cumprod, archive["alphas_cumprod_1000"]) < 1e-6
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.flip(0).tolist() == archive["timestep_map_ddim50"].tolist()
    used = scheduler.alphas_cumprod[scheduler.timesteps.flip(0)]
    assert relative_error(used, archive["alphas_cumprod_ddim50"]) < 1e-6


def test_noising_and_loss_equal_the_authors(reference, relative_error) -> None:
    denoiser, condition, mask, archive = reference
    scheduler = build_scheduler("ddim", CONFIG)
    x0, noise, t = persons(archive["x0"]), persons(archive["noise"]), torch.tensor(archive["t"])
    assert relative_error(rearrange(scheduler.add_noise(x0, noise, t), "b p t x -> b t (p x)"), archive["x_t"]) < 1e-5
    loss = training_loss(denoiser, x0, condition, mask, scheduler=scheduler, timesteps=t, noise=noise)
    assert relative_error(loss, archive["loss_total"]) < 1e-5


def test_fifty_guided_steps_equal_the_authors(reference, relative_error) -> None:
    denoiser, condition, mask, archive = reference
    noise = persons(archive["init_noise"])
    out = sample(
        denoiser,
        condition,
        tuple(noise.shape),
        Sampler(CONFIG, guidance_scale=float(archive["cfg_scale"])),
        mask=mask,
        noise=noise,
    )
    assert relative_error(rearrange(out, "b p t x -> b t (p x)")[mask], archive["ddim50_sample"][mask.numpy()]) < 1e-4


class Oracle:
    """Knows the clean latents; its unconditional estimate is zero."""

    def __init__(self, clean: torch.Tensor) -> None:
        self.clean = clean
        self.calls = 0

    def __call__(self, x, timesteps, text, mask=None):
        self.calls += 1
        estimate = self.clean.repeat(x.shape[0] // self.clean.shape[0], 1, 1, 1)
        return estimate * (text.abs().sum(1) > 0)[:, None, None, None]


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 10])
def test_every_scheduler_ends_at_the_guided_estimate(name: str, steps: int) -> None:
    clean = torch.randn(2, 3, 2, 4)
    oracle = Oracle(clean)
    done = []
    out = sample(
        oracle, torch.ones(2, 5), tuple(clean.shape), Sampler(CONFIG, name, steps, 2.0),
        generators=seeds(2), callback=lambda i, n: done.append((i, n)),
    )  # fmt: skip
    torch.testing.assert_close(out, 2.0 * clean, atol=2e-2, rtol=0)
    assert oracle.calls == steps
    assert done == [(i + 1, steps) for i in range(steps)]


@pytest.fixture
def drawn() -> Denoiser:
    torch.manual_seed(0)
    sizes = {"input_dim": 6, "text_dim": 5, "dim": 16, "num_layers": 1, "num_heads": 2, "expert_dim": 8}
    denoiser = Denoiser(DenoiserConfig(**sizes)).eval()
    torch.nn.init.normal_(denoiser.out.weight, std=0.3)
    return denoiser


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_sample_depends_on_its_own_seed_only(name: str, drawn: Denoiser) -> None:
    denoiser, condition = drawn, torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    shape = (3, 4, 2, 6)
    sampler = Sampler(CONFIG, name, 4)

    def run(index, generators):
        return sample(denoiser, condition[index], (len(index), *shape[1:]), sampler, generators=generators)

    together = run([0, 1, 2], seeds(3))
    alone = run([1], [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(together, run([0, 1, 2], seeds(3)))


def test_loss_counts_valid_frames_only() -> None:
    latents = torch.randn(2, 2, 4, 3)
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    off_by_one = lambda x, t, c, m: latents + torch.where(mask, 1.0, 100.0)[:, None, :, None]  # noqa: E731
    scheduler = build_scheduler("ddpm", CONFIG)
    assert training_loss(off_by_one, latents, torch.ones(2, 5), mask, scheduler=scheduler) == pytest.approx(
        1.0, rel=1e-5
    )


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_weights_follow_the_truncated_signal_to_noise_ratio(gamma: float) -> None:
    latents, scheduler = torch.randn(3, 2, 1, 4), build_scheduler("ddim", CONFIG)
    timesteps = torch.tensor([10, 500, 990])  # SNR far above, about and far below 1
    errors = torch.tensor([1.0, 2.0, 3.0])
    off = lambda x, t, c, m: latents + errors[:, None, None, None]  # noqa: E731
    weighed = replace(PLAIN, snr_gamma=gamma)
    loss = training_loss(
        off, latents, torch.ones(3, 5), None, scheduler=scheduler, diffusion=weighed, timesteps=timesteps
    )
    angle = (timesteps / 1000 + 0.008) / 1.008 * math.pi / 2
    snr = 1 / torch.tan(angle).square()
    expected = (errors.square() * (1 + snr.clamp(max=gamma))).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)


def test_errors_are_weighed_by_the_metric() -> None:
    latents, noise = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)
    given = {"scheduler": build_scheduler("ddpm", CONFIG), "timesteps": torch.tensor([5, 900]), "noise": noise}

    def wrong(x, t, c, m):
        return latents + torch.tensor([1.0, 0, 0, 2])

    metric = torch.diag(torch.tensor([3.0, 5, 5, 0.5]))
    loss = training_loss(wrong, latents, torch.ones(2, 5), None, metrics=ErrorMetrics(metric), **given)
    torch.testing.assert_close(loss, torch.tensor((3**2 + 1) / 4))


def test_shifted_timesteps_are_uniform_at_1_and_noisier_above() -> None:
    shares = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(shifted_timesteps(shares, 1000, 1.0), torch.arange(1000))
    shifted = shifted_timesteps(shares, 1000, 3.0)
    assert (shifted[1:] >= shifted[:-1]).all()
    assert shifted.min() >= 0
    assert shifted.max() == 999
    # s u / (1 + (s - 1) u) > 1/2 where u > 1 / (1 + s)
    assert (shifted >= 500).double().mean() == pytest.approx(0.75, abs=2e-3)


def test_latent_scale_scales_the_signal_under_the_noise_and_nothing_else() -> None:
    latents, noise, scheduler = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4), build_scheduler("ddim", CONFIG)
    timesteps, seen = torch.tensor([100, 900]), []

    def exact(x, t, c, m):
        seen.append(x)
        return latents

    given = {"scheduler": scheduler, "timesteps": timesteps, "noise": noise}
    loss = training_loss(exact, latents, torch.ones(2, 5), None, diffusion=replace(PLAIN, latent_scale=0.25), **given)
    torch.testing.assert_close(seen[0], scheduler.add_noise(latents / 4, noise, timesteps))
    assert loss == 0  # the estimate is compared with the latents themselves


@pytest.mark.parametrize("name", SCHEDULERS)
def test_sampling_undoes_the_latent_scale(name: str) -> None:
    latents = torch.randn(2, 3, 2, 4)
    result = sample(
        lambda x, t, c, m: latents.repeat(len(x) // 2, 1, 1, 1),
        torch.ones(2, 5),
        (2, 3, 2, 4),
        Sampler(DiffusionConfig(latent_scale=0.25), name, 10),
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
    )
    torch.testing.assert_close(result, latents, rtol=0, atol=0.05)


def test_guidance_ends_where_the_schedule_says() -> None:
    sizes = {}

    def spy(x, t, c, m):
        assert len(x) == len(c) == len(t)
        assert m is not None
        assert len(m) == len(x)
        sizes[int(t[0])] = len(x)
        return x

    sample(
        spy,
        torch.ones(2, 5),
        (2, 2, 3, 4),
        Sampler(DiffusionConfig(guidance_until=0.5), "ddim", 10),
        mask=torch.ones(2, 3, dtype=torch.bool),
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
    )
    assert sizes == {t: 4 if t >= 500 else 2 for t in range(0, 1000, 100)}


def test_condition_is_dropped_by_whole_rows_with_the_given_probability() -> None:
    seen = []

    def spy(x, t, c, m):
        seen.append(c)
        return x

    latents, generator = torch.zeros(500, 1, 1, 1), torch.Generator().manual_seed(0)
    scheduler = build_scheduler("ddim", CONFIG)
    for probability in (0.0, 0.3, 1.0):
        training_loss(
            spy,
            latents,
            torch.ones(500, 5),
            None,
            scheduler=scheduler,
            diffusion=DiffusionConfig(condition_dropout=probability),
            generator=generator,
        )
        rows = seen[-1]
        assert ((rows == 0).all(1) | (rows == 1).all(1)).all()
        assert (rows == 0).all(1).float().mean() == pytest.approx(probability, abs=0.06)


def test_the_generator_decides_the_loss(drawn: Denoiser) -> None:
    generator = torch.Generator().manual_seed(1)
    x0, condition = torch.randn(3, 2, 4, 6, generator=generator), torch.randn(3, 5, generator=generator)
    mask, scheduler = torch.arange(4) < torch.tensor([[4], [2], [3]]), build_scheduler("ddim", CONFIG)
    denoiser = drawn
    half = DiffusionConfig(condition_dropout=0.5)
    losses = [
        training_loss(denoiser, x0, condition, mask, scheduler=scheduler, diffusion=half, generator=g).item()
        for g in (*(torch.Generator().manual_seed(5) for _ in range(2)), torch.Generator().manual_seed(6))
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps: expected a value in \[1, 1000\], got 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"guidance_scale": 0.5}, "guidance_scale: expected >= 1 and finite, got 0.5"),
        ({"scheduler": "euler"}, r"scheduler: expected one of .*'euler'"),
        ({"generators": seeds(1)}, "generators: expected one for each of the 2 samples"),
    ],
)
def test_bad_sampling_is_named(changes, message) -> None:
    given, shape = {"generators": seeds(2), **changes}, (2, 3, 2, 4)
    generators = given.pop("generators")
    Sampler(CONFIG, num_inference_steps=1000, guidance_scale=1)
    with pytest.raises(ValueError, match=message):
        sample(Oracle(torch.zeros(shape)), torch.ones(2, 5), shape, Sampler(CONFIG, **given), generators=generators)


def test_unknown_scheduler_is_named() -> None:
    with pytest.raises(ValueError, match=r"scheduler: expected one of .*'euler'"):
        build_scheduler("euler", CONFIG)


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_equal_levels_give_the_loss_of_one_level(gamma: float) -> None:
    latents, noise, timesteps = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5), torch.tensor([3, 500, 990])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False], [True, False, False, False]])
    given = {"scheduler": build_scheduler("ddpm", CONFIG), "noise": noise}
    given["diffusion"] = replace(PLAIN, snr_gamma=gamma, latent_scale=0.5)

    def seen(x, t, c, m):
        return x * 1.5

    one = training_loss(seen, latents, torch.ones(3, 5), mask, timesteps=timesteps, **given)
    many = training_loss(
        seen, latents, torch.ones(3, 5), mask, timesteps=timesteps[:, None, None].expand(3, 2, 2), **given
    )
    torch.testing.assert_close(one, many)


def test_known_runs_get_no_noise_and_do_not_count() -> None:
    latents, scheduler = torch.randn(1, 2, 6, 3), build_scheduler("ddpm", CONFIG)
    timesteps = torch.tensor([[[0, 700, 700], [20, 0, 0]]])
    known = torch.tensor([[[True] * 2 + [False] * 4, [False] * 2 + [True] * 4]])

    def check(x, t, c, m):
        assert torch.equal(x[known], 0.5 * latents[known])
        assert not (x == 0.5 * latents)[~known].any()
        assert torch.equal(t, timesteps)
        return latents + torch.where(known, 100.0, 2.0)[..., None]

    options = {"scheduler": scheduler, "timesteps": timesteps, "diffusion": replace(PLAIN, latent_scale=0.5)}
    loss = training_loss(check, latents, torch.ones(1, 5), None, **options)
    assert loss.item() == pytest.approx(4.0, rel=1e-5)
    nothing = training_loss(
        lambda x, t, c, m: x + 1, latents, torch.ones(1, 5), None, scheduler=scheduler, timesteps=0 * timesteps
    )
    assert nothing.item() == 0.0


def test_noise_of_a_run_is_that_of_its_level() -> None:
    latents, noise, scheduler = torch.randn(2, 2, 6, 3), torch.randn(2, 2, 6, 3), build_scheduler("ddpm", CONFIG)
    timesteps = torch.tensor([[[5, 900, 40], [300, 7, 800]], [[1, 2, 3], [999, 998, 997]]])
    seen = []
    training_loss(
        lambda x, *_: seen.append(x) or x, latents, torch.ones(2, 5), None,
        scheduler=scheduler, timesteps=timesteps, noise=noise,
    )  # fmt: skip
    share = scheduler.alphas_cumprod[timesteps.repeat_interleave(2, dim=2)][..., None]
    torch.testing.assert_close(seen[0], share.sqrt() * latents + (1 - share).sqrt() * noise)
