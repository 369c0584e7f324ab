"""``intermoe routing``: its files, and refusals before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from intermoe import cli
from intermoe.cli import routing
from intermoe.pipeline import ModelConfig


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.app, ["routing", *map(str, arguments)])


@pytest.fixture
def model(tiny_pipeline: Any, tmp_path: Path) -> Path:
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_generation(run: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    options = ("--model", model, "--frames", 16, "--steps", 2)
    result = run("Two people bow.", *options)
    assert result.exit_code == 0, result.output
    names = [f"routing-two-people-bow.{suffix}" for suffix in ("png", "svg", "npz")]
    assert [Path(line).name for line in result.stdout.split()] == names
    with np.load(tmp_path / "results" / names[2]) as archive:
        assert archive["chosen"].shape == (2, 1, 2, 4, 3)
    assert run("Two people bow.", *options, "--format", "gif").exit_code == 0
    assert (tmp_path / "results" / "routing-two-people-bow-2.gif").exists()  # nothing is overwritten
    assert run("They wave.", "--model", model, "--steps", 1, "--format", "npz").exit_code == 0
    with np.load(tmp_path / "results" / "routing-they-wave.npz") as archive:
        assert archive["chosen"].shape == (1, 1, 2, 10, 3)  # as long as the model can, which is less than 120 frames


def test_a_recorded_motion(run: Any, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for person in ("person1", "person2"):
        (tmp_path / "motions_processed" / person).mkdir(parents=True)
        np.save(tmp_path / "motions_processed" / person / "7.npy", rng.normal(size=(30, 492)).astype(np.float32))
    for folder, name, text in (("annots", "7", "they bow"), ("split", "val", "7")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.txt").write_text(text, encoding="utf-8")
    options = ("--model", model, "--data", tmp_path, "--format", "npz", "--level", 0.5)
    result = run(*options, "--item", 7, "--frames", 20)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "results" / "routing-7.npz") as archive:
        assert archive["chosen"].shape == (1, 1, 2, 5, 3)
        assert archive["timesteps"].tolist() == [500]
    result = run(*options, "--item", 8)
    assert result.exit_code == 2
    assert "--item: expected one of split 'val'" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "prompt: expected a description"),
        (("bow", "--item", "7"), "--item: expected --data and --item together"),
        (("bow", "--data", "d"), "--item: expected --data and --item together, got only one of them"),
        ((" ",), "prompt: expected a description"),
        (("bow", "--level", 1), "--level: expected a value in [0, 1)"),
        (("bow", "--level", -0.1), "--level: expected a value in [0, 1), got -0.1"),
        (("bow", "--out", "model/config.json/below"), "--out: "),
        (("bow " * 40,), "prompts: expected at most max_tokens=16 word pieces"),
        (("bow", "--steps", 0), "--steps: expected >= 1"),
        (("bow", "--frames", 1000), "--frames: expected a value in [8, 40]"),
    ],
)
def test_refusals(run: Any, model: Path, options: tuple[Any, ...], message: str) -> None:
    result = run(*options, "--model", model)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


class Trace:
    """A trace whose files say what wrote them."""

    def save_npz(self, path: Path) -> None:
        path.write_text("arrays", encoding="utf-8")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What is traced, by a pipeline of longer motion than the command makes by itself; files without a picture."""
    found: dict[str, Any] = {"loaded": None}
    pipeline = SimpleNamespace(
        config=ModelConfig(max_frames=290),
        check=lambda *given: found.update(checked=given),
        default_guidance=lambda _: 4.5,
    )
    monkeypatch.setattr(routing, "load_pipeline", lambda *given, **of: (found.update(loaded=(given, of)), pipeline)[1])

    def tracing(name: str) -> Any:
        return lambda *given, **of: (found.update({name: (given, of)}), Trace())[1]

    for name in ("trace_generation", "trace_motion"):
        monkeypatch.setattr(f"intermoe.routing.trace.{name}", tracing(name))
    picture = SimpleNamespace(save=lambda path: path.write_text("a picture", encoding="utf-8"))
    monkeypatch.setattr("intermoe.routing.picture.draw_routing", lambda trace: picture)
    monkeypatch.setattr("intermoe.routing.picture.RoutingScene", lambda trace: trace)
    for name in ("gif", "mp4"):
        monkeypatch.setattr(f"intermoe.viz.save_{name}", lambda path, scene, n=name: path.write_text(f"moving {n}"))
    monkeypatch.setattr(routing, "check_drawing", lambda formats: found.update(formats=[*formats]))
    return found


def test_every_format_is_written_once_in_the_order_that_is_asked_for(
    run: Any, drawn: dict[str, Any], tmp_path: Path
) -> None:
    """Under a name that no file of any format has."""
    formats = ("gif", "npz", "mp4", "svg", "gif", "png")
    result = run("They bow.", *(word for name in formats for word in ("--format", name)), "--out", "new/deeper")
    assert result.exit_code == 0, result.output
    assert drawn["formats"] == ["gif", "npz", "mp4", "svg", "png"]
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in paths] == [f"routing-they-bow.{name}" for name in drawn["formats"]]
    told = [path.read_text(encoding="utf-8") for path in paths]
    assert told == ["moving gif", "arrays", "moving mp4", "a picture", "a picture"]
    Path("results").mkdir()
    Path("results/routing-they-bow.mp4").touch()
    assert run("They bow.", "--format", "npz").stdout == "results/routing-they-bow-2.npz\n"


def test_a_generation_is_of_120_frames_and_checked_before(run: Any, drawn: dict[str, Any]) -> None:
    assert run("They bow.", "--format", "npz").exit_code == 0
    assert drawn["checked"] == (["They bow."], 120)
    assert drawn["trace_generation"][1]["num_frames"] == 120
    assert run("They bow.", "--frames", 200, "--format", "npz").exit_code == 0
    assert drawn["trace_generation"][1]["num_frames"] == 200


def test_an_item_is_routed_at_its_level_under_its_name(
    run: Any, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise too; the first ten names are told where there is no such item."""
    names = [str(number) for number in range(70, 90)]
    motions = {number: {"motion": np.full((1, 9), number)} for number in range(20)}

    class Data:
        def __init__(self, root: Path, split: str, *, training: bool) -> None:
            self.names = names if (root, split, training) == (Path("d"), "val", False) else []

        def __getitem__(self, index: int) -> dict[str, Any]:
            return motions[index]

    monkeypatch.setattr("intermoe.data.InterHumanDataset", Data)
    result = run("bow", "--data", "d", "--item", 72, "--level", 0, "--frames", 4, "--seed", 5, "--format", "npz")
    assert result.exit_code == 0, result.output
    assert result.stdout == "results/routing-72.npz\n"
    (_, motion), options = drawn["trace_motion"]
    assert motion.tolist() == [[2, 2, 2, 2]]
    assert options == {"level": 0.0, "prompt": "bow", "seed": 5}
    drawn["loaded"] = None
    result = run("--data", "d", "--item", "7", "--format", "npz")
    told = "70, 71, 72, 73, 74, 75, 76, 77, 78, 79, ..."
    assert (result.exit_code, result.stderr) == (2, f"error: --item: expected one of split 'val' ({told}), got '7'\n")
    assert drawn["loaded"] is None
