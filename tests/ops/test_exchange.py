"""Experts over processes: 2 and 4 on gloo compute and train what one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from intermoe.ops.exchange import plan_exchange

RANKS = Path(__file__).parent / "exchange_ranks.py"


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_compute_train_and_save_as_one_process(size: int, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    run_ranks(RANKS, size, "0", str(tmp_path), limit=240)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_random_runs_do_not_hang(size: int, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    assert f"100 random runs on {size} ranks" in run_ranks(RANKS, size, "100", str(tmp_path), limit=400)


def test_a_plan_by_hand() -> None:
    """Three tokens, three experts on two ranks: the first has experts 0 and 1, the second expert 2."""
    chosen = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    counts = torch.tensor([[2, 1], [0, 2]])  # this rank's own pairs, and two of the other rank for expert 1
    plan = plan_exchange(chosen, counts, 2, 2, None)
    assert (plan.sent, plan.received) == ([3, 2], [3, 2])
    assert plan.slots.tolist() == [[0, -1, 3], [-1, -1, -1], [1, 2, 4]]
    assert plan.token_idx.tolist() == [0, 2, 2, 0, 2]
    assert plan.expert_idx.tolist() == [0, 0, 1, 2, 2]
    assert plan.filled.all()
    assert (plan.order.tolist(), plan.offsets.tolist()) == ([0, 1, 2, 3, 4], [0, 2, 5])
    static = plan_exchange(chosen, counts, 2, 2, 4)
    assert (static.sent, static.received) == ([4, 4], [4, 4])
    assert static.slots.tolist() == [[0, -1, 4], [-1, -1, -1], [1, 2, 5]]
    assert static.filled.tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 2
    assert static.order.tolist()[:5] == [0, 1, 2, 4, 5]
    assert static.offsets.tolist() == [0, 2, 5]


def test_a_mesh_of_three_dimensions_is_refused() -> None:
    from intermoe.nn.distributed import check_mesh

    class Mesh:
        ndim = 3

    with pytest.raises(ValueError, match=r"mesh: expected one dimension, or two \(replicas, experts\), got 3"):
        check_mesh(Mesh())  # type: ignore[arg-type]
