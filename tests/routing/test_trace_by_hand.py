"""What is asked of a pipeline for a trace, and what becomes of what was recorded, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intermoe import InterMoEBlock
from intermoe.routing import trace as module
from intermoe.routing.record import RoutingRecord, record_routing
from intermoe.routing.trace import RoutingTrace, read_trace, trace_generation, trace_motion, trace_record


def some(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.5


def test_summaries_of_a_trace() -> None:
    """Unlike on every axis: three calls, two layers, one person, four tokens, five experts."""
    chosen = some(3, 2, 1, 4, 5)
    trace = RoutingTrace(chosen, np.array([9, 5, 0]), ("a", "b"))
    assert (trace.joints, trace.title, trace.fps) == (None, "", 30)
    for layer in range(2):
        for expert in range(5):
            taken = sum(chosen[call, layer, 0, token, expert] for call in range(3) for token in range(4))
            assert trace.load[layer, expert] == pytest.approx(taken / 12)
            for token in range(4):
                often = sum(chosen[call, layer, 0, token, expert] for call in range(3)) / 3
                assert trace.share[layer, 0, token, expert] == pytest.approx(often)
        for call in range(3):
            assert trace.experts_per_token[call, layer] == pytest.approx(chosen[call, layer].sum() / 4)


def test_every_entry_of_a_file(tmp_path: Path) -> None:
    chosen, joints = some(3, 2, 2, 4, 5), np.random.default_rng(0).random((2, 7, 22, 3)).astype(np.float32)
    trace = RoutingTrace(chosen, np.array([9, 5, 0]), ("a", "b"), joints, "bow", 24)
    trace.save_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        found = dict(archive)
    assert {name: (values.dtype.kind, values.shape) for name, values in found.items()} == {
        "chosen": ("b", (3, 2, 2, 4, 5)), "timesteps": ("i", (3,)), "layers": ("U", (2,)), "title": ("U", ()),
        "fps": ("i", ()), "share": ("f", (2, 2, 4, 5)), "experts_per_token": ("f", (3, 2)), "load": ("f", (2, 5)),
        "joints": ("f", (2, 7, 22, 3)),
    }  # fmt: skip
    for name in ("share", "experts_per_token", "load"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], getattr(trace, name), rtol=1e-6)
    assert (found["timesteps"].tolist(), found["title"].item(), found["fps"].item()) == ([9, 5, 0], "bow", 24)
    np.savez(tmp_path / "b.npz", chosen=chosen, timesteps=np.array([9, 5, 0]), layers=np.array(["a", "b"]))
    least = read_trace(tmp_path / "b.npz")
    assert least is not None
    assert (least.joints, least.title, least.fps, least.layers) == (None, "", 30, ("a", "b"))
    for absent in ("chosen", "timesteps", "layers"):
        np.savez(tmp_path / "c.npz", **{name: values for name, values in found.items() if name != absent})
        assert read_trace(tmp_path / "c.npz") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"chosen": some(3, 2, 2, 4, 5)[0]}, "chosen: expected bool (N, L, P, T, E), got bool (2, 2, 4, 5)"),
        ({"chosen": some(3, 2, 2, 0, 5)}, "chosen: expected bool (N, L, P, T, E), got bool (3, 2, 2, 0, 5)"),
        ({"timesteps": np.array([9.0, 5.0, 0.0])}, "timesteps: expected integers of shape (3,), got float64 (3,)"),
        ({"timesteps": np.array([[9, 5, 0]])}, "timesteps: expected integers of shape (3,), got int64 (1, 3)"),
        ({"timesteps": np.array([9, 5, 0], np.uint8)}, None),
        ({"layers": ("a", "b", "c")}, "layers: expected 2 names, got 3"),
        ({"joints": np.zeros((3, 7, 22, 3))}, "joints: expected shape (2, frames, 22, 3), got (3, 7, 22, 3)"),
        ({"joints": np.zeros((2, 7, 66))}, "joints: expected shape (2, frames, 22, 3), got (2, 7, 66)"),
    ],
    ids=["axes", "tokens", "fractions", "matrix", "small", "names", "persons", "flat"],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], told: str | None) -> None:
    parts = {"chosen": some(3, 2, 2, 4, 5), "timesteps": np.array([9, 5, 0]), "layers": ("a", "b"), **changes}
    if told is None:
        RoutingTrace(**parts)
        return
    with pytest.raises(ValueError, match=r"^\w+: expected") as refused:
        RoutingTrace(**parts)
    assert str(refused.value) == told


def record_of(**calls: list[np.ndarray]) -> RoutingRecord:
    record = RoutingRecord(tuple(calls))
    for name, each in calls.items():
        record.calls[name] += each
    return record


def test_a_row_of_a_record_is_that_of_each_call_and_layer() -> None:
    """Three calls of two layers, each of a batch of two with six tokens of two persons."""
    up, down = [some(2, 6, 5, seed=seed) for seed in range(3)], [some(2, 6, 5, seed=seed) for seed in range(3, 6)]
    record = record_of(up=up, down=down, aside=[some(2, 3, 5)])
    assert record.names() == ["up", "down", "aside"]
    assert record.names("*n") == ["down"]
    with pytest.raises(ValueError, match=r"^layers: expected a pattern of \['up', 'down', 'aside'\], got 'UP'$"):
        record.names("UP")
    pair = record_of(up=up, down=down)
    np.testing.assert_array_equal(pair.stacked(), np.stack([np.stack(up), np.stack(down)], axis=1))
    trace = trace_record(pair, row=1, persons=2, title="bow")
    assert (trace.layers, trace.title, trace.joints) == (("up", "down"), "bow", None)
    np.testing.assert_array_equal(trace.timesteps, np.zeros(3, np.int64))
    for call in range(3):
        for layer, calls in enumerate((up, down)):
            np.testing.assert_array_equal(trace.chosen[call, layer, 0], calls[call][1, :3])
            np.testing.assert_array_equal(trace.chosen[call, layer, 1], calls[call][1, 3:])
    plain = trace_record(pair)
    np.testing.assert_array_equal(plain.chosen[:, 0, 0], np.stack(up)[:, 0])
    assert trace_record(record, layers="aside").chosen.shape == (1, 1, 1, 3, 5)
    with pytest.raises(ValueError, match=r"^row: expected a value in \[0, 2\), got -1$"):
        trace_record(pair, row=-1)
    for wrong in ({"down": down[:2]}, {"down": [*down[:2], some(2, 6, 4)]}):
        with pytest.raises(ValueError, match=r"^record: expected calls that are alike, .* of 'down' and .* of 'up'; "):
            record_of(up=up, **wrong).stacked()


class Mixed(nn.Module):
    """A block among others that is told its condition and mask, and a word that says nothing of its routing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.other = nn.Linear(8, 8)
        self.block = InterMoEBlock(8, 4, 6, cond_dim=3)
        for parameter in self.block.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out, _ = self.block(x, condition, mask=mask, balance=True)
        return self.other(out)


