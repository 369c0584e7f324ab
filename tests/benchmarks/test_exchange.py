"""The model of experts over processes, by hand: bytes, seconds and the table of the documentation."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from intermoe.benchmarks import exchange
from intermoe.benchmarks.exchange import LATENCY, Load

SMALL = Load(tokens=6, dim=5, width=7, experts=3, capacity=1.5, item=2)
ROWS = 4 * 9 * 5 * 2  # of 9 pairs, there and back, forward and backward
WEIGHTS = 3 * (2 * 7 * 5 + 5 * 7) * 2  # gate, up and down of three experts


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_stays_is_not_sent(ranks: int) -> None:
    others = (ranks - 1) / ranks
    assert SMALL.weight_bytes == WEIGHTS
    assert exchange.exchanged_bytes(SMALL, ranks) == pytest.approx(ROWS * others)
    assert exchange.reduced_bytes(SMALL, ranks) == pytest.approx(2 * WEIGHTS * others)


def test_seconds_are_bytes_and_collectives() -> None:
    """Four exchanges and one of counts; a reduce-scatter and an all-gather."""
    assert exchange.exchange_seconds(SMALL, 4, 90.0) == pytest.approx(ROWS * 3 / 4 / 90 + 5 * LATENCY)
    assert exchange.reduce_seconds(SMALL, 4, 90.0) == pytest.approx(2 * WEIGHTS * 3 / 4 / 90 + 2 * LATENCY)


def test_a_rank_keeps_four_numbers_of_each_weight() -> None:
    """Weight, gradient and two moments in float32: 8 experts of 3 x 768 x 1024 are 288 MiB, an eighth of it 36."""
    assert 8 * 3 * 768 * 1024 * 4 * 4 == 288 * 2**20
    row = next(line for line in exchange.model_table().splitlines() if line.startswith("| 8 | 300 | 8 | 9600 |"))
    assert row.endswith("| 36 of 288 MiB |")
    seconds = 4 * 9600 * 768 * 2 * 7 / 8 / 300e9 + 5 * LATENCY
    assert f"| {1e3 * seconds:.2f} ms |" in row


def test_the_documentation_has_rows_of_the_table_alone() -> None:
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    head, _, *rows = exchange.model_table().splitlines()
    shown = [line for line in text.split(head)[1].splitlines()[2:] if line.startswith("| ")]
    assert shown
    assert set(shown) <= set(rows)


def test_the_first_of_the_repeats_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """All begin together; the median of the others is told."""
    took = [100.0, 3.0, 1.0, 2.0]
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in took)
    order: list[str] = []
    monkeypatch.setattr(exchange.dist, "barrier", lambda: order.append("barrier"))
    monkeypatch.setattr(exchange.time, "perf_counter", lambda: next(clock))
    assert exchange.measure(lambda: order.append("call"), repeats=3) == 2.0
    assert order == ["barrier", "call"] * 4
