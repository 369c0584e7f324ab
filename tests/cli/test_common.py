"""What the commands share, each value by hand: errors, checks of places, devices, reports and progress."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer

from intermoe import backends
from intermoe.cli import common
from intermoe.data.activities import read_wordings
from intermoe.pipeline import ModelConfig, MotionPipeline


@pytest.mark.parametrize("kind", [ValueError, OSError, FileExistsError, ModuleNotFoundError, FloatingPointError])
def test_what_the_user_can_mend_is_one_line(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, common.reported():
        raise kind("first\n  second\tthird ")
    assert end.value.exit_code == 2
    assert (capsys.readouterr()) == ("", "error: first second third\n")


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, KeyError])
def test_a_fault_of_the_program_is_no_line(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="first"), common.reported():
        raise kind("first")


def test_sources_that_were_never_installed_need_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        assert name == "intermoe"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert common.extra_of("viser") == "all"


def test_captions_that_ship_are_those_of_the_option() -> None:
    folder = Path(common.__file__).parents[1] / "data"
    wordings, paraphrases = (common.captions_by_activity(f"--{what}", "duets") for what in ("wordings", "paraphrases"))
    assert wordings == read_wordings(folder / "duets_wordings.tsv")
    assert paraphrases == read_wordings(folder / "duets_paraphrases.tsv")
    assert wordings != paraphrases
    assert common.captions_by_activity("--wordings", None) is None
    with pytest.raises(ValueError, match=r"^--paraphrases: .*'absent'"):
        common.captions_by_activity("--paraphrases", "absent")


@pytest.mark.parametrize("number", [None, "1", "0"])
def test_one_process_alone_is_the_first_of_one(number: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if number is not None:
        monkeypatch.setenv("WORLD_SIZE", number)
    here = common.launched()
    assert (here.rank, here.ranks, here.device, here.wait()) == (0, 1, "auto", None)


@pytest.mark.parametrize("accelerated", [True, False])
def test_processes_without_an_accelerator_meet_on_the_cpu(accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def state(**options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(process_index=2, num_processes=3, device="cpu")

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("accelerate.PartialState", state)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerated)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: "a group")
    waited: list[Any] = []
    monkeypatch.setattr(torch.distributed, "barrier", waited.append)
    here = common.launched()
    here.wait()
    assert (here.rank, here.ranks) == (2, 3)
    assert asked == [{"cpu": not accelerated}]
    assert waited == ["a group"]


def test_who_waits_for_a_process_that_has_ended_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(group: Any) -> None:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    state = SimpleNamespace(process_index=1, num_processes=2, device="cpu")
    monkeypatch.setattr("accelerate.PartialState", lambda **_: state)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: "a group")
    monkeypatch.setattr(torch.distributed, "barrier", lost)
    told = r"^another process has ended before its part was done; what is written stays: .* run the command again$"
    with pytest.raises(ChildProcessError, match=told):
        common.launched().wait()


@pytest.mark.parametrize("missing", [os.W_OK, os.X_OK])
def test_a_folder_must_be_one_to_write_and_to_enter(
    missing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest that exists above what does not."""
    asked: list[Path] = []

    def access(path: Path, mode: int) -> bool:
        asked.append(path)
        return not mode & missing

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(ValueError, match=rf"^--out: no permission to write to {tmp_path}$"):
        common.check_folder(tmp_path / "new" / "deeper")
    assert asked == [tmp_path]
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.R_OK)
    common.check_folder(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_one_in_a_folder(tmp_path: Path) -> None:
    common.check_new_file(tmp_path / "new" / "numbers.json")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=rf"^--out: {tmp_path}/file: exists already"):
        common.check_new_file(tmp_path / "file")
    with pytest.raises(ValueError, match=rf"^--out: {tmp_path}/file is not a folder$"):
        common.check_new_file(tmp_path / "file" / "numbers.json")


