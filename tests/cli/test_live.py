"""``intermoe live``: what it refuses before a page opens, and a page that is served, saves and ends."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe.cli import app
from intermoe.cli.live import half_the_cores
from intermoe.export import FORMATS, load, save_take, written
from intermoe.pipeline import ModelConfig

pytest.importorskip("viser", reason="the page is viser's")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--steps", "0"], "--steps"),
        (["--guidance", "0.5"], "--guidance"),
        (["--seed", "-1"], "--seed"),
        (["--chunk", "1"], "chunk"),
        (["--camera", "back"], "camera"),
        (["--scheduler", "euler-ish"], "scheduler"),
        (["--model", "nothing"], "model"),
        ([" "], "prompt"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["live", *arguments])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert told in line
    assert "http://" not in done.output


def test_a_page_goes_on_and_saves_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from intermoe.viz.live import LivePage

    run = LivePage.run

    def interrupted(page: LivePage, stop: Any = None) -> None:
        run(page, lambda: len(page._seen) >= 25)
        page.save("npz")
        raise KeyboardInterrupt

    monkeypatch.setattr(LivePage, "run", interrupted)
    arguments = ["--steps", "1", "--chunk", "16", "--port", "0", "--out", str(tmp_path / "out"), "--seed", "3"]
    done = CliRunner().invoke(app, ["live", "Two people dance salsa.", *arguments])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("http://127.0.0.1:")
    (file,) = (tmp_path / "out").iterdir()
    with np.load(file, allow_pickle=False) as archive:
        assert archive["joints"].shape == (2, 25, 22, 3)
        assert str(archive["prompt"]) == "Two people dance salsa."


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command hands on to a page, which saves what it is told to once and ends."""
    handed: dict[str, Any] = {"as": "npz", "views": [], "loaded": None}

    class Page:
        def __init__(self, server: Any, motion: Any, fps: float, names: Any, save: Any, formats: Any, **options: Any):
            handed.update(options, server=server, motion=motion, fps=fps, names=names, formats=formats)
            self.save = save

        def run(self) -> None:
            handed["threads"] = torch.get_num_threads()
            handed["paths"] = self.save(np.zeros((2, 3, 22, 3), np.float32), "they bow; they wave", handed["as"])
            raise KeyboardInterrupt

    def living(prompt: str, **options: Any) -> str:
        handed["asked"] = {"prompt": prompt, **options}
        return "the motion"

    @contextmanager
    def served(port: int) -> Iterator[Any]:
        handed["port"] = port
        yield SimpleNamespace(get_host=lambda: "here", get_port=lambda: port)

    pipeline = SimpleNamespace(
        config=ModelConfig(fps=20),
        representation=SimpleNamespace(persons=2),
        default_guidance=lambda control: 4.5,
        live=living,
        unknown_words=lambda prompt: ["juggle"],
    )

    def loaded(model: str, device: str, **options: Any) -> Any:
        handed["loaded"] = {"model": model, "device": device, **options}
        return pipeline

    monkeypatch.setattr(
        "intermoe.export.save_take", lambda path, saved: (handed["views"].append(saved), save_take(path, saved))[1]
    )
    monkeypatch.setattr("intermoe.viz.live.LivePage", Page)
    monkeypatch.setattr("intermoe.viz.scene.serving", served)
    monkeypatch.setattr("intermoe.cli.live.load_pipeline", loaded)
    return handed


def test_all_that_a_page_needs_is_handed_on(tmp_path: Path, handed: dict[str, Any]) -> None:
    sampling = ["--steps", "9", "--seed", "7", "--chunk", "25", "--scheduler", "own"]
    shown = ["--camera", "top", "--port", "81", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["live", "they bow", "--model", "m", "--device", "cpu", *sampling, *shown])
    assert done.exit_code == 0, done.output
    assert done.stdout == "http://here:81 (Ctrl+C ends)\n\n"
    assert handed["loaded"] == {"model": "m", "device": "cpu", "scheduler": "own", "steps": 9}
    options = {"seed": 7, "num_inference_steps": 9, "guidance_scale": 4.5, "scheduler": "own", "chunk": 25}
    assert handed["asked"] == {"prompt": "they bow", **options}
    assert (handed["motion"], handed["fps"], handed["camera"], handed["port"]) == ("the motion", 20, "top", 81)
    assert handed["names"] == ["person 1", "person 2"]
    assert handed["unknown"]("they juggle") == ["juggle"]
    assert handed["formats"] == [name for name in written() if _is_there(name)]
    (path,) = handed["paths"]
    take = load(path)
    assert (path.parent, take.prompt, take.fps, take.joints.shape[1]) == (tmp_path, "they bow; they wave", 20, 3)
    assert take.details == {"model": "m", "seed": 7}
    assert path.stem == "they-bow-they-wave"
    assert [(saved.view.camera, saved.prompt) for saved in handed["views"]] == [("top", "they bow; they wave")]


def test_guidance_goes_before_the_models_own_and_files_before_none(tmp_path: Path, handed: dict[str, Any]) -> None:
    """The folder is made when something is saved, in the format that the page asks for, and nothing is overwritten."""
    handed["as"] = "bvh"
    out = tmp_path / "new" / "deeper"
    names = [f"they-bow-they-wave{number}.person{person}.bvh" for number in ("", "-2") for person in (1, 2)]
    for expected in (names[:2], names[2:]):
        done = CliRunner().invoke(app, ["live", "they bow", "--guidance", "2.5", "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert handed["asked"]["guidance_scale"] == 2.5
        assert handed["paths"] == [out / name for name in expected]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    (out / "they-bow-they-wave-3.glb").touch()  # a name is new to files of every format
    assert CliRunner().invoke(app, ["live", "they bow", "--out", str(out)]).exit_code == 0
    assert handed["paths"][0] == out / "they-bow-they-wave-4.person1.bvh"


def test_a_page_computes_on_half_of_the_cores(
    tmp_path: Path, handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        assert CliRunner().invoke(app, ["live", "they bow", "--out", str(tmp_path)]).exit_code == 0
        assert (handed["threads"], torch.get_num_threads()) == (3, 6)
    finally:
        torch.set_num_threads(before)


def test_a_page_offers_what_can_be_written(
    tmp_path: Path, handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else find(name))
    assert CliRunner().invoke(app, ["live", "they bow", "--out", str(tmp_path)]).exit_code == 0
    assert handed["formats"] == [name for name in written() if name != "mp4" and _is_there(name)]
    assert "npz" in handed["formats"]


def test_a_page_that_cannot_save_is_not_opened(tmp_path: Path, handed: dict[str, Any]) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["live", "--out", str(tmp_path / "file" / "below")])
    assert (done.exit_code, done.stderr) == (2, f"error: --out: {tmp_path}/file is not a folder\n")
    assert (handed["loaded"], handed.get("port")) == (None, None)


def _is_there(name: str) -> bool:
    return all(importlib.util.find_spec(package) for package in FORMATS[name].needs)


@pytest.mark.parametrize(("asked", "threads"), [(None, 4), ("8", 8)])
def test_browsers_have_half_of_the_cores(asked: str | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        with half_the_cores():
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 8
        torch.set_num_threads(1)
        with half_the_cores():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
