"""The search for tiles, in Triton's interpreter with a clock that prefers what it is told to."""

from __future__ import annotations

import pytest
import torch
from triton.runtime.errors import OutOfResources

from intermoe.kernels.triton import configs, tune

START = configs.Tile(16, 16, 32, 1, 1)


@pytest.fixture
def workload():
    return tune.Workload(4, 2, 16, 16, torch.float32, torch.device("cpu"))


def preferring(workload, kernel, cost):
    """A clock that asks ``cost`` of the tile in force."""
    key = workload.key(kernel)

    def clock(call):
        return cost(configs.tile(key.architecture, key.kernel, key.precision, key.size))

    return clock


@pytest.mark.parametrize("kernel", configs.KERNELS)
def test_it_finds_the_fastest_tile_and_leaves_the_table_alone(workload, kernel):
    clock = preferring(workload, kernel, lambda tile: 100.0 / tile.block_m if tile.block_m <= 32 else 50.0)
    found = tune.tune(workload, kernel, clock)
    assert found.shipped == START
    assert found.tile == configs.Tile(32, 16, 32, 1, 1)
    assert (found.shipped_time, found.time) == (100 / 16, 100 / 32)
    assert found.tried > 2
    assert configs.tile(0, kernel, "ieee", "small") == START


def test_noise_moves_nothing(workload):
    found = tune.tune(workload, "down", preferring(workload, "down", lambda tile: 10.0 - 0.1 * (tile.block_m == 32)))
    assert found.tile == START


@pytest.mark.parametrize("failure", [OutOfResources(1, 2, "shared memory"), RuntimeError("PassManager::run failed")])
def test_what_does_not_fit_is_passed_over(workload, monkeypatch, failure):
    run = tune.Workload.run

    def refusing(self, kernel):
        if configs.tile(0, kernel, "ieee", "small").block_m == 32:
            raise failure
        return run(self, kernel)

    monkeypatch.setattr(tune.Workload, "run", refusing)
    found = tune.tune(workload, "down", preferring(workload, "down", lambda tile: 1.0 / tile.block_m))
    assert found.tile.block_m == 16


def test_what_computes_something_else_is_passed_over(workload, monkeypatch):
    run = tune.Workload.run

    def wrong(self, kernel):
        made = run(self, kernel)
        return tuple(out * 1.01 for out in made) if configs.tile(0, kernel, "ieee", "small").block_m == 32 else made

    monkeypatch.setattr(tune.Workload, "run", wrong)
    found = tune.tune(workload, "down", preferring(workload, "down", lambda tile: 1.0 / tile.block_m))
    assert found.tile.block_m == 16


def test_other_errors_are_not_hidden(workload, monkeypatch):
    def broken(self, kernel):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(tune.Workload, "run", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune.tune(workload, "down")


def test_neighbours_can_be_compiled():
    for tile in (START, configs.Tile(256, 256, 256, 16, 7)):
        around = list(tune.neighbours(tile))
        assert tile not in around
        assert all(16 <= size <= 256 for t in around for size in (t.block_m, t.block_n, t.block_k))
