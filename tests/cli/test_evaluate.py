"""``intermoe evaluate``: which data a model is measured on, what one of several processes does, and usual lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from intermoe import cli
from intermoe.cli.common import Process
from intermoe.cli.evaluate import protocol
from intermoe.eval.estimate import Estimate
from intermoe.eval.protocol import PROTOCOLS
from intermoe.pipeline import ModelConfig

LONG = SimpleNamespace(
    config=ModelConfig(name="a name", min_frames=20, max_frames=290),
    default_guidance=lambda control: 4.5,
    device="the device",
    schedulers=("own", "other"),
    check=lambda *_: None,
)
"""A pipeline of longer motion than any command makes by itself."""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "200"})


@dataclass
class Judge:
    """An evaluator that keeps where it is."""

    reads_tokens: bool = True
    kind: str = "a kind"
    places: list[Any] = field(default_factory=list)

    def to(self, place: Any) -> None:
        self.places.append(place)


class Work:
    """What ``evaluate interhuman`` and its like call, with what, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.given: dict[str, Any] = {}
        self.judge = Judge()
        self.here = Process()
        self.items = 5
        for place, name in (
            ("intermoe.eval.runner.Evaluation", "evaluation"),
            ("intermoe.eval.runner.evaluate", "evaluate"),
            ("intermoe.eval.report.EvaluationReport", "report"),
            ("intermoe.eval.estimate.estimate", "estimate"),
            ("intermoe.evaluators.evaluator.load_evaluator", "judge"),
            ("intermoe.evaluators.words.read_texts", "texts"),
            ("intermoe.data.dataset.MotionDataset", "dataset"),
            ("intermoe.cli.evaluate.protocol.load_pipeline", "pipeline"),
            ("intermoe.cli.evaluate.protocol.progress", "progress"),
        ):
            monkeypatch.setattr(place, self.calling(name))
        monkeypatch.setattr("intermoe.cli.evaluate.protocol.launched", lambda: self.here)
        monkeypatch.setattr("intermoe.hub.model_folder", lambda model: Path(model))
        monkeypatch.setattr("intermoe.eval.runner.digest", lambda folder: f"digest of {folder}")

    def calling(self, name: str) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            self.calls.append(name)
            self.given[name] = (given, options)
            made = {
                "evaluation": SimpleNamespace(check=lambda: self.calls.append("check")),
                "evaluate": [{"row": 1}, {"row": 2}],
                "report": self,
                "estimate": Estimate(motions=7, seconds=60.0, bytes=0),
                "judge": self.judge,
                "texts": {"a": "caption"},
                "dataset": range(self.items),
                "pipeline": LONG,
            }
            return made[name] if name in made else _Moved()

        return call

    def save(self, path: Path) -> None:
        self.calls.append("save")
        self.given["save"] = path

    def table(self) -> list[list[str]]:
        return [["a column"], ["a cell"]]

    def notes(self) -> list[str]:
        return ["a note", "another note"]


class _Moved:
    def __enter__(self) -> str:
        return "told"

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Work:
    monkeypatch.chdir(tmp_path)
    for folder in ("d", "e", "r"):
        Path(folder).mkdir()
    return Work(monkeypatch)


ASKED = ("evaluate", "interhuman", "--data", "d", "--evaluator", "e", "--model", "m", "--out", "r", "--batch-size", 3)


