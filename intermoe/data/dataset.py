"""Motion with captions as training and evaluation draw it, whatever the data set and wherever it is read from."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch.utils.data import Dataset

from intermoe.data.cache import CachedClips, is_cache
from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.items import DataSet, DatasetReport, ItemError, MotionItem, read_sequence
from intermoe.motion.arrays import Array

# Source columns stay in memory up to this size; sets beyond it are read again from disk.
_MEMORY_BYTES = 4 * 2**30
_EPOCHS_KEPT, _NUMBERS_BYTES = 64, 2**25


class Clips(Protocol):
    """The readable clips of a split, and a report of the others."""

    names: list[str]
    captions: list[tuple[str, ...]]
    frames: list[int]
    report: DatasetReport

    def __getitem__(self, index: int) -> Array:
        """Source columns (F, P, ...) of a clip."""
        ...

    def leave(self) -> None:
        """Free what memory earlier clips take, where it can be had again for little."""
        ...


class FolderClips:
    """Clips of a folder as published. Every one is read and checked once: what is broken is known before training."""

    def __init__(self, data_set: DataSet, root: Path, split: str) -> None:
        self.reader, self.split = data_set.reader(root), split
        wanted, ignored = self.reader.names(split)
        self.report = DatasetReport(total=len(wanted), ignored=ignored)
        self.names: list[str] = []
        self.captions: list[tuple[str, ...]] = []
        self.frames: list[int] = []
        self._sources: list[Array | None] = []
        self._places: list[tuple[str, int]] = []
        free = _MEMORY_BYTES
        for name in wanted:
            try:
                clips = read_sequence(self.reader, split, name)
            except ItemError as error:
                if name in data_set.known_missing:
                    self.report.known_missing.append(name)
                else:
                    self.report.add(error)
                continue
            for number, clip in enumerate(clips):
                self.names.append(clip.name)
                self.captions.append(clip.captions)
                self.frames.append(len(clip.source))
                free -= clip.source.nbytes
                self._sources.append(clip.source if free >= 0 else None)
                self._places.append((name, number))

    def __getitem__(self, index: int) -> Array:
        source = self._sources[index]
        if source is None:
            name, number = self._places[index]
            clips = read_sequence(self.reader, self.split, name)
            if number >= len(clips) or len(clips[number].source) != self.frames[index]:
                raise ItemError("changed since it was checked", name)
            source = clips[number].source
        return source

    def leave(self) -> None:
        """Nothing: what is in memory would have to be checked again."""


@dataclass(frozen=True)
class MotionChoice:
    """What is drawn of an item but its caption: equal choices of one data set are the same motion."""

    index: int
    start: int
    mirrored: bool
    swapped: bool


class EpochNumbers:
    """Of each of ``items`` ``columns`` numbers in [0, 1), from (seed, epoch, ``key``): drawn for an epoch at once.

    Batches of similar items draw from several epochs in turn, so the last ones are kept.
    """

    def __init__(self, seed: int, items: int, columns: int, *key: int) -> None:
        self.seed, self.shape, self.key = seed, (items, columns), key
        self._kept = min(_EPOCHS_KEPT, max(2, _NUMBERS_BYTES // max(1, 8 * items * columns)))
        self._drawn: dict[int, npt.NDArray[np.float64]] = {}

    def __call__(self, epoch: int) -> npt.NDArray[np.float64]:
        """Those of ``epoch``, (items, columns)."""
        if epoch not in self._drawn:
            while len(self._drawn) >= self._kept:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[epoch] = np.random.default_rng((self.seed, epoch, *self.key)).random(self.shape)
        return self._drawn[epoch]


class MotionDataset(Dataset[MotionItem]):
    """Motion with captions, one item a clip, in the data set's representation.

    ``root`` is the folder of the data as published, or a cache that ``intermoe prepare`` made of it.

    A window is cut from the source before conversion, so that its first frame is the canonical one. In training
    (``training=True``) its place and the caption are drawn at random; in evaluation they are the first ones. A sequence
    longer than ``max_frames`` becomes such a window of ``max_frames``. What is drawn depends on (seed, epoch, index)
    alone, not on workers, order or earlier items.

    Args:
        data_set: which; ``intermoe.data.DATA_SETS`` has them by name.
        root: folder of the data, or of its cache.
        split: name of a split of the data.
        min_frames: shortest sequence to use, in converted frames; by default the data set's.
        max_frames: longest item, in converted frames; by default the data set's. If it is ``min_frames``, every item is
            a window of that many.
        mirror: mirror an item, words of its caption included, with probability 1/2.
        swap_persons: exchange the persons, words of the caption included, with probability 1/2.
        seed: of everything random.
        training: random windows and captions; by default for the split named "train".
        strict: raise where an item cannot be used, instead of leaving it out with a warning.

    Raises:
        FileNotFoundError: no such split.
        ValueError: an argument out of range, an unusable item with ``strict``, or no usable item at all.
    """

    def __init__(
        self,
        data_set: DataSet,
        root: str | Path,
        split: str,
        *,
        min_frames: int | None = None,
        max_frames: int | None = None,
        mirror: bool = False,
        swap_persons: bool = False,
        seed: int = 0,
        training: bool | None = None,
        strict: bool = False,
    ) -> None:
        min_frames = data_set.representation.min_frames if min_frames is None else min_frames
        max_frames = data_set.representation.max_frames if max_frames is None else max_frames
        if not 1 <= min_frames <= max_frames:
            raise ValueError(f"min_frames: expected a value in [1, max_frames={max_frames}], got {min_frames}")
        if seed < 0:
            raise ValueError(f"seed: expected >= 0, got {seed}")
        if mirror and data_set.mirror is None:
            raise ValueError(f"mirror: expected false for {data_set.name}, which has no mirroring, got true")
        if swap_persons and not data_set.swappable:
            raise ValueError(f"swap_persons: expected false for {data_set.name}, which has one person, got true")
        self.data_set = data_set
        self.root = Path(root)
        self.split = split
        self.min_frames = min_frames
        self.max_frames = max_frames
        self.mirror = mirror
        self.swap_persons = swap_persons
        self.seed = seed
        self.training = split == "train" if training is None else training
        # Shared memory: workers that outlive an epoch must see the next one too.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        cached = is_cache(self.root)
        self._clips: Clips = (CachedClips if cached else FolderClips)(data_set, self.root, split)
        self.report = self._clips.report
        self._indices = self._long_enough()
        self.names = [self._clips.names[i] for i in self._indices]
        self._numbers = EpochNumbers(seed, len(self.names), 4)
        self._floors: dict[int, Array] = {}
        self.strict = strict
        self._complain()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> MotionItem:
        return self.draw(index, int(self._epoch))

    def draw(self, index: int, epoch: int, frames: slice | None = None) -> MotionItem:
        """Item ``index`` as it is drawn in ``epoch``, whatever ``set_epoch`` said last; with ``frames`` alone of it."""
        choice, caption = self.choose(index, epoch)
        return {"name": self.names[index], "motion": self.motion(choice, frames), "caption": caption}

    def choose(self, index: int, epoch: int) -> tuple[MotionChoice, str]:
        """What ``draw`` makes the motion from, and its caption; costs next to nothing."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected a value in [0, {len(self)}), got {index}")
        draw_caption, draw_start, draw_mirror, draw_swap = self._numbers(epoch)[index].tolist()
        spare = self._clips.frames[self._indices[index]] - self._taken(index)
        start = int(draw_start * (spare + 1)) if self.training else 0
        captions = self.captions(index)
        caption = captions[int(draw_caption * len(captions))] if self.training else captions[0]
        mirrored, swapped = self.mirror and draw_mirror < 0.5, self.swap_persons and draw_swap < 0.5
        if mirrored:
            caption = mirror_caption(caption)
        if swapped:
            caption = swap_caption(caption)
        return MotionChoice(index, start, mirrored, swapped), caption

    def motion(self, choice: MotionChoice, frames: slice | None = None) -> torch.Tensor:
        """The motion (P, T, ...) that was chosen, converted; of it ``frames`` (start and stop) alone."""
        clip = self._clips[self._indices[choice.index]]
        source = clip[choice.start : choice.start + self._taken(choice.index)]
        floor = self._floor(choice.index, source, len(clip)) if frames is not None else None
        if choice.swapped:
            source, floor = source[:, ::-1], None if floor is None else floor[::-1]
        if frames is not None and self.data_set.convert_part is not None:
            motion = self.data_set.convert_part(source, frames, choice.mirrored, floor)
        else:
            if choice.mirrored and self.data_set.mirror is not None:
                source = self.data_set.mirror(source)
            motion = self.data_set.convert(source)[frames or slice(None)]
        return torch.from_numpy(np.ascontiguousarray(rearrange(motion, "t p ... -> p t ...")))

    def num_frames(self, index: int) -> int:
        """Length of item ``index`` in converted frames, the same in every epoch."""
        return min(self.max_frames, self._clips.frames[self._indices[index]] - self.data_set.lost_frames)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of an item as written, before any mirroring or exchange."""
        return self._clips.captions[self._indices[index]]

    def digest(self) -> str:
        """Which data these are: 16 hexadecimal digits of all names, captions and source columns, wherever they lie."""
        content = hashlib.blake2b(digest_size=8)
        for name, index in zip(self.names, self._indices, strict=True):
            source = np.ascontiguousarray(self._clips[index])
            content.update(json.dumps([name, self._clips.captions[index], source.shape, str(source.dtype)]).encode())
            content.update(source.tobytes())
        return content.hexdigest()

    def leave(self) -> None:
        """Pages of a cache that items were read from leave this process's memory; for reading all of a large one."""
        self._clips.leave()

    def set_epoch(self, epoch: int) -> None:
        """Choose what is drawn next; running workers see it from their next item on."""
        if epoch < 0:
            raise ValueError(f"epoch: expected >= 0, got {epoch}")
        self._epoch.fill_(epoch)

    def _floor(self, index: int, source: Array, frames: int) -> Array | None:
        """``data_set.floor(source)``, kept where that is a whole clip, of ``frames``: each epoch asks for it."""
        if self.data_set.floor is None or len(source) < frames:
            return None
        if index not in self._floors:
            self._floors[index] = self.data_set.floor(source)
        return self._floors[index]

    def _taken(self, index: int) -> int:
        """Source frames of item ``index``."""
        return self.num_frames(index) + self.data_set.lost_frames

    def _long_enough(self) -> list[int]:
        needed = self.data_set.lost_frames + self.min_frames
        indices = []
        for index, (name, frames) in enumerate(zip(self._clips.names, self._clips.frames, strict=True)):
            if frames < needed:
                self.report.add(ItemError(f"shorter than {needed} frames", f"{name}: {frames}"))
            else:
                indices.append(index)
        return indices

    def _complain(self) -> None:
        told = f"{self.root}: split {self.split!r}: {self.report.summary()}"
        if self.report.count and (self.strict or not self.names):
            raise ValueError(told)
        if not self.names:
            raise ValueError(f"{self.root}: expected items in split {self.split!r}, got none")
        if self.report.count:
            warnings.warn(told, stacklevel=4)
