"""SIGKILL at random moments: what has its name is whole, and the same command again gives the uninterrupted result.

A moment is a time since the start of the work, or the n-th operation on a file below the command's folder: most that
can break is near these. An ordinary run takes a few moments, ``pytest -m fuzz`` takes fifty.
"""

from __future__ import annotations

import json
import multiprocessing.context
import runpy
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

KILLED = Path(__file__).parent / "killed.py"  # runs in every process; see there
LONGEST = 300.0
FEW, MANY = 1, {"vae": 7, "denoiser": 11, "evaluator": 6, "prepare": 8, "generate": 9, "evaluate": 9}
Server = multiprocessing.context.ForkServerContext


@dataclass
class Work:
    """``again`` goes on with what ``command`` began; both write to ``folder``, and beside it what is not yet whole."""

    command: list[str]
    again: list[str]
    folder: Path


def start(server: Server, command: list[str], folder: Path, fatal: int = 0) -> Any:
    events = folder.parent / "events.txt"
    arguments = {"command": command, "folder": str(folder.parent), "events": str(events), "fatal": fatal}
    process = server.Process(target=runpy.run_path, args=(str(KILLED), arguments))
    process.start()
    return process


def finish(server: Server, command: list[str], folder: Path) -> tuple[float, int]:
    """Run to the end; the seconds and the file operations that it took."""
    begun = time.monotonic()
    process = start(server, command, folder)
    process.join(LONGEST)
    process.kill()
    assert process.exitcode == 0, command
    return time.monotonic() - begun, int((folder.parent / "events.txt").read_text())


def contents(folder: Path) -> dict[str, Any]:
    """Every file with a final name, by its place; not the logs, which hold times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in place.parts) and place.parts[0] != "logs":
            pickled = path.suffix == ".pt"
            found[str(place)] = tensors(torch.load(path, weights_only=True)) if pickled else path.read_bytes()
    return found


def tensors(state: Any) -> Any:
    """A state with its arrays as bytes: how torch lays them out in a file depends on how they came to be."""
    if isinstance(state, torch.Tensor):
        return state.dtype, tuple(state.shape), state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: tensors(value) for key, value in state.items()}
    return [tensors(value) for value in state] if isinstance(state, (list, tuple)) else state


@pytest.fixture(scope="session")
def evaluator(pairs: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a tiny evaluator."""
    small = {"num_layers": 1, "num_heads": 2, "feedforward_dim": 16}
    text = {"kind": "wordpiece", "output_dim": 8, "width": 8, **small}
    values = {
        "data": {"batch_size": 3},
        "model": {"width": 16, "embedding_dim": 8, "text": text, **small},
        "optim": {"steps": 4, "warmup_steps": 1, "learning_rate": 1e-3, "ema_decay": 0.9},
        "run": {"log_every": 2, "validate_every": 4, "checkpoint_every": 2, "keep_checkpoints": 3},
    }
    path = tmp_path_factory.mktemp("evaluator") / "evaluator.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def work(
    pairs: Path,
    evaluator: Path,
    trained_vae: Path,
    trained_denoiser: Path,
    write_config: Callable[..., Path],
    server: Server,
    tmp_path: Path,
) -> Callable[[str, str], Work]:
    """``work(name, place)``: one of the commands, writing to a folder of its own."""

    def make(name: str, place: str) -> Work:
        folder = tmp_path / place / "out"
        folder.parent.mkdir()
        model, data = str(trained_denoiser / "model"), ["--data", str(pairs)]
        out = ["--out", str(folder)]
        if name == "prepare":
            command = ["prepare", "interhuman", str(pairs), *out]
        elif name == "generate":
            formats = [part for kind in ("npz", "bvh", "glb") for part in ("--format", kind)]
            command = ["generate", "two people dance", "the first dancer turns", "--model", model, "--frames", "20"]
            command += ["--steps", "3", *formats, *out]
        elif name == "evaluate":
            judge = tmp_path / "judge"
            if not judge.exists():
                finish(server, ["train", "evaluator", str(evaluator), *data, "--out", str(judge)], judge)
            command = ["evaluate", "interhuman", *data, "--split", "train", "--model", model, "--steps", "2"]
            command += ["--evaluator", str(judge / "model"), "--batch-size", "3", "--replications", "2"]
            command += ["--mm-captions", "1", "--mm-samples", "2", "--generation-batch", "2", *out]
        else:
            config = {"evaluator": lambda: evaluator, "vae": lambda: write_config("vae")}
            config["denoiser"] = lambda: write_config("denoiser", **{"text_pretraining.steps": 2})
            vae = ["--vae", str(trained_vae / "model")] if name == "denoiser" else []
            command = ["train", name, str(config[name]()), *data, *vae, *out]
            return Work(command, [*command, "--resume"], folder)
        return Work(command, command, folder)

    return make


def run(name: str, moments: int, work: Callable[[str, str], Work], server: Server) -> None:
    whole = work(name, "whole")
    seconds, events = finish(server, whole.command, whole.folder)
    expected = contents(whole.folder)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for number in range(moments):
        each = work(name, str(number))
        fatal, moment = (int(rng.integers(1, events + 1)), 0.0) if number % 2 == 0 else (0, seconds * rng.random())
        told = f"{name}, killed at file operation {fatal} of {events}" if fatal else f"{name}, killed at {moment:.3f} s"
        process = start(server, each.command, each.folder, fatal)
        process.join(LONGEST if fatal else moment)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL or not fatal, told
        left = contents(each.folder)
        wrong = [place for place, content in left.items() if expected.get(place) != content]
        assert not wrong, f"{told}: {wrong}"
        finish(server, each.again, each.folder)
        after = contents(each.folder)
        if name == "generate":  # files that are there are kept, the others get the next free name
            after = {place.replace("-2.", "."): content for place, content in after.items()}
        wrong = [place for place in after.keys() | expected.keys() if after.get(place) != expected.get(place)]
        assert not wrong, f"{told}, then gone on with: {wrong}"


@pytest.mark.parametrize("name", MANY)
def test_killed_at_a_random_moment(name: str, work: Callable[[str, str], Work], server: Server) -> None:
    run(name, FEW, work, server)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", MANY)
def test_killed_at_fifty_random_moments(name: str, work: Callable[[str, str], Work], server: Server) -> None:
    assert sum(MANY.values()) == 50
    run(name, MANY[name], work, server)
