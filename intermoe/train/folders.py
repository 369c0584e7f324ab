"""The folder of a trained autoencoder or tokeniser: configuration, weights, statistics, and how it was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from intermoe.checkpoints import load_module, load_safetensors
from intermoe.config import Config
from intermoe.files import replacing_folder, write_tensors
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.motion.statistics import Statistics
from intermoe.systems.files import to_be_filled
from intermoe.train import run

ModuleT = TypeVar("ModuleT", bound=nn.Module)
CONFIG, WEIGHTS, STATISTICS = "config.json", "model.safetensors", "statistics.json"


def save_trained(folder: Path, name: str, config: Any, state: Mapping[str, Tensor], statistics: Statistics) -> None:
    """Write the module ``name`` of an objective's ``state``, trained as ``config``, the run's, says."""
    with replacing_folder(folder) as temporary:
        run.write_config(temporary / CONFIG, config.model)
        run.write_config(temporary / "training.json", run.without_paths(config))
        statistics.save(temporary / STATISTICS)
        write_tensors(temporary / WEIGHTS, {key.removeprefix(f"{name}."): value for key, value in state.items()})


def load_trained(
    folder: str | Path, name: str, config_type: type[Config], build: Callable[[Any], ModuleT]
) -> tuple[ModuleT, Statistics]:
    """What ``save_trained`` wrote, in eval mode and frozen, and the statistics of its motion.

    Raises:
        FileNotFoundError: a file is missing; names ``name``. ValueError: a file does not fit the configuration; names
            the key.
    """
    folder = Path(folder)
    for file in (CONFIG, WEIGHTS, STATISTICS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{name}: {folder} holds no {file}")
    config: Any = config_type.load(folder / CONFIG)
    weights = folder / WEIGHTS
    with to_be_filled(weights):
        module = build(config)
    load_module(module, load_safetensors(weights), weights)
    columns = REPRESENTATIONS[config.representation].frame_shape[-1]
    statistics = Statistics.load(folder / STATISTICS)
    if len(statistics.mean) != columns:
        raise ValueError(f"{folder / STATISTICS}: expected {columns} columns, got {len(statistics.mean)}")
    return module.eval().requires_grad_(False), statistics
