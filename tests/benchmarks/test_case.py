"""Nothing wrong is timed, and a baseline that cannot run does not end a run."""

from __future__ import annotations

import pytest
import torch

from intermoe.benchmarks.harness import case as harness
from intermoe.benchmarks.harness.case import (
    Case,
    Contest,
    Outputs,
    Scope,
    checked,
    reason_to_skip,
    relative,
    run,
    tolerance,
)
from intermoe.benchmarks.harness.timing import Ceilings
from intermoe.benchmarks.harness.work import Work

RIGHT = torch.arange(6.0)


def right(_: int) -> Outputs:
    return (RIGHT,)


def failing(_: int) -> Outputs:
    raise RuntimeError("needs a newer card")


def contest(**entries: object) -> Contest:
    return Contest(entries, lambda: (RIGHT,), 1e-5, [Work(12.0, 48.0)], tokens=6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (RIGHT * 1.001, "relative difference 1.0e-03 exceeds 1.0e-05, not timed"),
        (RIGHT * float("nan"), "relative difference nan exceeds 1.0e-05, not timed"),
        (RIGHT[:5], "shapes [(5,)] are not the reference's, not timed"),
    ],
)
def test_wrong_results_are_not_timed_and_the_others_are(found: torch.Tensor, message: str) -> None:
    given = contest(native=right, loop=lambda _: (found,), grouped_mm=right)
    calls, differences = checked(given)
    assert list(calls) == list(differences) == ["native", "grouped_mm"]
    assert given.failed == {"loop": message}
    assert not given.skipped


