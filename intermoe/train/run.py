"""The folder of a training run: its configuration, statistics and final model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState

from intermoe.config import Config
from intermoe.data.interhuman import InterHumanDataset
from intermoe.data.statistics import Statistics
from intermoe.train.checkpoint import TEMPORARY
from intermoe.train.config import TrainConfig

TrainConfigT = TypeVar("TrainConfigT", bound=TrainConfig)
CONFIG_FILE, STATISTICS_FILE = "config.json", "statistics.json"
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


def prepare_folder(config: TrainConfig, output_dir: Path, *, resume: bool) -> None:
    """Make the folder and write ``config.json`` into it; on ``resume`` compare with the one that is there.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is off.
        ValueError: the run to resume was started with other values; names them.
    """
    state = PartialState()
    if state.is_main_process:
        path = output_dir / CONFIG_FILE
        if path.exists() and not resume:
            raise FileExistsError(f"output_dir: {output_dir} holds a run already; resume it or choose another folder")
        if path.exists():
            _require_same(type(config).load(path), config, path)
        output_dir.mkdir(parents=True, exist_ok=True)
        write_config(path, config)
    state.wait_for_everyone()


def open_split(config: TrainConfig, split: str, *, min_frames: int) -> InterHumanDataset:
    """The training split with, any other split without augmentation."""
    augment = split == "train"
    return InterHumanDataset(
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


def keep_statistics(output_dir: Path, compute: Callable[[], Statistics]) -> Statistics:
    """The run's statistics: computed once by the main process, then read by every process and every resumption."""
    state, path = PartialState(), output_dir / STATISTICS_FILE
    if state.is_main_process and not path.exists():
        compute().save(path)
    state.wait_for_everyone()
    return Statistics.load(path)


def keep_copy(source: Path, copy: Path) -> None:
    """Copy the folder ``source`` into the run, once, so that the run can be resumed without it."""
    state = PartialState()
    if state.is_main_process and not copy.exists():
        with new_folder(copy) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    state.wait_for_everyone()


def without_paths(config: TrainConfigT) -> TrainConfigT:
    """``config`` as it is saved with a model: folders of this machine mean nothing elsewhere."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))


def write_config(path: Path, config: Config) -> None:
    """Write JSON that ``type(config).load`` reads, whole or not at all."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of ``folder`` at the end of the ``with`` block."""
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


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
