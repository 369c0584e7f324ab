"""A comparison: rows of trained and loaded systems, measured alike, kept by what they are made from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import intermoe.train
from intermoe import cli
from intermoe.data import InterHumanDataset
from intermoe.data.dataset import MotionDataset
from intermoe.eval.compare import ComparisonSettings
from intermoe.metrics.kinematics import jitter
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.pipeline import MotionPipeline
from intermoe.train import compare
from intermoe.train.compare import Comparison, ComparisonConfig, stage_values
from intermoe.train.trainers import TRAINERS, trainer_of

SHIPPED = Path(intermoe.train.__file__).parent / "configs" / "comparisons"
TEXT = {"output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16, "vocab_size": 60}
SIZES = {"text_dim": 8, "dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 24}
OPTIM = {"steps": 100, "warmup_steps": 50, "learning_rate": 1e-3, "ema_decay": 0.9}
ODD_NAMES = ("a/b", "..", ".", "", " ", "a\0b", "evaluator", "comparison.md")
MDM = {**SIZES, "input_dim": 262}
RECIPES: dict[str, dict[str, Any]] = {
    "dense": {"trainer": "motion", "network": SIZES, "text": TEXT, "data": {"batch_size": 2}},
    "experts": {
        "trainer": "motion", "system": "intergen-experts", "text": TEXT, "data": {"batch_size": 2},
        "network": {**SIZES, "num_experts": 3, "expert_dim": 8},
    },
    "alone": {"trainer": "mdm", "model": MDM, "text": TEXT, "data": {"batch_size": 2}},
    "both": {
        "trainer": "commdm", "data": {"batch_size": 2},
        "model": {"backbone": MDM, "split": 1, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16},
    },
    "judge": {
        "trainer": "evaluator", "data": {"batch_size": 2},
        "model": {
            "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 8, "embedding_dim": 4,
            "text": TEXT | {"output_dim": 4},
        },
    },
}  # fmt: skip
SETTINGS = ComparisonSettings(steps=2, captions=2)
MATRIX = {
    "evaluator": "judge.json",
    "published_on": "interhuman",
    "changes": {"text.vocab_size": 70, "nobody.knows": 1},
    "systems": [
        {"name": "dense", "title": "Dense", "stages": ["dense.json"]},
        {"name": "experts", "title": "With experts", "stages": ["experts.json"]},
        {"name": "two", "title": "In two stages", "stages": ["alone.json", "both.json"], "shares": [0.25, 0.75]},
        {"name": "one", "title": "One person", "stages": ["alone.json"]},
    ],
}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    for name, values in RECIPES.items():
        (folder / f"{name}.json").write_text(json.dumps({"optim": OPTIM, **values}), encoding="utf-8")
    (folder / "matrix.json").write_text(json.dumps(MATRIX), encoding="utf-8")
    return folder / "matrix.json"


@pytest.fixture(scope="module")
def done(matrix: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A comparison that ran whole, and its report."""
    made = Comparison(matrix, tmp_path_factory.mktemp("out"), data=pairs, budget=4, settings=SETTINGS)
    seen: list[tuple[str, int, int]] = []
    report = made.run(progress=lambda *step: seen.append(step))
    assert seen == [("dense", 0, 4), ("experts", 1, 4), ("two", 2, 4), ("one", 3, 4)]
    return made, report


@pytest.fixture(scope="module")
def dense(done: Any) -> Path:
    """The folder of its one dense row, found before other tests add rows of other settings."""
    (folder,) = (done[0].folder / "dense").iterdir()
    return folder


def test_rows_and_their_measures(done: Any, dense: Path, pairs: Path) -> None:
    rows = done[1].rows
    assert list(rows) == ["ground truth", "Dense", "With experts", "In two stages", "One person"]
    dataset = InterHumanDataset(pairs, "val", min_frames=16)
    joints = [dataset.data_set.representation.joints(dataset[i]["motion"]).numpy() for i in range(2)]
    assert rows["ground truth"]["jitter"] == pytest.approx(np.mean([jitter(each) for each in joints]), rel=1e-5)
    assert "fid" not in rows["ground truth"]
    for name in ("Dense", "With experts", "In two stages"):
        for key in ("fid", "r_precision_1", "mm_dist", "diversity", "pelvis_wasserstein_cm", "bone_variation"):
            assert np.isfinite(rows[name][key]), (name, key)
    assert rows["Dense"]["experts_per_token"] is None
    assert 0 < rows["With experts"]["experts_per_token"] <= 3
    assert [rows[name]["train_steps"] for name in list(rows)[1:]] == [4, 4, 1 + 3, 4]
    spent = [json.loads(path.read_text())["seconds"] for path in done[0].folder.glob("two/*/*/seconds.json")]
    assert len(spent) == 2
    assert rows["In two stages"]["train_seconds"] == pytest.approx(sum(spent))
    assert all(rows[name]["seconds"] > 0 and rows[name]["train_seconds"] > 0 for name in list(rows)[1:])
    assert "pelvis_wasserstein_cm" not in rows["One person"]
    assert "fid" not in rows["One person"]
    assert rows["One person"]["jitter"] > 0
    # of the second stage's model every number is of the pair: the block's weights beside the backbone's
    assert rows["In two stages"]["parameters"] > rows["One person"]["parameters"]