def test_a_difference_is_a_share_of_the_references_norm() -> None:
    """Twice what is right is off by all of it, and half of it by a half; of several outputs the worst counts."""
    given = contest(twice=lambda _: (2 * RIGHT,), half=lambda _: (RIGHT / 2,), both=lambda _: (RIGHT / 2, 2 * RIGHT))
    given.tolerance, given.expected = 2.0, lambda: (RIGHT,)
    entries = dict(given.entries)
    given.entries = {name: entries[name] for name in ("twice", "half")}
    assert checked(given)[1] == {"twice": 1.0, "half": 0.5}
    given.entries, given.expected = {"both": entries["both"]}, lambda: (RIGHT, RIGHT)
    assert checked(given)[1] == {"both": 1.0}
    assert relative(torch.ones(3), torch.zeros(3)) == pytest.approx(3**0.5), "of nothing it is the norm itself"


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        (torch.float32, "highest", 1e-5),
        (torch.float32, "high", 4 * 2**-10),  # TF32 has 10 bits
        (torch.bfloat16, "high", 8 * 2**-7),
        (torch.bfloat16, "highest", 8 * 2**-7),
        (torch.float16, "highest", 8 * 2**-10),
    ],
)
def test_how_far_two_computations_may_be_apart(
    dtype: torch.dtype, precision: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    assert tolerance(dtype) == expected


def test_another_function_need_only_be_finite() -> None:
    given = contest(native=right, dense=lambda _: (RIGHT + 1,))
    given.others = {"dense": "no routing"}
    calls, differences = checked(given)
    assert (list(calls), list(differences)) == (["native", "dense"], ["native"])
    given.entries["dense"] = lambda _: (RIGHT / 0.0,)
    checked(given)
    assert given.failed == {"dense": "output 0 is not finite, not timed"}


def test_a_baseline_that_cannot_run_is_skipped_with_its_reason() -> None:
    given = contest(native=right, grouped_mm=failing)
    assert list(checked(given)[0]) == ["native"]
    assert given.skipped == {"grouped_mm": "needs a newer card"}
    assert not given.failed


def out_of_memory(_: int) -> Outputs:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")


def test_ours_must_run_where_there_is_memory() -> None:
    given = contest(triton=failing, native=out_of_memory, loop=right)
    assert list(checked(given)[0]) == ["loop"]
    assert given.failed == {"triton": "needs a newer card"}
    assert list(given.skipped) == ["native"]


def test_a_failure_is_in_the_report_and_the_run_goes_on() -> None:
    def broken() -> Contest:
        raise ValueError("no such shape")

    scope, ceilings = Scope(torch.device("cpu"), "quick"), Ceilings(1e9, {"float32": 1e9})
    cases = [
        Case("moe", "forward", torch.float32, {"S": 6}, lambda: contest(native=failing)),
        Case("moe", "forward", torch.float32, {"S": 7}, broken),
    ]
    found = [run(case, scope, ceilings) for case in cases]
    assert [rows for rows, _ in found] == [[], []]
    assert [(s.entry, s.reason, s.failed) for _, skipped in found for s in skipped] == [
        ("native", "needs a newer card", True),
        ("all", "ValueError: no such shape", True),
    ]


def test_rows() -> None:
    scope, ceilings = Scope(torch.device("cpu"), "quick"), Ceilings(1e9, {"float32": 1e9})
    case = Case("moe", "forward", torch.float32, {"S": 6}, lambda: contest(native=right, loop=right))
    rows, skipped = run(case, scope, ceilings)
    assert [row.entry for row in rows] == ["native", "loop"]
    assert not skipped
    for row in rows:
        assert row.low <= row.median <= row.high
        assert row.tokens_per_second == pytest.approx(6 / row.median)
        assert row.flop_per_second == pytest.approx(12 / row.median)
        assert row.bound_share == pytest.approx(48e-9 / row.median)  # bytes are the slower of the two
        assert row.difference == 0.0
    assert rows[0].ratio == 1.0


@pytest.mark.parametrize(("half", "ceiling"), [(1.0, 4.0), (8.0, 8.0)])
def test_half_types_are_judged_by_the_faster_of_both_products(half: float, ceiling: float) -> None:
    """They can be computed with in float32; float32 not in them."""
    scope, ceilings = Scope(torch.device("cpu"), "quick"), Ceilings(1e9, {"float32": 4.0, "bfloat16": half})
    for dtype, rate in ((torch.bfloat16, ceiling), (torch.float32, 4.0)):
        (row,), _ = run(Case("moe", "forward", dtype, {}, lambda: contest(native=right)), scope, ceilings)
        assert row.bound_share == pytest.approx(12 / rate / row.median)


def test_a_missing_package_skips_the_case() -> None:
    def prepare() -> Contest:
        raise ModuleNotFoundError("diffusers is needed")

    case = Case("generation", "whole", torch.float32, {}, prepare)
    rows, (skipped,) = run(case, Scope(torch.device("cpu"), "quick"), Ceilings(1e9, {"float32": 1e9}))
    assert not rows
    assert skipped.reason == "diffusers is needed"
    assert not skipped.failed


def test_a_case_of_which_nothing_can_run_is_skipped() -> None:
    """As an export whose module is not installed; it is no failure."""
    given = Contest({}, None, 0.0, skipped={"write": "viser not installed"})
    case = Case("export", "html", torch.float32, {}, lambda: given)
    rows, (skipped,) = run(case, Scope(torch.device("cpu"), "quick"), Ceilings(1e9, {"float32": 1e9}))
    assert not rows
    assert (skipped.entry, skipped.reason, skipped.failed) == ("write", "viser not installed", False)


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="level: expected one of"):
        Scope(torch.device("cpu"), "slow")


def test_what_a_machine_lacks_is_told_by_its_first_line() -> None:
    """Memory of the GPU or of the CPU, or a package; anything else is an error."""
    lacking = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    assert reason_to_skip(RuntimeError(f"{lacking}\nmore")) == lacking
    assert reason_to_skip(torch.OutOfMemoryError("CUDA out of memory.\nTried")) == "CUDA out of memory."
    assert reason_to_skip(ModuleNotFoundError("diffusers is needed\nfor this")) == "diffusers is needed"
    for other in (RuntimeError("memory"), ImportError("absent"), ValueError("no such shape")):
        assert reason_to_skip(other) is None


def test_a_difference_is_summed_over_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which there are two: 3 is missed in the first, and 4 is right in the second."""
    monkeypatch.setattr(harness, "PIECE", 4)
    expected = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    found = expected.clone()
    found[0, 0] = 0.0
    assert relative(found, expected) == pytest.approx(3 / 5)
