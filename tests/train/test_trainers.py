"""A recipe names its trainer, and is all that the command needs: every shipped one starts, on made-up data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import intermoe.train
from intermoe import cli
from intermoe.config import read_values
from intermoe.pipeline import MotionPipeline
from intermoe.train.trainers import TRAINERS, train, trainer_of

CONFIGS = Path(intermoe.train.__file__).parent / "configs"
SMALL = {
    "dim": 16, "width": 8, "num_layers": 2, "num_heads": 2, "feedforward_dim": 16, "text_dim": 8, "output_dim": 8,
    "vocab_size": 60, "num_experts": 3, "expert_dim": 8, "num_codes": 12, "code_dim": 8, "latent_dim": 4, "split": 1,
}  # fmt: skip
REST = {
    "optim": {"steps": 2, "warmup_steps": 1, "learning_rate": 1e-3},
    "run": {"validate_every": 2, "checkpoint_every": 2},
    "window": 16,
}
BEFORE = {"commdm": "mdm", "intermask": "tokenizer"}
RECIPES = [
    f"{data}_{system}"
    for data in ("salsa", "interhuman")
    for system in ("intergen", "timotion", "in2in", "mdm", "commdm", "tokenizer", "intermask")
]


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's sections with small sizes in place of theirs, and word pieces in place of CLIP."""
    small = {}
    for key, value in values.items():
        if key == "text":
            value = {"kind": "wordpiece"} | {k: v for k, v in value.items() if k in SMALL}
        if isinstance(value, dict):
            small[key] = shrunk(value)
        elif key in SMALL:
            small[key] = SMALL[key]
        else:
            small[key] = value
    return small


@pytest.fixture(scope="module")
def trained(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a shipped recipe for two steps, with small sizes, through the command; the model's folder."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            values = shrunk(read_values(CONFIGS / f"{name}.yaml"))
            values |= {key: value for key, value in REST.items() if key in values}
            values["data"] |= {"batch_size": 2, "num_workers": 0, "min_frames": 16, "max_frames": 40}
            if "window_stride" in values:
                values["window_stride"] = 8
            (folder / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
            data, system = name.split("_")
            start = ["--start", str(run(f"{data}_{BEFORE[system]}"))] if system in BEFORE else []
            arguments = ["train", str(folder / "recipe.json"), "--out", str(folder / "run"), "--data", str(pairs)]
            result = CliRunner().invoke(cli.app, [*arguments, *start])
            assert result.exit_code == 0, result.output
            made[name] = folder / "run" / "model"
            assert result.stdout.strip() == str(made[name])
        return made[name]

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_starts_and_leaves_a_model(name: str, trained: Callable[[str], Path]) -> None:
    folder = trained(name)
    assert json.loads((folder / "training.json").read_text())["trainer"] == trainer_of(CONFIGS / f"{name}.yaml")
    system = name.split("_")[1]
    if system != "tokenizer":
        pipeline = MotionPipeline.from_pretrained(folder)
        assert pipeline.config.system == system
        assert pipeline("two people dance", num_frames=16, num_inference_steps=2).joints.isfinite().all()


def test_every_trainer_has_a_recipe_of_its_own_kind() -> None:
    named = {trainer_of(path) for path in CONFIGS.glob("*.yaml")}
    assert named == set(TRAINERS)
    for name in TRAINERS:
        assert TRAINERS[name].config.trainer == name


def test_a_recipe_is_of_its_trainer_alone(tmp_path: Path, pairs: Path) -> None:
    path = tmp_path / "recipe.json"
    for content, message in (
        ({}, "recipe.json: trainer: expected one of vae, denoiser, .*, got None"),
        ({"trainer": "wheel"}, "trainer: expected one of .*, got 'wheel'"),
        ([], "trainer: expected one of .*, got None"),
    ):
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            train(path, tmp_path / "run", data=pairs)
    with pytest.raises(ValueError, match="trainer: expected 'motion', got 'mdm'"):
        TRAINERS["motion"].config.from_dict({"trainer": "mdm"})
    with pytest.raises(ValueError, match=r"start: expected none, motion starts from nothing, got 'x'"):
        train(CONFIGS / "salsa_intergen.yaml", tmp_path / "run", data=pairs, start="x")
    with pytest.raises(
        ValueError, match=r"start: expected the model folder \(mdm\) that commdm is trained on, got none"
    ):
        train(CONFIGS / "salsa_commdm.yaml", tmp_path / "run", data=pairs)
    for start in (None, tmp_path / "absent"):  # the trainer's own word for it is another
        with pytest.raises((ValueError, FileNotFoundError), match=r"^start: vae: "):
            train(CONFIGS / "salsa_denoiser.yaml", tmp_path / "run", data=pairs, start=start)
    assert not (tmp_path / "run").exists()


def test_one_more_trainer_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Path) -> None:
    monkeypatch.setattr(TRAINERS, "_places", dict(TRAINERS._places))  # what is added goes with the test
    TRAINERS.add("again", "intermoe.train.motion:TRAINER")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"trainer": "again"}), encoding="utf-8")
    with pytest.raises(ValueError, match="trainer: expected 'motion', got 'again'"):  # it reached the trainer
        train(path, tmp_path / "run", data=pairs)


def test_the_command_tells_a_wrong_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["train", "salsa_intergone", "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "'salsa_intergone' is neither a file nor a shipped configuration" in result.stderr
