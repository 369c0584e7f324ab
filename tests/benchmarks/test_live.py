"""What the benchmark of the live page believes of a client."""

from __future__ import annotations

import pytest

from intermoe.benchmarks.harness.case import WrongResult
from intermoe.benchmarks.live import WARM, rate_of

SHOWN = [bytes([number]) for number in range(100)]


def test_frames_after_the_warm_up_count() -> None:
    frames = [(moment / 10, SHOWN[moment + 20]) for moment in range(60)]  # it came late, and each tenth of a second
    assert rate_of(frames, SHOWN, 2.0) == 10
    assert rate_of(frames[::2], SHOWN, 2.0) == 5
    assert rate_of(frames[: int(10 * WARM)], SHOWN, 2.0) == 0


@pytest.mark.parametrize("wrong", [[1, 3, 2], [4, 4], [7, 101]])
def test_frames_out_of_order_twice_or_of_nobody_are_an_error(wrong: list[int]) -> None:
    with pytest.raises(WrongResult, match="not shown"):
        rate_of([(WARM, bytes([number])) for number in wrong], SHOWN, 1.0)
