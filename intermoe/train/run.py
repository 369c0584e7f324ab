"""The folder of a training run: its configuration, statistics and final model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from intermoe.config import Config
from intermoe.data.dataset import MotionDataset
from intermoe.data.sets import DATA_SETS
from intermoe.files import replacing
from intermoe.train.config import TrainConfig

TrainConfigT = TypeVar("TrainConfigT", bound=TrainConfig)
CONFIG_FILE = "config.json"
# what may change when a run is resumed: it does not touch the weights
_FREE = ("run.", "data.root", "data.num_workers")


def with_data(config: TrainConfigT, root: str | Path | None) -> TrainConfigT:
    """``config`` reading ``root`` (``None``: as configured). Raises ``ValueError`` if there is no such folder."""
    chosen = str(root) if root is not None else config.data.root
    if chosen is None:
        raise ValueError("data.root: no folder given, neither in the configuration nor as data")
    if not Path(chosen).is_dir():
        raise ValueError(f"data.root: not a folder: {chosen}")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=chosen))


def start(config: TrainConfig, output_dir: Path, *, resume: bool) -> Accelerator:
    """Join the launcher's processes; make the folder and write ``config.json``, or compare it on ``resume``.

    Must come before anything else that asks how many processes there are. Tensorboard's events go to
    ``output_dir/logs``. Processes on several nodes must see one ``output_dir``.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is off.
        ValueError: the run to resume was started with other values; names them.
    """
    accelerator = Accelerator(
        # on a machine without a device, processes find each other only if told that the CPU is meant
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.optim.mixed_precision,
        log_with="tensorboard",
        project_dir=output_dir,
        # buffers are equal on all ranks by construction (the bias update sums counts), so nothing is broadcast
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.optim.tf32 else "highest")
    if accelerator.is_main_process:
        path = output_dir / CONFIG_FILE
        if path.exists() and not resume:
            raise FileExistsError(f"output_dir: {output_dir} holds a run already; resume it or choose another folder")
        if path.exists():
            _require_same(type(config).load(path), config, path)
        output_dir.mkdir(parents=True, exist_ok=True)
        write_config(path, config)
    accelerator.wait_for_everyone()
    return accelerator


def open_split(config: TrainConfig, split: str, *, min_frames: int) -> MotionDataset:
    """The training split with, any other split without augmentation."""
    augment = split == "train"
    return MotionDataset(
        DATA_SETS[config.data.representation],
        str(config.data.root),
        split,
        min_frames=min_frames,
        max_frames=config.data.max_frames,
        mirror=augment and config.data.mirror,
        swap_persons=augment and config.data.swap_persons,
        seed=config.seed,
        training=augment,
        strict=config.data.strict,
    )


def once(accelerator: Accelerator, path: Path, write: Callable[[Path], object]) -> Path:
    """``path``, written by the main process where it is absent; every process and every resumption then reads it.

    ``write(path)`` must leave a whole ``path`` or none.
    """
    if accelerator.is_main_process and not path.exists():
        write(path)
    accelerator.wait_for_everyone()
    return path


def without_paths(config: TrainConfigT) -> TrainConfigT:
    """``config`` as it is saved with a model: folders of this machine mean nothing elsewhere."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))


def write_config(path: Path, config: Config) -> None:
    """Write JSON that ``type(config).load`` reads, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def _require_same(saved: TrainConfig, config: TrainConfig, path: Path) -> None:
    before, now = _flat(saved.to_dict()), _flat(config.to_dict())
    changed = [key for key in now if now[key] != before[key] and not key.startswith(_FREE)]
    if changed:
        listed = ", ".join(f"{key} was {before[key]!r}, is {now[key]!r}" for key in changed)
        raise ValueError(f"resume: {path} was started with another configuration: {listed}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
