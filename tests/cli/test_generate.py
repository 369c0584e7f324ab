"""``intermoe generate``: options that exclude each other, and what reaches the pipeline, files and their details."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from intermoe import cli, export
from intermoe.cli import generate
from intermoe.cli.common import Process
from intermoe.control.timeline import MOST_FRAMES
from intermoe.motion.interhuman import INTERHUMAN
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.pipeline import ModelConfig


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["generate", *map(str, arguments)], env={"COLUMNS": "200"})


class Still:
    """A pipeline whose people stand still, and which keeps what it is asked for."""

    schedulers = ("own", "other")
    config = ModelConfig(min_frames=4, max_frames=150)
    representation = INTERHUMAN

    def __init__(self) -> None:
        self.loaded: tuple[Any, Any] = ((), {})
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.kept: list[tuple[Any, int]] = []

    def default_guidance(self, control: Any) -> float:
        return 4.5 if control is None else 1.25

    def check(self, prompts: list[str], num_frames: int) -> None: ...

    def check_control(self, control: Any, num_frames: int) -> None:
        self.kept.append((control, num_frames))

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        del options["progress"]
        self.asked.append((prompts, options))
        joints = np.zeros((2, options["num_frames"], 22, 3), dtype=np.float32)

        def take(index: int, details: dict[str, Any], view: Any) -> export.Take:
            return export.Take(joints, 30, prompt=prompts[index], details=details, view=view)

        return SimpleNamespace(prompts=prompts, take=take)

    def timeline(self, segments: list[tuple[str, int]], **options: Any) -> Any:
        found = self(["; ".join(prompt for prompt, _ in segments)], num_frames=sum(n for _, n in segments), **options)
        self.asked[-1] = (segments, self.asked[-1][1])
        return found


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Still:
    pipeline = Still()

    def load(*given: Any, **options: Any) -> Still:
        pipeline.loaded = (given, options)
        return pipeline

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "load_pipeline", load)
    return pipeline


OWN = {"num_inference_steps": 50, "guidance_scale": 4.5, "scheduler": None}


@pytest.mark.parametrize(
    "beside",
    ["they bow", "--prompts list.txt", "--frames 40", "--control c.json", "--react-to x.npz", "--persons 1"],
    ids=range(6),
)
def test_a_timeline_stands_alone(beside: str, still: Still) -> None:
    words = [beside] if beside == "they bow" else beside.split()
    done = run("--timeline", "they turn:40", *words, "--format", "npz")
    others = "prompt, --prompts, --frames, --persons, --control or --react-to"
    told = f"error: --timeline: expected no {others} beside it, got one\n"
    assert (done.exit_code, done.stderr, still.loaded) == (2, told, ((), {}))


@pytest.mark.parametrize("words", [("--timeline", "they turn:40"), ("they turn", "--grid")])
def test_what_is_one_of_many_is_not_numbered(words: tuple[str, ...], still: Still, monkeypatch: Any) -> None:
    monkeypatch.setattr(generate, "check_formats", lambda names: [*names])
    for here, resume, why in (
        (Process(), ["--resume"], "with --resume"),
        (Process(0, 2), [], "in several processes"),
        (Process(0, 2), ["--resume"], "with --resume"),
    ):
        monkeypatch.setattr(generate, "launched", lambda here=here: here)
        done = run(*words, *resume)
        assert (done.exit_code, done.stderr) == (2, f"error: --timeline, --grid: expected neither {why}, got one\n")


def test_a_scene_has_an_end(still: Still) -> None:
    done = run("--timeline", f"they bow:{MOST_FRAMES}", "--timeline", "they turn:1", "--format", "npz")
    told = f"error: --timeline: segments: expected at most {MOST_FRAMES} frames in all, got {MOST_FRAMES + 1}\n"
    assert (done.exit_code, done.stderr) == (2, told)


def test_there_are_at_most_eight_people(still: Still) -> None:
    for persons, told in ((0, "got 0"), (9, "got 9")):
        done = run("they bow", "--persons", persons, "--format", "npz")
        assert done.exit_code == 2
        assert done.stderr == f"error: --persons: num_persons: expected a value in [1, 8], {told}\n"
    assert still.asked == []
    assert run("they bow", "--persons", 8, "--format", "npz").exit_code == 0
    ((_, options),) = still.asked
    assert options["num_persons"] == 8


def test_all_options_of_sampling_arrive(still: Still) -> None:
    sampling = ("--frames", 33, "--seed", 7, "--steps", 9, "--guidance", 2.5, "--scheduler", "other")
    done = run("they bow", "they turn", *sampling, "--model", "m", "--device", "d", "--format", "npz", "--persons", 1)
    assert done.exit_code == 0, done.output
    assert still.loaded == (("m", "d"), {"frames": 33, "scheduler": "other", "steps": 9})
    asked = {"num_frames": 33, "seed": 7, "num_persons": 1, "control": None}
    asked |= {"num_inference_steps": 9, "guidance_scale": 2.5, "scheduler": "other"}
    assert still.asked == [(["they bow", "they turn"], asked)]


def test_options_of_a_scene_arrive(still: Still) -> None:
    scene = ("--timeline", "they bow:40", "--timeline", "they turn:90", "--seed", 7)
    done = run(*scene, "--steps", 9, "--guidance", 2.5, "--scheduler", "other", "--format", "npz")
    assert done.exit_code == 0, done.output
    asked = {"num_frames": 130, "seed": 7, "num_inference_steps": 9, "guidance_scale": 2.5, "scheduler": "other"}
    assert still.asked == [([("they bow", 40), ("they turn", 90)], asked)]


@pytest.mark.parametrize(("most", "expected"), [(150, 120), (120, 120), (119, 119)])
def test_motion_is_of_120_frames_or_what_the_model_can(most: int, expected: int, still: Still) -> None:
    still.config = ModelConfig(min_frames=4, max_frames=most)  # type: ignore[misc]
    assert run("they bow", "--format", "npz").exit_code == 0
    ((_, options),) = still.asked
    assert options == {"num_frames": expected, "seed": 0, "num_persons": None, "control": None, **OWN}


@pytest.mark.parametrize(("device", "place"), [("auto", "its device"), ("another", "another")])
def test_a_process_is_on_its_device_unless_another_is_named(
    device: str, place: str, still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "launched", lambda: Process(device="its device"))
    assert run("they bow", "--device", device, "--format", "npz").exit_code == 0
    assert still.loaded[0][1] == place


def test_arrays_and_video_are_written_where_nobody_says(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the look that is asked for, which the picture of all of them has too, in their order."""
    saved: list[tuple[Path, export.Take]] = []
    drawn: list[str] = []
    monkeypatch.setattr(generate, "check_formats", lambda names: [*names])
    monkeypatch.setattr(export, "save_take", lambda path, take: (saved.append((path, take)), [path])[1])
    monkeypatch.setattr(
        generate, "_write_grid", lambda takes, out: (drawn.extend(take.prompt for take in takes), out / "grid")[1]
    )
    done = run("they bow", "they turn", "--grid", "--camera", "top", "--size", "320x200")
    assert done.exit_code == 0, done.output
    names = [f"they-{word}.{suffix}" for word in ("bow", "turn") for suffix in ("npz", "mp4")]
    assert [path.name for path, _ in saved] == names
    assert {(take.view.camera, take.view.size) for _, take in saved} == {("top", (320, 200))}
    assert drawn == ["they bow", "they turn"]
    assert [Path(line).name for line in done.stdout.splitlines()] == [*names, "grid"]
    drawn.clear()
    assert run("they bow").exit_code == 0
    assert drawn == []


