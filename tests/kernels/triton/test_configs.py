"""The table of tiles: what it answers, what a user's table changes, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")
configs = pytest.importorskip("intermoe.kernels.triton.configs")


@pytest.fixture(autouse=True)
def shipped_table():
    yield
    configs.use_table(None)


def test_size_classes_depend_on_rows_per_expert():
    assert [configs.size_class(s, 8) for s in (300, 1200, 9600)] == ["small", "medium", "large"]
    assert configs.size_class(9600, 64) == "medium"


def test_unknown_cards_get_the_nearest_older_one():
    assert configs.tile(87, "up", "half", "large") == configs.tile(86, "up", "half", "large")
    assert configs.tile(103, "up", "half", "large") == configs.tile(90, "up", "half", "large")
    assert configs.tile(121, "down", "half", "large") == configs.tile(86, "down", "half", "large")


def test_precision_follows_torch():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert configs.precision_of(torch.float32) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert configs.precision_of(torch.float32) == "tf32"
        assert configs.precision_of(torch.bfloat16) == "half"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_users_table_replaces_single_entries(tmp_path):
    key = configs.Key(86, "up", "half", "large")
    mine = configs.Tile(64, 32, 32, 4, 2)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(configs.table_json({key: mine})))
    other = configs.tile(86, "down", "half", "large")
    configs.use_table(path)
    assert configs.tile(86, "up", "half", "large") == mine
    assert configs.tile(86, "down", "half", "large") == other
    configs.use_table(None)
    assert configs.tile(86, "up", "half", "large") != mine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "sideways"}, r"entry 0: kernel: must be one of"),
        ({"block_m": 48}, r"entry 0: block_m: must be a power of two >= 16, got 48"),
        ({"num_stages": 0}, r"entry 0: num_stages: must be a number >= 1, got 0"),
        ({"speed": 3}, r"entry 0: .*speed"),
    ],
)
def test_bad_tables_are_refused_whole(tmp_path, change, message):
    key, tile = configs.Key(86, "up", "half", "large"), configs.Tile(64, 32, 32, 4, 2)
    [entry] = configs.table_json({key: tile})
    path = tmp_path / "table.json"
    path.write_text(json.dumps([{**entry, **change}]))
    with pytest.raises(ValueError, match=message):
        configs.use_table(path)
    assert configs.tile(86, "up", "half", "large") != tile


def test_a_table_is_a_list(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected a list of entries, got dict"):
        configs.use_table(path)