@pytest.mark.parametrize(("frames", "fits"), [(19, False), (20, True), (77, True), (78, False)])
def test_the_shortest_and_the_longest_motion_of_a_model_are_made(
    frames: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intermoe.pipeline.model_config", lambda model: ModelConfig(min_frames=20, max_frames=77))
    monkeypatch.setattr(MotionPipeline, "from_pretrained", lambda model, device: "a pipeline")
    if fits:
        assert common.load_pipeline("m", "cpu", frames=frames) == "a pipeline"  # type: ignore[comparison-overlap]
        return
    with pytest.raises(ValueError, match=rf"^--frames: expected a value in \[20, 77\] for model 'm', got {frames}$"):
        common.load_pipeline("m", "cpu", frames=frames)


def test_what_is_refused_of_a_pipeline_is_refused_before_its_device_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The backend for float32 on that device, before weights are read."""
    asked: list[Any] = []
    monkeypatch.setattr("intermoe.pipeline.model_config", lambda model: ModelConfig())
    monkeypatch.setattr(common, "usable_device", lambda name: (asked.append(name), torch.device("meta"))[1])
    monkeypatch.setattr(backends, "resolve", lambda *given: asked.append(given))
    monkeypatch.setattr(MotionPipeline, "from_pretrained", lambda model, device: asked.append((model, device)))
    with pytest.raises(ValueError, match=r"^--scheduler: expected one of "):
        common.load_pipeline("m", "a device", scheduler="euler-ish")
    assert asked == []
    common.load_pipeline("m", "a device")
    meta = torch.device("meta")
    assert asked == ["a device", (meta, torch.float32), ("m", meta)]


def test_an_evaluation_refuses_all_before_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(config=SimpleNamespace(default_steps=40), default_guidance=lambda control: 4.5)
    loaded: list[Any] = []
    monkeypatch.setattr(common, "load_pipeline", lambda *given, **options: (loaded.append((given, options)), own)[1])
    (tmp_path / "there.json").touch()
    for out, steps, seed, told in (
        ("there.json", 3, 0, "^--out: .* exists already"),
        ("new.json", 0, 0, "^--steps: "),
        ("new.json", 3, -1, "^--seed: "),
    ):
        with pytest.raises((ValueError, FileExistsError), match=told):
            common.open_model("m", "cpu", tmp_path / out, (steps, None), seed)
    assert loaded == []
    found = common.open_model("m", "cpu", tmp_path / "new.json", (3, None), 1, 33)
    assert found == (own, {"num_inference_steps": 3, "guidance_scale": 4.5})
    found = common.open_model("m", "cpu", tmp_path / "new.json", (None, 2.5), 1)
    assert found == (own, {"num_inference_steps": 40, "guidance_scale": 2.5})
    assert loaded == [
        (("m", "cpu"), {"frames": 33, "steps": 3}), (("m", "cpu"), {"frames": None, "steps": None}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("cuda", "xpu", "mps"), "cuda"),
        (("xpu", "mps"), "xpu"),
        (("mps",), "mps"),
        (("cuda", "mps"), "cuda"),
        ((), "cpu"),
    ],
)
def test_auto_takes_the_first_device_that_is_there(
    there: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    tried: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda size, device: tried.append(device))
    assert common.usable_device("auto") == torch.device(expected)
    assert common.usable_device("cpu") == torch.device("cpu")
    assert tried == [torch.device(expected), torch.device("cpu")]


def test_a_report_is_written_and_its_tables_shown_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Report:
        def save(self, path: Path) -> None:
            path.write_text("numbers")
            if path.name == "taken":
                raise FileExistsError("it is there")

    out = tmp_path / "new" / "deeper" / "numbers.json"
    common.save_report(Report(), out, [["first"], ["1"]], [["second"], ["2"]])  # type: ignore[arg-type]
    assert out.read_text() == "numbers"
    told, complained = capsys.readouterr()
    words = [word for word in ("first", "1", "second", "2", str(out)) if word in told]
    assert [told.index(word) for word in words] == sorted(told.index(word) for word in words)
    assert (len(words), told.splitlines()[-1], complained) == (5, str(out), "")
    with pytest.raises(typer.Exit):
        common.save_report(Report(), tmp_path / "taken", [["first"]])  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "error: it is there\n")


def test_progress_is_told_beside_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, with the counts as they were told last; and what is not shown is not there."""
    with common.progress("measuring") as told:
        told(1, 7)
        told(5, 7)
    out, err = capsys.readouterr()
    assert out == ""
    assert "measuring" in err
    assert "5/7" in err
    with common.progress("measuring", shown=False) as told:
        told(1, 7)
    assert capsys.readouterr() == ("", "")