@pytest.fixture
def given(tmp_path: Path) -> Path:
    joints = np.stack([at_rest(REST_POSE) + np.array([x, 0.95, 0]) for x in (0, 1)])[:, None].repeat(60, axis=1)
    export.save(tmp_path / "x.npz", joints.astype(np.float32), fps=30)
    return tmp_path / "x.npz"


@pytest.mark.parametrize(("most", "frames", "length"), [(150, None, 60), (50, None, 50), (150, 40, 40)])
def test_a_reaction_is_kept_told_and_guided_by_its_own_scale(
    most: int, frames: int | None, length: int, given: Path, still: Still
) -> None:
    still.config = ModelConfig(min_frames=4, max_frames=most)  # type: ignore[misc]
    options = () if frames is None else ("--frames", frames)
    done = run("they bow", "--react-to", "x.npz", "--format", "npz", "--out", "out", *options)
    assert done.exit_code == 0, done.output
    ((_, asked),) = still.asked
    assert (asked["num_frames"], asked["guidance_scale"]) == (length, 1.25)
    assert still.kept == [(asked["control"], length)]
    assert asked["control"].known[0].run == slice(0, length)
    details = export.load("out/they-bow.npz").details
    assert (details["control"], details["guidance_scale"]) == ("x.npz", 1.25)


