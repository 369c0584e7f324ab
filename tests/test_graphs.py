"""Captured calls of the denoiser: the same motion as without, and as it is, with the reason, where there are none."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEPipeline, backends, graphs
from intermoe.control import Control, Known, Target
from intermoe.graphs import MOST_GRAPHS, Graphs
from intermoe.routing.record import record_routing
from intermoe.systems.intermoe.config import DenoiserConfig, ShortcutConfig
from intermoe.systems.intermoe.denoiser import Denoiser

CONFIG = DenoiserConfig(
    input_dim=6, text_dim=5, dim=16, num_layers=2, num_heads=2, num_experts=3, expert_dim=8, dropout=0.0,
    shortcut=ShortcutConfig(steps=4, width=4),
)  # fmt: skip


def drawn(denoiser: Denoiser) -> Denoiser:
    """No weight at zero, so that everything changes the estimate."""
    for parameter in denoiser.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    for block in denoiser.moe_blocks():
        nn.init.normal_(block.motion_router, std=0.5)
    return denoiser.eval()


@pytest.fixture
def denoiser() -> Denoiser:
    return drawn(Denoiser(CONFIG))


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def inputs(seed: int = 0, batch: int = 2, frames: int = 5, **changes: Any) -> tuple[Tensor | None, ...]:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(frames) < torch.tensor([[frames]] * (batch - 1) + [[frames - 1 - seed % 2]])
    given = {
        "x": torch.randn(batch, 2, frames, 6, generator=g), "timesteps": torch.randint(1000, (batch,), generator=g),
        "text": torch.randn(batch, 5, generator=g), "mask": mask,
    }  # fmt: skip
    return tuple((given | changes).values())


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        each.getMessage() for each in caplog.records if (each.name, each.levelno) == (graphs.__name__, logging.WARNING)
    ]


def test_a_replay_is_the_call_for_every_one_of_its_inputs(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    call = Graphs().of(denoiser)
    first, other = inputs(0), inputs(1)
    given = [first, *((*first[:i], other[i], *first[i + 1 :]) for i in range(4)), other, first]
    made = [call(*each) for each in given]
    assert (graphs_on_cpu.captures, graphs_on_cpu.replays) == (1, len(given))
    expected = [denoiser(*each) for each in given]  # after all replays: each result has memory of its own
    assert all(map(torch.equal, made, expected))
    assert len({tuple(each.flatten().tolist()) for each in made}) == len(given) - 1
    made[0].zero_()  # which is the caller's
    assert torch.equal(call(*first), expected[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 3}, {"frames": 4}, {"mask": None},
        {"timesteps": torch.tensor([3, 700], dtype=torch.int32)},
        {"timesteps": torch.tensor([3, 700])[:, None, None].expand(2, 2, 5)},
    ],
    ids=["batch", "frames", "mask", "type", "levels"],
)  # fmt: skip
def test_every_kind_of_call_has_its_graph(graphs_on_cpu: Any, denoiser: Denoiser, changes: dict[str, Any]) -> None:
    call = Graphs().of(denoiser)
    for seed in (0, 1):
        for given in (inputs(seed), inputs(seed, **changes)):
            assert torch.equal(call(*given), denoiser(*given))
    assert (graphs_on_cpu.captures, graphs_on_cpu.replays) == (2, 4)


def test_options_have_graphs_of_their_own_and_share_memory(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    kept = Graphs()
    for seed in (0, 1):
        plain, short = kept.of(denoiser), kept.of(denoiser, shortcut=True)
        given = inputs(seed)
        assert torch.equal(plain(*given), denoiser(*given))
        assert torch.equal(short(*given), denoiser(*given, shortcut=True))
        assert not torch.equal(plain(*given), short(*given))
    assert graphs_on_cpu.captures == 2
    assert len(graphs_on_cpu.pools) == 1


def test_the_graph_whose_use_lies_longest_back_goes_first(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    call = Graphs().of(denoiser)
    for frames in range(2, 2 + MOST_GRAPHS):
        call(*inputs(frames=frames))
    call(*inputs(frames=2))  # used again
    call(*inputs(frames=40))  # one more than are kept: that of 3 frames goes
    assert graphs_on_cpu.captures == MOST_GRAPHS + 1
    call(*inputs(frames=2))
    assert graphs_on_cpu.captures == MOST_GRAPHS + 1
    call(*inputs(frames=3))
    assert graphs_on_cpu.captures == MOST_GRAPHS + 2


def assigned(denoiser: Denoiser) -> None:
    denoiser.load_state_dict({k: v * 2 for k, v in denoiser.state_dict().items()}, assign=True)


def swapped(denoiser: Denoiser) -> None:
    denoiser.out.weight.data = denoiser.out.weight.data * 2


def moved(denoiser: Denoiser) -> None:
    denoiser.double()
    denoiser.float()
    denoiser.out.weight.data = denoiser.out.weight.data.clone()
    denoiser.out.weight.mul_(2)


def other_buffer(denoiser: Denoiser) -> None:
    denoiser.moe_blocks()[0].selection_bias = torch.full((3,), -0.05)


def other_setting(denoiser: Denoiser) -> None:
    denoiser.moe_blocks()[0].alpha = 0.9


def other_part(denoiser: Denoiser) -> None:
    denoiser.embed_text = nn.Linear(5, 16).eval()


@pytest.mark.parametrize("change", [assigned, swapped, moved, other_buffer, other_setting, other_part])
def test_what_a_replay_would_not_see_makes_a_new_graph(
    graphs_on_cpu: Any, denoiser: Denoiser, change: Callable[[Denoiser], None]
) -> None:
    kept, given = Graphs(), inputs()
    before = kept.of(denoiser)(*given)
    change(denoiser)
    after = kept.of(denoiser)(*given)
    assert torch.equal(after, denoiser(*given))
    assert not torch.equal(after, before)
    assert graphs_on_cpu.captures == 2
    assert len(kept._kept.graphs) == 1  # the old one is dropped


def test_values_of_weights_are_those_of_the_replay(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    kept, given = Graphs(), inputs()
    before = kept.of(denoiser)(*given)
    denoiser.load_state_dict({k: v * 0.7 for k, v in denoiser.state_dict().items()})
    after = kept.of(denoiser)(*given)
    assert torch.equal(after, denoiser(*given))
    assert not torch.equal(after, before)
    assert graphs_on_cpu.captures == 1


def test_a_precision_or_mode_of_torch_makes_a_new_graph(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    kept, given = Graphs(), inputs()
    kept.of(denoiser)(*given)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        kept.of(denoiser)(*given)
    finally:
        torch.set_float32_matmul_precision(before)
    assert graphs_on_cpu.captures == 2
    with torch.inference_mode():
        assert torch.equal(kept.of(denoiser)(*given), denoiser(*given))
    assert torch.equal(kept.of(denoiser)(*given), denoiser(*given))
    assert graphs_on_cpu.captures == 4


REFUSED: dict[str, tuple[Callable[[Denoiser], Any], str]] = {
    "hook": (lambda d: d.layers[1].register_forward_hook(lambda *_: None), "layers.1: hooks are registered"),
    "hook before": (lambda d: d.register_forward_pre_hook(lambda *_: None), "Denoiser: hooks are registered"),
    "forward": (lambda d: setattr(d.out, "forward", d.out.forward), "out: its forward is replaced"),
    "compiled": (lambda d: d.layers[0].compile(backend="eager"), "layers.0: it is compiled"),
    "training": (lambda d: d.layers[0].moe.train(), "layers.0.moe: it is in training mode"),
    "limit": (lambda d: setattr(d.moe_blocks()[0], "max_pairs", 999), "layers.0.moe: max_pairs is set"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_replay_would_pass_over_runs_as_it_is_and_says_so_once(
    graphs_on_cpu: Any, denoiser: Denoiser, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, reason = REFUSED[name]
    change(denoiser)
    kept, given = Graphs(), inputs()
    for _ in range(2):
        assert torch.equal(kept.of(denoiser)(*given), denoiser(*given))
    assert graphs_on_cpu.captures == 0
    (told,) = warnings_of(caplog)
    assert told.startswith(f"a denoiser runs without CUDA graphs: {reason}")


def test_surroundings_that_a_replay_would_pass_over(
    graphs_on_cpu: Any, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    kept, given = Graphs(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        kept.of(denoiser)(*given)
    with FlopCounterMode(display=False) as counter:
        kept.of(denoiser)(*given)
    assert counter.get_total_flops() > 0
    with backends.detect_nan():
        kept.of(denoiser)(*given)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    kept.of(denoiser)(*given)
    handle.remove()
    call = kept.of(denoiser)
    with torch.enable_grad():
        kept.of(denoiser)(*given)
        assert call(*given).requires_grad  # it was asked for without, and is called with
    assert graphs_on_cpu.captures == 0
    told = " ".join(warnings_of(caplog))
    assert len(warnings_of(caplog)) == 5
    for reason in ("autocast", "dispatch mode", "detect_nan", "hooks on all modules", "gradients are enabled"):
        assert reason in told


def test_what_cannot_be_captured_runs_as_it_is_and_is_not_tried_again(
    graphs_on_cpu: Any, denoiser: Denoiser, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reading(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            return super().forward(x) * (2.0 if float(x.sum()) > 1e9 else 1.0)

    denoiser.out = Reading(16, 6).eval()
    kept = Graphs()
    for seed in range(3):
        given = inputs(seed)
        assert torch.equal(kept.of(denoiser)(*given), denoiser(*given))
    assert (graphs_on_cpu.captures, graphs_on_cpu.replays) == (0, 0)
    assert graphs_on_cpu.current is graphs_on_cpu.outside  # torch itself stays on the stream of what has failed
    assert Reading.calls == graphs.WARM_UPS + 1 + 3 + 3  # to warm up, captured once, and as it is
    (told,) = warnings_of(caplog)
    assert told.endswith("CaptureError: operation not permitted when stream is capturing")


def test_blocks_ask_the_host_but_for_the_length_of_a_capture(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    """The stand-in's blocks read a value without ``max_pairs``, which fails in a capture."""
    given = inputs()
    Graphs().of(denoiser)(*given)
    assert graphs_on_cpu.captures == 1
    assert all(block.max_pairs is None for block in denoiser.moe_blocks())
    pool, made = object(), torch.cuda.CUDAGraph()
    graphs_on_cpu.pools.append(pool)
    stream = torch.cuda.Stream(torch.device("cpu"))
    capture = torch.cuda.graph(made, pool=pool, stream=stream, capture_error_mode="thread_local")
    with pytest.raises(RuntimeError, match="previous error during capture"), capture:
        denoiser(*given)


