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
        (["--tokens", "300", "--tokens", "-1"], "--tokens: expected >= 1, got -1"),
        (["--dim", "0"], "--dim: expected >= 1, got 0"),
        (["--expert-dim", "0"], "--expert-dim: expected >= 1, got 0"),
        (["--experts", "0"], "--experts: expected a value in 1..64, got 0"),
        (["--experts", "65"], "--experts: expected a value in 1..64, got 65"),
        (["--capacity", "0"], r"--capacity: expected a value in (0, 8], got 0.0"),
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


def test_sizes_that_nobody_says_and_the_most_that_there_may_be(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each class of sizes, with experts of a block as published; every expert may take a token."""
    asked: list[tuple[object, ...]] = []

    def found(workload: tuple[int, ...], kernel: str) -> search.Found:
        key = configs.Key(86, kernel, "half", configs.size_class(workload[0], workload[1]))
        return search.Found(key, configs.Tile(64, 32, 32, 4, 2), 10.0, configs.Tile(16, 16, 16, 1, 1), 12.5, 9)

    monkeypatch.setattr(search, "Workload", lambda *given: (asked.append(given), given)[1])
    monkeypatch.setattr(search, "tune", found)
    monkeypatch.setattr("intermoe.kernels.triton.unusable_reason", lambda device, dtype: None)
    path = tmp_path / "new" / "tiles.json"
    assert run(app, ["tune", "--out", str(path)]).exit_code == 0
    cuda = torch.device("cuda")
    assert asked == [(tokens, 8, 768, 1024, torch.bfloat16, cuda, 1.0) for tokens in (300, 1200, 9600)]
    assert len(configs.read_table(path)) == 3 * len(configs.KERNELS)
    asked.clear()
    most = ["--experts", "64", "--capacity", "64", "--tokens", "1", "--dim", "1", "--expert-dim", "2"]
    assert run(app, ["tune", "--out", str(path), *most]).exit_code == 0
    assert asked == [(1, 64, 1, 2, torch.bfloat16, cuda, 64.0)]


def test_a_table_that_cannot_be_written_is_refused_before_it_is_measured(tmp_path) -> None:
    (tmp_path / "file").touch()
    result = run(app, ["tune", "--out", str(tmp_path / "file" / "tiles.json")])
    assert (result.exit_code, result.stderr) == (2, f"error: --out: {tmp_path}/file is not a folder\n")
