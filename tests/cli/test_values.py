"""What commands make of their options, before anything is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe import export
from intermoe.cli import compare, data, generate, view
from intermoe.cli.common import (
    check_drawing,
    file_or_shipped,
    load_pipeline,
    own_sampling,
    parse_seeds,
    parse_view,
)
from intermoe.control import Control, Known, Target
from intermoe.motion.interhuman import INTERHUMAN
from intermoe.motion.rig import REST_POSE, at_rest
from intermoe.pipeline import MotionPipeline, model_config


def test_seeds_are_different_numbers() -> None:
    assert parse_seeds("3, 0,4294967295") == [3, 0, 2**32 - 1]
    for text in ("1,2,1", "4294967296", "-1", "1,", "one"):
        with pytest.raises(ValueError, match="--seeds: expected"):
            parse_seeds(text)


def test_a_size_is_width_then_height() -> None:
    view = parse_view("top", "640x480")
    assert (view.camera, view.size) == ("top", (640, 480))


def test_a_model_comes_to_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        MotionPipeline, "from_pretrained", lambda model, *, device=None: asked.append((model, str(device)))
    )
    load_pipeline("duets", "cpu")
    assert asked == [("duets", "cpu")]


def test_as_many_steps_as_the_schedule_has_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MotionPipeline, "from_pretrained", lambda model, *, device=None: None)
    most = model_config("duets").max_steps
    assert most is not None
    load_pipeline("duets", "cpu", steps=most)
    with pytest.raises(ValueError, match=rf"--steps: expected a value in \[1, {most}\], the schedule of model 'duets'"):
        load_pipeline("duets", "cpu", steps=most + 1)


def test_what_is_given_goes_before_the_models_own() -> None:
    own = SimpleNamespace(default_steps=50)
    pipeline: Any = SimpleNamespace(config=own, default_guidance=lambda control: 3.5 if control is None else 1.0)
    assert own_sampling(pipeline, None, None) == (50, 3.5)
    assert own_sampling(pipeline, 7, 2.0) == (7, 2.0)
    given: Any = object()
    assert own_sampling(pipeline, None, None, given) == (50, 1.0)
    assert own_sampling(pipeline, None, 2.0, given) == (50, 2.0)


def test_a_prompt_of_a_timeline_may_hold_colons() -> None:
    assert generate._segments(["they say: bow: 30:90", "they bow:20"]) == [("they say: bow: 30", 90), ("they bow", 20)]


def still(frames: int) -> Any:
    return np.tile(at_rest(REST_POSE), (1, frames, 1, 1)).astype(np.float32)


@pytest.mark.parametrize(("stop", "alone", "reacting"), [(40, generate.DEFAULT_FRAMES, 40), (300, 300, 300)])
def test_a_reaction_is_as_long_as_what_is_reacted_to(stop: int, alone: int, reacting: int) -> None:
    known = Known(0, joints=torch.from_numpy(still(20)[0]), frames=slice(stop - 20, stop))
    target = Target(1, "head", [5, 30], positions=torch.zeros(2, 3))
    control = Control([known], targets=[target])
    assert generate._default_frames(control, None) == alone
    assert generate._default_frames(control, Path("x.npz")) == reacting
    assert generate._default_frames(Control(targets=[target]), Path("x.npz")) == 31
    assert generate._default_frames(None, None) == generate.DEFAULT_FRAMES


def test_what_is_reacted_to_is_cut_and_resampled_only_when_told(tmp_path: Path) -> None:
    pipeline: Any = SimpleNamespace(representation=INTERHUMAN, config=SimpleNamespace(max_frames=18))
    export.save(tmp_path / "x.npz", still(20), fps=30)
    for frames, kept in ((None, 18), (12, 12), (19, 19)):
        control = generate._read_control(pipeline, None, tmp_path / "x.npz", False, frames)
        assert control is not None
        assert control.known[0].run == slice(0, kept)
    export.save(tmp_path / "slow.npz", still(8), fps=15)
    with pytest.raises(ValueError, match="--react-to: resample: expected true"):
        generate._read_control(pipeline, None, tmp_path / "slow.npz", False, None)
    control = generate._read_control(pipeline, None, tmp_path / "slow.npz", True, None)
    assert control is not None
    assert control.known[0].run == slice(0, 15)


DRAWN = {"npz": (), "png": ("matplotlib",), "svg": ("matplotlib",), "gif": ("matplotlib", "PIL")}


@pytest.mark.parametrize(("format", "needed"), [*DRAWN.items(), ("mp4", ("matplotlib", "PIL", "imageio_ffmpeg"))])
def test_what_a_picture_needs_is_asked_for_before_any_work(
    format: str, needed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent in ("matplotlib", "PIL", "imageio_ffmpeg"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, absent=absent: None if name == absent else name)
        if absent not in needed:
            check_drawing(["npz", format])
            continue
        with pytest.raises(
            ModuleNotFoundError, match=rf"^--format {format} needs {absent}: pip install 'intermoe\[viz\]'$"
        ):
            check_drawing(["npz", format])


def test_a_file_goes_before_what_ships_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a bare name is one of those that ship."""
    monkeypatch.chdir(tmp_path)
    shipped = file_or_shipped(Path("salsa"), "matrix", "ablations", "matrix")
    assert (shipped.name, shipped.parent.name, shipped.is_file()) == ("salsa.yaml", "ablations", True)
    for name in ("mine/salsa", "salsas", ""):
        with pytest.raises(FileNotFoundError) as told:
            file_or_shipped(Path(name), "matrix", "ablations", "matrix")
        names = ", ".join(sorted(path.stem for path in shipped.parent.glob("*.yaml")))
        assert str(told.value) == f"matrix: {str(Path(name))!r} is neither a file nor a shipped matrix ({names})"
    Path("salsa").write_text("mine")
    assert file_or_shipped(Path("salsa"), "matrix", "ablations", "matrix") == Path("salsa")
    assert file_or_shipped(tmp_path / "salsa", "matrix", "ablations", "matrix") == tmp_path / "salsa"


