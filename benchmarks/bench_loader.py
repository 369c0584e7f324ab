"""How fast samples come from a cache, for the denoiser (whole sequences) and the autoencoder (windows).

A cache of random sequences, which stays in the page cache: a slow disk is not in the numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from intermoe.benchmarks.harness.case import Case, Contest, Outputs, Scope, WrongResult, test_case
from intermoe.data import DATA_SETS, DataSet, MotionDataset, collate
from intermoe.data.cache import write_cache
from intermoe.data.items import RawClip
from intermoe.train.loading import batches
from intermoe.train.stream import DrawnDataset, StreamSampler
from intermoe.train.vae import Windows

__all__ = ["cases", "test_case"]

FRAMES, WINDOW, BATCH, BATCHES = 150, 64, 64, 1_000_000


class RandomClips:
    """Reads nothing: ``count`` sequences of random numbers, as a data set's source has them."""

    layout = "none"

    def __init__(self, data_set: DataSet, count: int) -> None:
        self.shape, self.count = (FRAMES, *data_set.source_shape), count
        self.settings: dict[str, Any] = {"count": count}

    def splits(self) -> list[str]:
        return ["train"]

    def names(self, split: str) -> tuple[list[str], int]:
        return [str(number) for number in range(self.count)], 0

    def read(self, split: str, name: str) -> list[RawClip]:
        source = np.random.default_rng(int(name)).normal(size=self.shape).astype(np.float32)
        return [RawClip(name, ("two people bow", "one of them turns to the left", "they walk"), source)]

    def files(self) -> list[Path]:
        return []

    def absent(self, split: str) -> list[str]:
        return []


def loading(data_set: DataSet, windows: bool, count: int, workers: tuple[int, ...]) -> Contest:
    """Batches of a loader as training makes it, each call the next one; processes are up before the first is timed."""
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name)
    write_cache(data_set, RandomClips(data_set, count), root, root / "cache", statistics=lambda _: None)
    whole = MotionDataset(
        data_set, root / "cache", "train", mirror=data_set.mirror is not None, swap_persons=data_set.swappable
    )
    check(whole)
    drawn: DrawnDataset = whole
    if windows:
        drawn = Windows(MotionDataset(data_set, root / "cache", "train", min_frames=WINDOW), WINDOW)

    def entry(loader: Iterator[Any], kept: object, _: int) -> Outputs:
        return (next(loader)["motion"],)

    lengths = [drawn.num_frames(number) for number in range(len(drawn))]
    entries: dict[str, Callable[[int], Outputs]] = {}
    for number in workers:
        sampler = StreamSampler(lengths, BATCH, range(BATCHES), seed=0)
        entries[f"{number} workers"] = partial(entry, batches(drawn, sampler, collate, number), folder)
    return Contest(entries, None, 0.0, tokens=BATCH)


def check(dataset: MotionDataset) -> None:
    """What is timed is right: an item is its source, converted."""
    plain = MotionDataset(dataset.data_set, dataset.root, "train", training=False)
    source = plain._clips[3][: plain.num_frames(3) + dataset.data_set.lost_frames]
    expected = rearrange(torch.from_numpy(dataset.data_set.convert(source)), "t p ... -> p t ...")
    if not torch.equal(plain.draw(3, 0)["motion"], expected):
        raise WrongResult(f"{dataset.data_set.name}: an item is not its source")


def cases(scope: Scope) -> Iterator[Case]:
    count, workers = (BATCH, (0,)) if scope.quick else (512, (0, 2))
    for name in DATA_SETS:
        for windows in (False, True):
            call = f"{name}, {f'windows of {WINDOW}' if windows else 'sequences'}"
            prepare = partial(loading, DATA_SETS[name], windows, count, workers)
            yield Case("loader", call, torch.float32, {"B": BATCH, "sequences": count}, prepare)
