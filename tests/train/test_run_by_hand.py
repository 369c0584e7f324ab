"""Who makes what in a run's folder, which data are read, and what a trainer is handed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.files import read_sealed
from intermoe.systems.intermoe.between import Between
from intermoe.systems.intermoe.config import BetweenConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.pipeline import InterMoEPipeline
from intermoe.train import distill, run
from intermoe.train.config import DataConfig, OptimConfig, VAETrainConfig
from intermoe.train.distill import run_distill
from intermoe.train.trainers import TRAINERS, train

CONFIG = VAETrainConfig()


def test_data_are_read_where_it_is_said_last(tmp_path: Path) -> None:
    """Where the call says, else where the configuration does; nothing else of it changes."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    configured = dataclasses.replace(CONFIG, data=DataConfig(root=str(one), batch_size=3))
    assert run.with_data(configured, None) == configured
    moved = run.with_data(configured, other)
    assert moved.data.root == str(other)
    assert dataclasses.replace(moved, data=configured.data) == configured
    assert moved.data.batch_size == 3
    assert run.with_data(CONFIG, one).data.root == str(one)
    assert run.without_paths(moved).data == dataclasses.replace(moved.data, root=None)
    with pytest.raises(ValueError, match=r"^data\.root: expected a folder, got .*absent$"):
        run.with_data(configured, tmp_path / "absent")


def begin(folder: Path, config: VAETrainConfig = CONFIG, *, resume: bool = False, **digests: str) -> None:
    splits: Any = {name: SimpleNamespace(digest=lambda value=value: value) for name, value in digests.items()}
    with run.claimed(config, folder, resume=resume, splits=splits):
        pass


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders in which processes were joined."""
    folders: list[Path] = []

    def start(config: Any, folder: Path) -> Any:
        folders.append(folder)
        return SimpleNamespace(wait_for_everyone=lambda: None)

    monkeypatch.setattr(run, "start", start)
    return folders


def test_the_first_process_alone_makes_the_folder(
    tmp_path: Path, joined: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "run"
    monkeypatch.setenv("LOCAL_RANK", "0")  # of another machine
    monkeypatch.setenv("RANK", "1")
    begin(folder, train="x")
    assert joined == [folder]
    assert not folder.exists()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "0")
    begin(folder, train="x", val="y")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "data.json"]
    assert read_sealed(folder / "data.json") == {"train": "x", "val": "y"}


@pytest.mark.usefixtures("joined")
def test_what_a_start_that_failed_has_written_is_written_anew(tmp_path: Path) -> None:
    """Until there is a checkpoint or a model; from then on it is somebody's."""
    other = dataclasses.replace(CONFIG, seed=3, optim=OptimConfig(steps=77, warmup_steps=1))
    begin(tmp_path, train="x")
    begin(tmp_path, other, train="y")
    assert VAETrainConfig.load(tmp_path / "config.json") == other
    assert read_sealed(tmp_path / "data.json") == {"train": "y"}
    (tmp_path / "checkpoints").mkdir()
    begin(tmp_path, train="x")
    for begun in (tmp_path / "checkpoints" / "step-00000001", tmp_path / "model"):
        begun.mkdir()
        with pytest.raises(FileExistsError, match="holds a run already; resume it or choose another folder"):
            begin(tmp_path, other, train="x")
        begun.rmdir()
    assert VAETrainConfig.load(tmp_path / "config.json") == CONFIG


@pytest.mark.usefixtures("joined")
def test_what_is_gone_on_with_is_compared_and_noted(tmp_path: Path) -> None:
    begin(tmp_path, resume=True, train="x", val="y")  # nothing is there yet
    longer = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, steps=99_999))
    begin(tmp_path, longer, resume=True, train="x", val="y")
    assert VAETrainConfig.load(tmp_path / "config.json") == longer, "what may change is noted"
    told = r"^resume: expected the data that .* was started with, got other data of train, val in None$"
    with pytest.raises(ValueError, match=told):
        begin(tmp_path, longer, resume=True, train="a", val="b")
    with pytest.raises(ValueError, match=r"got other data of val in None$"):
        begin(tmp_path, longer, resume=True, train="x", val="b")
    with pytest.raises(ValueError, match=r"got other data of more in None$"):
        begin(tmp_path, longer, resume=True, train="x", val="y", more="z")
    (tmp_path / "data.json").unlink()  # of a run of an earlier version
    begin(tmp_path, longer, resume=True, train="a", val="b")
    assert read_sealed(tmp_path / "data.json") == {"train": "a", "val": "b"}
    with pytest.raises(ValueError, match=r"got another: seed was 0, is 1, optim\.steps|got another: seed was 0, is 1$"):
        begin(tmp_path, dataclasses.replace(longer, seed=1), resume=True, train="a", val="b")


