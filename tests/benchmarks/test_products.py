"""The table of products: what is chosen from measurements, and how it is written."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch

from intermoe.benchmarks.harness import products
from intermoe.kernels.native import fastest


def test_the_fastest_that_gains_everywhere_is_chosen() -> None:
    measured = {
        2: [
            {"torch": 1.0, "own": 2.0, "mkl, packed": 9.0},
            {"torch": 1.0, "own": 0.9, "mkl, packed": 9.0},
        ],  # loses one
        8: [{"torch": 1.0, "own": 1.02, "onednn": 1.01}],  # gains less than a measurement varies
        38: [{"torch": 1.0, "own": 1.5, "onednn": 1.4}],
        300: [{"torch": 1.0, "own": 1.5, "onednn": 1.4}],
        600: [{"torch": 1.0, "own": 1.1, "onednn": 1.4}],
        700: [{"torch": 1.0, "own": 1.4, "onednn": 1.39}],  # what serves fewer rows serves these as well
        900: [{"torch": 1.0, "own": 0.9, "onednn": 0.99}],
    }
    assert products.limits(measured) == ((8, "torch"), (300, "own"), (700, "onednn"), (None, "torch"))


def test_entries_time_what_they_are_named_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs its own product, also once all have been made."""
    ran: list[str] = []
    monkeypatch.setattr(products.products, "run", lambda name, *_: ran.append(name))
    found = dict(products.entries("columns", torch.float32, 5, (12, 8)))
    for name in found:
        found[name]()
    assert ran == list(found) == ["torch", "own"]


def test_writing_replaces_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fastest.py"
    shutil.copy(fastest.__file__, path)
    monkeypatch.setattr(fastest, "__file__", str(path))
    rows = {("float32", "rows"): ((64, "own"), (None, "torch")), ("float16", "sums"): ((None, "own"),)}
    kept = {("float32", "sums"): ((None, "torch"),), ("float32", "rows"): ((None, "torch"),)}
    for before in ({}, {"some avx9": kept}):  # a run of one dtype leaves what others have measured
        monkeypatch.setattr(fastest, "FASTEST", {**fastest.FASTEST, **before})
        products.write_table("some avx9", rows)
        found = runpy.run_path(str(path))["FASTEST"]
        assert found == {**fastest.FASTEST, "some avx9": {**before.get("some avx9", {}), **rows}}


@pytest.mark.parametrize("form", ["rows", "columns", "sums"])
def test_an_entry_times_what_its_name_says_with_all_weights_in_turn(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of which every entry was the last would find them equally fast."""
    ran: list[tuple[str, int]] = []
    monkeypatch.setattr(products.products, "run", lambda name, left, right, out: ran.append((name, right.data_ptr())))
    found = dict(products.entries(form, torch.float32, 3, (12, 8)))
    assert {"torch", "own"} <= found.keys()
    turns = 1 if form == "sums" else products.WEIGHTS_IN_TURN
    for name, entry in found.items():
        ran.clear()
        for _ in range(2 * turns):
            entry()
        assert {called for called, _ in ran} == {name}
        weights = [weight for _, weight in ran]
        assert len(set(weights)) == turns
        assert weights[:turns] == weights[turns:]


def test_every_entry_computes_the_product() -> None:
    for form in products.products.FORMS:
        for dtype in products.CODES:
            rates = products.rates(form, dtype, 5, (12, 8), seconds=0.0)
            assert "own" in rates, (form, dtype)
            assert min(rates.values()) > 0
