from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

# what each of two processes of a launcher runs; both leave their weights behind
RANK = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from intermoe.train import loop, run_denoiser

config, output, vae, data = sys.argv[1:]
torch.set_num_threads(1)

class Watched(loop.Trainer):
    def run(self, resume):
        state = super().run(resume)
        weights = {k: v.contiguous() for k, v in self.model.module.state_dict().items()}
        save_file(weights, Path(output).parent / f"rank{self.accelerator.process_index}.safetensors")
        return state

loop.Trainer = Watched
run_denoiser(config, output, vae=vae, data=data)
torch.distributed.destroy_process_group()
"""


def _launch(arguments: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def test_two_processes_keep_equal_weights_and_biases(
    trained_vae: Path, pairs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config("denoiser", **{"optim.accumulation_steps": 1})
    _launch([str(config), str(tmp_path / "run"), str(trained_vae / "model"), str(pairs)])
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    biases = [value for key, value in first.items() if key.endswith("selection_bias")]
    assert any((bias != -0.5).any() for bias in biases)
    assert (tmp_path / "run/model/model.safetensors").exists()
