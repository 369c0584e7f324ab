"""The folder of a run: who may write to it, what a start that failed leaves, and what a resumed run must find again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from intermoe.data import InterHumanDataset
from intermoe.files import locked
from intermoe.train import run_denoiser, run_evaluator, run_vae
from intermoe.train import vae as vae_module
from intermoe.train.config import VAETrainConfig
from intermoe.train.run import check_captions, require_same

Write = Callable[..., Path]


@pytest.fixture
def data(pairs: Path, tmp_path: Path) -> Path:
    """A copy of the data, to change."""
    return Path(shutil.copytree(pairs, tmp_path / "data"))


def test_data_that_cannot_be_used_are_refused_before_anything_is_made(
    data: Path, write_config: Write, tmp_path: Path
) -> None:
    config, output, listed = write_config("vae", **{"optim.steps": 2}), tmp_path / "run", data / "split" / "val.txt"
    names = listed.read_text(encoding="utf-8")
    listed.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="expected items in split 'val', got none"):
        run_vae(config, output, data=data)
    assert not output.exists()
    listed.write_text(names, encoding="utf-8")
    assert (run_vae(config, output, data=data) / "model.safetensors").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_caption_that_is_too_long_is_refused_before_anything_is_made(
    data: Path, trained_vae: Path, write_config: Write, tmp_path: Path, split: str
) -> None:
    name = (data / "split" / f"{split}.txt").read_text(encoding="utf-8").split()[0]
    (data / "annots" / f"{name}.txt").write_text("they dance\n" + "dance " * 200, encoding="utf-8")
    told = rf"split '{split}', item '{name}': prompts: expected at most max_tokens=77 word pieces, got 201"
    with pytest.raises(ValueError, match=told):
        run_denoiser(write_config("denoiser"), tmp_path / "run", vae=trained_vae / "model", data=data)
    evaluator = {"model.text.kind": "wordpiece", "model.embedding_dim": 8, "model.text.output_dim": 8}
    small = {"model.text.width": 8, "model.text.num_heads": 2, "model.text.vocab_size": 60, "model.width": 8}
    config = tmp_path / "evaluator.json"
    nested: dict[str, dict[str, object]] = {"model": {"text": {}}, "data": {"batch_size": 2}}
    for key, value in (evaluator | small).items():
        *sections, last = key.split(".")
        section: dict[str, object] = nested["model"]
        for part in sections[1:]:
            section = section[part]  # type: ignore[assignment]
        section[last] = value
    config.write_text(json.dumps(nested), encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        run_evaluator(config, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_does_not_stand_in_the_way(
    data: Path, write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output = write_config("vae", **{"optim.steps": 2}), tmp_path / "run"

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(vae_module, "fit", fail)
        with pytest.raises(OSError, match="disk full"):
            run_vae(config, output, data=data)
    before = (output / "statistics.json").read_bytes()
    shutil.copy(data / "motions_processed/person1/1.npy", data / "motions_processed/person1/2.npy")
    shutil.copy(data / "motions_processed/person2/1.npy", data / "motions_processed/person2/2.npy")
    run_vae(config, output, data=data)
    assert (output / "statistics.json").read_bytes() != before, "what the first start had measured is of other data"
    assert not list(output.glob(".*"))


def test_a_folder_of_something_else_is_left_alone(pairs: Path, write_config: Write, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"name": "a model"}')
    with pytest.raises(FileExistsError, match="holds a run already"):
        run_vae(write_config("vae"), tmp_path, data=pairs)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == '{"name": "a model"}'


def test_two_at_once_in_one_folder(pairs: Path, write_config: Write, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock", ""),
        pytest.raises(FileExistsError, match=r"output_dir: another process is training in"),
    ):
        run_vae(write_config("vae"), tmp_path, data=pairs)
    assert not list(tmp_path.iterdir())


def test_what_a_resumed_run_may_change() -> None:
    """More steps, another place, and how often it tells; everything else makes another run, and is named."""
    config, path = VAETrainConfig(), Path("config.json")
    now: dict[str, dict[str, Any]] = {
        "optim": {"steps": 20_000, "epochs": 9}, "data": {"root": "elsewhere", "num_workers": 2},
        "run": {"log_every": 1, "validate_every": 7, "checkpoint_every": 9, "keep_checkpoints": 1},
    }  # fmt: skip
    require_same(config, VAETrainConfig.from_dict(now), path)
    for key, value in (
        ("optim.learning_rate", 1e-3), ("optim.ema_decay", 0.5), ("optim.warmup_steps", 7), ("optim.clip", "none"),
        ("data.batch_size", 2), ("data.mirror", False), ("losses.kl", 1.0), ("window", 32), ("seed", 5),
    ):  # fmt: skip
        *section, name = key.split(".")
        changed = VAETrainConfig.from_dict({section[0]: {name: value}} if section else {name: value})
        told = rf"^resume: expected .* config\.json .*, got another: {key} was \S+, is \S+$"
        with pytest.raises(ValueError, match=told):
            require_same(config, dataclasses.replace(changed, run=config.run), path)


def test_other_data_are_not_gone_on_with(trained_vae: Path, data: Path, write_config: Write, tmp_path: Path) -> None:
    """A copy elsewhere is the same data; one changed word is not."""
    output = Path(shutil.copytree(trained_vae, tmp_path / "run"))
    run_vae(write_config("vae"), output, data=data, resume=True)
    (data / "annots" / "6.txt").write_text("they dance\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"resume: expected the data that .* was started with, got other data of val"):
        run_vae(write_config("vae"), output, data=data, resume=True)


def test_a_finished_run_says_so_and_goes_on_for_more_steps(
    trained_vae: Path, pairs: Path, write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(trained_vae, tmp_path / "run"))
    before = (output / "model" / "model.safetensors").read_bytes()
    run_vae(write_config("vae"), output, data=pairs, resume=True)
    assert capsys.readouterr().err == "finished already, at step 4 of optim.steps=4; ask for more to go on\n"
    assert (output / "model" / "model.safetensors").read_bytes() == before
    run_vae(write_config("vae", **{"optim.steps": 6}), output, data=pairs, resume=True)
    told = capsys.readouterr().err.splitlines()
    assert told[0].endswith("5 items to train on, 2 to validate, 2 a step, steps 4 to 6, 1 x cpu")
    assert [line.split(",")[0] for line in told if line.startswith("step")] == ["step 6/6"]
    assert told[-2].startswith("validation at step 6: joint_error_cm ")
    assert told[-1].startswith("checkpoint at step 6 in ")
    assert (output / "model" / "model.safetensors").read_bytes() != before
    with pytest.raises(ValueError, match=r"expected a checkpoint of at most optim\.steps=5, got .*step-00000006"):
        run_vae(write_config("vae", **{"optim.steps": 5}), output, data=pairs, resume=True)


def test_a_digest_is_of_content(data: Path, pairs: Path) -> None:
    def digest(root: Path) -> str:
        return InterHumanDataset(root, "val", min_frames=16).digest()

    first = digest(pairs)
    assert digest(data) == first
    (data / "annots" / "7.txt").write_text("they dance", encoding="utf-8")
    changed = digest(data)
    path = data / "motions_processed" / "person2" / "6.npy"
    motion = np.load(path)
    motion[-1, 65] = np.nextafter(motion[-1, 65], np.float32(9))
    np.save(path, motion)
    assert len({first, changed, digest(data)}) == 3


PARENT = """
import os, signal, sys
import torch
from torch.utils.data import DataLoader
from intermoe.data.workers import end_with_parent
loader = DataLoader(range(10**6), batch_size=1, num_workers=1, worker_init_fn=end_with_parent)
batches = iter(loader)
next(batches)
print(batches._workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal of a parent's death")
def test_workers_end_with_a_parent_that_was_killed() -> None:
    ended = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    worker = Path("/proc") / ended.stdout.strip()
    until = time.monotonic() + 3  # torch's own watch takes up to 5 seconds
    while worker.exists() and "zombie" not in (worker / "status").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not worker.exists() or "zombie" in (worker / "status").read_text()


def test_numbers_too_small_for_float32_are_zero_in_training(write_config: Write, data: Path, tmp_path: Path) -> None:
    torch.set_flush_denormal(False)
    try:
        assert torch.tensor([1e-39]) * 1 != 0
        run_vae(write_config("vae", **{"optim.steps": 2}), tmp_path / "run", data=data)
        assert torch.tensor([1e-39]) * 1 == 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("mirror", "swap_persons", "more"),
    [
        (False, False, set()),
        (True, False, {"the first turns right"}),
        (False, True, {"the second turns left"}),
        (True, True, {"the first turns right", "the second turns left", "the second turns right"}),
    ],
)
def test_captions_are_checked_as_training_can_show_them(mirror: bool, swap_persons: bool, more: set[str]) -> None:
    checked: list[str] = []
    text: Any = SimpleNamespace(check=checked.extend)
    split: Any = SimpleNamespace(
        names=["1"], captions=lambda index: ["the first turns left"], mirror=mirror, swap_persons=swap_persons
    )
    check_captions(text, split)
    assert set(checked) == {"the first turns left"} | more
