"""What is predicted of a launch, by hand, on a card of two multiprocessors."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton")

from intermoe.benchmarks.harness import roofline
from intermoe.benchmarks.harness.roofline import Card, Cost
from intermoe.kernels.triton.aot import Resources

CARD = Card(
    "card", 86, 2, half_peak=80.0, tf32_peak=40.0, bandwidth=10.0, l2_bandwidth=20.0, shared=4000, threads=1024,
    sustained=0.5,
)  # fmt: skip
TILES = Cost("up", flops=60.0, padded_flops=120.0, bytes=1.0, l2_bytes=1.0, programs=6)
"""20 operations a tile: a second on a multiprocessor, which sustains 20 a second."""


@pytest.mark.parametrize(
    ("blocks", "warps", "programs", "seconds"),
    [
        (1, 8, 6, 3.0),  # three waves of two
        (1, 8, 5, 3.0),  # the last of one
        (2, 8, 6, 3.0),  # a wave of four, and one of a tile each: as many tiles at a time as units that are busy
        (1, 4, 6, 6.0),  # half of the warps that it takes
        (2, 4, 6, 4.0),  # two blocks have them together; in the last wave each has half
        (4, 8, 6, 3.0),  # all in one wave that is not full
    ],
)
def test_waves_by_hand(blocks: int, warps: int, programs: int, seconds: float) -> None:
    launch = replace(TILES, programs=programs, padded_flops=20.0 * programs)
    assert roofline._waves(launch, CARD, 80.0, blocks, warps) == pytest.approx(seconds)


def test_a_bound_has_no_padding_and_a_prediction_the_slowest_part() -> None:
    resources = Resources(registers=32, stack=0, shared=600, threads=256)
    line = roofline.predict(TILES, resources, CARD, 300, "half", "forward")
    assert (line.registers, line.shared, line.blocks) == (32, 600, 2)
    assert line.bound == pytest.approx(1e6 * 60 / 80)
    assert line.predicted == pytest.approx(1e6 * (3.0 + roofline.LAUNCH))
    assert roofline.predict(TILES, resources, CARD, 300, "tf32", "forward").bound == pytest.approx(1e6 * 60 / 40)
    moved = replace(TILES, bytes=50.0, l2_bytes=60.0)
    assert roofline.predict(moved, resources, CARD, 300, "half", "forward").predicted == pytest.approx(5e6, rel=1e-5)
    cached = replace(TILES, l2_bytes=80.0)
    assert roofline.predict(cached, None, CARD, 300, "half", "forward").predicted == pytest.approx(4e6, rel=1e-5)
    with pytest.raises(RuntimeError, match="up: does not fit a multiprocessor of the card"):
        roofline.predict(TILES, replace(resources, shared=3000), CARD, 300, "half", "forward")
