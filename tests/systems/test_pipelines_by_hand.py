"""What pipelines of raw motion and of codes hand to sampling, and what their networks are asked once; by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.control import Control, Known
from intermoe.diffusion import build_scheduler
from intermoe.pipeline import MotionPipeline
from intermoe.systems.in2in.config import GuidanceConfig
from intermoe.systems.in2in.guidance import FourPasses
from intermoe.systems.intergen import pipeline as raw
from intermoe.systems.intermask import pipeline as masked
from tests.systems.test_pipelines import PROMPTS, write


@torch.no_grad()
@pytest.mark.parametrize("system", ["intergen", "in2in", "mdm", "commdm"])
def test_a_network_is_asked_once_about_noisy_motion(system: str, tmp_path: Path) -> None:
    """sqrt(a) of the motion as the network sees it and sqrt(1 - a) of the seed's noise, with text or with none."""
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, system))
    asked: list[tuple[Tensor, ...]] = []
    pipeline.network.register_forward_pre_hook(lambda _, arguments: asked.append(arguments))
    motion = torch.randn(1 if system == "mdm" else 2, 12, 262)
    assert pipeline.denoise_once(motion, 0.3, prompt=PROMPTS[1], seed=6) == 300
    assert pipeline.denoise_once(motion, 0.3) == 300
    clean = pipeline.from_motion(motion[None])
    assert clean.shape == (1, len(motion), 13 if system == "commdm" else 12, 262)
    a = build_scheduler("ddpm", pipeline.config.diffusion).alphas_cumprod[300]
    text = pipeline.condition([PROMPTS[1]])
    assert text.shape == ((1, 3, 8) if system == "in2in" else (1, 8))
    for (noisy, timesteps, told), seed, expected in zip(asked, (6, 0), (text, torch.zeros_like(text)), strict=True):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(noisy, a**0.5 * clean + (1 - a) ** 0.5 * noise)
        assert timesteps.tolist() == [300]
        torch.testing.assert_close(told, expected)


