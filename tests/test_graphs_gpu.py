"""Captured loops on a GPU: the same numbers as without, no wait in between, and life after a capture that fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEPipeline, backends
from intermoe.diffusion import Sampler, sample
from intermoe.graphs import Graphs
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.train.graphs import TrainingGraph

STATUS = backends.available()["triton"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("cuda" not in STATUS.devices, reason=f"triton does not serve CUDA here: {STATUS.reason}"),
]
CONFIG = DenoiserConfig(
    input_dim=6, text_dim=5, dim=64, num_layers=2, num_heads=2, num_experts=8, expert_dim=48, dropout=0.0
)


@pytest.fixture
def denoiser() -> Denoiser:
    made = Denoiser(CONFIG)
    for parameter in made.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    return made.cuda().eval()


@pytest.fixture
def synchronisation_mode() -> Iterator[None]:
    """The test may forbid host synchronisations; they are allowed again when it ends."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def inputs(seed: int, batch: int, frames: int = 40) -> tuple[Tensor, ...]:
    g = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(batch, 2, frames, 6, generator=g, device="cuda")
    timesteps = torch.randint(1000, (batch,), generator=g, device="cuda")
    mask = torch.arange(frames, device="cuda").expand(batch, frames) < frames - seed
    return x, timesteps, torch.randn(batch, 5, generator=g, device="cuda"), mask


# pools of 640 pairs, for which there is always room, and of 12800, which ask the host outside of a capture
@pytest.mark.parametrize("batch", [1, 20], ids=["small pool", "exact"])
@torch.no_grad()
def test_a_replay_is_the_call(denoiser: Denoiser, batch: int, relative_error: Any) -> None:
    kept = Graphs()
    given = [inputs(seed, batch) for seed in range(3)]
    made = [kept.of(denoiser)(*each) for each in given]
    assert len(kept._kept.graphs) == 1
    for found, each in zip(made, given, strict=True):
        assert relative_error(found.cpu(), denoiser(*each).cpu()) < 1e-5
    denoiser.out.weight.data = 2 * denoiser.out.weight.data
    assert relative_error(kept.of(denoiser)(*given[0]).cpu(), denoiser(*given[0]).cpu()) < 1e-5


@torch.no_grad()
def test_a_capture_that_fails_leaves_everything_as_it_was(denoiser: Denoiser, caplog: pytest.LogCaptureFixture) -> None:
    class Reading(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if float(x.sum()) > 1e9 else 1.0)

    twin = copy.deepcopy(denoiser)
    twin.out = Reading(64, 6).cuda().eval()
    given, stream = inputs(0, 2), torch.cuda.current_stream()
    assert torch.equal(Graphs().of(twin)(*given), twin(*given))
    assert "runs without CUDA graphs" in caplog.text
    assert torch.cuda.current_stream() == stream
    kept = Graphs()
    kept.of(denoiser)(*given)
    assert len(kept._kept.graphs) == 1
    torch.cuda.synchronize()


@pytest.mark.usefixtures("synchronisation_mode")
def test_a_loop_of_replays_never_waits(denoiser: Denoiser) -> None:
    kept, noise = Graphs(), torch.randn(2, 2, 40, 6, device="cuda")
    text = torch.randn(2, 5, device="cuda")
    sampler = Sampler(num_inference_steps=6)

    def watched(step: int, steps: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 1 <= step < steps else "default")

    for _ in range(2):
        with torch.no_grad():
            call = kept.of(denoiser)
        made = sample(call, text, (2, 2, 40, 6), sampler, noise=noise, callback=watched)
    assert made.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"num_inference_steps": 4}, {"num_inference_steps": 50}, {"num_inference_steps": 10, "guidance_scale": 1.0},
        {"num_inference_steps": 10, "scheduler": "dpmsolver++"},
    ],
    ids=str,
)  # fmt: skip
def test_motion_of_the_shipped_model(options: dict[str, Any], relative_error: Any) -> None:
    """Beside the calls as they are, which a hook makes of them."""
    pipeline = InterMoEPipeline.from_pretrained("duets", device="cuda")
    for seed in (0, 1):
        captured = pipeline("Two people dance salsa together.", num_frames=96, seed=seed, **options).joints
        handle = pipeline.denoiser.register_forward_hook(lambda *_: None)
        plain = pipeline("Two people dance salsa together.", num_frames=96, seed=seed, **options).joints
        handle.remove()
        assert relative_error(captured, plain) < 1e-3
    assert pipeline.graphs._kept is not None
    assert pipeline.graphs._kept.graphs


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_training_is_that_of_the_calls(denoiser: Denoiser, precision: torch.dtype, relative_error: Any) -> None:
    """Micro-steps of two optimiser steps: estimates, sums of gradients and counters."""
    twin = copy.deepcopy(denoiser)

    def trained(network: Denoiser, replays: bool) -> list[Tensor]:
        network.train()
        graph = TrainingGraph(lambda *given: network(*given, balance=True), network)
        call = graph if replays else lambda *given: network(*given, balance=True)
        found = []
        for _ in range(2):
            network.zero_grad()
            for seed in (0, 1):
                x, timesteps, text, mask = inputs(seed, 4)
                text.requires_grad_()
                with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                    estimate, balance = call(x, timesteps, text, mask)
                (estimate.float().square().mean() + balance).backward()
                found += [estimate.detach(), text.grad]
            found += [parameter.grad.clone() for parameter in network.parameters()]
            found += [counter.clone() for block in network.moe_blocks() for counter in block.counters]
            network.update_selection_bias()
        return found

    pairs = zip(trained(denoiser, True), trained(twin, False), strict=True)
    bound = 1e-5 if precision == torch.float32 else 8 * torch.finfo(precision).eps
    for number, (found, expected) in enumerate(pairs):
        assert relative_error(found.float().cpu(), expected.float().cpu()) < bound, number
