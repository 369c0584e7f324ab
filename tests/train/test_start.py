"""How processes join and data are opened: each by the values of the run's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.data import DATA_SETS
from intermoe.train import run
from intermoe.train.config import VAETrainConfig


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tf32", [False, True])
def test_processes_join_as_configured(device: str, tf32: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def join(**options: Any) -> SimpleNamespace:
        asked.update(options)
        return SimpleNamespace(device=torch.device(device))

    monkeypatch.setattr(run, "Accelerator", join)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device == "cuda")
    torch.set_float32_matmul_precision("medium")
    config = VAETrainConfig.from_dict({"optim": {"tf32": tf32, "mixed_precision": "bf16"}})
    assert run.start(config, tmp_path).device.type == device
    assert torch.get_float32_matmul_precision() == {"cpu": "medium"}.get(device, "high" if tf32 else "highest")
    smallest = torch.tensor(1e-38) * 0.01
    assert (smallest == 0) == (device == "cpu"), "small gradients are 0 on a CPU, where they take time"
    (handler,) = asked.pop("kwargs_handlers")
    assert handler.broadcast_buffers is False
    assert asked == {
        "cpu": device == "cpu", "mixed_precision": "bf16", "log_with": "tensorboard", "project_dir": tmp_path,
    }  # fmt: skip


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_split_is_opened_by_the_values_of_its_configuration(split: str, mirror: bool) -> None:
    """Augmented and drawn from in training alone."""
    opened: list[Any] = []
    values = {"root": "there", "max_frames": 77, "mirror": mirror, "swap_persons": not mirror, "strict": mirror}
    config = VAETrainConfig.from_dict({"seed": 5, "data": values})

    def open_one(*given: Any, **named: Any) -> Any:
        opened.extend((given, named))

    run.open_split(config, split, min_frames=9, dataset_type=open_one)  # type: ignore[arg-type]
    training = split == "train"
    assert opened == [
        (DATA_SETS["interhuman"], "there", split),
        {
            "min_frames": 9, "max_frames": 77, "mirror": training and mirror, "swap_persons": training and not mirror,
            "seed": 5, "training": training, "strict": mirror,
        },
    ]  # fmt: skip
