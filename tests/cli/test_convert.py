"""``intermoe convert``: checkpoints in, folders out, and one line for what cannot work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from intermoe import cli
from intermoe.evaluators.evaluator import load_evaluator
from intermoe.files import locked
from intermoe.nn.layers import sinusoid
from intermoe.official.layouts import LAYOUTS


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)], env={"COLUMNS": "200"})


def layer(prefix: str, width: int, hidden: int) -> dict[str, torch.Tensor]:
    module = torch.nn.TransformerEncoderLayer(width, 8, hidden, batch_first=True)
    return {f"{prefix}.layers.0.{key}": value for key, value in module.state_dict().items()}


@pytest.fixture
def interclip(tmp_path: Path) -> Path:
    """InterCLIP with one small layer a side, under its published names, and its configuration."""
    torch.manual_seed(0)
    motion = {
        "query_token": torch.randn(1, 16),
        "embed_motion.weight": torch.randn(16, 516),
        "embed_motion.bias": torch.randn(16),
        "sequence_pos_encoder.pe": sinusoid(torch.arange(2000), 16),
        **layer("transformer", 16, 8),
        "out_ln.weight": torch.ones(16),
        "out_ln.bias": torch.zeros(16),
        "out.weight": torch.randn(4, 16),
        "out.bias": torch.randn(4),
    }
    state = {
        **{f"motion_encoder.{key}": value for key, value in motion.items()},
        **layer("textTransEncoder", 8, 8),
        "token_embedding.weight": torch.randn(12, 8),
        "positional_embedding": torch.randn(5, 8),
        "text_ln.weight": torch.ones(8),
        "text_ln.bias": torch.zeros(8),
        "out.weight": torch.randn(4, 8),
        "out.bias": torch.randn(4),
        "latent_scale": torch.ones(1),
    }
    config = {"NUM_LAYERS": 1, "NUM_HEADS": 8, "INPUT_DIM": 258, "LATENT_DIM": 16, "FF_SIZE": 8}
    path = tmp_path / "interclip.ckpt"
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in state.items()}, "hyper_parameters": config}, path
    )
    return path


def test_interclip_becomes_an_evaluator(interclip: Path, tmp_path: Path) -> None:
    result = run(interclip, "--out", tmp_path / "evaluator")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "evaluator")
    embedded = load_evaluator(tmp_path / "evaluator").embed_motion(torch.randn(2, 2, 9, 262), torch.tensor([9, 4]))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    again = run(interclip, "--out", tmp_path / "evaluator")
    assert again.exit_code == 2
    assert "holds a model already" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stats", "."), "--stats: expected a checkpoint that has a use for it, got InterCLIP"),
        (("--layout", "interx"), "--layout: expected a checkpoint that has a use for it"),
        (("--tokenizer", "absent"), "--tokenizer: not a folder: absent"),
        (("--tokenizer", "FILE"), "--tokenizer: not a folder: "),
    ],
)
def test_options_of_other_files_are_refused(
    interclip: Path, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(interclip.parent)
    result = run(interclip.name, "--out", "evaluator", *(interclip.name if o == "FILE" else o for o in options))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (interclip.parent / "evaluator").exists()


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    absent = run(tmp_path / "absent.ckpt", "--out", tmp_path / "out")
    assert absent.exit_code == 2
    assert "absent.ckpt: no such file" in absent.stderr
    torch.save({"state_dict": {"model.other": torch.zeros(1)}}, tmp_path / "other.ckpt")
    other = run(tmp_path / "other.ckpt", "--out", tmp_path / "out")
    assert other.exit_code == 2
    assert "expected a published checkpoint of InterMoE, InterGen" in other.stderr
    torch.save({"movement_encoder": {}}, tmp_path / "finest.tar")
    recurrent = run(tmp_path / "finest.tar", "--out", tmp_path / "out")
    assert recurrent.exit_code == 2
    assert "--layout, --words: expected both" in recurrent.stderr


def test_two_at_once_do_not_mix(interclip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that finishes first keeps its model, and one that is writing is waited for by nobody."""
    out = tmp_path / "evaluator"
    out.mkdir()
    with locked(out / ".lock", "taken"):
        result = run(interclip, "--out", out)
    assert result.exit_code == 2
    assert f"--out: another process is writing to {out}" in " ".join(result.stderr.split())
    layout = LAYOUTS["interclip"]

    def slowly(path: Path, files: Any) -> Any:
        (out / "config.json").write_text("theirs")
        return layout.read(path, files)

    monkeypatch.setattr("intermoe.official.layouts.layout_of", lambda _: dataclasses.replace(layout, read=slowly))
    result = run(interclip, "--out", out)
    assert result.exit_code == 2
    assert "holds a model already" in result.stderr
    assert [path.name for path in out.iterdir()] == ["config.json"]