def test_an_evaluation_of_one_process_tells_its_table_notes_and_file(work: Work) -> None:
    Path("e/training.json").touch()
    done = run(*ASKED, "--replications", 2)
    assert done.exit_code == 0, done.output
    assert work.calls[-5:] == ["check", "progress", "evaluate", "report", "save"]
    assert work.given["progress"] == (("evaluating",), {"shown": True})
    assert work.given["evaluate"][1] | {"wait": None} == {"rank": 0, "ranks": 1, "wait": None, "progress": "told"}
    settings, of, rows, name, kind, own = work.given["report"][0]
    assert (of, rows, name, kind, own) == (PROTOCOLS["interhuman"], ({"row": 1}, {"row": 2}), "a name", "a kind", True)
    assert settings is work.given["evaluation"][0][4]
    assert work.given["save"] == Path("r/results.json")
    assert work.judge.places == ["the device"]
    lines = done.stdout.splitlines()
    assert lines[-3:] == ["a note", "another note", "r/results.json"]
    assert any("a cell" in line for line in lines[:-3])


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_tells(work: Work, rank: int) -> None:
    """All of them work, each on its device, and wait for each other as they were launched."""
    work.here = Process(rank, 2, "its device", lambda: "waited")
    done = run(*ASKED)
    assert done.exit_code == 0, done.output
    _, options = work.given["evaluate"]
    assert (options["rank"], options["ranks"], options["wait"]()) == (rank, 2, "waited")
    assert work.given["progress"][1] == {"shown": rank == 0}
    assert work.given["pipeline"][0] == ("m", "its device")
    assert ("save" in work.calls) is (rank == 0)
    assert (done.stdout == "") is (rank == 1)
    told = run(*ASKED, "--dry-run", "--device", "another")
    assert work.given["pipeline"][0] == ("m", "another")
    if rank == 0:
        assert told.stdout.startswith("7 motions to generate: about 0 h 1 min (60 s) with 2 processes")
        (_, replications), processes = work.given["estimate"]
        assert (replications, processes) == (20, {"processes": 2})
    else:
        assert (told.stdout, "estimate" in work.calls) == ("", False)


@pytest.mark.parametrize(
    ("name", "bounds", "swapped"),
    [("interhuman", (20, 290), True), ("interx", (24, 150), False), ("humanml3d", (40, 196), False)],
)
def test_items_are_of_the_lengths_that_data_and_model_both_have(
    name: str, bounds: tuple[int, int], swapped: bool, work: Work
) -> None:
    """A batch is as large as published, where nobody says; persons are exchanged where the protocol does."""
    work.items = 100
    done = run("evaluate", name, *ASKED[2:-2], "--split", "val", "--seed", 7)
    assert done.exit_code == 0, done.output
    (data_set, *place), options = work.given["dataset"]
    assert (data_set.name, place) == (name, [Path("d"), "val"])
    lengths = {"min_frames": bounds[0], "max_frames": bounds[1]}
    assert options == {**lengths, "swap_persons": swapped, "seed": 7, "training": True}
    settings = work.given["evaluation"][0][4]
    assert (settings.data, settings.items, settings.batch_size) == (name, 100, PROTOCOLS[name].batch_size)


@pytest.mark.parametrize(("size", "fits"), [(1, False), (2, True), (5, True), (6, False)])
def test_a_text_is_compared_with_two_motions_at_least_and_with_all_at_most(size: int, fits: bool, work: Work) -> None:
    done = run(*ASKED[:-1], size)
    assert done.exit_code == (0 if fits else 2), done.output
    if not fits:
        told = f"error: --batch-size: expected a value in [2, 5], got {size}; split 'test' of d has 5 items\n"
        assert done.stderr == told
        assert "evaluation" not in work.calls


@pytest.mark.parametrize("processed", [False, True])
def test_words_are_those_of_the_data_where_the_evaluator_reads_words(processed: bool, work: Work) -> None:
    if processed:
        Path("d/texts_processed").mkdir()
    assert run(*ASKED).exit_code == 0
    assert work.given["texts"][0] == (Path("d/texts_processed" if processed else "d/texts"),)
    assert work.given["evaluation"][1]["texts"] == {"a": "caption"}
    assert run(*ASKED, "--texts", "others").exit_code == 0
    assert work.given["texts"][0] == (Path("others"),)
    work.judge, work.calls = Judge(reads_tokens=False), []
    assert run(*ASKED, "--texts", "others").exit_code == 0
    assert "texts" not in work.calls
    assert work.given["evaluation"][1]["texts"] is None


def test_a_split_that_is_not_there_is_named_by_its_option(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no val.txt")

    monkeypatch.setattr("intermoe.data.dataset.MotionDataset", absent)
    done = run(*ASKED, "--split", "val")
    assert (done.exit_code, done.stderr) == (2, "error: --split: cannot read 'val' of d: no val.txt\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--out", "file/r"), "--out: PLACE/file is not a folder"),
        (("--replications", 0), "--replications: expected >= 1, got 0"),
        (("--steps", 0), "--steps: expected >= 1, got 0"),
    ],
)
def test_a_protocol_refuses_places_and_numbers_before_it_loads(
    options: tuple[Any, ...], told: str, work: Work, tmp_path: Path
) -> None:
    Path("file").touch()
    done = run(*ASKED, *options)
    assert (done.exit_code, done.stderr) == (2, f"error: {told.replace('PLACE', str(tmp_path))}\n")
    assert work.calls == []


