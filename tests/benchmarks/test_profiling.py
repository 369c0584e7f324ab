"""The time of a trace in which nothing was at work."""

from __future__ import annotations

import pytest

from intermoe.benchmarks.harness.profiling import gaps


def test_gaps_are_where_nothing_is_busy() -> None:
    spans = [(30.0, 40.0), (0.0, 10.0), (5.0, 15.0), (31.0, 32.0)]  # side by side, and one within another
    assert gaps(spans) == pytest.approx((40e-6, 15e-6))
    assert gaps([(0.0, 100.0), (10.0, 40.0), (90.0, 95.0)]) == pytest.approx((100e-6, 0.0))


def test_empty_trace() -> None:
    with pytest.raises(ValueError, match=r"trace: expected work of the device, got none; .* \(CUPTI\)"):
        gaps([])
