"""A small synthetic data set in InterHuman's layout and tiny configurations for training on it."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
from collections.abc import Callable, Generator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

ITEMS = {"train": {"1": 40, "2": 29, "3": 33, "4": 26, "5": 30}, "val": {"6": 31, "7": 24}}

VAE = {
    "window": 16,
    "data": {"batch_size": 2},
    "model": {"latent_dim": 4, "num_blocks": 1},
    "optim": {"steps": 4, "warmup_steps": 1, "learning_rate": 1e-3, "ema_decay": 0.9},
    "run": {"log_every": 2, "validate_every": 4, "checkpoint_every": 2, "keep_checkpoints": 3},
}
DENOISER = {
    "name": "tiny",
    # three items at a time of five: batches cross from one epoch to the next
    "data": {"batch_size": 3},
    "denoiser": {
        "input_dim": 28, "text_dim": 8, "dim": 16, "num_layers": 2, "num_heads": 2, "num_experts": 3, "expert_dim": 8,
    },
    "text": {
        "kind": "wordpiece", "output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 2, "feedforward_dim": 16,
        "vocab_size": 60,
    },
    "optim": {"steps": 6, "warmup_steps": 1, "learning_rate": 1e-3, "ema_decay": 0.9, "accumulation_steps": 2},
    "run": {"log_every": 2, "validate_every": 6, "checkpoint_every": 2, "keep_checkpoints": 3},
}  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Tests of this folder run on one thread: tiny shapes gain nothing from more, and on a busy machine they wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return (yield)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """A server that has imported everything once and forks processes: what they do takes less time than their imports.

    It has no thread but its own, so that a fork of it waits for none.
    """
    context = multiprocessing.get_context("forkserver")
    used = ["intermoe.cli", "intermoe.train", "intermoe.eval.runner", "intermoe.export", "intermoe.pipeline"]
    context.set_forkserver_preload([*used, "diffusers", "tensorboard", "torch.distributed.fsdp"])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(scope="session")
def pairs(two_people: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two-person motion: swaying bodies of 22 joints, seeded."""
    captions = "the first dancer turns to the left\nthe second dancer turns to the right\ntwo people dance"
    return two_people(tmp_path_factory.mktemp("pairs"), ITEMS, captions)


@pytest.fixture(scope="session")
def write_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``write_config("vae", **{"optim.steps": 2})``: path of a tiny configuration with values replaced."""

    def write(kind: str, **changes: Any) -> Path:
        values = json.loads(json.dumps({"vae": VAE, "denoiser": DENOISER}[kind]))
        for key, value in changes.items():
            *sections, name = key.split(".")
            section = values
            for part in sections:
                section = section.setdefault(part, {})
            section[name] = value
        path = tmp_path_factory.mktemp("configs") / f"{kind}.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def trained_vae(pairs: Path, write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of one tiny VAE run."""
    from intermoe.train import run_vae

    output = tmp_path_factory.mktemp("vae") / "run"
    run_vae(write_config("vae"), output, data=pairs)
    return output


@pytest.fixture(scope="session")
def trained_denoiser(
    pairs: Path, trained_vae: Path, write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Output folder of one tiny, uninterrupted denoiser run."""
    from intermoe.train import run_denoiser

    output = tmp_path_factory.mktemp("denoiser") / "run"
    run_denoiser(write_config("denoiser"), output, vae=trained_vae / "model", data=pairs)
    return output
