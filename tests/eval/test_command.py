"""``intermoe evaluate interhuman`` and its sisters, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe import cli
from intermoe.cli.common import Process
from intermoe.eval.estimate import Estimate
from intermoe.evaluators.bigru import BiGRUConfig, BiGRUEvaluator
from intermoe.evaluators.evaluator import save_evaluator
from intermoe.motion.statistics import Statistics
from intermoe.systems.intermoe.config import PipelineConfig, VAEConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.systems.intermoe.vae import CausalSkeletalVAE

SMALL = ("--batch-size", 3, "--replications", 2, "--mm-captions", 1, "--mm-samples", 2, "--steps", 2)
Run = Callable[..., Any]


@pytest.fixture
def run(tiny_pipeline: Any, tiny_evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a folder with a model and an evaluator of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tiny_pipeline.save_pretrained("model")
    save_evaluator("evaluator", tiny_evaluator)
    return lambda *arguments: CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])


@pytest.mark.parametrize(("ranks", "told"), [(1, "(7260 s), "), (3, "(7260 s) with 3 processes, ")])
def test_an_estimate_is_of_all_processes(
    ranks: int, told: str, run: Run, bowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def estimate(evaluation: Any, replications: int, *, processes: int = 1) -> Estimate:
        asked.append((replications, processes))
        return Estimate(7260.0, 18, 3 * 2**29)

    monkeypatch.setattr("intermoe.eval.estimate.estimate", estimate)
    monkeypatch.setattr("intermoe.cli.evaluate.protocol.launched", lambda: Process(ranks=ranks))
    arguments = ("--data", bowing, "--evaluator", "evaluator", "--model", "model", "--out", "out", *SMALL)
    result = run("interhuman", *arguments, "--dry-run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert asked == [(2, ranks)]
    assert result.stdout.strip() == f"18 motions to generate: about 2 h 1 min {told}1.5 GB of files"


def test_interhuman(run: Run, bowing: Path, tmp_path: Path) -> None:
    arguments = ("interhuman", "--data", bowing, "--evaluator", "evaluator", "--model", "model", "--out", "out", *SMALL)
    dry = run(*arguments, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "18 motions to generate: about" in dry.stdout
    assert not (tmp_path / "out").exists()
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "InterMoE *" in result.stdout
    assert "not the published protocol: batches of 3 in place of 96" in result.stdout
    first = (tmp_path / "out" / "results.json").read_text(encoding="utf-8")
    saved = json.loads(first)
    assert set(saved["rows"]) == {"ground truth", "model"}
    assert saved["model"] == "tiny"
    assert len(saved["replications"]) == 2
    departs = [
        "batches of 3 in place of 96",
        "replications 2 in place of 20",
        "texts for MultiModality 1 in place of 100",
        "motions for each of them 2 in place of 30",
    ]
    assert saved["deviations_from_protocol"] == departs
    (tmp_path / "evaluator" / "training.json").write_text("{}", encoding="utf-8")
    assert run(*arguments).exit_code == 0
    own = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["deviations_from_protocol"]
    assert own == ["an evaluator trained by its user in place of the published one", *departs]
    (tmp_path / "evaluator" / "training.json").unlink()
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "results.json").read_text(encoding="utf-8") == first
    other = run(*arguments, "--seed", 1)
    assert other.exit_code == 2
    assert "seed was 0, is 1" in other.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--evaluator": "model"}, "config.json: kind: expected one of"),
        ({"--evaluator": "absent"}, "evaluator: absent holds no config.json"),
        ({"--batch-size": 96}, "--batch-size: expected a value in [2, 7], got 96; split 'test' of"),
        ({"--replications": 0}, "--replications: expected >= 1"),
        ({"--split": "train"}, "train.txt"),
        ({"--scheduler": "euler"}, "--scheduler: expected one of"),
        ({"--model": "nonsense"}, "model: 'nonsense'"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    run: Run, bowing: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    values = {"--data": bowing, "--evaluator": "evaluator", "--model": "model", "--out": "out"}
    values |= dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    result = run("interhuman", *(part for pair in (values | changes).items() for part in pair))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_data_and_evaluator_must_fit(run: Run, tmp_path: Path, bowing: Path) -> None:
    folder = walking(tmp_path / "walking")
    options = ("--evaluator", "evaluator", "--model", "model", "--out", "out", *SMALL)
    result = run("humanml3d", "--data", folder, *options)
    assert result.exit_code == 2
    assert "evaluator: expected one for humanml3d, the data, got one for interhuman" in result.stderr


def test_two_processes_give_the_same_numbers(
    run: Run, bowing: Path, tmp_path: Path, rendezvous: Callable[[int], dict[str, str]]
) -> None:
    arguments = ["interhuman", "--data", bowing, "--evaluator", "evaluator", "--model", "model", *SMALL]
    arguments += ["--replications", 1, "--generation-batch", 3]
    assert run(*arguments, "--out", "one").exit_code == 0
    root = str(Path(__file__).resolve().parents[2])
    shared = {**rendezvous(2), "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "intermoe.cli", "evaluate", *map(str, arguments), "--out", "two"]
    ranks = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told
    one, two = (json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    for row in ("ground truth", "model"):
        for metric, value in one["rows"][row].items():
            if value is not None:
                assert two["rows"][row][metric]["mean"] == pytest.approx(value["mean"], rel=1e-4, abs=1e-6)


def walking(root: Path) -> Path:
    """Six sequences in HumanML3D's layout."""
    rng = np.random.default_rng(0)
    for folder in ("new_joint_vecs", "texts"):
        (root / folder).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(6)]
    (root / "test.txt").write_text("\n".join(names), encoding="utf-8")
    for number, name in enumerate(names):
        np.save(root / "new_joint_vecs" / f"{name}.npy", rng.normal(size=(41 + number, 263)).astype(np.float32))
        words = "a person walks.#a/DET person/NOUN walk/VERB#0.0#0.0\nhe turns#he/PRON turn/VERB#0.0#0.0\n"
        (root / "texts" / f"{name}.txt").write_text(words, encoding="utf-8")
    return root


