"""A report as a run writes it, with made-up numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from intermoe.benchmarks.harness.report import SCHEMA, Report, Row, Skipped
from intermoe.benchmarks.harness.timing import Ceilings, Machine


def row(entry: str = "native", median: float = 2.0, spread: float = 0.1, **values: object) -> Row:
    fields: dict[str, object] = {
        "step": "moe",
        "call": "forward",
        "entry": entry,
        "dtype": "float32",
        "shape": {"S": 300.0},
        "median": median,
        "low": median * (1 - spread),
        "high": median * (1 + spread),
        "rounds": 5,
        "ratio": 1.0,
        "ratio_low": 1.0,
        "ratio_high": 1.0,
        "flop_per_second": 1e9,
        "intensity": 20.0,
        "bound_share": 0.5,
    }
    return Row(**{**fields, **values})


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return row


@pytest.fixture
def make_report() -> Callable[..., Report]:
    def make(*rows: Row, date: str = "2026-01-02T03:04:05Z") -> Report:
        machine = Machine(
            device="Some CPU (R) @ 3 GHz",
            kind="cpu",
            system="Linux",
            threads=2,
            instructions="AVX2",
            amx=False,
            float32_products="highest",
            clocks="3000 MHz",
            versions={"torch": "2.6"},
        )
        ceilings = Ceilings(copy=20e9, product={"float32": 100e9, "bfloat16": 2e9})
        skipped = (Skipped("moe forward", "megablocks", "not here"),)
        return Report(SCHEMA, date, "default", machine, ceilings, rows or (row(),), skipped)

    return make
