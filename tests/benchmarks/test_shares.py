"""Shares of the best product: what a case's ratios are, that its entries compute the same, and what is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.harness import shares
from intermoe.benchmarks.harness.case import Contest, Outputs, WrongResult, checked, tolerance
from intermoe.benchmarks.harness.goals import least, most
from intermoe.benchmarks.harness.shares import PRODUCT, TORCH, RatioGoals
from intermoe.benchmarks.harness.timing import Summary, machine
from intermoe.benchmarks.harness.work import Shape, Work
from intermoe.benchmarks.harness.work import moe as work_of

TINY = Shape(24, dim=16, experts=2, width=8, rows=2)


@pytest.fixture(autouse=True)
def _native() -> None:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")


def nothing(_: int) -> Outputs:
    return ()


def test_ratios_of_rounds() -> None:
    """Ours does 8 operations at a quarter of the product's rate, which does 2 a second; theirs takes thrice as long."""
    contest = Contest({"ours": nothing, "theirs": nothing}, None, 0.0, [Work(5.0, 1.0), Work(3.0, 1.0)])
    goals = RatioGoals(
        "case", contest, share=least(0.3), times={"theirs": least(3.0)}, bytes={"memory": (0.5, most(0.6))}
    )
    slow = [1.0, 1.0, 10.0]  # a round of a busy machine
    times = {"ours": [16 * s for s in slow], "theirs": [48 * s for s in slow], PRODUCT: [5 * s for s in slow]}
    made = shares.figures(goals, times, product_flop=10.0)
    assert [(f.found.median, f.found.low, f.found.high) for f in made] == [(v, v, v) for v in (0.25, 3.0, 0.5)]
    assert [line.split()[-2] for line in shares.report(made, []).splitlines() if "| case |" in line[:8]] == [
        "reached", "no", "yes", "yes"
    ]  # fmt: skip


def test_the_ceiling_counts_by_the_least_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = itertools.chain([5.0, 1.0, 3.0])
    monkeypatch.setattr(shares, "thread_seconds", lambda call: next(taken))
    assert shares.least_of_three(lambda: None) == 1.0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_beside_the_authors_form(dtype: torch.dtype, training: bool) -> None:
    case = shares.block(TINY, dtype, training, least(0.5), least(2.0))
    entries, differences = checked(case.contest)
    assert list(entries) == list(differences) == ["ours", "authors' form"]
    assert case.flop >= (3 if training else 1) * 6 * 24 * 16 * 8
    assert all(len(entry(0)) == (8 if training else 1) for entry in entries.values())


def test_the_denoiser_beside_products_of_torch() -> None:
    case = shares.denoiser(torch.float32, least(0.5), least(2.0), models.TINY)
    assert list(checked(case.contest)[0]) == ["ours", TORCH]


def test_frozen_experts_take_no_memory_of_a_weights_size() -> None:
    case = shares.frozen(Shape(64, dim=64, experts=8, width=96, rows=2))
    ((largest, bound),) = case.bytes.values()
    assert 0 < largest < bound.value
    assert [len(entry(0)) for entry in checked(case.contest)[0].values()] == [5, 7]


def test_recompute_takes_less_memory() -> None:
    case = shares.recomputed(Shape(512, dim=16, experts=8, width=64, rows=2))
    assert list(checked(case.contest)[0]) == ["ours", "activations kept"]
    assert len(case.bytes) == 2
    assert all(ratio < 1 for ratio, _ in case.bytes.values())


