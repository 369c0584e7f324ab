"""The time of a trace in which nothing was at work; what is profiled, and into which files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks import models
from intermoe.benchmarks.grid import SMALL
from intermoe.benchmarks.harness import profiling
from intermoe.benchmarks.harness.case import Scope
from intermoe.benchmarks.harness.profiling import gaps
from intermoe.benchmarks.harness.work import Shape


def test_gaps_are_where_nothing_is_busy() -> None:
    spans = [(37.0, 47.0), (7.0, 17.0), (12.0, 22.0), (38.0, 39.0)]  # side by side, and one within another
    assert gaps(spans) == pytest.approx((40e-6, 15e-6))
    assert gaps([(0.0, 100.0), (10.0, 40.0), (90.0, 95.0)]) == pytest.approx((100e-6, 0.0))


def test_empty_trace() -> None:
    with pytest.raises(ValueError, match=r"trace: expected work of the device, got none; .* \(CUPTI\)"):
        gaps([])


@pytest.mark.parametrize(
    ("kind", "level", "shape", "dtype", "config", "names"),
    [
        ("cpu", "quick", SMALL, torch.float32, models.TINY, "S48-float32"),
        ("cpu", "default", Shape(4800), torch.float32, models.PUBLISHED, "S4800-float32"),
        ("cuda", "full", Shape(9600), torch.bfloat16, models.PUBLISHED, "S9600-bfloat16"),
    ],
)
def test_a_block_with_backward_and_a_call_with_guidance_are_profiled(
    kind: str,
    level: str,
    shape: Shape,
    dtype: torch.dtype,
    config: Any,
    names: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named after their sizes, types and the backend."""
    done: list[Any] = []
    device, leaf = torch.device(kind), torch.ones(3, requires_grad=True)

    def draw(*given: Any) -> Any:
        assert given == (shape, dtype, device)
        return SimpleNamespace(leaves=lambda: SimpleNamespace(steps=lambda: (leaf, "select", "experts")))

    def moe(*given: Any) -> Any:
        assert given == (leaf, "select", "experts")
        return SimpleNamespace(out=2 * leaf)

    monkeypatch.setattr(profiling, "draw", draw)
    monkeypatch.setattr(profiling, "moe", moe)
    monkeypatch.setattr(profiling.backends, "resolve", lambda *given: f"best for {given}")
    monkeypatch.setattr(models, "denoiser_inputs", lambda *given: given)

    def build(*given: Any) -> Any:
        assert given == (config, dtype, device)
        return lambda *inputs: done.append((inputs, torch.is_grad_enabled()))

    monkeypatch.setattr(models, "build_denoiser", build)
    block, denoiser = (found := profiling.calls(Scope(device, level))).values()
    of = f"{str(dtype)[6:]}-best for {(device, dtype)}"
    assert names.split("-")[1] == str(dtype)[6:]
    assert list(found) == [f"block-{names.split('-')[0]}-{of}", f"denoiser-call-{of}"]
    block()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [2.0] * 3
    denoiser()
    assert done == [((config, 2, 2, 75, dtype, device), False)]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_trace_and_a_table_of_each_call(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three calls and one that is not recorded; each recorded call is waited for."""
    done: list[str] = []
    activity, action = torch.profiler.ProfilerActivity, torch.profiler.ProfilerAction
    device = torch.device(kind)

    class Profile:
        def __init__(self, activities: Any, schedule: Any, on_trace_ready: Callable[[Any], None]) -> None:
            assert list(activities) == [activity.CPU, activity.CUDA][: 1 + (kind == "cuda")]
            assert [schedule(step) for step in range(3)] == [action.WARMUP, action.RECORD_AND_SAVE, action.NONE]
            self.ready, self.steps = on_trace_ready, 0

        def __enter__(self) -> Profile:
            done.append("profile")
            return self

        def __exit__(self, *_: object) -> None:
            assert self.steps == 2
            self.ready(self)
            done.append("end")

        def step(self) -> None:
            self.steps += 1
            done.append("step")

        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_text("a trace")

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(profiling, "synchronise", lambda device: done.append(f"wait for {device}"))
    monkeypatch.setattr(profiling, "machine", lambda device: SimpleNamespace(label=f"a-{device}"))
    monkeypatch.setattr(profiling, "calls", lambda scope: {n: lambda n=n: done.append(n) for n in ("a", "b")})
    monkeypatch.setattr(profiling, "markdown", lambda name, profile, of: f"{name} {type(profile).__name__} {of}")
    folder = tmp_path / "new" / f"a-{kind}"
    for _ in range(2):  # a folder that is there is no obstacle
        done.clear()
        written = profiling.write(Scope(device), tmp_path / "new")
        assert written == [folder / f"profile-{name}.{kind}" for name in "ab" for kind in ("json", "md")]
        assert [path.read_text() for path in written] == [
            text for name in "ab" for text in ("a trace", f"{name} Profile {kind}")
        ]
        wait = f"wait for {kind}"
        assert done == [
            each for name in "ab" for each in (name, name, name, wait, "profile", *(2 * [name, wait, "step"]), "end")
        ]