def test_humanml3d_with_a_recurrent_evaluator(run: Run, tiny_pipeline: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = ["sos", "eos", "unk", "walk", "person", "turn"]
    sizes = {"word_dim": 5, "movement_dim": 4, "motion_dim": 4, "text_dim": 4, "embedding_dim": 6}
    save_evaluator("recurrent", BiGRUEvaluator(BiGRUConfig(vocab_size=len(words), **sizes), json.dumps(words)))
    config = PipelineConfig(
        name="walker",
        fps=20,
        max_frames=196,
        vae=VAEConfig(representation="humanml3d", latent_dim=4, num_blocks=1),
        denoiser=tiny_pipeline.config.denoiser,
        text=tiny_pipeline.config.text,
    )
    statistics = Statistics(np.zeros(263, np.float32), np.ones(263, np.float32))
    parts = (CausalSkeletalVAE(config.vae), Denoiser(config.denoiser), tiny_pipeline.text_encoder, statistics)
    InterMoEPipeline(config, *parts).save_pretrained("walker")
    folder = walking(tmp_path / "walking")
    options = ("--evaluator", "recurrent", "--model", "walker", "--out", "out", *SMALL)
    result = run("humanml3d", "--data", folder, *options)
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert saved["rows"]["model"]["fid"]["mean"] > 0
    assert saved["protocol"] == {"batch_size": 32, "scale": 1.0, "divide_by": 1.0}
    (folder / "texts" / "000000.txt").write_text("he stops##0.0#0.0\n", encoding="utf-8")
    result = run("humanml3d", "--data", folder, *options)
    assert result.exit_code == 2
    assert "line 1: expected 'caption#word/POS" in result.stderr