def test_what_differs_is_not_timed() -> None:
    contest = Contest({"ours": lambda _: (torch.ones(2) + 1e-3,)}, lambda: (torch.ones(2),), 1e-5)
    with pytest.raises(WrongResult, match="case, ours: relative difference"):
        shares.measure(RatioGoals("case", contest), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("authors", [least(2.0), None])
def test_what_a_block_is_to_reach(dtype: torch.dtype, authors: Any) -> None:
    """Its own work counts, and the bounds are those that it was given; without theirs the authors' form is left out."""
    for training, direction in ((False, "forward"), (True, "forward + backward")):
        case = shares.block(TINY, dtype, training, least(0.5), authors)
        assert case.name == f"{direction} S=24 {str(dtype)[6:]}"
        assert (case.dtype, case.share, dict(case.bytes)) == (dtype, least(0.5), {})
        assert case.times == ({} if authors is None else {"authors' form": authors})
        assert list(case.contest.entries) == ["ours", *case.times]
        assert case.contest.work == work_of(TINY, dtype.itemsize, training)
        assert case.contest.tolerance == tolerance(dtype)


def test_weights_do_not_change_so_that_they_may_be_kept_packed() -> None:
    x = shares._inputs(TINY, torch.bfloat16)
    assert [isinstance(t, torch.nn.Parameter) for t in x] == [False] * 6 + [True] * 2
    assert all(torch.equal(a, b) for a, b in zip(x, shares.draw(TINY, torch.bfloat16, shares.CPU), strict=True))


@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 10), (torch.bfloat16, 2)])
def test_the_denoiser_is_asked_as_a_prompt_with_guidance_does(
    dtype: torch.dtype, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice two persons over ten seconds; the second entry has torch choose every product, and only that one."""
    asked: list[Any] = []

    class Network(torch.nn.Linear):
        def forward(self, *given: Any) -> Any:
            asked.append((*given, shares.native.choice("rows", torch.float32, 300), torch.is_grad_enabled()))
            return super().forward(torch.ones(2, 3, dtype=dtype))

    def build(*given: Any) -> Any:
        assert given == (models.TINY, dtype, shares.CPU)
        return Network(3, 5).to(dtype)

    monkeypatch.setattr(shares.native, "choice", lambda *_: "chosen")
    monkeypatch.setattr(models, "build_denoiser", build)
    monkeypatch.setattr(models, "denoiser_inputs", lambda *given: given)
    case = shares.denoiser(dtype, least(0.5), least(2.0), models.TINY)
    asked.clear()
    for name in ("ours", TORCH):
        case.contest.entries[name](0)
    case.contest.expected()
    given = (models.TINY, 2, 2, 75, dtype, shares.CPU)
    assert asked == [(*given, chosen, False) for chosen in ("chosen", "torch", "chosen")]
    assert case.name == f"denoiser with guidance {str(dtype)[6:]}"
    assert (case.dtype, case.share, case.times) == (dtype, least(0.5), {TORCH: least(2.0)})
    assert case.contest.tolerance == times * tolerance(dtype)
    assert case.contest.work == [Work(2 * 2 * 3 * 5, 20 * dtype.itemsize)]


def test_what_a_backward_without_weights_is_to_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 0.6 of the time, and no allocation of the smaller weight's size: 2 x 8 x 16 numbers of 4 bytes."""
    monkeypatch.setattr(shares, "largest_allocation", lambda call: 100.0 * len(call(0)))
    case = shares.frozen(TINY)
    assert case.name == "backward of frozen experts S=24 float32"
    assert (case.share, case.flop, case.contest.tolerance) == (None, 0.0, tolerance(torch.float32))
    assert case.times == {"trained": least(1 / 0.6)}
    assert case.bytes == {"largest allocation, of the smallest weight": (500.0 / (2 * 8 * 16 * 4), most(0.99))}
    frozen, trained = (case.contest.entries[name](0) for name in ("frozen", "trained"))
    assert all(torch.equal(a, b) for a, b in zip(frozen, trained, strict=False))


def test_what_is_told_of_computing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory beside both other ways; time beside one of them, as the authors' form is timed elsewhere."""
    asked: list[Any] = []
    peaks = iter([20, 40, 80])
    monkeypatch.setattr(shares, "ours", lambda **options: asked.append(options) or shares.Form(lambda x: x.hidden * 1))
    monkeypatch.setattr(shares, "published", lambda x: asked.append("published") or x.hidden * 1)
    monkeypatch.setattr(shares, "training", lambda form, sets, grads: lambda number: form.call(sets[number]))
    monkeypatch.setattr(shares, "peak_memory", lambda call, device: (call(0), next(peaks))[1])
    case = shares.recomputed(TINY)
    assert asked == [{"recompute": True}, {}, "published", "published"]
    assert case.name == "recompute, forward + backward S=24 float32"
    assert (case.share, case.times) == (None, {"activations kept": None})
    told = {"peak memory, of activations kept": (0.5, None), "peak memory, of authors' form": (0.25, None)}
    assert case.bytes == told
    assert list(case.contest.entries) == ["ours", "activations kept"]
    assert case.contest.tolerance == tolerance(torch.float32)


@pytest.mark.parametrize("units", [True, False])
def test_every_goal(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared, by its name; without units for bfloat16 the authors' form is left out there."""

    def note(name: str) -> Callable[..., Any]:
        return lambda *given: (name, *given)

    for name in ("block", "denoiser", "frozen", "recomputed"):
        monkeypatch.setattr(shares, name, note(name))
    monkeypatch.setattr(shares.native, "has_units", lambda dtype: units)
    single, half, pool = torch.float32, torch.bfloat16, Shape(4800)
    theirs = least(3.0) if units else None
    assert {name: prepare() for name, prepare in shares.all_goals()} == {
        "forward S=300 float32": ("block", Shape(300), single, False, least(0.65), least(3.0)),
        "forward S=300 bfloat16": ("block", Shape(300), half, False, least(0.65), theirs),
        "forward S=4800 float32": ("block", pool, single, False, least(0.85), least(3.0)),
        "forward + backward S=4800 float32": ("block", pool, single, True, least(0.75), least(3.0)),
        "forward S=4800 bfloat16": ("block", pool, half, False, least(0.85), theirs),
        "forward + backward S=4800 bfloat16": ("block", pool, half, True, least(0.8), theirs),
        "denoiser with guidance float32": ("denoiser", single, least(0.6), least(2.2)),
        "denoiser with guidance bfloat16": ("denoiser", half, least(0.55), least(2.0)),
        "frozen experts": ("frozen", pool),
        "recompute": ("recomputed", pool),
    }


def test_entries_and_the_product_take_turns_after_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first weights are packed; the product is that of the case's type, as often as there are rounds."""
    ran: list[str] = []

    def turns(clocks: dict[str, Any], budget: Any) -> dict[str, list[float]]:
        assert (budget.min_rounds, budget.max_rounds) == (5, 5)
        ran.append("turns")
        return {name: [clock()] for name, clock in clocks.items()}

    def entry(name: str) -> Callable[[int], Outputs]:
        return lambda number: (torch.tensor(float(number)), ran.append(name))[:1]

    def best(dtype: torch.dtype) -> Any:
        assert dtype == torch.bfloat16
        return "own", lambda: ran.append("product"), 6e9

    monkeypatch.setattr(shares, "take_turns", turns)
    monkeypatch.setattr(shares, "best_product", best)
    contest = Contest({"a": entry("a"), "b": entry("b")}, lambda: (torch.tensor(0.0),), 1e-5)
    for share, timed in ((least(0.5), ["a", "b", "product", "product", "product"]), (None, ["a", "b"])):
        ran.clear()
        shares.measure(RatioGoals("case", contest, torch.bfloat16, share), 5)
        assert ran == ["a", "b", "a", "b", "turns", *timed]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asked for, with three goals to choose from."""
    asked: list[Any] = []

    def measure(name: str, rounds: int) -> Any:
        asked.append((name, rounds, torch.initial_seed()))
        return [shares.Figure(name, "share", Summary(0.5, 0.25, 0.75), least(0.4))], f"{name}: fast"

    names = ("forward float32", "backward float32", "forward bfloat16")
    monkeypatch.setattr(shares, "all_goals", lambda: ((name, lambda name=name: name) for name in names))
    monkeypatch.setattr(shares, "measure", measure)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: asked.append(f"{count} threads"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.manual_seed(7)
    return asked


def test_the_command_measures_what_matches_all_words(
    command: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A note as soon as there is one, then the whole report, which is also written."""
    out = tmp_path / "shares.md"
    shares.main(["--threads", "3", "--rounds", "5", "--match", "forward", "float32", "--out", str(out)])
    assert command == ["3 threads", ("forward float32", 5, 0)]
    text = out.read_text()
    assert capsys.readouterr().out == f"forward float32: fast\n{text}\n"
    first, blank, where, how, *lines = text.splitlines()
    assert (first, blank) == (f"# Shares on {shares.native.machine()}, 3 thread(s)", "")
    assert where.startswith(f"{machine(shares.CPU).device}; torch {torch.__version__}; 20")
    assert how == "`python -m intermoe.benchmarks.harness.shares`."
    assert lines == [
        "Median and middle 80 % of the rounds' ratios, in turns in one process.",
        "",
        "| case | what | goal | measured | range | reached |",
        "|---|---|---|---|---|---|",
        "| forward float32 | share | ≥ 0.4 | 0.5 | 0.25 to 0.75 | yes |",
        "",
        "- forward float32: fast",
    ]


def test_the_command_alone_measures_everything_in_one_thread(
    command: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shares.main([])
    names = ("forward float32", "backward float32", "forward bfloat16")
    assert command == ["1 threads", *((name, 9, 0) for name in names)]
    assert [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("- ")] == [
        f"{name}: fast" for name in names
    ]


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"tiny forward": lambda: shares.block(TINY, torch.float32, False, least(0.0), None)}
    monkeypatch.setattr(
        shares, "all_goals", lambda: iter([*tiny.items(), ("left out", lambda: pytest.fail("matched"))])
    )
    monkeypatch.setattr(shares, "PRODUCT_WEIGHT", (32, 16))
    threads = torch.get_num_threads()
    try:
        shares.main(["--match", "tiny", "--rounds", "2", "--out", str(tmp_path / "shares.md")])
    finally:
        torch.set_num_threads(threads)
    text = (tmp_path / "shares.md").read_text()
    assert f"| forward S=24 float32 | share of the {PRODUCT} | ≥ 0 |" in text
    assert text.count("\n| forward") == 1
