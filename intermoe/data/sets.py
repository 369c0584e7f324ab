"""The data sets by name, and their preparation: check a folder, write its cache, compute its statistics.

A new one is a module with a ``DataSet`` and a line in ``DATA_SETS``, and its ``Representation`` likewise.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

from intermoe.data.cache import INDEX, STATISTICS, PreparedCache, Progress, is_cache, read_statistics, write_cache
from intermoe.data.dataset import MotionDataset
from intermoe.data.items import DataSet
from intermoe.data.pieces import digest
from intermoe.data.statistics import compute_statistics
from intermoe.data.workers import available_cores
from intermoe.motion.statistics import Statistics
from intermoe.registry import Registry

DATA_SETS: Registry[DataSet] = Registry(
    "representation",
    {
        "interhuman": "intermoe.data.interhuman:DATA_SET",
        "interx": "intermoe.data.interx:DATA_SET",
        "humanml3d": "intermoe.data.humanml3d:DATA_SET",
        "solo": "intermoe.data.single:DATA_SET",
    },
)
_FEW = 512
"""Below so many sequences processes would still start when one is done."""
STATISTICS_PASSES = 4
"""Epochs of the training split that statistics are taken from: mirrored and exchanged items belong in them."""


def prepare(
    data_set: DataSet,
    root: Path,
    out: Path,
    *,
    progress: Progress | None = None,
    workers: int | None = 1,
    **options: Any,
) -> PreparedCache:
    """Check every sequence of ``root`` and write the cache ``out``, with statistics of its training split.

    A cache of the same source files and settings is left as it is, and a preparation of them that was interrupted is
    gone on with: the same bytes as in one go.

    Args:
        data_set: which one.
        root: its folder as published.
        out: folder of the cache.
        progress: called as ``progress(sequences_done, sequences)``.
        workers: processes that read and compute, ``None`` for one for each core where it is worth it; more than one are
            spawned, which a script must bear (``if __name__ == "__main__":``).
        options: of the data set's reader (``DataSet.options``); ``None`` for its default.

    Raises:
        ValueError: an option that the data set does not have, or no usable sequence; otherwise as ``write_cache``.
    """
    given = {name: value for name, value in options.items() if value is not None}
    foreign = sorted(given.keys() - set(data_set.options))
    if foreign:
        known = f"any of {', '.join(data_set.options)}" if data_set.options else "none"
        raise ValueError(f"options: expected {known} for {data_set.name}, got {', '.join(foreign)}")
    if not root.is_dir():
        raise NotADirectoryError(f"root: not a folder: {root}")
    reader = data_set.reader(root, **given)
    if workers is None:
        sequences = sum(len(reader.names(split)[0]) for split in reader.splits())
        workers = available_cores() if sequences >= _FEW else 1
    return write_cache(
        data_set,
        reader,
        root,
        out,
        statistics=functools.partial(_write_statistics, data_set, "train" in reader.splits(), workers),
        progress=progress,
        workers=workers,
    )


def train_statistics(dataset: MotionDataset) -> Statistics:
    """Statistics of the training split ``dataset``: those of its cache where they are of the same augmentation."""
    if is_cache(dataset.root) and _augmentation(dataset.data_set) == (dataset.mirror, dataset.swap_persons):
        stored = read_statistics(dataset.root)
        if stored is not None:
            return stored
    return compute_statistics(dataset, passes=STATISTICS_PASSES)


def _augmentation(data_set: DataSet) -> tuple[bool, bool]:
    return data_set.mirror is not None, data_set.swappable


def _write_statistics(data_set: DataSet, has_train: bool, workers: int, folder: Path) -> None:
    if has_train:
        mirror, swap_persons = _augmentation(data_set)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what cannot be used is in the reports
            train = MotionDataset(data_set, folder, "train", mirror=mirror, swap_persons=swap_persons, training=True)
        found = compute_statistics(
            train,
            passes=STATISTICS_PASSES if mirror or swap_persons else 1,
            workers=workers,
            unfinished=folder / f"sums-{digest((folder / INDEX).read_bytes())}.json",
        )
        found.save(folder / STATISTICS)