def test_a_row_of_a_table_may_have_no_other_number_of_steps(tmp_path: Path) -> None:
    """Where a run was trained in one go its places alone may change."""
    other = dataclasses.replace(
        CONFIG, optim=dataclasses.replace(CONFIG.optim, steps=5, warmup_steps=0), data=DataConfig(root="there")
    )
    run.require_same(CONFIG, dataclasses.replace(CONFIG, data=other.data), tmp_path, free=run.PLACES)
    with pytest.raises(ValueError, match=r"another: optim\.steps was 10000, is 5, optim\.warmup_steps was 200, is 0$"):
        run.require_same(CONFIG, other, tmp_path, free=run.PLACES)


@pytest.mark.parametrize(
    ("main", "resume", "there", "written"),
    [
        (True, False, False, True), (True, False, True, True), (True, True, False, True), (True, True, True, False),
        (False, False, False, False), (False, True, False, False), (False, False, True, False),
    ],
)  # fmt: skip
def test_what_is_written_once(main: bool, resume: bool, there: bool, written: bool, tmp_path: Path) -> None:
    """By the main process, before any goes on; what a run that goes on has written already stays."""
    path, order = tmp_path / "file", []
    if there:
        path.touch()
    accelerator: Any = SimpleNamespace(is_main_process=main, wait_for_everyone=lambda: order.append("wait"))
    assert run.once(accelerator, path, lambda given: order.append(given), resume=resume) == path
    assert order == ([path, "wait"] if written else ["wait"])


def test_what_is_encoded_on_its_own_is_checked_on_its_own() -> None:
    checked: list[list[str]] = []

    def check(texts: list[str]) -> None:
        checked.append(texts)
        if "long" in texts:
            raise ValueError("too long")

    def split(name: str, *captions: str) -> Any:
        return SimpleNamespace(
            names=["first", "second"], captions=lambda index: ["they wait"] if index == 0 else captions, root="there",
            split=name, mirror=False, swap_persons=False,
        )  # fmt: skip

    text: Any = SimpleNamespace(check=check)
    run.check_captions(text, split("train", "a|b", "c"), texts=lambda caption: caption.split("|"))
    assert checked == [["they wait"], ["a", "b", "c"]]
    with pytest.raises(ValueError, match=r"^there: split 'val', item 'second': too long$"):
        run.check_captions(text, split("train", "c"), split("val", "a|long"), texts=lambda caption: caption.split("|"))


def test_a_trainer_is_handed_what_was_given_by_its_own_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    errors: list[Exception] = []

    def work(*given: Any, **named: Any) -> Path:
        seen.append((given, named))
        if errors:
            raise errors.pop()
        return tmp_path / "made"

    trainer = run.Training(VAETrainConfig, work, start="vae")
    monkeypatch.setattr(TRAINERS, "_places", {**TRAINERS._places})
    monkeypatch.setattr(type(TRAINERS), "__getitem__", lambda self, name: trainer)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"trainer": "vae"}), encoding="utf-8")
    assert train(path, "out", start="model", resume=True, data="there") == tmp_path / "made"
    assert train(path, "out") == tmp_path / "made"
    assert seen == [
        ((path, "out"), {"resume": True, "data": "there", "vae": "model"}),
        ((path, "out"), {"resume": False, "data": None}),
    ]
    for error, told in (
        (FileNotFoundError("vae: not there"), "start: vae: not there"),
        (ValueError("vae: another"), "start: vae: another"),
        (ValueError("optim.steps: too few"), "optim.steps: too few"), (ValueError("vae of a kind"), "vae of a kind"),
    ):  # fmt: skip
        errors.append(error)
        with pytest.raises(type(error)) as caught:
            train(path, "out", start="model")
        assert str(caught.value) == told


def test_a_model_that_fills_gaps_still_does_when_it_is_distilled(
    tiny_pipeline: InterMoEPipeline, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that lies beside the denoiser comes along; its shortcuts are drawn from the run's seed."""
    small = BetweenConfig(width=16, code=6, waves=3, max_frames=8)
    torch.manual_seed(1)
    between = Between(small)
    config = dataclasses.replace(tiny_pipeline.config, between=small)
    parts = (tiny_pipeline.vae, tiny_pipeline.denoiser, tiny_pipeline.text_encoder, tiny_pipeline.statistics)
    InterMoEPipeline(config, *parts, between=between).save_pretrained(tmp_path / "start")
    monkeypatch.setattr(distill, "_trajectories", lambda *_, resume: ([], []))
    monkeypatch.setattr(distill, "fit", lambda accelerator, objective, *_, resume: objective.state_dict())
    recipe: dict[str, Any] = {"trainer": "distill", "steps": 4, "teacher_steps": 8, "width": 5, "seed": 3}
    recipe |= {"trajectories": 6, "data": {"batch_size": 3, "min_frames": 16, "max_frames": 40}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    made = run_distill(tmp_path / "recipe.json", tmp_path / "run", tmp_path / "start", data=pairs)
    pipeline = InterMoEPipeline.from_pretrained(made)
    assert pipeline.between is not None
    assert all(map(torch.equal, pipeline.between.state_dict().values(), between.state_dict().values()))
    assert json.loads((made / "training.json").read_text())["data"]["root"] is None
    torch.manual_seed(3)
    expected = Denoiser(pipeline.config.denoiser).shortcuts.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in pipeline.denoiser.shortcuts.state_dict().items())
