"""``intermoe routing``: its files, and refusals before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from intermoe import cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.app, ["routing", *map(str, arguments)])


@pytest.fixture
def model(tiny_pipeline: Any, tmp_path: Path) -> Path:
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_generation(run: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    options = ("--model", model, "--frames", 16, "--steps", 2)
    result = run("Two people bow.", *options)
    assert result.exit_code == 0, result.output
    names = [f"routing-two-people-bow.{suffix}" for suffix in ("png", "svg", "npz")]
    assert [Path(line).name for line in result.stdout.split()] == names
    with np.load(tmp_path / "results" / names[2]) as archive:
        assert archive["chosen"].shape == (2, 1, 2, 4, 3)
    assert run("Two people bow.", *options, "--format", "gif").exit_code == 0
    assert (tmp_path / "results" / "routing-two-people-bow-2.gif").exists()  # nothing is overwritten
    assert run("They wave.", "--model", model, "--steps", 1, "--format", "npz").exit_code == 0
    with np.load(tmp_path / "results" / "routing-they-wave.npz") as archive:
        assert archive["chosen"].shape == (1, 1, 2, 10, 3)  # as long as the model can, which is less than 120 frames


def test_a_recorded_motion(run: Any, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for person in ("person1", "person2"):
        (tmp_path / "motions_processed" / person).mkdir(parents=True)
        np.save(tmp_path / "motions_processed" / person / "7.npy", rng.normal(size=(30, 492)).astype(np.float32))
    for folder, name, text in (("annots", "7", "they bow"), ("split", "val", "7")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.txt").write_text(text, encoding="utf-8")
    options = ("--model", model, "--data", tmp_path, "--format", "npz", "--level", 0.5)
    result = run(*options, "--item", 7, "--frames", 20)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "results" / "routing-7.npz") as archive:
        assert archive["chosen"].shape == (1, 1, 2, 5, 3)
        assert archive["timesteps"].tolist() == [500]
    result = run(*options, "--item", 8)
    assert result.exit_code == 2
    assert "--item: expected one of split 'val'" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "prompt: expected a description"),
        (("bow", "--item", "7"), "--item: expected --data and --item together"),
        (("bow", "--level", 1), "--level: expected a value in [0, 1)"),
        (("bow", "--steps", 0), "--steps: expected >= 1"),
        (("bow", "--frames", 1000), "--frames: expected a value in [8, 40]"),
    ],
)
def test_refusals(run: Any, model: Path, options: tuple[Any, ...], message: str) -> None:
    result = run(*options, "--model", model)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