def test_parameters_are_those_without_the_text_encoder(done: Any, dense: Path) -> None:
    _, report = done
    pipeline: Any = MotionPipeline.from_pretrained(dense / "dense" / "run" / "model")
    own = sum(parameter.numel() for parameter in pipeline.network.parameters())
    assert report.rows["Dense"]["parameters"] == own / 1e6
    assert json.loads((dense / "dense" / "run" / "config.json").read_text())["optim"]["warmup_steps"] == 0
    assert pipeline.config.text.vocab_size == 70  # as the comparison changes it


def test_what_is_done_is_read_and_another_seed_is_not(
    done: Any, matrix: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("training began")

    monkeypatch.setattr(compare, "train", fail)
    again = Comparison(matrix, done[0].folder, data=pairs, budget=4, settings=SETTINGS).run()
    assert again.rows == done[1].rows
    for changes in ({"settings": ComparisonSettings(steps=2, captions=2, seed=1)}, {"budget": 5}):
        other = Comparison(matrix, done[0].folder, **{"data": pairs, "budget": 4, "settings": SETTINGS, **changes})
        with pytest.raises(RuntimeError, match="training began"):
            other.run()
    # another evaluator or other data under the same names are not what the rows were made from
    for owner, name in ((compare, "digest"), (MotionDataset, "digest")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_: "another")
            with pytest.raises(RuntimeError, match="training began"):
                Comparison(matrix, done[0].folder, data=pairs, budget=4, settings=SETTINGS).run()


def test_an_evaluator_trains_as_its_recipe_says_or_as_long_as_a_system(
    matrix: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def noted(self: Comparison, folder: Path, name: str, values: Any, start: Path | None) -> Any:
        steps.append(values["optim"]["steps"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparison, "_train", noted)
    for budget in (30, 400):  # the recipe's are 100
        with pytest.raises(KeyboardInterrupt):
            Comparison(matrix, tmp_path, data=pairs, budget=budget, settings=SETTINGS)._evaluator({})
    assert steps == [30, 100]


def test_values_of_a_stage_by_hand() -> None:
    optim = {"steps": 100, "warmup_steps": 50, "epochs": 3, "warmup_epochs": 1, "learning_rate": 0.1}
    recipe = {
        "seed": 1,
        "optim": optim,
        "run": {"validate_every": 5, "log_every": 9},
        "text_pretraining": {"steps": 60},
    }
    assert stage_values(recipe, 40, 7) == {
        "seed": 7,
        "optim": {"steps": 40, "warmup_steps": 4, "epochs": None, "warmup_epochs": None, "learning_rate": 0.1},
        "run": {"validate_every": 5, "checkpoint_every": 40, "log_every": 9},
        "text_pretraining": {"steps": 40},
    }
    assert stage_values({"optim": {"warmup_steps": 2}}, 40, 0)["optim"]["warmup_steps"] == 2
    assert stage_values({}, 40, 0)["optim"]["warmup_steps"] == 4


def test_stages_share_the_steps_as_their_system_says(matrix: Path, pairs: Path, tmp_path: Path) -> None:
    made = Comparison(matrix, tmp_path, data=pairs, budget=10, settings=SETTINGS)
    steps = {name: [own.optim.steps for _, _, own in stages] for name, stages in made.stages.items()}
    assert steps == {"dense": [10], "experts": [10], "two": [2, 8], "one": [10]}  # a quarter of 10, and the rest


def test_changes_are_of_what_a_recipe_has(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"optim": {"steps": 3}, "seed": 1}))
    config = ComparisonConfig.from_dict(
        {
            "systems": MATRIX["systems"],
            "changes": {"optim.steps": 5, "optim.nothing": 1, "none.at_all": 2, "seed": 4, "seed.of": 3, "more": 1},
        }
    )
    assert config.recipe(tmp_path / "a.json") == {"optim": {"steps": 5}, "seed": 4}


def test_a_row_that_was_begun_is_gone_on_with(
    matrix: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Comparison(matrix, tmp_path, data=pairs, budget=4, settings=SETTINGS)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare, "measure_system", fail)
        with pytest.raises(KeyboardInterrupt):
            begun.run(only=["dense"])
    (run,) = (tmp_path / "dense").iterdir()
    trained = (run / "dense" / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    report = begun.run(only=["dense"])
    assert list(report.rows) == ["ground truth", "Dense"]
    assert (run / "dense" / "run" / "model" / "model.safetensors").stat().st_mtime_ns == trained
    assert report.rows["Dense"]["train_seconds"] > 0
    for path in (run / "dense" / "seconds.json", run / "result.json"):
        path.unlink()  # as where a training was stopped and gone on with
    assert begun.run(only=["dense"]).rows["Dense"]["train_seconds"] is None


def test_a_loaded_model_stands_in_its_row(done: Any, dense: Path, matrix: Path, pairs: Path, tmp_path: Path) -> None:
    comparison, report = done
    arguments: dict[str, Any] = {"data": pairs, "budget": 4, "settings": SETTINGS}
    model = dense / "dense" / "run" / "model"
    (judge,) = (comparison.folder / "evaluator").glob("*/run/model")
    loaded = Comparison(matrix, tmp_path, models={"dense": model}, evaluator=judge, **arguments).run(only=["dense"])
    apart = ("train_steps", "train_seconds", "seconds")
    same = {key: value for key, value in report.rows["Dense"].items() if key not in apart}
    assert {key: value for key, value in loaded.rows["Dense"].items() if key not in apart} == same
    assert loaded.rows["Dense"]["train_steps"] is None


def test_a_loaded_model_is_known_by_what_it_holds_wherever_it_is(
    dense: Path, matrix: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(pipeline: Any, *_: Any) -> dict[str, float | None]:
        measured.append(pipeline.config.name)
        return {"fid": float(len(measured))}

    monkeypatch.setattr(compare, "measure_system", measure)
    for name in ("one", "two"):
        shutil.copytree(dense / "dense" / "run" / "model", tmp_path / name)

    def row(name: str, **content: str) -> Any:
        models = {"dense": tmp_path / name}
        made = Comparison(matrix, tmp_path / "out", data=pairs, budget=4, settings=SETTINGS, models=models)
        return made._row(made.config.systems[0], [], {"val": "a", **content}, None)["fid"]  # type: ignore[arg-type]

    assert [row("one"), row("one"), row("two")] == [1, 1, 1]
    values = json.loads((tmp_path / "one" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "one" / "config.json").write_text(json.dumps({**values, "name": "another"}), encoding="utf-8")
    assert [row("one"), row("two"), row("one")] == [2, 1, 2]
    assert [row("one", val="b"), row("one", evaluator="c")] == [3, 4]
    assert measured == ["motion", "another", "another", "another"]


def test_an_evaluator_is_trained_again_for_other_data(
    done: Any, matrix: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pairs, tmp_path / "pairs")
    caption = next((tmp_path / "pairs" / "annots").glob("*.txt"))
    caption.write_text("two people do something else\n", encoding="utf-8")
    began: list[Path] = []

    def noted(path: Path, folder: Path, **_: Any) -> None:
        began.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "train", noted)
    with pytest.raises(KeyboardInterrupt):
        Comparison(matrix, done[0].folder, data=tmp_path / "pairs", budget=4, settings=SETTINGS).run()
    assert began[0].parents[1] == done[0].folder / "evaluator"


def test_what_is_loaded_and_does_not_fit_the_data_is_refused_before_any_work(
    done: Any, dense: Path, matrix: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(ValueError, match="expected") as error:
            Comparison(matrix, tmp_path / "out", data=pairs, budget=4, settings=SETTINGS, **options).run()
        assert not (tmp_path / "out").exists()
        return str(error.value)

    monkeypatch.setattr(compare, "train", lambda *_, **__: pytest.fail("training began"))
    model = dense / "dense" / "run" / "model"
    for key, value in (("name", "interx"), ("persons", 3)):
        with monkeypatch.context() as patch:
            other = replace(REPRESENTATIONS["interhuman"], **{key: value})
            patch.setattr(compare.MotionPipeline, "representation", other, raising=False)
            patch.setattr(compare.MotionPipeline, "__setattr__", _without("representation"))
            told = refusal(models={"dense": model})
        assert told.startswith("load: dense: model: expected motion of interhuman of 2 persons, as the data, or of one")
        assert told.endswith(f"got of {other.name} of {other.persons}")
    shutil.copytree(model, tmp_path / "short")
    values = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(values | {"min_frames": 16, "max_frames": 16}))
    told = refusal(models={"dense": tmp_path / "short"})
    assert told.startswith("load: dense: ")
    assert "split 'val', item" in told
    assert "num_frames: expected a value in [16, 16]" in told
    (judge,) = (done[0].folder / "evaluator").glob("*/run/model")
    loaded = compare.load_evaluator(judge)
    monkeypatch.setattr(compare, "load_evaluator", lambda _: loaded)
    for key, value in (("representation", "interx"), ("reads_tokens", True)):
        with monkeypatch.context() as patch:
            patch.setattr(loaded, key, value, raising=False)
            told = refusal(evaluator=judge)
        assert told == "evaluator: expected one that reads captions of interhuman, got interclip"


def _without(name: str) -> Any:
    """``__setattr__`` that leaves an attribute as its class has it."""

    def assign(self: Any, key: str, value: Any) -> None:
        if key != name:
            object.__setattr__(self, key, value)

    return assign


def test_the_table_says_under_what_conditions(done: Any, pairs: Path) -> None:
    train, val = (len(InterHumanDataset(pairs, split, min_frames=16, training=False)) for split in ("train", "val"))
    assert train != val
    conditions = {
        "budget": "4 steps a system", "data": pairs.name, "items": f"{train} to train on, {val} to measure on",
        "seed": 0, "steps": 2, "captions": 2, "batch_size": 8, "evaluator": "interclip",
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    assert done[1].settings == conditions
    text = (done[0].folder / "comparison.md").read_text(encoding="utf-8")
    told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in conditions.items())
    assert f"Conditions: {told}.\n" in text


def test_the_table_has_the_published_rows_beside(done: Any) -> None:
    comparison, report = done
    header, *lines = report.table()
    assert header[0] == "system"
    assert "experts per token" in header
    named = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert named["InterGen *"]["FID"] == "5.918"
    assert named["InterGen weights †"]["R@3"] == "0.676"
    assert named["ComMDM ‡"]["MM-Dist"] == "6.212"
    assert named["InterGen *"]["jitter (m/s³)"] == "–"
    text = (comparison.folder / "comparison.md").read_text(encoding="utf-8")
    assert "† released weights" in text
    saved = json.loads((comparison.folder / "comparison.json").read_text())
    assert saved["rows"]["Dense"] == report.rows["Dense"]
    assert {"name": "HINT", "mark": "*"}.items() <= saved["published"][-1].items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget: expected at least one step, got 0"),
        ({"models": {"tow": "x"}}, r"load: expected some of the systems dense, experts, two, one, got \['tow'\]"),
        ({"settings": ComparisonSettings(steps=1001)}, "in .1, 1000., the schedule of dense, got 1001"),
        ({"data": "nowhere"}, "data.root: expected a folder, got nowhere"),
        ({"models": {"dense": "nowhere"}}, "load: dense: model: 'nowhere' is neither a shipped model"),
    ],
)  # fmt: skip
def test_refusals_come_before_any_work(
    changes: dict[str, Any], message: str, matrix: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison(matrix, tmp_path, **{"data": pairs, "budget": 4, "settings": SETTINGS, **changes})
    assert not list(tmp_path.iterdir())
    Comparison(matrix, tmp_path, data=pairs, budget=4, settings=ComparisonSettings(steps=1000))  # the whole schedule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": [1.0, 0.5]}, "shares: expected as many as stages, 1"),
        ({"shares": [0.5]}, "shares: expected positive shares with the sum 1"),
        ({"stages": []}, "stages: expected at least one recipe"),
        *(({"name": name}, "name: expected a name usable for a folder, not 'evaluator'") for name in ODD_NAMES),
        ({"title": "ground truth"}, "systems: expected titles of their own, 'ground truth' beside"),
    ],
)
def test_systems_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComparisonConfig.from_dict({"systems": [{"name": "a", "title": "A", "stages": ["x"], **changes}]})


