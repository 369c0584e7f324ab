"""What every option says arrives where it belongs: each command with all of its options, and what is then called."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from intermoe.cli import app, common
from intermoe.pipeline import ModelConfig

CONFIG = ModelConfig(min_frames=20, max_frames=77)
Called = dict[str, dict[str, Any]]


class _Ended(Exception):
    """What ends a command where its work would begin."""


class _Given(list[str]):
    """A data set, or an evaluator that reads words."""

    reads_tokens = True

    def __len__(self) -> int:
        return 5

    names = ("1", "2")

    def __getitem__(self, index: Any) -> Any:
        return {"motion": np.arange(60).reshape(1, 60) + 100 * index}

    def to(self, device: Any) -> None:
        assert device == PIPELINE.device


PIPELINE = SimpleNamespace(
    config=CONFIG,
    default_guidance=lambda control: 4.5,
    device="cpu",
    schedulers=("own", "other"),
    check=lambda *_: None,
)
DATASET = {"split": "test", "training": False, "strict": True}
WITHIN = {"min_frames": 20, "max_frames": 77}
SAMPLED = {"num_inference_steps": 9, "guidance_scale": 2.5}
SAMPLING = "--steps 9 --guidance 2.5"
LOADED = {"model": "m", "device": "meta", "steps": 9}
EVALUATED = f"--model m --device meta --split test {SAMPLING} --strict --out new.json"
OWN = {"num_inference_steps": 50, "guidance_scale": 4.5}
"""Where nobody says: the model's own steps and guidance."""

