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
    # 48 and 192 rows an expert are the last of their classes
    assert [configs.size_class(8 * s, 8) for s in (48, 192)] == ["small", "medium"]
    assert [configs.size_class(8 * s + 1, 8) for s in (48, 192)] == ["medium", "large"]


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


@pytest.mark.parametrize("fails", [False, True])
def test_a_tile_for_a_while_leaves_the_users_as_they_were(tmp_path, fails):
    keys = [configs.Key(86, kernel, "half", "large") for kernel in ("up", "down", "grad_pairs")]
    mine, other, third = (configs.Tile(size, 32, 32, 4, 2) for size in (16, 32, 64))
    path = tmp_path / "table.json"
    path.write_text(json.dumps(configs.table_json({keys[0]: mine, keys[1]: mine})))

    def in_force():
        return [configs.tile(*vars(key).values()) for key in keys]

    shipped = in_force()[2]
    configs.use_table(path)
    try:
        with configs.overridden(keys[0], other):
            assert in_force() == [other, mine, shipped]
            with configs.overridden(keys[2], third):
                assert in_force() == [other, mine, third]
            assert in_force() == [other, mine, shipped]
            if fails:
                raise RuntimeError("it did not compile")
    except RuntimeError:
        assert fails
    assert in_force() == [mine, mine, shipped]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "sideways"}, r"entry 0: kernel: expected one of"),
        ({"block_m": 48}, r"entry 0: block_m: expected a power of two >= 16, got 48"),
        ({"num_stages": 0}, r"entry 0: num_stages: expected a number >= 1, got 0"),
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


# architecture: bytes of shared memory that a multiprocessor has, of NVIDIA's programming guide
SHARED_MEMORY = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_tiles_fit_their_card(architecture):
    """The stages of both operands lie in shared memory; "up" multiplies by two matrices."""
    for key, tile in configs.shipped(architecture).items():
        matrices = 2 if key.kernel == "up" else 1
        elements = (tile.block_m + matrices * tile.block_n) * tile.block_k * tile.num_stages
        assert elements * (2 if key.precision == "half" else 4) <= SHARED_MEMORY[architecture] * 1024, key


def test_each_generation_has_its_own_tiles():
    """Hopper's matrix units take 64 rows and more; its table is neither Ada's nor the A100's, nor the A100's Ada's."""
    halves = {name: {k: t for k, t in configs.shipped(name).items() if k.precision == "half"} for name in (80, 89, 90)}
    assert all(tile.block_m >= 64 for tile in halves[90].values())
    assert all(any(tile.block_m < 64 for tile in halves[name].values()) for name in (80, 89))
    large = {name: configs.tile(name, "down", "half", "large") for name in (80, 89, 90)}
    assert len(set(large.values())) == 3
    assert len({configs.tile(name, "down", "tf32", "large") for name in (89, 90)}) == 2
    assert {configs.tile(name, "up", "tf32", "large").block_k for name in (80, 89)} == {16, 32}
    assert configs.tile(100, "down", "half", "large") == large[90]
    assert configs.tile(120, "down", "half", "large") == large[89]
