"""What a scene costs as it goes on, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.eval import control


def test_time_and_memory_of_each_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 20 frames at 30 a second; the first half takes 2 s and 5 MB, the second 3 s and 20 MB."""
    moments, peaks = iter([10.0, 12.0, 20.0, 23.0]), iter([100.0, 105.0, 125.0])
    monkeypatch.setattr(control.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(control, "_peak_memory", lambda: next(peaks))
    pipeline: Any = SimpleNamespace(
        live=lambda *_, **__: iter([np.zeros((2, 20, 22, 3))] * (1 + 2 * control.WINDOWS)),
        config=SimpleNamespace(fps=30),
    )
    item = control._Item(torch.zeros(2, 8, 262), "they bow")
    time, memory = control._length(pipeline, [item], 0, {})
    seconds = 20 * control.WINDOWS / 30
    assert (time[1], time[3]) == pytest.approx((3 / seconds, 2 / seconds))
    assert (memory[1], memory[3]) == (20.0, 5.0)
