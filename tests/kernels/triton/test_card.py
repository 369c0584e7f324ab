"""What is read off a card, and what forgets it."""

import pytest
import torch

pytest.importorskip("triton")
from intermoe.kernels.triton import configs
from intermoe.kernels.triton.aot import Resources


def test_an_architecture_has_both_of_its_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert configs.architecture_of.__wrapped__(torch.device("cuda")) == 86
    assert configs.architecture_of(torch.device("cpu")) == 0


def test_plans_of_another_table_are_forgotten(monkeypatch):
    """A plan holds its tile: one that is kept would go on with that of before."""
    told = []
    monkeypatch.setattr(configs, "forget", lambda: told.append(dict(configs._user)))
    key, tile = configs.Key(86, "up", "half", "large"), configs.Tile(64, 32, 32, 4, 2)
    with configs.overridden(key, tile):
        assert told == [{key: tile}]
    assert told == [{key: tile}, {}]


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks"),
    [
        (16, 0, 64, 16),  # as many as there may be
        (128, 0, 128, 4),  # 65,536 registers, 128 for each of 128 threads
        (33, 0, 256, 6),  # 33 registers are 1280 a warp: 40 a thread
        (32, 49_152, 128, 2),  # a kilobyte of each block is the system's
        (16, 0, 1024, 2),
    ],
)
def test_as_many_blocks_fit_as_the_scarcest_allows(registers, shared, threads, blocks):
    assert Resources(registers, 0, shared, threads).blocks_per_multiprocessor(102_400, 2048) == blocks


def test_a_size_class_ends_with_its_number():
    assert [configs.size_class(8 * rows, 8) for rows in (48, 49, 192, 193)] == ["small", "medium", "medium", "large"]
