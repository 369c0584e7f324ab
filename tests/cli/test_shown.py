"""What commands show: every cell and line beside the number that it is of, and every option of those that only show."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe import backends, cli, export
from intermoe.cli import backends as machine
from intermoe.cli import common, generate
from intermoe.cli.evaluate.protocol import _told
from intermoe.eval.estimate import Estimate
from intermoe.kernels.contract import Status
from intermoe.motion.interhuman import INTERHUMAN
from intermoe.pipeline import ModelConfig
from intermoe.systems.published import Files, Layout


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "250"})


def cells(shown: str) -> list[list[str]]:
    """Cells of the lines of a table."""
    lines = (line.replace("┃", "│").strip("│ ") for line in shown.splitlines() if line[:1] in "┃│")
    return [[cell.strip() for cell in line.split("│")] for line in lines]


@pytest.mark.parametrize(
    ("dtype", "stored", "precision"),
    [("bfloat16", torch.bfloat16, None), ("tf32", torch.float32, "high"), ("float32", torch.float32, "highest")],
)
def test_what_is_tuned_is_what_was_asked_for_and_shown(
    dtype: str, stored: torch.dtype, precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from intermoe.kernels.triton import configs, tune
    from intermoe.kernels.triton.configs import KERNELS

    asked: list[tuple[Any, ...]] = []
    precisions: list[str] = []

    def workload(*given: Any) -> tuple[Any, ...]:
        asked.append(given)
        return given

    monkeypatch.setattr(tune, "Workload", workload)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    monkeypatch.setattr("intermoe.kernels.triton.unusable_reason", lambda *_: None)

    def found(workload: Any, kernel: str) -> Any:
        key = configs.Key(86, kernel, "half", configs.size_class(workload[0], 4))
        return tune.Found(key, configs.Tile(64, 32, 16, 4, 3), 10.0, configs.Tile(16, 16, 16, 1, 1), 12.5, 9)

    monkeypatch.setattr(tune, "tune", found)
    options = ("--dim", 96, "--experts", 4, "--expert-dim", 40, "--capacity", 2.5, "--dtype", dtype)
    done = run("tune", "--out", tmp_path / "tiles.json", "--tokens", 100, "--tokens", 4000, *options)
    assert done.exit_code == 0, done.output
    assert asked == [(tokens, 4, 96, 40, stored, torch.device("cuda"), 2.5) for tokens in (100, 4000)]
    assert precisions == ([] if precision is None else [precision])
    assert cells(done.stdout) == [
        ["size", "kernel", "shipped", "best", "tile m, n, k, warps, stages", "tried"],
        *([n, kernel, "12.5 µs", "10.0 µs", "64, 32, 16, 4, 3", "9"] for n in ("100", "4000") for kernel in KERNELS),
    ]


def test_systems_are_counted_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*, only: Any, progress: Callable[[str, int, int], None]) -> Any:
        progress("mdm", 0, 2)
        progress("duets", 1, 2)
        return SimpleNamespace(table=lambda: [["system", "FID"], ["mdm", "3.5"]], notes=("a note",))

    monkeypatch.setattr("intermoe.train.compare.Comparison", lambda *_, **__: SimpleNamespace(run=measure))
    done = run("compare", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == ["1/2 mdm", "2/2 duets"]
    assert cells(done.stdout) == [["system", "FID"], ["mdm", "3.5"]]
    assert done.stdout.splitlines()[-2:] == ["a note", str(tmp_path / "out" / "comparison.md")]


GIVEN = {
    "stats": Path("s"),
    "tokenizer": Path("t"),
    "part": Path("p"),
    "text": "clip",
    "layout": "interx",
    "words": Path("w"),
}


@pytest.mark.parametrize("left_out", [None, *GIVEN])
def test_every_file_of_a_conversion_arrives(
    left_out: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t").mkdir()
    read: list[tuple[Path, Files]] = []
    saved: list[tuple[Any, Path]] = []

    def reads(path: Path, files: Files) -> str:
        read.append((path, files))
        return "made"

    layout = Layout("a model", lambda _: True, tuple(GIVEN), reads, lambda made, folder: saved.append((made, folder)))
    monkeypatch.setattr("intermoe.official.layouts.layout_of", lambda _: layout)
    given = {name: value for name, value in GIVEN.items() if name != left_out}
    done = run("convert", "x.ckpt", "--out", "out", *(w for name, value in given.items() for w in (f"--{name}", value)))
    assert done.exit_code == 0, done.output
    assert read == [(Path("x.ckpt"), Files(**given))]
    assert {field.name for field in dataclasses.fields(Files)} == set(GIVEN)
    assert saved == [("made", Path("out"))]
    assert (done.stderr.strip(), done.stdout.strip()) == ("x.ckpt: a model", "out")


def test_a_grid_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a video, whatever the motions are written as."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("intermoe.cli.generate.load_pipeline", lambda *_, **__: pytest.fail("work began"))
    done = run("generate", "two people bow", "--format", "npz", "--grid", "--out", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (2, "error: mp4: needs PIL: pip install 'intermoe[viz]'\n")


def test_devices_and_backends_are_shown_with_all_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="A card", major=8, minor=9, total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    statuses = {
        "a": Status("a", True, ("cpu", "cuda"), "a reason", "a way"),
        "b": Status("b", False, (), "no library", "build it"),
        "c": Status("c", True, ("cpu",)),
    }
    monkeypatch.setattr(backends, "available", lambda: statuses)
    done = run("backends")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[lines.index("devices") + 2 : lines.index("devices") + 4] == [
        "  cuda:0 A card, sm_89, 24 GiB",
        "  cuda:1 A card, sm_89, 24 GiB",
    ]
    assert [" ".join(line.split()) for line in lines[lines.index("backends (fastest first)") + 1 :]] == [
        "a usable on cpu, cuda", "a reason", "remedy: a way", "b not usable", "no library", "remedy: build it",
        "c usable on cpu",
    ]  # fmt: skip
    versions = dict(line.split(maxsplit=1) for line in lines[1 : lines.index("devices")])
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert versions["intermoe"] == machine._version("intermoe")
    assert machine._version("there-is-no-such-distribution") == "not installed"


@pytest.mark.parametrize(
    ("seconds", "ranks", "told"),
    [
        (7384.0, 1, "12 motions to generate: about 2 h 3 min (7384 s), 1.5 GB of files"),
        (95.0, 4, "12 motions to generate: about 0 h 2 min (95 s) with 4 processes, 1.5 GB of files"),
    ],
)
def test_what_an_evaluation_will_take_is_told_in_hours_and_minutes(seconds: float, ranks: int, told: str) -> None:
    assert _told(Estimate(motions=12, seconds=seconds, bytes=3 * 2**29), ranks) == told


class Bar:
    """A bar of progress that keeps what it was told, by task."""

    disable = False

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[int, int]]] = {}
        self.at: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def add_task(self, name: str, total: int | None) -> str:
        self.told[name], self.at[name] = [], (0, total or 0)
        return name

    def update(
        self, name: str, *, completed: int | None = None, total: int | None = None, description: str = ""
    ) -> None:
        before, of = self.at[name]
        self.at[name] = before if completed is None else completed, of if total is None else total
        self.told[name].append(self.at[name])

    def advance(self, name: str) -> None:
        self.update(name, completed=self.at[name][0] + 1)


def test_progress_of_a_generation_is_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a batch go on from those before; motions are counted one by one."""
    bar = Bar()
    monkeypatch.setattr(generate, "progress_bar", lambda: bar)

    def sample(batch: range, advance: Callable[[int, int], None]) -> list[Any]:
        for step in (1, 2, 3):
            advance(step, 3)
        return [f"take {index}" for index in batch]

    written: list[tuple[int, Any]] = []
    generate._make([range(2), range(2, 3)], sample, lambda index, take: iter([written.append((index, take))]))
    assert bar.told["sampling"] == [(step, 6) for step in range(1, 7)]
    assert bar.told["writing"] == [(0, 3), (1, 3), (2, 3), (2, 3), (3, 3)]
    assert written == [(0, "take 0"), (1, "take 1"), (2, "take 2")]
    assert not bar.disable
    generate._make([], sample, lambda *_: iter([]), shown=False)
    assert bar.disable