def test_texts_of_inter_x_are_apart(tmp_path: Path) -> None:
    assert protocol._texts(tmp_path) == tmp_path / "texts"
    (tmp_path / "texts_processed").mkdir()
    assert protocol._texts(tmp_path) == tmp_path / "texts_processed"


class Report:
    """Two tables of an evaluation, and the numbers."""

    def save(self, path: Path) -> None:
        Path(path).write_text("numbers", encoding="utf-8")

    def table(self) -> list[list[str]]:
        return [["first"], ["1"]]

    def activity_table(self) -> list[list[str]]:
        return [["second"], ["2"]]

    ranking_table = activity_table


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What an evaluation is given; a data set is its folder, split and options."""
    found: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)

    def recording(name: str) -> Callable[..., Report]:
        def record(*given: Any, **options: Any) -> Report:
            found[name] = (given, options)
            return Report()

        return record

    monkeypatch.setattr("intermoe.pipeline.model_config", lambda model: LONG.config)
    for place in ("common", "evaluate.identity", "routing"):
        monkeypatch.setattr(f"intermoe.cli.{place}.load_pipeline", lambda *given, **options: LONG)
    monkeypatch.setattr("intermoe.data.InterHumanDataset", lambda folder, split, **of: (str(folder), split, of))
    monkeypatch.setattr("intermoe.eval.kinematics.check_generation", lambda *_: None)
    for place in ("activities.evaluate_activities", "routing.evaluate_routing", "evaluate_identity"):
        monkeypatch.setattr(f"intermoe.eval.{place}", recording(place.rpartition("_")[2]))
    return found


def test_a_judge_is_trained_on_one_split_and_asked_of_the_other(measured: dict[str, Any]) -> None:
    """Of every folder; motion is of 90 frames, and the data's as long as the model's."""
    done = run("evaluate", "activities", "--data", "a", "--data", "b", "--strict")
    assert done.exit_code == 0, done.output
    (pipeline, train, val, asked), _ = measured["activities"]
    of = {"max_frames": 290, "training": False, "strict": True}
    assert pipeline is LONG
    assert train == [("a", "train", of), ("b", "train", of)]
    assert val == [("a", "val", of), ("b", "val", of)]
    assert asked.num_frames == 90
    assert done.stdout.index("first") < done.stdout.index("second") < done.stdout.index("activities.json")
    assert Path("activities.json").read_text(encoding="utf-8") == "numbers"


def test_routing_is_counted_in_motion_of_96_frames(measured: dict[str, Any]) -> None:
    assert run("evaluate", "routing", "--data", "a").exit_code == 0
    (pipeline, data), options = measured["routing"]
    assert (pipeline, data) == (LONG, ("a", "train", {"max_frames": 290, "training": False, "strict": False}))
    assert (options["num_frames"], options["limit"]) == (96, 12)


def test_identity_is_of_clips_as_long_as_its_metrics_need(
    measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the least that the metrics take to the most that the model makes, which may be the same."""
    for least, code in ((43, 0), (290, 0), (291, 2)):
        monkeypatch.setattr("intermoe.metrics.identity.min_frames", lambda least=least: least)
        done = run("evaluate", "identity", "--data", "a", "--model", "m", "--out", f"{least}.json")
        assert done.exit_code == code, done.output
        if code:
            told = "--model: expected 291 frames, which the metrics need, got 290 at most of 'm'"
            assert done.stderr == f"error: {told}\n"
            continue
        (data, pipeline), _ = measured.pop("identity")
        of = {"min_frames": least, "max_frames": 290, "training": False, "strict": False}
        assert (data, pipeline) == (("a", "val", of), LONG)
    done = run("evaluate", "identity", "--data", "a", "--out", "43.json")
    assert (done.exit_code, "43.json: exists already" in done.stderr) == (2, True)
    assert measured == {}
