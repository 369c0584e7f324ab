"""``intermoe tune``: what it refuses, and the table that it writes."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from intermoe.cli import app

pytest.importorskip("triton")
from intermoe.kernels.triton import configs
from intermoe.kernels.triton import tune as search

run = CliRunner().invoke


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_needs_a_gpu(tmp_path) -> None:
    result = run(app, ["tune", "--out", str(tmp_path / "tiles.json")])
    assert result.exit_code == 2
    assert "error: tune: " in result.output
    assert "CUDA device" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "--tokens: expected >= 1, got 0"),
        (["--tokens", "300", "--tokens", "301"], "one value for each size class, got 300 is small, 301 is small"),
        (["--experts", "65"], "--experts: expected a value in 1..64, got 65"),
        (["--capacity", "9"], r"--capacity: expected a value in (0, 8], got 9"),
    ],
)
def test_bad_sizes_are_named(tmp_path, options, message: str) -> None:
    result = run(app, ["tune", "--out", str(tmp_path / "tiles.json"), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_it_writes_a_table_and_keeps_other_entries(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {configs.Key(90, "up", "ieee", "large"): configs.Tile(64, 64, 16, 4, 2)}
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(configs.table_json(other)))
    mine = configs.Tile(64, 32, 32, 4, 2)

    class Workload:
        def __init__(self, tokens: int, *arguments: object) -> None:
            self.size = configs.size_class(tokens, 8)

    def found(workload: Workload, kernel: str) -> search.Found:
        key = configs.Key(86, kernel, "half", workload.size)
        return search.Found(key, mine, 10.0, configs.shipped(86)[key], 12.5, 9)

    monkeypatch.setattr(search, "Workload", Workload)
    monkeypatch.setattr(search, "tune", found)
    monkeypatch.setattr("intermoe.kernels.triton.unusable_reason", lambda device, dtype: None)
    result = run(app, ["tune", "--out", str(path), "--tokens", "300", "--tokens", "9600"])
    assert result.exit_code == 0, result.output
    table = configs.read_table(path)
    assert len(table) == 2 * len(configs.KERNELS) + 1
    assert table.items() >= other.items()
    assert table[configs.Key(86, "down", "half", "small")] == mine
    assert "12.5" in result.output
