"""What is checked before it is timed, and rates from times, by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks import bench_export, bench_generation, bench_loader
from intermoe.benchmarks.harness import products, shares
from intermoe.benchmarks.harness.case import Contest, Scope, WrongResult
from intermoe.benchmarks.harness.goals import least
from intermoe.benchmarks.harness.shares import PRODUCT, RatioGoals
from intermoe.benchmarks.harness.work import Work
from intermoe.data import DATA_SETS, MotionDataset
from intermoe.data.cache import write_cache
from intermoe.motion.interhuman import FPS

CPU = torch.device("cpu")


@pytest.mark.parametrize(("off", "wrong"), [(0.9e-3, False), (1.5e-3, True)])
def test_a_file_that_is_read_back_wrong_is_not_timed(off: float, wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A millimetre is what a format may lose."""
    right = bench_export.take_of(6).joints
    monkeypatch.setattr(bench_export.export, "load", lambda _: SimpleNamespace(joints=right + off))
    if not wrong:
        assert list(bench_export.writing("npz", 6).entries) == ["write"]
        return
    with pytest.raises(WrongResult, match=r"npz: expected joints within a millimetre, got 1\.50 mm"):
        bench_export.writing("npz", 6)


@pytest.mark.parametrize("broken", [False, True])
def test_an_item_that_is_not_its_source_is_not_timed(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solo = DATA_SETS["solo"]
    write_cache(solo, bench_loader.RandomClips(solo, 5), tmp_path, tmp_path / "cache", statistics=lambda _: None)
    dataset = MotionDataset(solo, tmp_path / "cache", "train")
    draw = MotionDataset.draw

    def changed(self: MotionDataset, *given: Any) -> Any:
        item = draw(self, *given)
        item["motion"][0, 3, 1] += 1e-3 * broken
        return item

    monkeypatch.setattr(MotionDataset, "draw", changed)
    if not broken:
        bench_loader.check(dataset)
        return
    with pytest.raises(WrongResult, match="solo: an item is not its source"):
        bench_loader.check(dataset)


def test_what_is_generated_lasts_as_long_as_is_counted() -> None:
    contest = bench_generation.published(Scope(CPU, "quick"), 16, 2)
    for entry in contest.entries.values():
        (motion,) = entry(0)
        assert motion.shape[:-1] == (2, 16)
        assert motion.shape[1] / FPS == contest.seconds_of_motion


def turns(times: dict[str, list[float]]) -> Callable[..., dict[str, list[float]]]:
    """``take_turns`` with known times, of the entries that it is asked for."""

    def take(clocks: dict[str, Any], budget: Any) -> dict[str, list[float]]:
        for clock in clocks.values():
            clock()
        return {name: times[name] for name in clocks}

    return take


def test_a_products_rate_is_two_operations_a_multiplication_by_its_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "take_turns", turns({"a": [3.0, 2.0, 5.0], "b": [4.0, 8.0]}))
    ran: list[str] = []
    found = products.timed({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 5, (12, 8), seconds=0.0)
    assert found == {"a": 2 * 5 * 12 * 8 / 2.0, "b": 2 * 5 * 12 * 8 / 4.0}
    assert ran == ["a", "b"] * 2  # once before anything counts


@pytest.mark.parametrize(
    ("units", "best"), [(True, "own, bfloat16"), (False, "torch, float32")]
)  # half types are timed where there are units for them
def test_the_best_product_is_the_fastest_of_all(units: bool, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"torch": 5.0, "own": 3.0}, {"torch": 1.0, "own": 9.0}

    def entries(form: str, dtype: torch.dtype, rows: int, weight: tuple[int, int]) -> Any:
        assert (form, rows, weight) == ("packed", shares.PRODUCT_ROWS, shares.PRODUCT_WEIGHT)
        return ((name, lambda name=name: f"{name}, {str(dtype)[6:]}") for name in ("torch", "own"))

    def timed(found: dict[str, Any], *_: Any, seconds: float) -> dict[str, float]:
        return rates["bfloat16" in found["own"]()]

    monkeypatch.setattr(shares.native, "has_units", lambda dtype: units)
    monkeypatch.setattr(shares.products, "entries", entries)
    monkeypatch.setattr(shares.products, "timed", timed)
    name, call, flop = shares.best_product(torch.bfloat16)
    assert (name, call()) == (best, best)
    assert flop == 2 * 600 * 2048 * 768


@pytest.mark.parametrize("share", [least(0.5), None])
def test_a_note_says_how_fast_both_sides_were(share: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours does 3 GFLOP in 10 ms, the product 6 in 15 ms."""
    monkeypatch.setattr(
        shares, "take_turns", turns({"ours": [0.010, 0.010, 0.5], "theirs": [0.03] * 3, PRODUCT: [0.015] * 3})
    )
    monkeypatch.setattr(shares, "best_product", lambda dtype: ("own", lambda: None, 6e9))
    monkeypatch.setattr(shares.os, "getloadavg", lambda: (2.4, 0.0, 0.0))
    ran = itertools.count()
    contest = Contest(
        {name: lambda _: (torch.ones(next(ran) * 0 + 1),) for name in ("ours", "theirs")},
        lambda: (torch.ones(1),),
        1e-5,
        [Work(1e9, 1.0), Work(2e9, 1.0)],
    )
    goals = RatioGoals("a case", contest, share=share, times={"theirs": None})
    made, note = shares.measure(goals, 3)
    rate = ", 300 of 400 GFLOP/s (own)" if share else ""
    assert note == f"a case: ours 10.0 ms, theirs 30.0 ms{rate}; load 2"
    told = {figure.what: figure.found.median for figure in made}
    assert told["time of theirs, in ours"] == pytest.approx(3.0)
    assert told.get(f"share of the {PRODUCT}") == (pytest.approx(0.75) if share else None)
    assert replace(goals, share=None).flop == 3e9
