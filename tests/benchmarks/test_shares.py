"""Shares of the best product: what a case's ratios are, that its entries compute the same, and what is written."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from intermoe import backends
from intermoe.benchmarks import models
from intermoe.benchmarks.harness import shares
from intermoe.benchmarks.harness.case import WrongResult
from intermoe.benchmarks.harness.shares import PRODUCT, TORCH, Case, Goal
from intermoe.benchmarks.harness.work import Shape

TINY = Shape(24, dim=16, experts=2, width=8, rows=2)


@pytest.fixture(autouse=True)
def _native() -> None:
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")


def nothing() -> tuple[torch.Tensor, ...]:
    return ()


def test_ratios_of_rounds() -> None:
    """Ours does 8 operations at a quarter of the product's rate, which does 2 a second; theirs takes thrice as long."""
    case = Case(
        "case", {"ours": nothing, "theirs": nothing}, flop=8.0, share=Goal(0.3), times={"theirs": Goal(3.0)},
        bytes={"memory": (0.5, Goal(0.6, most=True))},
    )  # fmt: skip
    slow = [1.0, 1.0, 10.0]  # a round of a busy machine
    times = {"ours": [16 * s for s in slow], "theirs": [48 * s for s in slow], PRODUCT: [5 * s for s in slow]}
    share, theirs, memory = shares.figures(case, times, product_flop=10.0)
    assert (share.value, share.low, share.high, share.reached) == (0.25, 0.25, 0.25, False)
    assert (theirs.value, theirs.reached) == (3.0, True)
    assert (memory.value, memory.reached) == (0.5, True)


def test_the_ceiling_counts_by_the_least_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = [0.0], itertools.cycle([5.0, 1.0, 3.0])

    def product() -> tuple[torch.Tensor, ...]:
        now[0] += next(taken)
        return ()

    monkeypatch.setattr(shares, "thread_clock", lambda: lambda: now[0])
    assert shares.take_turns({PRODUCT: product}, rounds=2) == {PRODUCT: [1.0, 1.0]}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_beside_the_authors_form(dtype: torch.dtype, training: bool) -> None:
    case = shares.block(TINY, dtype, training, Goal(0.5), Goal(2.0))
    assert list(case.entries) == ["ours", "authors' form"]
    assert case.flop >= (3 if training else 1) * 6 * 24 * 16 * 8
    assert all(len(entry()) == (8 if training else 1) for entry in case.entries.values())


def test_the_denoiser_beside_products_of_torch() -> None:
    case = shares.denoiser(torch.float32, Goal(0.5), Goal(2.0), models.TINY)
    ours, through_torch = (entry()[0] for entry in case.entries.values())
    torch.testing.assert_close(ours, through_torch, rtol=1e-4, atol=1e-4)
    assert list(case.entries) == ["ours", TORCH]


def test_frozen_experts_take_no_memory_of_a_weights_size() -> None:
    case = shares.frozen(Shape(64, dim=64, experts=8, width=96, rows=2))
    ((largest, goal),) = case.bytes.values()
    assert 0 < largest < goal.bound
    assert [len(entry()) for entry in case.entries.values()] == [5, 7]


def test_recompute_takes_less_memory() -> None:
    case = shares.recomputed(Shape(512, dim=16, experts=8, width=64, rows=2))
    assert all(ratio < 1 for ratio, _ in case.bytes.values())


def test_what_differs_is_not_timed() -> None:
    with pytest.raises(WrongResult, match="relative difference"):
        shares._agree(lambda: (torch.ones(2),), lambda: (torch.ones(2) + 1e-3,), torch.float32)


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"tiny forward": lambda: shares.block(TINY, torch.float32, False, Goal(0.0), None)}
    monkeypatch.setattr(shares, "cases", lambda: iter([*tiny.items(), ("left out", lambda: pytest.fail("matched"))]))
    monkeypatch.setattr(shares, "PRODUCT_WEIGHT", (32, 16))
    threads = torch.get_num_threads()
    try:
        shares.main(["--match", "tiny", "--rounds", "2", "--out", str(tmp_path / "shares.md")])
    finally:
        torch.set_num_threads(threads)
    text = (tmp_path / "shares.md").read_text()
    assert f"| forward S=24 float32 | share of the {PRODUCT} | ≥ 0 |" in text
    assert text.count("\n| forward") == 1
