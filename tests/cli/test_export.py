"""``intermoe export`` and ``intermoe view``: from files to files, and to a page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from intermoe import cli, export
from intermoe.motion.rig import REST_POSE, at_rest


@pytest.fixture
def bow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An .npz of two people who stand, and move to the side."""
    monkeypatch.chdir(tmp_path)
    steps = np.arange(12)[:, None, None] * (0.01, 0, 0)
    joints = np.stack([at_rest(REST_POSE) + steps + (0, 0.95, z) for z in (0, 1)])
    return export.save(tmp_path / "bow.npz", joints, 30, prompt="two people bow")[0]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_one_file_becomes_others(bow: Path, tmp_path: Path) -> None:
    first = run("export", bow, "--format", "bvh", "--format", "glb", "--out", "out")
    assert first.exit_code == 0, first.output
    assert [Path(line).name for line in first.stdout.split()] == ["bow.person1.bvh", "bow.person2.bvh", "bow.glb"]
    again = run("export", bow, "--format", "bvh", "--out", "out")
    assert [Path(line).name for line in again.stdout.split()] == ["bow-2.person1.bvh", "bow-2.person2.bvh"]
    back = run("export", "out/bow.person1.bvh", "out/bow.person2.bvh", "--format", "npz", "--out", "back", "--fps", 15)
    assert back.exit_code == 0, back.output
    beside = run("export", bow, "--format", "glb", "--format", "bvh")
    assert [Path(line).name for line in beside.stdout.split()] == ["bow.glb", "bow.person1.bvh", "bow.person2.bvh"]
    take = export.load(tmp_path / "back" / "bow.npz")
    assert take.fps == 15
    np.testing.assert_allclose(take.joints, export.load(bow).joints[:, ::2], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bow.npz", "--format", "fbx"), "--format: expected one of npz, bvh, glb, amass, html, mp4, gif, got 'fbx'"),
        (("bow.npz", "--format", "interhuman"), "--format: expected one of"),
        (("absent.npz", "--format", "bvh"), "no such file: absent.npz"),
        (("bow.npz", "bow.npz", "--format", "bvh"), "expected one .npz file, which holds all persons, got 2"),
        (("bow.npz", "--format", "bvh", "--fps", 0), "fps: expected a positive number, got 0.0"),
        (("bow.npz", "--format", "bvh", "--out", "bow.npz/below"), "is not a folder"),
        (("bow.npz", "--format", "mp4", "--camera", "below"), "camera: expected one of"),
        (
            ("bow.npz", "--format", "bvh", "--format", "gif", "--fps", 0.001),
            "fps: expected 0.01 to 1000 frames a second",
        ),
        (
            ("bow.npz", "--format", "bvh", "--format", "mp4", "--fps", 2000),
            "fps: expected 0.01 to 1000 frames a second",
        ),
        (("five.npz", "--format", "bvh", "--format", "mp4"), "persons: expected at most 4 in a video, got 5"),
    ],
)
def test_what_cannot_work_is_told_in_a_line(bow: Path, tmp_path: Path, arguments: tuple[Any, ...], told: str) -> None:
    export.save("five.npz", np.tile(export.load(bow).joints[:1], (5, 1, 1, 1)))
    before = sorted(tmp_path.iterdir())
    result = run("export", *arguments)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_each_format_is_given_the_look_and_the_name_of_the_first_file(
    bow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = export.load(bow)
    for person, name in enumerate(("ann", "ben")):
        export.save(f"{name}.bvh", take.joints[person : person + 1], 30)
    given: list[tuple[Path, Any]] = []
    monkeypatch.setattr(export, "save_take", lambda path, take: (given.append((path, take)), [path])[1])
    done = run(
        "export", "ben.bvh", "ann.bvh", "--format", "npz", "--format", "glb", "--camera", "top", "--size", "320x200"
    )
    assert done.exit_code == 0, done.output
    for _, take in given:
        assert (take.view.camera, take.view.size) == ("top", (320, 200))
        np.testing.assert_allclose(take.joints, export.load(bow).joints[::-1], atol=1e-4)
    assert [path.name for path, _ in given] == ["ben.npz", "ben.glb"]


def test_view_says_where_and_serves_this_machine_alone(bow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("viser", reason="pages of figures need viser")
    from intermoe.viz.viewer import Viewer

    seen = []

    def once(self: Viewer, stop: Any = None) -> None:
        seen.append(self)
        assert threading.active_count() > 1

    monkeypatch.setattr(Viewer, "run", once)
    result = run("view", bow, bow, "--port", 0)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("http://127.0.0.1:")
    assert len(seen) == 1


def test_view_hands_on_all_that_the_files_tell(bow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joints = export.load(bow).joints
    export.save("slow.npz", joints, 12, ["Ann", "Ben"])
    export.save("fast.amass.npz", joints, 60)
    handed: dict[str, Any] = {}

    class Viewer:
        def __init__(self, server: Any, motions: Any, camera: str) -> None:
            handed.update(server=server, motions=motions, camera=camera)

        def run(self) -> None:
            raise KeyboardInterrupt

    @contextmanager
    def served(port: int) -> Iterator[Any]:
        yield SimpleNamespace(get_host=lambda: "here", get_port=lambda: port)

    monkeypatch.setattr("intermoe.viz.viewer.Viewer", Viewer)
    monkeypatch.setattr("intermoe.viz.scene.serving", served)
    monkeypatch.setattr("intermoe.export.format.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("intermoe.routing.read_trace", lambda file: "trace" if file.stem == "slow" else None)
    monkeypatch.setattr("intermoe.routing.picture.routing_panel", lambda *of, **how: (of, how))
    result = run("view", "slow.npz", "fast.amass.npz", "--port", 81, "--camera", "top")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("http://here:81 ")
    assert handed["camera"] == "top"
    slow, fast = handed["motions"]
    assert (slow.title, slow.fps, slow.names) == ("slow", 12, ("Ann", "Ben"))
    assert (fast.title, fast.fps, fast.names) == ("fast", 60, ("person 1", "person 2"))
    for motion in (slow, fast):
        np.testing.assert_allclose(motion.joints, joints, atol=1e-4)
    # read on a screen twice as fine as its pixels
    assert slow.panel == (("trace", 640), {"scale": 2})
    assert fast.panel is None


@pytest.mark.parametrize("port", [-1, 70000])
@pytest.mark.parametrize("command", [("view", "bow.npz"), ("live",)])
def test_a_port_that_there_is_not_is_named_before_any_work(
    bow: Path, command: tuple[str, ...], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("viser", reason="pages of figures need viser")
    for place in ("intermoe.export.load", "intermoe.cli.live.load_pipeline"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("work before all was checked"))
    result = run(*command, "--port", port)
    assert result.exit_code == 2
    assert result.stderr == f"error: port: expected 0 to 65535, got {port}\n"


def test_one_file_is_not_two_persons(bow: Path, tmp_path: Path) -> None:
    assert run("export", bow, "--format", "bvh", "--out", ".").exit_code == 0
    result = run("export", "bow.person1.bvh", "bow.person1.bvh", "--format", "npz", "--out", "out")
    assert result.exit_code == 2
    assert "expected different files, one per person, got bow.person1.bvh, bow.person1.bvh" in result.stderr


def test_view_without_viser_says_what_to_install(bow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("view", bow)
    assert result.exit_code == 2
    assert "pip install 'intermoe[view]'" in result.stderr