def test_each_call_is_recorded_with_its_own_condition_and_mask() -> None:
    model = Mixed().train()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    calls = [(torch.randn(2, 3, 8), torch.randn(2, 3)) for _ in range(3)]
    with record_routing(model) as record:
        for x, condition in calls:
            model(x, condition, mask)
    assert list(record.calls) == ["block"]
    for (x, condition), found in zip(calls, record.calls["block"], strict=True):
        assert (found.dtype, found.shape) == (np.bool_, (2, 3, 4))
        np.testing.assert_array_equal(found, model.block.chosen_pairs(x, condition, mask).numpy())
        assert not found[0, 2].any()
    model(*calls[0], mask)
    assert len(record.calls["block"]) == 3


class Denoiser(nn.Module):
    """A network that is called with the noise level of each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = InterMoEBlock(8, 4, 5, cond_dim=None)
        self.second = InterMoEBlock(8, 4, 5, cond_dim=None)
        for block in (self.first, self.second):
            nn.init.normal_(block.motion_router, std=0.5)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Pipeline:
    """What is asked of it, and what it sees at each step."""

    def __init__(self) -> None:
        self.denoiser = Denoiser()
        self.modules = {"denoiser": self.denoiser}
        self.config = SimpleNamespace(system="any", fps=24)
        self.frame_multiple = 4
        self.representation = SimpleNamespace(joints=lambda motion: motion[..., :66].unflatten(-1, (22, 3)))
        self.asked: list[Any] = []
        self.inputs = [torch.randn(2, 6, 8), torch.randn(2, 6, 8), torch.randn(1, 6, 8)]
        self.joints = torch.randn(2, 12, 22, 3)

    def __call__(self, *given: Any, **how: Any) -> Any:
        self.asked.append((given, how))
        for x, level in zip(self.inputs, (900, 450, 0), strict=True):
            self.denoiser(x, torch.tensor([level, level + 7])[: len(x)])
        return SimpleNamespace(joints=self.joints[None], fps=20)

    def denoise_once(self, motion: torch.Tensor, level: float, **how: Any) -> int:
        self.asked.append((motion, level, how))
        self.denoiser(self.inputs[2], torch.zeros(1))
        return 321


def test_a_generation_is_asked_for_as_it_is_told() -> None:
    """Of guided calls the first row, which hears the prompt; frames a second are those of what comes out."""
    pipeline: Any = Pipeline()
    said = lambda done, of: None  # noqa: E731
    trace = trace_generation(
        pipeline, "they bow", num_frames=48, num_inference_steps=3, guidance_scale=2.5, seed=7, progress=said
    )
    trace_generation(pipeline, "they bow", num_frames=48)
    assert pipeline.asked == [
        (("they bow", 48, 3, 2.5, 7), {"progress": said}),
        (("they bow", 48, 50, 3.5, 0), {"progress": None}),
    ]
    assert trace.timesteps.tolist() == [900, 450, 0]
    assert (trace.layers, trace.title, trace.fps) == (("layer 1", "layer 2"), "they bow", 20)
    np.testing.assert_array_equal(trace.joints, pipeline.joints)
    for call, x in enumerate(pipeline.inputs):
        chosen = pipeline.denoiser.first.chosen_pairs(x)[0].numpy()
        np.testing.assert_array_equal(trace.chosen[call, 0], chosen.reshape(2, 3, 4))
    assert not pipeline.denoiser._forward_pre_hooks


def test_a_motion_is_noised_as_it_is_told() -> None:
    pipeline: Any = Pipeline()
    motion = torch.randn(2, 14, 262)
    trace = trace_motion(pipeline, motion, level=0.25, prompt="they bow", seed=7)
    trace_motion(pipeline, motion[:, :4], level=0)
    for (given, level, how), frames, wanted in zip(
        pipeline.asked,
        (12, 4),
        ((0.25, {"prompt": "they bow", "seed": 7}), (0, {"prompt": "", "seed": 0})),
        strict=True,
    ):
        assert torch.equal(given, motion[:, :frames])
        assert (level, how) == wanted
    assert (trace.timesteps.tolist(), trace.title, trace.fps) == ([321], "they bow", 24)
    np.testing.assert_array_equal(trace.joints, motion[:, :12, :66].reshape(2, 12, 22, 3))
    chosen = pipeline.denoiser.second.chosen_pairs(pipeline.denoiser.first(pipeline.inputs[2]))[0].numpy()
    np.testing.assert_array_equal(trace.chosen[0, 1], chosen.reshape(2, 3, 4))
    for level in (-0.01, 1.0):
        with pytest.raises(ValueError, match=rf"^level: expected a value in \[0, 1\), got {level}$"):
            trace_motion(pipeline, motion, level=level)
    for wrong in (motion[:, :3], motion[0]):
        with pytest.raises(ValueError, match=r"^motion: expected shape \(P, T >= 4, width\), got "):
            trace_motion(pipeline, wrong, level=0.5)


def test_levels_are_no_longer_watched_after_a_failure() -> None:
    denoiser = Denoiser()
    seen: list[int] = []
    with pytest.raises(IndexError), module.watched_timesteps(denoiser, seen):
        denoiser(denoiser(torch.randn(2, 6, 8), torch.tensor([3, 4])), torch.tensor([]))
    denoiser(torch.randn(2, 6, 8), torch.tensor([5, 6]))
    assert seen == [3]
