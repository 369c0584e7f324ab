"""The table of products: what is chosen from measurements, and how it is written."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks import models
from intermoe.benchmarks.harness import products
from intermoe.benchmarks.harness.timing import machine
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


@pytest.mark.parametrize("dtype", list(products.CODES))
@pytest.mark.parametrize("form", products.products.FORMS)
def test_what_an_entry_times_is_the_product(
    form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, relative_error: Callable[..., float]
) -> None:
    """5 rows with a weight of 12 x 8, or a sum over 5 of columns of both."""
    run, factors = products.products.run, {}

    def noted(name: str, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
        factors.update(left=left, right=right, out=out)
        run(name, left, right, out)

    pack, packed = products.products._pack, []
    monkeypatch.setattr(products.products, "run", noted)
    monkeypatch.setattr(products.products, "_pack", lambda *given, **how: packed.append(given) or pack(*given, **how))
    w = torch.randn(12, 8).to(dtype)
    found = dict(products._entries_of(form, dtype, 5, w))
    assert len(packed) == (form == "packed"), "what is packed is so before it is timed, and nothing else is"
    for name in ("own", "float32", "torch"):  # one of them, at least, notes what is multiplied
        found.get(name, lambda: None)()
    left, right, out = factors["left"], factors["right"], factors["out"]
    shapes = {"columns": ((5, 12), (12, 8)), "sums": ((12, 5), (5, 8))}.get(form, ((5, 8), (8, 12)))
    assert (tuple(left.shape), tuple(right.shape)) == shapes
    assert form == "sums" or torch.equal(right if form == "columns" else right.T, w)
    expected = left.float() @ right.float()
    for name, entry in found.items():
        out.fill_(torch.nan)
        result = entry() if name == "mkl, packed" else (entry(), out)[1]
        assert relative_error(result, expected) < 8 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("units", [True, False])
def test_which_ways_there_are_to_multiply(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own is left out where it takes a hundred times as long, oneDNN's where it serves no such type."""
    monkeypatch.setattr(products.products, "has_units", lambda dtype: units or dtype == torch.float32)
    monkeypatch.setattr(products.products, "_in_onednn_order", lambda w: [w])
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    ordered = products.products.ORDERED
    expected = {
        torch.float32: ["torch", "own", "onednn"],
        torch.bfloat16: ["torch", "float32", "own", "onednn"] if units else ["float32", "own"],
        torch.float16: ["torch", "float32", "own"] if units else ["float32", "own"],
    }
    for dtype, names in expected.items():
        for form in products.products.FORMS:
            found = [name for name, _ in products.entries(form, dtype, 2, (4, 8))]
            own = names if form in ("packed", "rows") else [name for name in names if name != "onednn"]
            assert found == own + [ordered] * (form == "packed" and "onednn" in names), (dtype, form)


def test_a_product_is_measured_as_long_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[Any] = []

    def turns(clocks: dict[str, Any], budget: Any) -> dict[str, list[float]]:
        budgets.append((budget.seconds, budget.max_rounds > 1000))
        return {name: [0.5] for name in clocks}

    monkeypatch.setattr(products, "take_turns", turns)
    assert set(products.rates("rows", torch.float32, 5, (12, 8), 0.7).values()) == {2 * 5 * 12 * 8 / 0.5}
    assert budgets == [(0.7, True)]


def test_sizes_are_the_published_models() -> None:
    config = models.PUBLISHED
    assert ((2 * config.expert_dim, config.dim), (config.dim, config.expert_dim)) == products.WEIGHTS
    assert list(products.ROWS) == sorted(products.ROWS)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``command(*options)``: what happened, in order; an own product of 8 rows gains, with torch 2 GFLOP/s a row."""
    happened: list[Any] = []

    def rates(form: str, dtype: torch.dtype, rows: int, weight: tuple[int, int], seconds: float) -> dict[str, float]:
        happened.append((form, dtype, rows, weight, seconds))
        gain = 2 if (rows, form, dtype) == (8, "columns", torch.float16) else 1
        return {"torch": 2e9 * rows, "own": 2e9 * rows * gain + 1e6}

    native = SimpleNamespace(
        intermoe_use_instruction_set=lambda level: happened.append(f"level {level}") or int(level == 2),
        intermoe_last_error=lambda: b"no such units",
    )
    monkeypatch.setattr(products, "rates", rates)
    monkeypatch.setattr(products, "ROWS", (2, 8))
    monkeypatch.setattr(products.library, "load", lambda: native)
    monkeypatch.setattr(products.products, "machine", lambda: "some avx9")
    monkeypatch.setattr(products, "write_table", lambda *table: happened.append(table))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: happened.append(f"{count} threads"))

    def run(*options: str) -> list[Any]:
        monkeypatch.setattr(sys, "argv", ["products", *options])
        products.main()
        return happened

    return run


FORMS = ("packed", "rows", "columns", "sums")


def test_the_command_measures_what_it_was_asked_for(
    command: Callable[..., list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Types in their order, every form, rows and weight; the report has a row for each, the table one for each form."""
    out = tmp_path / "products.md"
    options = ("--threads", "3", "--seconds", "0.7", "--instruction-set", "avx2", "--write", "--out", str(out))
    happened = command(*options, "--dtypes", "float16", "float32")
    dtypes, weights = (torch.float16, torch.float32), ((2048, 768), (768, 1024))
    asked = [(form, dtype, rows, w, 0.7) for dtype in dtypes for form in FORMS for rows in (2, 8) for w in weights]
    fastest_of = {(name, form): ((None, "torch"),) for name in ("float16", "float32") for form in FORMS}
    fastest_of["float16", "columns"] = ((2, "torch"), (None, "own"))
    assert happened == ["3 threads", "level 1", *asked, ("some avx9", fastest_of)]
    title, blank, device, how, least, *lines = out.read_text().splitlines()
    assert (title, blank) == ("# Products on some avx9, 3 thread(s), GFLOP/s", "")
    assert device.startswith(f"{machine(torch.device('cpu')).device}; torch {torch.__version__}; 20")
    assert how == "`python -m intermoe.benchmarks.harness.products`."
    assert least.startswith("Least time of each entry.")
    expected = []
    for name in ("float16", "float32"):
        for form in FORMS:
            gain = 32 if (name, form) == ("float16", "columns") else 16
            rows = [
                f"| {n} x {k} | {rows} | {2 * rows} | {gain if rows == 8 else 4} |"
                for rows in (2, 8)
                for n, k in weights
            ]
            expected += ["", f"| {form}, {name} | rows | torch | own |", "|---|---|---|---|", *rows]
    assert lines == expected
    assert capsys.readouterr().out.splitlines() == [line for line in expected if " x " in line]


def test_the_command_alone_writes_nothing(command: Callable[..., list[Any]]) -> None:
    """One thread, every type, a third of a second each, with the instructions that the library chose."""
    threads, *asked = command()
    assert threads == "1 threads"
    assert {(dtype, seconds) for _, dtype, _, _, seconds in asked} == {(dtype, 0.3) for dtype in products.CODES}
    assert len(asked) == 3 * 4 * 2 * 2


def test_instructions_that_are_not_there(command: Callable[..., list[Any]]) -> None:
    with pytest.raises(SystemExit, match="no such units"):
        command("--instruction-set", "avx512")
