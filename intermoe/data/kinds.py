"""The data sets by name, and their preparation: check a folder, write its cache, compute its statistics."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

from intermoe.data.cache import STATISTICS, PreparedCache, Progress, is_cache, write_cache
from intermoe.data.dataset import MotionDataset
from intermoe.data.humanml3d import HUMANML3D
from intermoe.data.interhuman import INTERHUMAN
from intermoe.data.interx import FPS, INTERX, InterXReader, load_skeleton
from intermoe.data.items import MotionKind, Reader
from intermoe.data.statistics import compute_statistics
from intermoe.motion.statistics import Statistics

KINDS: dict[str, MotionKind] = {kind.name: kind for kind in (INTERHUMAN, INTERX, HUMANML3D)}
STATISTICS_PASSES = 4
"""Epochs of the training split that statistics are taken from: mirrored and exchanged items belong in them."""


def motion_kind(name: str) -> MotionKind:
    """The data set called ``name``. Raises ``ValueError`` for an unknown one."""
    if name not in KINDS:
        raise ValueError(f"kind: must be one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]


def prepare(
    kind: MotionKind,
    root: Path,
    out: Path,
    *,
    skeleton: Path | None = None,
    source_fps: int | None = None,
    progress: Progress | None = None,
) -> PreparedCache:
    """Check every sequence of ``root`` and write the cache ``out``, with statistics of its training split.

    A cache of the same source files and settings is left as it is.

    Args:
        kind: which data set. root: its folder as published. out: folder of the cache.
        skeleton, source_fps: of raw Inter-X, see ``InterXReader``.
        progress: called as ``progress(sequences_done, sequences)``.

    Raises:
        ValueError: an option that the kind does not have, or no usable sequence; otherwise as ``write_cache``.
    """
    if kind is not INTERX and (skeleton is not None or source_fps is not None):
        raise ValueError(f"skeleton, source_fps: are for interx alone, not {kind.name}")
    if not root.is_dir():
        raise NotADirectoryError(f"root: not a folder: {root}")
    reader: Reader = kind.reader(root)
    settings: dict[str, Any] = {}
    if kind is INTERX:
        rest = None if skeleton is None else load_skeleton(skeleton)
        reader = InterXReader(root, skeleton=rest, source_fps=source_fps or FPS)
        settings = {"source_fps": source_fps or FPS, "skeleton": None if rest is None else rest.tolist()}
    return write_cache(
        kind,
        reader,
        root,
        out,
        settings=settings,
        statistics=functools.partial(_write_statistics, kind, "train" in reader.splits()),
        progress=progress,
    )


def train_statistics(kind: MotionKind, dataset: MotionDataset) -> Statistics:
    """Statistics of the training split ``dataset``: those of its cache where they are of the same augmentation."""
    file = dataset.root / STATISTICS
    if is_cache(dataset.root) and file.is_file() and _augmentation(kind) == (dataset.mirror, dataset.swap_persons):
        return Statistics.load(file)
    return compute_statistics(dataset, passes=STATISTICS_PASSES)


def _augmentation(kind: MotionKind) -> tuple[bool, bool]:
    return kind.mirror is not None, kind.swappable


def _write_statistics(kind: MotionKind, has_train: bool, folder: Path) -> None:
    if has_train:
        mirror, swap_persons = _augmentation(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what cannot be used is in the reports
            train = MotionDataset(kind, folder, "train", mirror=mirror, swap_persons=swap_persons, training=True)
        compute_statistics(train, passes=STATISTICS_PASSES if mirror or swap_persons else 1).save(folder / STATISTICS)
