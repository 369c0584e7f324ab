"""Places and options that commands refuse before any work, and what they tell of what is done."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from intermoe.cli import __main__ as process
from intermoe.cli import app, backends, view
from intermoe.eval.protocol import PROTOCOLS


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train recipe salsa_vae --out file/r", "--out: PLACE/file is not a folder"),
        ("train salsa_vae --out file/r", "--out: PLACE/file is not a folder"),
        ("train vae salsa_vae --out file", "--out: PLACE/file is not a folder"),
        ("train denoiser salsa_denoiser --out file/r", "--out: PLACE/file is not a folder"),
        ("train evaluator salsa_vae --out file/r", "--out: PLACE/file is not a folder"),
        ("ablate --data d --out file/r", "--out: PLACE/file is not a folder"),
        ("ablate --data file --out r", "--data: not a folder: file"),
        ("compare --data d --out file/r", "--out: PLACE/file is not a folder"),
        ("compare --data file --out r", "--data: not a folder: file"),
        ("compare nothing --data d --out r", "matrix: 'nothing' is neither a file nor a shipped comparison ("),
        ("compare --data d --out r --load mdm", "--load: expected NAME=FOLDER, got 'mdm'"),
        ("convert x.ckpt --out file/r", "--out: PLACE/file is not a folder"),
        ("convert x.ckpt --out there", "--out: there holds a model already"),
        ("export x.npz --format npz --out file/r", "--out: PLACE/file is not a folder"),
        ("view x.npz --camera back", "camera: expected one of side, front, top, follow, got 'back'"),
    ],
    ids=range(15),
)
def test_what_cannot_be_is_refused_before_any_work(
    command: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("d", "there"):
        Path(folder).mkdir()
    for file in ("file", "there/config.json", "x.ckpt"):
        Path(file).touch()
    for work in (
        "train.trainers.train", "train.run_vae", "train.run_denoiser", "train.run_evaluator",
        "train.ablate.run_ablation", "official.layouts.layout_of", "export.load",
    ):  # fmt: skip
        monkeypatch.setattr(f"intermoe.{work}", lambda *_, **__: pytest.fail("work began"))
    before = sorted(tmp_path.rglob("*"))
    done = run(*command.split())
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: {told.replace('PLACE', str(tmp_path))}"), done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "trainer"),
    [
        ("train salsa_vae", "trainers.train"),
        ("train recipe salsa_vae", "trainers.train"),
        ("train vae salsa_vae", "run_vae"),
        ("train denoiser salsa_denoiser", "run_denoiser"),
        ("train evaluator salsa_vae", "run_evaluator"),
    ],
    ids=range(5),
)
def test_every_trainer_tells_where_its_model_is(
    words: str, trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(f"intermoe.train.{trainer}", lambda path, out, **of: (given.append(of), out / "model")[1])
    done = run(*words.split(), "--out", tmp_path / "r")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/r/model\n"), done.output
    assert given[0]["resume"] is False
    assert {value for name, value in given[0].items() if name != "resume"} == {None}


def test_an_option_is_no_recipe() -> None:
    done = run("train", "--help")
    assert done.exit_code == 0
    for trainer in ("recipe", "vae", "denoiser", "evaluator"):
        assert trainer in done.stdout
    assert run("train", "--nothing").exit_code == 2


def test_an_ablation_hands_its_evaluator_on_and_tells_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("intermoe.evaluators.evaluator.load_evaluator", lambda folder: f"evaluator of {folder}")
    monkeypatch.setattr(
        "intermoe.train.ablate.run_ablation",
        lambda *_, **of: (given.update(of), SimpleNamespace(table=lambda: [["a column"], ["a cell"]]))[1],
    )
    done = run("ablate", "--data", tmp_path, "--out", tmp_path / "r", "--evaluator", "e", "--vae", "v")
    assert done.exit_code == 0, done.output
    assert (given["evaluator"], given["vae"], given["model"]) == ("evaluator of e", Path("v"), None)
    assert "a cell" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/r/ablation.md"


def test_the_processor_is_told_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 13)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    monkeypatch.setattr(backends.platform, "machine", lambda: "a machine")
    assert backends._devices() == ["cpu   a machine, 13 threads, AVX9"]


def test_versions_are_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_version", lambda name: f"{len(name)}.0")
    monkeypatch.setattr(backends.platform, "python_version", lambda: "3.99")
    monkeypatch.setattr(backends.platform, "system", lambda: "a system")
    told = backends.report().splitlines()
    names = ("intermoe", "torch", "triton", "numpy", "diffusers", "transformers", "accelerate")
    versions = [[name, f"{len(name)}.0"] for name in names] + [["python", "3.99", "on", "a", "system"]]
    assert told[0] == "versions"
    assert [line.split() for line in told[1:9]] == versions
    assert told[9] == "devices"


@pytest.mark.parametrize("name", ["x.npz", "x.NPZ"])
def test_experts_are_looked_for_in_archives_however_they_are_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setattr("intermoe.routing.read_trace", lambda path: "a trace")
    monkeypatch.setattr("intermoe.routing.picture.routing_panel", lambda trace, width, scale: (trace, width, scale))
    assert view._experts(tmp_path / name) == ("a trace", 640, 2)  # type: ignore[comparison-overlap]
    (tmp_path / "x.npy").touch()
    assert view._experts(tmp_path / "x.npy") is None


def test_every_protocol_is_a_command_that_names_its_data() -> None:
    told = run("evaluate", "--help").stdout
    for name in PROTOCOLS:
        assert f"published protocol of {name}." in " ".join(told.split())


def test_the_version_is_all_that_it_tells() -> None:
    from intermoe import __version__

    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize(("lost", "number"), [(KeyboardInterrupt(), 2), (SystemExit(143), 15), (SystemExit(129), 1)])
def test_a_lost_signal_comes_once_more(lost: BaseException, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        process.threading, "Timer", lambda *given: (timers.append(given), SimpleNamespace(start=lambda: None))[1]
    )
    process.stop_all_the_same(SimpleNamespace(exc_value=lost))  # type: ignore[arg-type]
    ((after, kill, (pid, sent)),) = timers
    assert (kill, pid, sent) == (process.os.kill, process.os.getpid(), number)
    assert 0 < after <= 1


@pytest.mark.parametrize("lost", [SystemExit(128), SystemExit(2), SystemExit("words"), RuntimeError("x")])
def test_what_else_is_lost_is_told_as_ever(lost: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    monkeypatch.setattr(process.threading, "Timer", lambda *_: pytest.fail("a signal"))
    given: Any = SimpleNamespace(exc_value=lost)
    process.stop_all_the_same(given)
    assert told == [given]


def test_who_ignores_a_hangup_goes_on(tmp_path: Path) -> None:
    """As nohup has it; and a signal that comes twice is told once."""
    script = """
import os, signal
from intermoe import cli
from intermoe.cli.__main__ import main
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def command():
    os.kill(os.getpid(), signal.SIGHUP)
    print("went on", flush=True)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
cli.app = command
main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "went on\n")
    assert ended.stderr == "error: stopped by SIGTERM\n"
