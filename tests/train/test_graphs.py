"""Captured forwards and backwards of training: the same weights and counters as without, or a refusal."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn

from intermoe import backends
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.train import run_denoiser
from intermoe.train.graphs import TrainingGraph, check_graphs

CONFIG = DenoiserConfig(
    input_dim=6, text_dim=5, dim=16, num_layers=2, num_heads=2, num_experts=3, expert_dim=8, dropout=0.0
)


@pytest.fixture
def denoiser() -> Denoiser:
    made = Denoiser(CONFIG)
    for parameter in made.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    return made.train()


def inputs(seed: int = 0, batch: int = 2) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, 5, generator=g).requires_grad_()
    mask = torch.arange(5) < torch.tensor([[5]] * (batch - 1) + [[3 + seed % 2]])
    return torch.randn(batch, 2, 5, 6, generator=g), torch.randint(1000, (batch,), generator=g), text, mask


Network = Callable[..., tuple[Tensor, ...]]


def plain(denoiser: Denoiser) -> Network:
    return lambda *given: denoiser(*given, balance=True)


def trained(denoiser: Denoiser, network: Network, seeds: list[int], steps: int = 1) -> list[Tensor]:
    """Estimates, gradients and counters of steps of several micro-steps, and the biases after them."""
    found = []
    for _ in range(steps):
        denoiser.zero_grad()
        for seed in seeds:
            given = inputs(seed)
            estimate, balance = network(*given)
            (estimate.square().mean() + 0.1 * balance).backward()
            found += [estimate.detach(), given[2].grad]
        found += [parameter.grad.clone() for parameter in denoiser.parameters()]
        found += [counter.clone() for block in denoiser.moe_blocks() for counter in block.counters]
        denoiser.update_selection_bias()
        found += [block.selection_bias.clone() for block in denoiser.moe_blocks()]
    return found


ROUTINGS = [{}, {"pool": "sample"}, {"routing": "token_choice", "top_k": 1}, {"routing": "expert_choice"}]


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_gradients_and_counters_of_a_step_are_those_of_the_call(graphs_on_cpu: Any, routing: dict[str, Any]) -> None:
    """Of micro-steps gradients and counts are sums, as ever."""
    denoiser = Denoiser(DenoiserConfig(**CONFIG.to_dict() | routing)).train()
    nn.init.normal_(denoiser.out.weight, std=0.2)
    twin = copy.deepcopy(denoiser)
    expected = trained(twin, plain(twin), [0, 1, 2], steps=2)
    found = trained(denoiser, TrainingGraph(plain(denoiser), denoiser), [0, 1, 2], steps=2)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    assert (graphs_on_cpu.captures, graphs_on_cpu.replays) == (2, 12)


def test_nothing_is_drawn_for_a_capture(graphs_on_cpu: Any) -> None:
    """Dropout of the first and of later steps is what it is without."""
    denoiser = Denoiser(DenoiserConfig(**CONFIG.to_dict() | {"dropout": 0.3})).train()
    nn.init.normal_(denoiser.out.weight, std=0.2)
    twin = copy.deepcopy(denoiser)
    torch.manual_seed(1)
    expected = trained(twin, plain(twin), [0, 1], steps=2)
    torch.manual_seed(1)
    found = trained(denoiser, TrainingGraph(plain(denoiser), denoiser), [0, 1], steps=2)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(expected[0], expected[len(expected) // 2])


def test_frozen_weights_and_inputs_have_no_gradients(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    denoiser.embed_motion.requires_grad_(False)
    given = inputs()
    estimate, _ = TrainingGraph(plain(denoiser), denoiser)(*given[:2], given[2].detach(), given[3])
    estimate.sum().backward()
    assert denoiser.embed_motion.weight.grad is None
    assert denoiser.out.weight.grad is not None
    assert given[2].grad is None


def test_casts_of_autocast_are_made_in_every_replay(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    graph, given = TrainingGraph(plain(denoiser), denoiser), inputs()
    for _ in range(2):
        results = []
        for network in (graph, plain(denoiser)):
            denoiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                estimate = network(*given)[0]
            estimate.float().square().mean().backward()
            results.append([estimate.detach(), *[parameter.grad.clone() for parameter in denoiser.parameters()]])
        assert results[0][0].dtype == torch.bfloat16
        assert all(map(torch.equal, *results))
        with torch.no_grad():  # as an optimiser does
            for parameter in denoiser.parameters():
                parameter.mul_(0.7)
    assert graphs_on_cpu.captures == 2


@pytest.mark.parametrize("change", ["shapes", "weights", "precision"])
def test_another_call_is_captured_anew_and_said_so(
    graphs_on_cpu: Any, denoiser: Denoiser, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    graph, given = TrainingGraph(plain(denoiser), denoiser), inputs()
    graph(*given)[0].sum().backward()
    assert not caplog.records
    denoiser.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "precision"):
        if change == "shapes":
            given = inputs(batch=3)
        elif change == "weights":
            denoiser.out.weight.data = denoiser.out.weight.data * 2
        found, expected = graph(*given)[0], denoiser(*given)
    assert torch.equal(found, expected)
    assert graphs_on_cpu.captures == 4
    (told,) = [each for each in caplog.records if each.name == "intermoe.train.graphs"]
    assert told.levelno == logging.WARNING
    assert "captured anew" in told.getMessage()


def test_a_backward_is_of_the_last_forward_and_once(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    graph = TrainingGraph(plain(denoiser), denoiser)
    first, second = graph(*inputs(0))[0].sum(), graph(*inputs(1))[0].sum()
    with pytest.raises(RuntimeError, match="expected one backward for each forward, before the next forward"):
        first.backward()
    second.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="expected one backward for each forward"):
        second.backward()


def test_what_cannot_be_captured_is_refused_with_its_reason(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    def reading(*given: Tensor) -> tuple[Tensor, ...]:
        estimate, balance = denoiser(*given, balance=True)
        return estimate * float(estimate.detach().sum() < 1e9), balance

    with pytest.raises(RuntimeError, match=r"run.cuda_graphs: .* that can be captured, got operation not"):
        TrainingGraph(reading, denoiser)(*inputs())
    assert graphs_on_cpu.current is graphs_on_cpu.outside


def test_where_there_are_no_graphs_they_are_refused(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"run.cuda_graphs: expected false on cpu, which has no CUDA .*, got true"):
        check_graphs(Accelerator(cpu=True), denoiser)
    monkeypatch.setattr("intermoe.graphs.is_gpu", lambda device: True)
    several: Any = SimpleNamespace(device=torch.device("cpu"), distributed_type=DistributedType.FSDP, num_processes=2)
    with pytest.raises(ValueError, match=r"run.cuda_graphs: expected false for 2 processes \(FSDP\), got true"):
        check_graphs(several, denoiser)
    with (
        backends.use("reference"),
        pytest.raises(ValueError, match=r"where layers.0.moe cannot be captured \(its backe"),
    ):
        check_graphs(Accelerator(cpu=True), denoiser)


def test_a_backend_is_that_of_the_device_of_the_run(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not there yet when it is asked."""
    gpu, asked = torch.device("cuda", 1), []

    class Static:
        def allocated_pairs(self, tokens: int, experts: int, max_pairs: int | None) -> int | None:
            return max_pairs

    def resolve(device: torch.device, *_: Any) -> str:
        asked.append(device)
        return "static"

    monkeypatch.setattr(backends, "resolve", resolve)
    monkeypatch.setattr(backends, "load", lambda name: Static())
    check_graphs(SimpleNamespace(device=gpu, distributed_type=DistributedType.NO), denoiser)  # type: ignore[arg-type]
    assert asked == [gpu, gpu]


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in backends.available()["triton"].devices, reason="triton does not serve CUDA here")
def test_a_run_on_a_gpu(trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path) -> None:
    weights = []
    for replays in (True, False):
        changes = {"data.max_frames": 44, "run.cuda_graphs": replays, "denoiser.dropout": 0.0}
        output = tmp_path / str(replays)
        run_denoiser(write_config("denoiser", **changes), output, vae=trained_vae / "model", data=pairs)
        weights.append(load_file(output / "model" / "model.safetensors"))
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-5, msg=key)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {"denoiser.dropout": 0.0},
    "dropout": {"denoiser.dropout": 0.2},
    "levels": {"levels.one_level": 0.5, "levels.frames": 0.25, "levels.gap": 0.25},
    "router_z": {"router_z": 0.1},
    "one GPU's batch": {"optim.accumulation_steps": 1},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_bit_for_bit(
    graphs_on_cpu: Any, trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Beside one whose padded batches run as they are, as in both do the steps whose routing is logged."""
    changes = {"data.max_frames": 44, "run.cuda_graphs": True, **RUNS[name]}

    def weights(folder: str, **changes: Any) -> dict[str, Tensor]:
        run_denoiser(write_config("denoiser", **changes), tmp_path / folder, vae=trained_vae / "model", data=pairs)
        return load_file(tmp_path / folder / "model" / "model.safetensors")

    found = weights("captured", **changes)
    micro_steps = changes.get("optim.accumulation_steps", 2)
    assert (graphs_on_cpu.captures, graphs_on_cpu.replays) == (2, 2 * 3 * micro_steps)  # of six steps three are logged
    monkeypatch.setattr(TrainingGraph, "__call__", lambda self, *given: self._call(*given))
    padded = weights("padded", **changes)
    assert graphs_on_cpu.captures == 2
    assert found.keys() == padded.keys()
    assert all(torch.equal(value, padded[key]) for key, value in found.items())
    if name == "plain":
        unpadded = weights("unpadded", **changes | {"run.cuda_graphs": False})
        for key, value in found.items():
            torch.testing.assert_close(value, unpadded[key], rtol=1e-3, atol=1e-5, msg=key)