FIRST, LAST = "intermoe.data.InterHumanDataset", "intermoe.cli.common.load_pipeline"
CASES: list[tuple[str, str, Called]] = [
    (
        "evaluate kinematics",
        f"--data d {EVALUATED} --seeds 3,5",
        {
            LAST: LOADED,
            FIRST: {"root": Path("d"), **DATASET, **WITHIN},
            "intermoe.eval.kinematics.evaluate_kinematics": {"seeds": [3, 5], **SAMPLED},
        },
    ),
    (
        "evaluate identity",
        f"--data d {EVALUATED} --seeds 3,5",
        {
            "intermoe.cli.evaluate.identity.load_pipeline": LOADED,
            FIRST: {"root": Path("d"), **DATASET, "max_frames": 77},
            "intermoe.eval.evaluate_identity": {"seeds": [3, 5], **SAMPLED},
        },
    ),
    (
        "evaluate control",
        f"--data d {EVALUATED} --limit 4 --best-of 6 --seed 7",
        {
            LAST: LOADED,
            FIRST: {"root": Path("d"), **DATASET, **WITHIN},
            "intermoe.eval.control.evaluate_control": {"limit": 4, "best_of": 6, "seed": 7, **SAMPLED},
        },
    ),
    (
        "evaluate activities",
        "--data d --model m --device meta --paraphrases words.tsv --captions 3 --frames 33 --seeds 3,5 "
        f"{SAMPLING} --judge-steps 11 --out new.json --strict",
        {
            LAST: {**LOADED, "frames": 33},
            FIRST: {"root": Path("d"), "split": "val", "training": False, "strict": True, "max_frames": 77},
            "intermoe.eval.activities.Asked": {
                "captions": 3, "paraphrases": {"bow": ["two people bow"]}, "num_frames": 33,
            },
            "intermoe.eval.activities.evaluate_activities": {"seeds": [3, 5], "judge_steps": 11, **SAMPLED},
        },
    ),
    (
        "evaluate routing",
        f"--data d {EVALUATED} --limit 4 --frames 33 --seed 7",
        {
            LAST: {**LOADED, "frames": 33},
            FIRST: {"root": Path("d"), **DATASET, "max_frames": 77},
            "intermoe.eval.routing.evaluate_routing": {"limit": 4, "num_frames": 33, "seed": 7, **SAMPLED},
        },
    ),
    (
        "evaluate interhuman",
        f"--data d --evaluator e --out r --model m --split val --seed 7 --replications 3 --batch-size 4 "
        f"--mm-captions 2 --mm-samples 6 {SAMPLING} --scheduler own --generation-batch 8 --texts a --no-keep-motions "
        "--device meta",
        {
            "intermoe.evaluators.evaluator.load_evaluator": {"folder": Path("e")},
            "intermoe.evaluators.words.read_texts": {"folder": Path("a")},
            "intermoe.cli.evaluate.protocol.load_pipeline": {**LOADED, "scheduler": "own"},
            "intermoe.data.dataset.MotionDataset": {
                "root": Path("d"), "split": "val", "seed": 7, "training": True, "swap_persons": True, **WITHIN,
            },
            "intermoe.eval.runner.Evaluation": {
                "folder": Path("r"), "keep_motions": False, "texts": {},
                "settings": {
                    "data": "interhuman", "split": "val", "items": 5, "model": "digest of m",
                    "evaluator": "digest of e",
                    "batch_size": 4, "seed": 7, "mm_captions": 2, "mm_samples": 6, "scheduler": "own",
                    "generation_batch": 8, **SAMPLED,
                },
            },
            "intermoe.eval.runner.evaluate": {"replications": 3, "rank": 0, "ranks": 1},
        },
    ),
    (
        "routing",
        f"bow --frames 33 --seed 7 {SAMPLING} --out r --model m --format npz --device meta",
        {
            "intermoe.cli.routing.load_pipeline": {**LOADED, "frames": 33},
            "intermoe.routing.trace.trace_generation": {"prompt": "bow", "num_frames": 33, "seed": 7, **SAMPLED},
        },
    ),
    (
        "routing",
        "bow --data d --item 2 --split test --level 0.25 --frames 33 --seed 7 --model m --device meta",
        {
            FIRST: {"root": Path("d"), "split": "test", "training": False},
            "intermoe.cli.routing.load_pipeline": {"model": "m", "device": "meta", "frames": 33, "steps": None},
            "intermoe.routing.trace.trace_motion": {
                "motion": [list(range(100, 133))], "level": 0.25, "prompt": "bow", "seed": 7,
            },
        },
    ),
    (
        "prepare",
        "interx raw --out c --skeleton s.npy --source-fps 120 --workers 2 --strict",
        {
            "intermoe.data.prepare": {
                "root": Path("raw"), "out": Path("c"), "workers": 2,
                "options": {"skeleton": Path("s.npy"), "source_fps": 120},
            }
        },
    ),
    (
        "stats",
        "--data d --out s.json --kind solo --split test --no-augment --strict",
        {
            "intermoe.data.MotionDataset": {
                "root": Path("d"), **DATASET, "mirror": False, "swap_persons": False,
            },
            "intermoe.data.statistics.compute_statistics": {"passes": 1},
        },
    ),
    (
        "stats",
        "--data d --out s.json --kind interx --augment",
        {
            "intermoe.data.MotionDataset": {"mirror": False, "swap_persons": True, "strict": False},
            "intermoe.data.statistics.compute_statistics": {"passes": 4},
        },
    ),
    (
        "data merge",
        "a b --out c --times a=2 --wordings words.tsv --seed 7 --strict",
        {
            "intermoe.data.merge.merge": {
                "folders": [Path("a"), Path("b")], "out": Path("c"), "times": {"a": 2.0}, "seed": 7, "strict": True,
                "wordings": {"bow": ["two people bow"]},
            }
        },
    ),
    (
        "train recipe",
        "words.tsv --out r --start m --data d --resume",
        {
            "intermoe.train.trainers.train": {
                "config_path": Path("words.tsv"), "output_dir": Path("r"), "start": Path("m"), "data": Path("d"),
                "resume": True,
            }
        },
    ),
    (
        "train vae",
        "words.tsv --out r --data d --init m --resume",
        {
            "intermoe.train.run_vae": {
                "config_path": Path("words.tsv"), "output_dir": Path("r"), "init": Path("m"), "data": Path("d"),
                "resume": True,
            }
        },
    ),
    (
        "train denoiser",
        "words.tsv --out r --vae m --data d --resume",
        {
            "intermoe.train.run_denoiser": {
                "config_path": Path("words.tsv"), "output_dir": Path("r"), "vae": Path("m"), "data": Path("d"),
                "resume": True,
            }
        },
    ),
    (
        "train evaluator",
        "words.tsv --out r --data d --resume",
        {
            "intermoe.train.run_evaluator": {
                "config_path": Path("words.tsv"), "output_dir": Path("r"), "data": Path("d"), "resume": True,
            }
        },
    ),
    (
        "ablate",
        f"--data d --out r salsa --vae m --train-steps 20 --only full --evaluator e --seeds 3,5 {SAMPLING}",
        {
            "intermoe.evaluators.evaluator.load_evaluator": {"folder": Path("e")},
            "intermoe.train.ablate.run_ablation": {
                "output_dir": Path("r"), "data": Path("d"), "vae": Path("m"), "only": ["full"], "model": None,
                "settings": {"steps": 20, "seeds": [3, 5], **SAMPLED},
            },
        },
    ),
    (
        "compare",
        "--data d --out r small --budget 30 --load x=m --only x --evaluator e --seed 7 --captions 2 " + SAMPLING,
        {
            "intermoe.train.compare.Comparison": {
                "output_dir": Path("r"), "data": Path("d"), "budget": 30, "models": {"x": "m"}, "evaluator": Path("e"),
                "settings": {"seed": 7, "captions": 2, "steps": 9, "guidance": 2.5, "batch_size": 8},
            },
            "intermoe.train.compare.Comparison.run": {"only": ["x"]},
        },
    ),
]  # fmt: skip
DEFAULTS: list[tuple[str, str, Called]] = [
    ("evaluate kinematics", "--data d", {
        FIRST: {"split": "val", "strict": False}, "intermoe.eval.kinematics.evaluate_kinematics":
        {"seeds": [0, 1, 2], **OWN},
    }),
    ("evaluate identity", "--data d", {
        FIRST: {"split": "val", "max_frames": 3000}, "intermoe.eval.evaluate_identity":
        {"pipeline": None, "seeds": [0], "num_inference_steps": 1, "guidance_scale": 1.0},
    }),
    ("evaluate control", "--data d", {
        FIRST: {"split": "val"}, "intermoe.eval.control.evaluate_control":
        {"limit": 8, "best_of": 10, "seed": 0, "num_inference_steps": 50, "guidance_scale": None},
    }),
    ("evaluate activities", "--data d", {
        "intermoe.eval.activities.Asked": {"captions": 2, "paraphrases": None, "num_frames": 77},
        "intermoe.eval.activities.evaluate_activities": {"seeds": [0], "judge_steps": 900, **OWN},
    }),
    ("evaluate interhuman", "--data d --evaluator e --out r --batch-size 3", {
        "intermoe.evaluators.words.read_texts": {"folder": Path("d/texts")},
        "intermoe.data.dataset.MotionDataset": {"split": "test", "seed": 0},
        "intermoe.eval.runner.Evaluation": {
            "keep_motions": True,
            "settings": {
                "data": "interhuman", "split": "test", "items": 5, "model": f"digest of {common.DEFAULT_MODEL}",
                "evaluator": "digest of e", "batch_size": 3, "seed": 0, "mm_captions": 5, "mm_samples": 30,
                "scheduler": "own", "generation_batch": 64, **OWN,
            },
        },
        "intermoe.eval.runner.evaluate": {"replications": 20},
    }),
    ("evaluate routing", "--data d", {
        FIRST: {"split": "train"}, "intermoe.eval.routing.evaluate_routing":
        {"limit": 12, "num_frames": 77, "seed": 0, **OWN},
    }),
    ("routing", "bow", {
        "intermoe.routing.trace.trace_generation": {"num_frames": 77, "seed": 0, **OWN},
    }),
    ("prepare", "interhuman raw --out c", {
        "intermoe.data.prepare": {"workers": None, "options": {"skeleton": None, "source_fps": None}},
    }),
    ("stats", "--data d --out s.json", {
        "intermoe.data.MotionDataset": {"split": "train", "mirror": True, "swap_persons": True, "training": False},
        "intermoe.data.statistics.compute_statistics": {"passes": 4},
    }),
    ("data merge", "a --out c", {
        "intermoe.data.merge.merge": {"times": {}, "wordings": None, "seed": 0, "strict": False},
    }),
    ("ablate", "--data d --out r", {
        "intermoe.train.ablate.run_ablation": {
            "vae": Path("r/vae"), "model": common.DEFAULT_MODEL, "only": (), "evaluator": None,
            "settings": {"steps": None, "seeds": [0], "num_inference_steps": 50, "guidance_scale": 3.5},
        },
    }),
    ("compare", "--data d --out r", {
        "intermoe.train.compare.Comparison": {
            "budget": 1000, "models": {}, "evaluator": None,
            "settings": {"seed": 0, "captions": 1, "steps": None, "guidance": None, "batch_size": 8},
        },
        "intermoe.train.compare.Comparison.run": {"only": ()},
    }),
]  # fmt: skip
ELSEWHERE = {
    "generate": "tests/test_cli.py",
    "export": "tests/cli/test_export.py",
    "view": "tests/cli/test_export.py",
    "live": "tests/cli/test_live.py",
    "convert": "tests/cli/test_convert.py",
    "bench": "tests/cli/test_bench.py",
    "tune": "tests/cli/test_tune.py",
    "backends": "tests/test_backends.py",
}
"""Commands that are run with what they call; the protocols' are below."""

