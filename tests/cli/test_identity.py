"""``intermoe evaluate identity``: numbers of the data and of a model, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from intermoe import cli
from intermoe.eval.identity_report import CORRUPTIONS


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two items of two swaying bodies, one long and one just long enough."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for folder in ("motions_processed/person1", "motions_processed/person2", "annots", "split"):
        (root / folder).mkdir(parents=True)
    body = rng.uniform(-0.4, 0.4, (22, 3)) + np.array([0.0, 0.0, 1.0])
    body[1:3] = [[0.1, 0.0, 0.9], [-0.1, 0.0, 0.9]]
    for name, frames in (("1", 70), ("2", 43)):
        (root / "annots" / f"{name}.txt").write_text("two people bow", encoding="utf-8")
        time = np.arange(frames)[:, None, None] / 30
        for person, place in (("person1", -1.0), ("person2", 1.0)):
            values = np.zeros((frames, 492), dtype=np.float32)
            sway = 0.2 * np.sin(3 * time + rng.uniform(0, 6, (1, 22, 3)))
            values[:, :66] = (body + sway + (0, place, 0)).reshape(frames, 66)
            np.save(root / "motions_processed" / person / f"{name}.npy", values)
    (root / "split" / "val.txt").write_text("1\n2\n", encoding="utf-8")
    return root


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return lambda *arguments: CliRunner().invoke(cli.app, ["evaluate", "identity", *map(str, arguments)])


def test_the_data_alone(run: Any, pairs: Path, tmp_path: Path) -> None:
    result = run("--data", pairs, "--out", "deep/identity.json")
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "deep" / "identity.json").read_text())
    assert saved["rows"]["ground truth"]["clips"] == 2
    assert set(CORRUPTIONS) < set(saved["ranking"])
    assert saved["ranking"]["averaged"]["separation_cm"] == 100
    assert "generation" not in saved["rows"]
    assert saved["settings"] == {"split": "val", "items": 2, "model": False}
    assert "swapped midway" in result.stdout


def test_a_model_of_short_motion_is_refused(run: Any, pairs: Path, tiny_pipeline: Any, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "model")
    result = run("--data", pairs, "--model", tmp_path / "model")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --model: ")
    assert "got 40 at most" in result.stderr


def test_refusals_come_before_any_work(run: Any, pairs: Path) -> None:
    for options, message in (
        (("--seeds", "x"), "--seeds: expected numbers"),
        (("--model", "nobody"), "model: 'nobody' is neither"),
        (("--split", "test"), "no such file"),
    ):
        result = run("--data", pairs, *options)
        assert result.exit_code == 2
        assert message in result.stderr
