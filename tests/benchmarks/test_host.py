"""The host's benchmark: what the stand-in for a driver records, and the rows of the report."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from intermoe import backends
from intermoe.benchmarks.harness import host, standin
from intermoe.kernels.triton.registry import INTERPRETED

FORWARD = ["route_kernel", "count_kernel", "scatter_kernel", "up_kernel", "grouped_product_kernel", "combine_kernel"]


@pytest.fixture(autouse=True)
def _compiled_mode() -> None:
    if INTERPRETED:
        pytest.skip("stands in for a driver, which the interpreter has no use for")


def test_the_stand_in_records_every_launch_of_the_public_operation() -> None:
    with standin.stand_in(pairs=9600) as driver:
        calls = host.calls("triton", host.TRAINING, torch.bfloat16)
        calls["inference"]()
        assert [launch.name for launch in driver.launches] == FORWARD
        up = driver.launches[3].arguments
        assert (up["DIM"], up["NUM_EXPERTS"], up["SAVE_H"]) == (64, 8, False)
        assert 9600 <= len(up["token_idx_ptr"]) <= 9600 * 33 / 32, "the exact mode has room for the pairs that it read"
        calls["forward + backward"]()
        assert [launch.name for launch in driver.launches[6:12]] == FORWARD
        assert driver.launches[9].arguments["SAVE_H"]
    assert not backends.available()["triton"].usable or torch.cuda.is_available()


def test_rows_have_times_of_both_ways_and_launches() -> None:
    rows = host.measure(repeats=1, count=1)
    assert [row["launches"] for row in rows if "launches" in row] == 3 * [{"inference": 6, "forward + backward": 16}]
    for row in rows:
        assert all(time > 0 for time in row["microseconds"].values())
        assert set(row["over the backend"]) == {"inference", "forward + backward"}


def test_a_row_tells_the_time_of_one_operation_in_it() -> None:
    times = {"inference": 3.0, "forward + backward": 5.0, host.IN_A_ROW: 16.0}
    row = host._row("", times | {"inference, backend": 1.0, "forward + backward, backend": 2.0})
    assert row["microseconds"][host.IN_A_ROW] == 2.0
    assert row["over the backend"] == {"inference": 2.0, "forward + backward": 3.0}


def test_operations_in_a_row_get_gradients_of_their_own() -> None:
    with standin.stand_in(pairs=300) as driver:
        calls = host.calls("triton", host.PROMPT, torch.bfloat16)
        assert len(calls[host.IN_A_ROW]()) == 1 + 6 * host.ROW
        assert len(driver.launches) == 16 * host.ROW


def test_the_least_of_the_repeats_counts() -> None:
    ran: list[str] = []
    calls = {name: lambda name=name: ran.append(name) for name in ("a", "b")}
    found = host.least(calls, repeats=2, count=3)
    assert set(found) == {"a", "b"}
    assert ran[2 * host.WARM_UPS :] == 3 * ["a"] + 6 * ["b"] + 3 * ["a"], "in turns"