OTHERWISE = {"evaluate interhuman": ("dry_run",)}
"""Options that another test gives: see tests/eval/test_command.py."""


def _commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path.strip(), command
        return
    for name, below in command.commands.items():
        yield from _commands(below, f"{path} {name}")


COMMANDS = dict(_commands(get_command(app)))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What was called of all that the cases name, by place, with its arguments by name."""
    found: dict[str, dict[str, Any]] = {}
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b", "d", "m", "raw", "e"):
        Path(folder).mkdir()
    Path("words.tsv").write_text("bow\ttwo people bow\n", encoding="utf-8")
    monkeypatch.setattr("intermoe.pipeline.model_config", lambda model: CONFIG)
    monkeypatch.setattr("intermoe.eval.kinematics.check_generation", lambda *_: None)
    monkeypatch.setattr("intermoe.hub.model_folder", lambda model: Path(model))
    monkeypatch.setattr("intermoe.eval.runner.digest", lambda folder: f"digest of {folder}")
    for place in {place for _, _, calls in (*CASES, *DEFAULTS) for place in calls}:
        _record(monkeypatch, place, found)
    return found


def _record(monkeypatch: pytest.MonkeyPatch, place: str, found: dict[str, dict[str, Any]]) -> None:
    home, _, name = place.rpartition(".")
    if place.endswith(".run"):
        return
    module = importlib.import_module(home)
    signature = inspect.signature(getattr(module, name))

    def record(*given: Any, **options: Any) -> Any:
        bound = signature.bind(*given, **options)
        bound.apply_defaults()
        found[place] = dict(bound.arguments)
        if place.endswith("load_pipeline"):
            return PIPELINE
        if place.endswith(("Dataset", "load_evaluator")):
            return _Given()
        if place.endswith((".Asked", ".Comparison", ".Evaluation")):
            return SimpleNamespace(run=run, check=lambda: None)
        if place.endswith(".read_texts"):
            return {}
        raise _Ended

    def run(**options: Any) -> Any:
        found["intermoe.train.compare.Comparison.run"] = options
        raise _Ended

    monkeypatch.setattr(module, name, record)


def _check(command: str, arguments: str, calls: Called, found: dict[str, dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, [*command.split(), *arguments.split()])
    assert isinstance(done.exception, _Ended), done.output
    for place, expected in calls.items():
        for name, value in expected.items():
            given = found[place][name]
            given = given.to_dict() if hasattr(given, "to_dict") else given
            given = given.tolist() if isinstance(given, np.ndarray) else given
            assert given == value, f"{place}: {name}"


@pytest.mark.parametrize(("command", "arguments", "calls"), CASES, ids=[case[0] for case in CASES])
def test_every_option_arrives(command: str, arguments: str, calls: Called, called: dict[str, Any]) -> None:
    _check(command, arguments, calls, called)


@pytest.mark.parametrize(("command", "arguments", "calls"), DEFAULTS, ids=[case[0] for case in DEFAULTS])
def test_what_nobody_says(command: str, arguments: str, calls: Called, called: dict[str, Any]) -> None:
    _check(command, arguments, calls, called)


def test_every_command_has_a_case() -> None:
    from intermoe.eval.protocol import PROTOCOLS

    known = {command for command, _, _ in CASES} | set(ELSEWHERE) | {f"evaluate {name}" for name in PROTOCOLS}
    assert set(COMMANDS) == known


@pytest.mark.parametrize("command", {command: None for command, _, _ in CASES})
def test_every_option_has_a_value_in_a_case(command: str) -> None:
    words = {word for name, arguments, _ in CASES if name == command for word in arguments.split()}
    for parameter in COMMANDS[command].params:
        if parameter.name not in ("help", *OTHERWISE.get(command, ())) and parameter.param_type_name == "option":
            assert words & {*parameter.opts, *parameter.secondary_opts}, parameter.name


@pytest.mark.parametrize("command", ["evaluate kinematics", "evaluate identity"])
def test_what_a_model_cannot_generate_is_refused_before_it_generates(
    command: str, called: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(pipeline: Any, dataset: Any, seeds: list[int]) -> None:
        asked.append((pipeline, seeds))
        raise ValueError("caption: too long")

    monkeypatch.setattr("intermoe.eval.kinematics.check_generation", refuse)
    done = CliRunner().invoke(app, [*command.split(), "--data", "d", "--model", "m", "--seeds", "3,5"])
    assert (done.exit_code, done.stderr) == (2, "error: caption: too long\n")
    assert asked == [(PIPELINE, [3, 5])]
    assert not any(place.rpartition(".")[2].startswith("evaluate_") for place in called)