def test_what_a_model_cannot_keep_is_told_by_its_file(given: Path, still: Still, monkeypatch: Any) -> None:
    def refuse(control: Any, num_frames: int) -> None:
        raise ValueError("control: too much")

    monkeypatch.setattr(still, "check_control", refuse)
    done = run("they bow", "--react-to", "x.npz", "--format", "npz")
    assert (done.exit_code, done.stderr) == (2, "error: --react-to: x.npz: control: too much\n")
    target = {"person": 1, "joint": "head", "frames": [10], "positions": [[0.0, 1.0, 0.0]]}
    Path("c.json").write_text(json.dumps({"targets": [target]}), encoding="utf-8")
    done = run("they bow", "--control", "c.json", "--format", "npz")
    assert (done.exit_code, done.stderr) == (2, "error: --control: c.json: control: too much\n")
    assert still.asked == []


def test_a_list_belongs_to_its_model_and_to_what_is_reacted_to(
    given: Path, still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both by what they hold; progress is the first process's."""
    monkeypatch.setattr("intermoe.hub.model_folder", lambda model: Path(model))
    monkeypatch.setattr("intermoe.eval.runner.digest", lambda folder: f"digest of {folder}")
    monkeypatch.setattr(generate, "launched", Process)
    done = run("they bow", "--react-to", "x.npz", "--resume", "--format", "npz", "--model", "m", "--out", "out")
    assert (done.exit_code, done.stdout) == (0, "out\n"), done.output
    assert "sampling" in done.stderr
    settings = json.loads(Path("out/settings.json").read_text(encoding="utf-8"))
    assert settings["model"] == "digest of m"
    assert settings["control"] == hashlib.sha256(given.read_bytes()).hexdigest()[:16]
    assert settings["batch_size"] == 8
    shown: list[bool] = []
    monkeypatch.setattr(generate, "_make", lambda *_, shown_to=shown, shown: shown_to.append(shown))
    (Path("out") / "00001-they-bow.npz").unlink()
    for rank in (0, 1):
        monkeypatch.setattr(generate, "launched", lambda rank=rank: Process(rank, 2))
        done = run("they bow", "--react-to", "x.npz", "--format", "npz", "--model", "m", "--out", "out")
        assert (done.exit_code, done.stdout) == (0, "" if rank else "out\n"), done.output
    assert shown == [True, False]


def test_a_name_is_new_to_files_of_every_format(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that files of one name are of one motion, whatever was written of it; and so is the picture of all."""
    Path("results").mkdir()
    for name in ("they-bow.glb", "they-turn.person1.bvh", "grid.html"):
        (Path("results") / name).touch()
    monkeypatch.setattr(generate, "check_formats", lambda names: [*names])
    monkeypatch.setattr("intermoe.viz.save_mp4", lambda path, scene: path.touch())
    monkeypatch.setattr("intermoe.viz.Grid", lambda scenes: scenes)
    done = run("they bow", "they turn", "they wave", "--format", "npz", "--grid")
    assert done.exit_code == 0, done.output
    names = [Path(line).name for line in done.stdout.splitlines()]
    assert names == ["they-bow-2.npz", "they-turn-2.npz", "they-wave.npz", "grid-2.mp4"]
