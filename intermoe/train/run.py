"""The folder of a training run: its configuration, statistics and final model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from intermoe.config import Config
from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.dataset import MotionDataset
from intermoe.data.sets import DATA_SETS
from intermoe.files import locked, read_sealed, write_json, write_sealed
from intermoe.text.protocol import TextEncoder
from intermoe.train.checkpoint import latest_checkpoint
from intermoe.train.config import TrainConfig

TrainConfigT = TypeVar("TrainConfigT", bound=TrainConfig)
CONFIG_FILE = "config.json"
DATA_FILE, LOCK_FILE = "data.json", ".lock"
# what may change when a run is resumed: it does not touch the weights, or asks for more steps
PLACES = ("run.", "data.root", "data.num_workers")
_FREE = (*PLACES, "optim.steps", "optim.epochs")


def with_data(config: TrainConfigT, root: str | Path | None) -> TrainConfigT:
    """``config`` reading ``root`` (``None``: as configured). Raises ``ValueError`` if there is no such folder."""
    chosen = str(root) if root is not None else config.data.root
    if chosen is None:
        raise ValueError("data.root: expected a folder in the configuration or as data, got neither")
    if not Path(chosen).is_dir():
        raise ValueError(f"data.root: expected a folder, got {chosen}")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=chosen))


@dataclass(frozen=True)
class Training:
    """One kind of training; ``intermoe.train.trainers`` lists them.

    ``config`` is the class of its recipes. ``run(config_path, output_dir, resume=, data=)`` trains and returns the
    model's folder; it takes the model folder of the run before it as ``start``, an argument's name, which is ``None``
    where it starts from nothing. With ``needs_start`` it cannot do without.
    """

    config: type[TrainConfig]
    run: Callable[..., Path]
    start: str | None = None
    needs_start: bool = False


@contextmanager
def claimed(
    config: TrainConfig, output_dir: Path, *, resume: bool, splits: Mapping[str, MotionDataset]
) -> Iterator[Accelerator]:
    """The launcher's processes joined, and ``output_dir`` this run's alone until the end of the block.

    Makes the folder and writes ``config.json`` and ``data.json``, the digests of ``splits``, or compares them on
    ``resume``. A folder whose run has come to no checkpoint is begun anew: its start has failed. What can be checked
    should have been checked before. Processes on several nodes must see one ``output_dir``.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is off, or another process is training in it.
        ValueError: the run to resume was started with other values or other data; names them.
    """
    with ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":  # before processes join, or the others would wait for one that refuses
            if not output_dir.exists():
                stack.callback(_remove_if_empty, output_dir)
                output_dir.mkdir(parents=True)
            refusal = f"output_dir: another process is training in {output_dir}"
            stack.enter_context(locked(output_dir / LOCK_FILE, refusal))
            digests = {name: split.digest() for name, split in splits.items()}
            _begin(config, output_dir, resume=resume, digests=digests)
        accelerator = start(config, output_dir)
        accelerator.wait_for_everyone()
        yield accelerator


def start(config: TrainConfig, output_dir: Path) -> Accelerator:
    """Join the launcher's processes. Tensorboard's events go to ``output_dir/logs``.

    Must come before anything else that asks how many processes there are.
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
    if accelerator.device.type == "cpu":
        # gradients below 1e-38 are 0: after some 1000 steps they made a step of a small denoiser take 1.4 s, not 0.5
        torch.set_flush_denormal(True)
    return accelerator


def _begin(config: TrainConfig, output_dir: Path, *, resume: bool, digests: dict[str, str]) -> None:
    path, data = output_dir / CONFIG_FILE, output_dir / DATA_FILE
    if path.exists() and not resume:
        begun = latest_checkpoint(output_dir / "checkpoints") is not None or (output_dir / "model").exists()
        if begun or not _is_run(type(config), path):
            raise FileExistsError(f"output_dir: {output_dir} holds a run already; resume it or choose another folder")
    if path.exists() and resume:
        require_same(type(config).load(path), config, path)
        saved = read_sealed(data) if data.exists() else digests
        changed = [name for name, digest in digests.items() if saved.get(name) != digest]
        if changed:
            raise ValueError(
                f"resume: expected the data that {output_dir} was started with, got other data of "
                f"{', '.join(changed)} in {config.data.root}"
            )
    write_config(path, config)
    write_sealed(data, digests)


def _is_run(config_type: type[TrainConfig], path: Path) -> bool:
    try:
        config_type.load(path)
    except ValueError:
        return False
    return True


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def open_split(
    config: TrainConfig, split: str, *, min_frames: int, dataset_type: type[MotionDataset] = MotionDataset
) -> MotionDataset:
    """The training split with, any other split without augmentation, as a ``dataset_type``."""
    augment = split == "train"
    return dataset_type(
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


def once(accelerator: Accelerator, path: Path, write: Callable[[Path], object], *, resume: bool) -> Path:
    """``path``, written by the main process, on ``resume`` only where it is absent; every process then reads it.

    ``write(path)`` must leave a whole ``path`` or none.
    """
    if accelerator.is_main_process and not (resume and path.exists()):
        write(path)
    accelerator.wait_for_everyone()
    return path


def check_captions(
    text: TextEncoder, *splits: MotionDataset, texts: Callable[[str], list[str]] = lambda caption: [caption]
) -> None:
    """Raise ``ValueError`` that names the item whose caption, as training can show it, ``text`` would refuse.

    ``texts``: what of a caption is encoded on its own.
    """
    for split in splits:
        for index, name in enumerate(split.names):
            captions = list(split.captions(index))
            captions += [mirror_caption(caption) for caption in captions if split.mirror]
            captions += [swap_caption(caption) for caption in captions if split.swap_persons]
            try:
                text.check([part for caption in captions for part in texts(caption)])
            except ValueError as error:
                raise ValueError(f"{split.root}: split {split.split!r}, item {name!r}: {error}") from error


def without_paths(config: TrainConfigT) -> TrainConfigT:
    """``config`` as it is saved with a model: folders of this machine mean nothing elsewhere."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=None))


def write_config(path: Path, config: Config) -> None:
    """Write JSON that ``type(config).load`` reads, whole or not at all."""
    write_json(path, config.to_dict())


def require_same(saved: TrainConfig, config: TrainConfig, path: Path, *, free: tuple[str, ...] = _FREE) -> None:
    """Raise ``ValueError`` that names what differs, but for keys that begin as one of ``free``."""
    before, now = _flat(saved.to_dict()), _flat(config.to_dict())
    changed = [key for key in now if now[key] != before[key] and not key.startswith(free)]
    if changed:
        listed = ", ".join(f"{key} was {before[key]!r}, is {now[key]!r}" for key in changed)
        raise ValueError(f"resume: expected the configuration that {path} was started with, got another: {listed}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
