"""How fast motion comes from a cache: seconds to open it, samples a second for denoiser and autoencoder.

    python benchmarks/loader.py                                    # synthetic caches of all kinds
    python benchmarks/loader.py --kind interhuman --cache CACHE    # one of your own

A synthetic cache has 7,779 sequences, as many as InterHuman, that share their frames: they stay in the page cache, and
a slow disk is not in the numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from intermoe.data import DATA_SETS, DataSet, MotionDataset, collate
from intermoe.data.cache import INDEX, MOTION, VERSION, is_cache
from intermoe.train.stream import DrawnDataset, Draws, StreamSampler
from intermoe.train.vae import Windows

SEQUENCES, FRAMES, BATCH = 7779, 150, 64
WINDOW = 64


def synthetic(kind: DataSet, folder: Path) -> Path:
    """A cache whose sequences are random and long enough; they start one frame after each other."""
    captions = ["two people bow", "one of them turns to the left", "they walk"]
    total = SEQUENCES + FRAMES
    clips = {
        "names": [str(i) for i in range(SEQUENCES)],
        "captions": [captions] * SEQUENCES,
        "starts": [i % FRAMES for i in range(SEQUENCES)],
        "frames": [FRAMES] * SEQUENCES,
    }
    split = {"clips": list(range(SEQUENCES)), "total": SEQUENCES, "ignored": 0, "known_missing": [], "problems": {}}
    index = {"version": VERSION, "kind": kind.name, "clips": clips, "splits": {"train": split}}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with (folder / MOTION).open("wb") as file:
        # as long as the index says; what lies beyond the frames that are shared is a hole
        np.random.default_rng(0).normal(size=(total, *kind.source_shape)).astype("<f4").tofile(file)
        file.truncate(4 * SEQUENCES * FRAMES * int(np.prod(kind.source_shape)))
    return folder


def samples_per_second(dataset: DrawnDataset, workers: int, batches: int) -> float:
    """Of a loader as training makes it, after its first batch."""
    lengths = [dataset.num_frames(i) for i in range(len(dataset))]
    sampler = StreamSampler(lengths, BATCH, range(batches + 1), seed=0)
    loader = iter(DataLoader(Draws(dataset), batch_sampler=sampler, num_workers=workers, collate_fn=collate))
    next(loader)
    started = time.perf_counter()
    count = sum(len(batch["names"]) for batch in loader)
    return count / (time.perf_counter() - started)


def check(dataset: MotionDataset) -> None:
    """What is timed is right: an item is its source, converted."""
    plain = MotionDataset(dataset.data_set, dataset.root, "train", training=False)
    source = plain._clips[3][: plain.num_frames(3) + dataset.data_set.lost_frames]
    if not torch.equal(plain.draw(3, 0)["motion"], torch.from_numpy(dataset.data_set.convert(source))):
        raise RuntimeError(f"{dataset.data_set.name}: an item is not its source")


def measure(kind: DataSet, cache: Path, workers: list[int], batches: int) -> None:
    """Print one line."""
    started = time.perf_counter()
    dataset = MotionDataset(kind, cache, "train", mirror=kind.mirror is not None, swap_persons=kind.swappable)
    collate([dataset.draw(i, 0) for i in range(min(BATCH, len(dataset)))])
    first = time.perf_counter() - started
    check(dataset)
    print(f"{kind.name}: first batch {first:.2f} s after the start, {len(dataset)} sequences")
    long = MotionDataset(kind, cache, "train", min_frames=WINDOW)
    for name, drawn in (("sequences", dataset), (f"windows of {WINDOW}", Windows(long, WINDOW))):
        rates = (f"{samples_per_second(drawn, n, batches):.0f} with {n} workers" for n in workers)
        print(f"  {name}, samples/s: {', '.join(rates)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(DATA_SETS), help="default: all, which needs synthetic caches")
    parser.add_argument("--cache", type=Path, help="a cache from intermoe prepare; default: a synthetic one")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batches", type=int, default=20, help=f"of {BATCH} items")
    options = parser.parse_args()
    if options.cache is not None and (options.kind is None or not is_cache(options.cache)):
        parser.error("--cache: expected the folder of a cache, and its --kind")
    for name in [options.kind] if options.kind else sorted(DATA_SETS):
        with tempfile.TemporaryDirectory() as folder:
            cache = options.cache or synthetic(DATA_SETS[name], Path(folder))
            measure(DATA_SETS[name], cache, options.workers, options.batches)


if __name__ == "__main__":
    main()