def test_two_systems_of_one_title_would_have_one_row() -> None:
    systems = [{"name": name, "title": "A", "stages": ["x"]} for name in ("a", "b")]
    with pytest.raises(ValueError, match="systems: expected titles of their own"):
        ComparisonConfig.from_dict({"systems": systems})


def test_settings_that_do_not_fit() -> None:
    for name, value in (("seed", -1), ("steps", 0), ("guidance", 0.5), ("captions", 0), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            ComparisonSettings(**{name: value})


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_comparisons_are_of_recipes_that_there_are(path: Path) -> None:
    config = ComparisonConfig.load(path)
    for system in config.systems:
        for recipe in system.stages:
            values = stage_values(config.recipe(SHIPPED / recipe), 30, 7)
            own = TRAINERS[trainer_of(SHIPPED / recipe)].config.from_dict(values)
            assert (own.optim.steps, own.seed) == (30, 7)
            assert own.optim.warmup_steps <= 3


def test_the_command(done: Any, matrix: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    options = ["--data", str(pairs), "--budget", "4", "--steps", "2", "--captions", "2", "--only", "experts"]
    result = CliRunner().invoke(cli.app, ["compare", str(matrix), "--out", str(done[0].folder), *options])
    assert result.exit_code == 0, result.output
    assert "With experts" in result.stdout
    assert result.stdout.strip().endswith("comparison.md")
    for wrong, message in (
        (["--load", "dense"], "--load: expected NAME=FOLDER, got 'dense'"),
        (["--only", "denes"], "got ['denes']"),
    ):
        result = CliRunner().invoke(cli.app, ["compare", str(matrix), "--out", str(done[0].folder), *options, *wrong])
        assert result.exit_code == 2
        assert message in result.stderr


def test_steps_that_a_system_does_not_have_are_refused_before_any_training(pairs: Path, tmp_path: Path) -> None:
    small = Path(compare.__file__).parent / "configs" / "comparisons" / "small.yaml"
    with pytest.raises(ValueError, match=r"steps: expected >= 2 for intermask, got 1$"):
        Comparison(small, tmp_path, data=pairs, budget=4, settings=ComparisonSettings(steps=1))


@pytest.mark.parametrize(
    ("broken", "told"), [("{", "expected valid JSON"), ("[]", "a mapping"), (None, "not as it was")]
)
def test_a_result_that_was_edited_is_named(
    done: Any, matrix: Path, pairs: Path, tmp_path: Path, broken: str | None, told: str
) -> None:
    comparison, _ = done
    shutil.copytree(comparison.folder, tmp_path / "again")
    again = Comparison(matrix, tmp_path / "again", data=pairs, budget=4, settings=SETTINGS)
    (path,) = (tmp_path / "again" / "dense").glob("*/result.json")
    path.write_text(path.read_text().replace('"Dense"', '"Sparse"') if broken is None else broken)
    with pytest.raises(ValueError, match=rf"result\.json: .*{told}"):
        again.run(only=["dense"])


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("[]", "trainer: expected one of"),
        ("trainer: motion\noptim:", "optim: expected a mapping"),
        ("trainer: motion\noptim: {warmup_steps: {}}", "optim.warmup_steps: expected a value of type int"),
        ("trainer: motion\nrun: {log_every: -1}", "run.log_every: expected >= 1"),
        (None, "a: stages: expected a recipe"),
    ],
)
def test_a_recipe_that_is_malformed_is_named(recipe: str | None, told: str, pairs: Path, tmp_path: Path) -> None:
    if recipe is not None:
        (tmp_path / "own.yaml").write_text(recipe)
    system = {"name": "a", "title": "A", "stages": ["own.yaml"]}
    (tmp_path / "matrix.json").write_text(json.dumps({"systems": [system]}))
    with pytest.raises(ValueError, match=rf"(own\.yaml: .*)?{told}") as error:
        Comparison(tmp_path / "matrix.json", tmp_path / "out", data=pairs, budget=4, settings=SETTINGS)
    assert "own.yaml" in str(error.value)
    (tmp_path / "good.json").write_text(json.dumps({"trainer": "motion", "seed": 1}))
    values = {"systems": [{**system, "stages": ["good.json"]}], "changes": {"seed": "x"}}
    (tmp_path / "matrix.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"good\.json, changed\.seed: expected a value of type int, got 'x'"):
        Comparison(tmp_path / "matrix.json", tmp_path / "out", data=pairs, budget=4, settings=SETTINGS)
