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
    assert found.tried == 13  # the first with 6 neighbours, the second with 6 that are new
    assert configs.tile(0, kernel, "ieee", "small") == START


def test_what_gains_more_than_noise_is_taken(workload, monkeypatch):
    """Three hundredths; the search then goes on from there."""
    monkeypatch.setattr(tune.Workload, "run", lambda self, kernel: (torch.ones(1),))
    times = {16: 100.0, 32: 97.0, 64: 90.0}
    found = tune.tune(workload, "down", preferring(workload, "down", lambda tile: times.get(tile.block_m, 100.0)))
    assert (found.tile.block_m, found.time, found.shipped_time) == (64, 90.0, 100.0)


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


@pytest.mark.parametrize("kernel", configs.KERNELS)
def test_a_workload_runs_the_product_of_its_name(kernel):
    """Of as many pairs a token as it is told, each expert with its own weights."""
    made = tune.Workload(6, 3, 8, 4, torch.float32, torch.device("cpu"), capacity=3.0)
    assert made.token_idx.tolist() == [*range(6)] * 3  # every pair there is
    assert made.offsets.tolist() == [0, 6, 12, 18]
    assert (made.gates - 1 / 3).abs().max() < 1e-6
    key = made.key(kernel)
    assert (key.architecture, key.kernel, key.precision, key.size) == (0, kernel, "ieee", "small")
    tokens, grads = made.tokens[made.token_idx].view(3, 6, 8), made.grad_out[made.token_idx].view(3, 6, 8)
    h, activation = made.h.view(3, 6, 8), made.activation.view(3, 6, 4)
    found = made.run(kernel)
    if kernel == "up":
        wanted = tokens @ made.w_gate_up.mT
        torch.testing.assert_close(found[1], (torch.nn.functional.silu(wanted[..., :4]) * wanted[..., 4:]).view(18, 4))
    elif kernel == "down":
        wanted = activation @ made.w_down.mT
    elif kernel == "grad_pairs":
        wanted = h @ made.w_gate_up
    elif kernel == "grad_hidden":
        inner, silu = grads @ made.w_down, torch.nn.functional.silu(h[..., :4])
        torch.testing.assert_close(found[1], (silu * h[..., 4:]).view(18, 4) / 3)
        torch.testing.assert_close(found[2], (inner * silu * h[..., 4:]).sum(-1).view(18))
        torch.testing.assert_close(found[0][:, 4:], (inner * silu).view(18, 4) / 3)
        return
    else:
        torch.testing.assert_close(found[1], h.mT @ tokens)
        wanted = grads.mT @ activation
    torch.testing.assert_close(found[0].view(wanted.shape), wanted)
