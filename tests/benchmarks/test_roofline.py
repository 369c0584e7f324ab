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


def test_cards_are_those_of_their_data_sheets() -> None:
    """Multiprocessors, dense FLOP/s of half types summed in float32 and of TF32, bytes a second of the memory; of a
    multiprocessor the KiB of shared memory and the threads.
    """
    sheets = {
        "RTX 3090": (86, 82, 71e12, 35.6e12, 936e9, 100, 1536),
        "RTX 4090": (89, 128, 165e12, 82.6e12, 1008e9, 100, 1536),
        "A100": (80, 108, 312e12, 156e12, 2039e9, 164, 2048),
        "H100": (90, 132, 989e12, 494e12, 3350e9, 228, 2048),
    }
    assert {
        card.name: (
            card.architecture, card.multiprocessors, card.peak("half"), card.peak("tf32"), card.bandwidth,
            card.shared / 1024, card.threads,
        )
        for card in roofline.CARDS
    } == sheets  # fmt: skip
    assert all(card.bandwidth < card.l2_bandwidth < 6e12 for card in roofline.CARDS)
    assert all(0.5 < card.sustained < 0.9 for card in roofline.CARDS)
    assert (roofline.LAUNCH, roofline.WARPS_TO_SATURATE) == (1.5e-6, 2 * 4)


def test_launches_are_in_the_order_of_a_call() -> None:
    """Counting and writing a selection are two; a backward of rounded factors rounds the gradient too."""
    names = [each.name for each in roofline.launches("inference", 90, "half", 300)]
    assert names == ["route", "select", "select", "up inference", "down", "combine"]
    names = [each.name for each in roofline.launches("forward", 80, "tf32", 300)]
    assert names == ["route", "select", "select", "round tokens", "round weights", "up", "down", "combine"]
    assert [each.name for each in roofline.launches("backward", 80, "tf32", 300)] == [
        "round tokens", "round weights", "round tokens", "grad_hidden", "swiglu_backward", "grad_pairs",
        "grad_weight up", "grad_weight down", "combine", "select", "route grad_input", "route grad_router",
    ]  # fmt: skip
