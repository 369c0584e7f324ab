"""``intermoe ablate``: refusals before any work, and the table of a matrix of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from intermoe import cli
from intermoe.cli import ablate as command
from intermoe.train import ablate
from intermoe.train.ablate import AblationConfig, AblationReport


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return lambda *arguments: CliRunner().invoke(cli.app, ["ablate", *map(str, arguments)])


def test_settings_and_autoencoder_reach_the_library(
    run: Any, tmp_path: Path, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def run_ablation(matrix: Path, out: Path, **options: Any) -> AblationReport:
        calls.append(options)
        options["progress"]("full", 0, 16)
        return AblationReport(AblationConfig.load(matrix), {}, {"full": {"validation_loss": 0.25}})

    monkeypatch.setattr(ablate, "run_ablation", run_ablation)
    tiny_pipeline.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(command, "DEFAULT_MODEL", tmp_path / "model")
    options = ("--train-steps", 20, "--steps", 5, "--seeds", "0,1", "--only", "full", "--only", "sequence")
    result = run("--data", tmp_path, "--out", "runs/ablation", *options)
    assert result.exit_code == 0, result.output
    (given,) = calls
    assert given["settings"].to_dict() == {
        "steps": 20, "seeds": [0, 1], "num_inference_steps": 5, "guidance_scale": 3.5,
    }  # fmt: skip
    assert given["only"] == ["full", "sequence"]
    assert (given["vae"], given["model"]) == (Path("runs/ablation/vae"), tmp_path / "model")
    assert "1/16 full" in result.stderr
    assert "0.2500" in result.stdout
    assert "4.677" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nobody",), "matrix: 'nobody' is neither a file nor a shipped matrix (salsa)"),
        (("--train-steps", 0), "steps: expected >= 1, got 0"),
        (("--seeds", "a"), "--seeds: expected numbers"),
        (("--evaluator", "none"), "evaluator: none holds no config.json"),
        (("--data", "none"), "--data: not a folder: none"),
        (("--only", "nobody"), "got ['nobody']"),
        ((), "split/val.txt: no such file"),
    ],
)
def test_refusals_come_before_any_work(run: Any, tmp_path: Path, options: tuple[Any, ...], message: str) -> None:
    result = run("--data", tmp_path, "--out", "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
