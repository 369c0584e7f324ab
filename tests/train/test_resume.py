from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from intermoe.train import checkpoint, run_denoiser

# runs until the second checkpoint is half written: weights are there, the optimiser's state is not
KILLED_IN_A_CHECKPOINT = """
import os, signal, sys, torch
from intermoe.train import run_denoiser

threads, config, output, vae, data = sys.argv[1:]
torch.set_num_threads(int(threads))
save, calls = torch.save, []

def killed(state, path):
    calls.append(path)
    if len(calls) == 2:
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, path)

torch.save = killed
run_denoiser(config, output, vae=vae, data=data)
"""


def test_a_run_killed_in_a_checkpoint_resumes_bit_for_bit(
    trained_denoiser: Path, trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config, output, vae = write_config("denoiser"), tmp_path / "run", trained_vae / "model"
    arguments = [str(torch.get_num_threads()), *map(str, (config, output, vae, pairs))]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_CHECKPOINT, *arguments], capture_output=True, text=True, timeout=900
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == [".writing-step-00000004", "step-00000002"]

    # the VAE's folder is not needed again: the run keeps a copy
    model = run_denoiser(config, output, resume=True, data=pairs)

    last = "checkpoints/step-00000006"
    for name in ("model.safetensors", "average.safetensors", "state.json"):
        assert (output / last / name).read_bytes() == (trained_denoiser / last / name).read_bytes(), name
    resumed, whole = (checkpoint.read_optimizer(folder / last) for folder in (output, trained_denoiser))
    assert resumed["state"].keys() == whole["state"].keys()
    for key, moments in whole["state"].items():
        assert all(torch.equal(resumed["state"][key][name], value) for name, value in moments.items()), key
    assert (model / "model.safetensors").read_bytes() == (trained_denoiser / "model/model.safetensors").read_bytes()
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
        "step-00000006",
    ]


def test_resuming_a_finished_run_changes_nothing(
    trained_denoiser: Path, pairs: Path, write_config: Callable[..., Path]
) -> None:
    before = (trained_denoiser / "model/model.safetensors").read_bytes()
    state = json.loads((trained_denoiser / "checkpoints/step-00000006/state.json").read_text())
    run_denoiser(write_config("denoiser"), trained_denoiser, resume=True, data=pairs)
    assert (trained_denoiser / "model/model.safetensors").read_bytes() == before
    assert json.loads((trained_denoiser / "checkpoints/step-00000006/state.json").read_text()) == state