@pytest.mark.parametrize("name", ["reference", "native"])
def test_backends_that_ask_the_host_are_not_captured(denoiser: Denoiser, name: str) -> None:
    if not backends.available()[name].usable:
        pytest.skip(f"{name} is not usable here")
    with backends.use(name):
        reason = graphs.waits_for_host(denoiser.moe_blocks()[0], torch.device("cpu"))
    assert reason == f"its backend '{name}' asks the host how many pairs are selected"


def test_spread_experts_are_not_captured(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a backend that asks nothing of the host: two numbers for one more pair."""
    asked: list[tuple[int, ...]] = []
    backend = SimpleNamespace(allocated_pairs=lambda *sizes: asked.append(sizes) or 2)
    monkeypatch.setattr(backends, "load", lambda name: backend)
    monkeypatch.setattr(backends, "resolve", lambda device, dtype, name: "quick")
    block = denoiser.moe_blocks()[0]
    assert graphs.waits_for_host(block, torch.device("cpu")) is None
    monkeypatch.setattr(block, "is_spread", True)
    assert graphs.waits_for_host(block, torch.device("cpu")) == "its experts are spread over processes"
    assert {sizes[1] for sizes in asked} == {block.num_experts}


def test_wrong_arguments_are_refused_as_without(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    given = inputs(x=torch.zeros(2, 2, 5, 7))
    with pytest.raises(ValueError, match="x: expected") as plain:
        denoiser(*given)
    with pytest.raises(ValueError, match="x: expected") as captured:
        Graphs().of(denoiser)(*given)
    assert str(plain.value) == str(captured.value)


def test_on_a_cpu_nothing_is_captured_and_nothing_said(denoiser: Denoiser, caplog: pytest.LogCaptureFixture) -> None:
    given = inputs()
    assert torch.equal(Graphs().of(denoiser)(*given), denoiser(*given))
    assert not warnings_of(caplog)


def test_copies_have_no_graphs_and_originals_keep_theirs(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    kept, given = Graphs(), inputs()
    kept.of(denoiser)(*given)
    for twin in (copy.deepcopy(kept), copy.copy(kept), pickle.loads(pickle.dumps(kept))):
        assert twin._kept is None
    kept.of(denoiser)(*given)
    assert graphs_on_cpu.captures == 1
    kept.forget()
    kept.of(denoiser)(*given)
    assert graphs_on_cpu.captures == 2


def test_threads_take_turns(graphs_on_cpu: Any, denoiser: Denoiser) -> None:
    """A call of one thread waits while another's writes inputs, replays and reads the result."""
    kept = Graphs()
    call = kept.of(denoiser)
    expected = {seed: denoiser(*inputs(seed)) for seed in range(8)}
    call(*inputs())
    wrong: list[int] = []

    def work(seed: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(kept.of(denoiser)(*inputs(seed)), expected[seed]):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert graphs_on_cpu.captures == 1


@pytest.fixture
def pipeline(tiny_pipeline: InterMoEPipeline) -> InterMoEPipeline:
    """A model that learned four steps at a guidance of 3.5, and that guides the first half of the schedule."""
    given = tiny_pipeline.config
    config = dataclasses.replace(given.denoiser, shortcut=ShortcutConfig(steps=4, width=4))
    diffusion = dataclasses.replace(given.diffusion, guidance_until=0.5, scale_input=True)
    parts = (tiny_pipeline.vae, drawn(Denoiser(config)), tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    made = dataclasses.replace(given, denoiser=config, diffusion=diffusion, levels=True)
    return InterMoEPipeline(made, *parts)


JOINTS = np.zeros((16, 22, 3)) + np.arange(22)[:, None] * [0.0, 0.08, 0.01]
CALLS: dict[str, tuple[dict[str, Any], int, int]] = {
    # a call, the graphs that it has, and how often they are replayed
    "4 steps": ({"num_inference_steps": 4, "guidance_scale": 3.5}, 2, 4),
    "50 steps": ({"num_inference_steps": 50, "guidance_scale": 3.5}, 2, 50),
    "unguided": ({"num_inference_steps": 50, "guidance_scale": 1.0}, 1, 50),
    "multistep": ({"num_inference_steps": 10, "scheduler": "dpmsolver++"}, 2, 10),
    "unipc": ({"num_inference_steps": 10, "scheduler": "unipc"}, 2, 10),
    "stochastic": ({"num_inference_steps": 10, "scheduler": "ddpm"}, 2, 10),
    "known": (
        {"num_inference_steps": 6, "guidance_scale": 2.0, "control": Control(known=[Known(person=0, joints=JOINTS)])},
        2, 6,
    ),
    "targets": (
        {"num_inference_steps": 6, "guidance_scale": 2.0, "control": Control(
            targets=[Target(person=1, joint="left_wrist", frames=[8], positions=[[0.2, 1.1, 0.4]])])},
        2, 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_motion_is_the_same_bit_for_bit(
    graphs_on_cpu: Any, pipeline: InterMoEPipeline, name: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    options, captures, replays = CALLS[name]
    prompts = ["Two people bow.", "One of them turns to the left."]
    captured = [pipeline(prompts, num_frames=16, seed=seed, **options).motion for seed in (0, 5)]
    assert (graphs_on_cpu.captures, graphs_on_cpu.replays) == (captures, 2 * replays)  # the second call has no more
    assert not warnings_of(caplog)
    monkeypatch.setattr("intermoe.graphs.is_gpu", lambda device: False)
    for seed, found in zip((0, 5), captured, strict=True):
        assert torch.equal(found, pipeline(prompts, num_frames=16, seed=seed, **options).motion)
    assert graphs_on_cpu.replays == 2 * replays
    assert not torch.equal(*captured)


def test_routing_is_recorded_in_every_step(
    graphs_on_cpu: Any, pipeline: InterMoEPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline("Two people bow.", num_frames=16, num_inference_steps=4)
    before = graphs_on_cpu.replays
    with record_routing(pipeline.denoiser) as record:
        pipeline("Two people bow.", num_frames=16, num_inference_steps=4)
    assert {len(calls) for calls in record.calls.values()} == {4}
    assert graphs_on_cpu.replays == before
    assert len(warnings_of(caplog)) == 1
    pipeline("Two people bow.", num_frames=16, num_inference_steps=4)
    assert graphs_on_cpu.captures == 2  # those of before are there yet


def test_a_pipeline_that_is_moved_gives_its_memory_back(graphs_on_cpu: Any, pipeline: InterMoEPipeline) -> None:
    pipeline("Two people bow.", num_frames=16, num_inference_steps=4)
    assert pipeline.graphs._kept is not None
    assert pipeline.to("cpu").graphs._kept is None
    twin = copy.deepcopy(pipeline)
    assert twin.graphs is not pipeline.graphs
