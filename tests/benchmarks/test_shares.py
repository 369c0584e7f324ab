"""Shares of the best product: what a case's ratios are, that its entries compute the same, and what is written."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.harness import shares
from intermoe.benchmarks.harness.case import Contest, Outputs, WrongResult, checked
from intermoe.benchmarks.harness.goals import least, most
from intermoe.benchmarks.harness.shares import PRODUCT, TORCH, RatioGoals
from intermoe.benchmarks.harness.work import Shape, Work

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