@torch.no_grad()
@pytest.mark.parametrize("system", ["intergen", "commdm"])
def test_what_raw_motion_is_sampled_from(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise by each one's own seed as long as it is, and a mask where lengths differ; the made motion is cut."""
    written = write(tmp_path, system, diffusion={"latent_scale": 0.5, "guidance_until": 0.25})
    pipeline: Any = MotionPipeline.from_pretrained(written)
    entries = 1 if system == "commdm" else 0
    seen: list[Any] = []
    made = torch.randn(2, 2, entries + 13, 262)

    def sample(denoiser: Any, text: Tensor, shape: Any, sampler: Any, **options: Any) -> Tensor:
        seen.append((denoiser, text, shape, sampler, options))
        return made

    monkeypatch.setattr(raw, "sample", sample)
    done = print
    options = {"num_inference_steps": 7, "guidance_scale": 2.5, "progress": done}
    motions = pipeline.sample(PROMPTS, [9, 13], [3, 4], **options)
    expected = pipeline.to_motion(made)
    assert torch.equal(motions[0], expected[0, :, :9])
    assert torch.equal(motions[1], expected[1])
    (denoiser, text, shape, sampler, given), *_ = seen
    assert denoiser is pipeline.network
    torch.testing.assert_close(text, pipeline.condition(PROMPTS))
    assert shape == (2, 2, entries + 13, 262)
    assert sampler.diffusion == pipeline.config.diffusion
    assert (sampler.scheduler, sampler.num_inference_steps, sampler.guidance_scale) == (
        pipeline.schedulers[0], 7, 2.5
    )  # fmt: skip
    assert given["mask"].sum(dim=1).tolist() == [entries + 9, entries + 13]
    assert given["mask"][0, : entries + 9].all()
    assert (given["known"], given["callback"]) == (None, done)
    for row, length, seed, generator in zip(given["noise"], (9, 13), (3, 4), given["generators"], strict=True):
        own = torch.Generator().manual_seed(seed)
        drawn = torch.randn((2, entries + length, 262), generator=own)
        assert torch.equal(row[:, : entries + length], drawn)
        assert not row[:, entries + length :].any()
        assert torch.equal(generator.get_state(), own.get_state())
    pipeline.sample(PROMPTS, [13, 13], [3, 4], scheduler="unipc", **options)
    assert seen[1][4]["mask"] is None
    assert seen[1][3].scheduler == "unipc"


def test_what_is_known_of_raw_motion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalised and brought within what the network knows; what is given comes back as it was, in what was made."""
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "intergen"))
    seen: list[Any] = []
    made = pipeline.statistics.normalise(torch.zeros(2, 2, 13, 262))

    def sample(*_: Any, **options: Any) -> Tensor:
        seen.append(options["known"])
        return made

    monkeypatch.setattr(raw, "sample", sample)
    motion = torch.randn(5, 262)
    motion[0, 7] = 1e4
    control = Control([Known(1, motion=motion, frames=slice(2, 7))], blend=0, resampling=3)
    motions = pipeline.sample(PROMPTS, [9, 13], [3, 4], num_inference_steps=2, control=control)
    (known,) = seen
    assert (known.by_levels, known.resampling) == (False, 3)
    where = torch.zeros(2, 2, 13, dtype=torch.bool)
    where[:, 1, 2:7] = True
    assert torch.equal(known.where, where)
    within = pipeline.statistics.normalise(pipeline.statistics.familiar(motion))
    for row, result in zip(known.latents, motions, strict=True):
        torch.testing.assert_close(row[1, 2:7], within)
        torch.testing.assert_close(result[1, 2:7], motion)
        assert result[0].abs().max() < 1e-5


def test_what_codes_are_sampled_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code for each four frames begun; each motion is decoded from its own codes alone, and cut."""
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "intermask", keep_share=0.4))
    seen: list[Any] = []
    codes = torch.randint(12, (2, 2, 5, 4), generator=torch.Generator().manual_seed(0))
    codes[0, :, :, 3:] = -1

    def unmask(*given: Any, **options: Any) -> Tensor:
        seen.append((*given, options))
        return codes

    monkeypatch.setattr(masked, "unmask", unmask)
    done = print
    options = {"num_inference_steps": 7, "guidance_scale": 2.5, "progress": done}
    motions = pipeline.sample(PROMPTS, [9, 13], [3, 4], **options)
    ((network, text, mask, config, given),) = seen
    assert network is pipeline.network
    torch.testing.assert_close(text, pipeline.text_encoder(PROMPTS).detach())
    assert mask.tolist() == [[True, True, True, False], [True] * 4]
    assert (config.num_inference_steps, config.guidance_scale, config.keep_share) == (7, 2.5, 0.4)
    assert (given["known"], given["callback"]) == (None, done)
    for generator, seed in zip(given["generators"], (3, 4), strict=True):
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(seed).get_state())
    for row, motion, count, length in zip(codes, motions, (3, 4), (9, 13), strict=True):
        for person in (0, 1):
            alone = pipeline.tokenizer.decode(row[person, :, :count][None])[0].detach()
            expected = pipeline.statistics.denormalise(alone)[:length]
            torch.testing.assert_close(motion[person], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in2in_is_guided_by_its_passes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call's scale is the weight of the pass with every text; the others are the model's own."""
    weights = {"everything": 9.0, "interaction": 0.5, "individuals": 0.25}
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "in2in", guidance=weights))
    seen: list[Any] = []

    def sample(denoiser: Any, text: Tensor, shape: Any, sampler: Any, **_: Any) -> Tensor:
        seen.append((denoiser, text.shape, sampler.guidance_scale, sampler.num_inference_steps))
        return torch.zeros(shape)

    monkeypatch.setattr(raw, "sample", sample)
    for scale in (2.5, 1.0):
        pipeline.sample(PROMPTS, [9, 13], [3, 4], num_inference_steps=7, guidance_scale=scale)
    (guided, *rest), plain = seen
    assert isinstance(guided, FourPasses)
    assert guided.network is pipeline.network
    assert guided.config == GuidanceConfig(2.5, 0.5, 0.25)
    assert rest == [(2, 3, 8), 1.0, 7]
    assert plain == (pipeline.network, (2, 3, 8), 1.0, 7)


@torch.no_grad()
def test_codes_of_a_person_who_is_given_are_of_motion_within_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second person as of the first, held to whole groups of frames; the reaction is the other's."""
    pipeline: Any = MotionPipeline.from_pretrained(write(tmp_path, "intermask"))
    seen: list[Any] = []
    codes = torch.randint(12, (1, 2, 5, 3), generator=torch.Generator().manual_seed(0))

    def unmask(*_: Any, **options: Any) -> Tensor:
        seen.append(options["known"])
        return codes

    monkeypatch.setattr(masked, "unmask", unmask)
    motion = torch.randn(10, 262)
    motion[:, ::3] = 1e3 * torch.randn(10, 88)
    whole = torch.cat([motion, motion[-1:], motion[-1:]])
    expected, beyond = (
        pipeline.tokenizer.encode(pipeline.statistics.normalise(each)[None])
        for each in (pipeline.statistics.familiar(whole), whole)
    )
    assert not torch.equal(expected, beyond)
    for person in (0, 1):
        control = Control([Known(person, motion=motion)], blend=0)
        (made,) = pipeline.sample(PROMPTS[:1], [10], [3], num_inference_steps=4, control=control)
        assert torch.equal(seen.pop(), expected)
        torch.testing.assert_close(made[person], motion)
        other = pipeline.statistics.denormalise(pipeline.tokenizer.decode(codes[:, 1]))[0, :10]
        torch.testing.assert_close(made[1 - person], other, rtol=1e-4, atol=1e-4)