def test_a_folder_may_have_an_equals_sign_in_its_name() -> None:
    """The number comes last, the name of a system first."""
    assert data._times(["runs/lr=3=0.5", "b=2"]) == {"runs/lr=3": 0.5, "b": 2.0}
    assert compare._named("mdm=runs/lr=3") == ("mdm", "runs/lr=3")
    for text in ("runs=", "runs", "=x"):
        with pytest.raises(ValueError, match=f"--times: expected FOLDER=NUMBER, got '{text}'"):
            data._times([text])
    for text in ("mdm=", "=runs", "mdm"):
        with pytest.raises(ValueError, match=f"--load: expected NAME=FOLDER, got '{text}'"):
            compare._named(text)
    with pytest.raises(ValueError, match="--times: expected 'a' once, got it twice"):
        data._times(["a=1", "a=2"])


def test_arguments_come_before_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("they wave\n\nthey turn\n", encoding="utf-8")
    assert generate._collect_prompts(["they bow"], tmp_path / "list.txt") == ["they bow", "they wave", "they turn"]
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        generate._collect_prompts([], None)
    with pytest.raises(ValueError, match="prompts: expected words in every prompt"):
        generate._collect_prompts(["they bow", " "], None)


def test_what_a_size_may_be() -> None:
    assert parse_view("side", "640X128").size == (640, 128)
    assert parse_view("side", "1920x1080").size == (1920, 1080)
    for size in ("640", "640x", "x480", "640x480x3", "-640x480", "64.0x48", "123456x48"):
        with pytest.raises(ValueError, match=f"--size: expected WIDTHxHEIGHT, as 640x640, got '{size}'"):
            parse_view("side", size)


def test_a_file_of_routing_has_its_experts_and_no_other(tmp_path: Path) -> None:
    """By its ending and what it holds."""
    export.save(tmp_path / "x.npz", still(3), fps=30)
    assert view._experts(tmp_path / "x.npz") is None
    assert view._experts(tmp_path / "absent.npz") is None
    (tmp_path / "x.bvh").write_text("HIERARCHY")
    assert view._experts(tmp_path / "x.bvh") is None
