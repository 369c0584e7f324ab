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
from intermoe.cli import generate
from intermoe.cli.common import check_drawing, load_pipeline, own_sampling, parse_seeds, parse_view
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