class Still:
    """A pipeline whose people stand still, and which keeps what it is asked for."""

    schedulers = ("own", "other")
    config = ModelConfig(min_frames=4, max_frames=50)
    representation = INTERHUMAN

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def default_guidance(self, control: Any) -> float:
        return 4.5

    def check(self, prompts: list[str], num_frames: int) -> None: ...

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        self.asked.append({"prompts": prompts, **options, "progress": None})
        joints = np.zeros((2, options["num_frames"], 22, 3), dtype=np.float32)

        def take(index: int, details: dict[str, Any], view: Any) -> export.Take:
            return export.Take(joints, 30, prompt=prompts[index], details=details, view=view)

        return SimpleNamespace(prompts=prompts, take=take)


@pytest.mark.parametrize(
    ("given", "steps", "guidance", "scheduler"),
    [((), 50, 4.5, "own"), (("--steps", 7, "--guidance", 2.5, "--scheduler", "other"), 7, 2.5, "other")],
)
def test_a_file_says_how_it_was_made(
    given: tuple[Any, ...], steps: int, guidance: float, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own numbers too, where nobody gave others."""
    pipeline = Still()
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: pipeline)
    done = run("generate", "they bow", "--format", "npz", "--out", tmp_path, "--model", "m", "--seed", 3, *given)
    assert done.exit_code == 0, done.output
    (written,) = (Path(line) for line in done.stdout.split())
    assert export.load(written).details == {
        "model": "m", "num_inference_steps": steps, "guidance_scale": guidance, "scheduler": scheduler,
    }  # fmt: skip
    asked = {"num_inference_steps": steps, "guidance_scale": guidance, "scheduler": scheduler if given else None}
    own = {"prompts": ["they bow"], "num_frames": 50, "seed": 3, "num_persons": None, "control": None, "progress": None}
    assert pipeline.asked == [{**own, **asked}]


def test_progress_of_others_is_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown in (True, False):
        bar = Bar()
        monkeypatch.setattr(common, "progress_bar", lambda bar=bar: bar)
        with common.progress("measuring", shown=shown) as told:
            told(1, 4)
            told(3, 4)
        assert bar.told == {"measuring": [(1, 4), (3, 4)]}
        assert bar.disable is not shown


def test_a_table_in_a_file_is_as_wide_as_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal's width is the terminal's; who says a width has it."""
    lines = [[f"column {number}" for number in range(14)], ["0.123±0.456"] * 14]
    monkeypatch.delenv("COLUMNS", raising=False)
    common.print_table(lines)
    assert cells(capsys.readouterr().out) == lines
    monkeypatch.setenv("COLUMNS", "80")
    common.print_table(lines)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 80
