"""Several folders of motion made one, in InterHuman's layout, with every source as often as it shall be drawn."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intermoe.data.activities import ITEMS, tagged_activity
from intermoe.data.interhuman import FILE_WIDTH, PERSONS, InterHumanReader
from intermoe.data.items import ItemError, read_named, read_sequence
from intermoe.data.solo import SoloReader, compose, join_captions, partners
from intermoe.files import refuse_existing, replacing_folder, write_json
from intermoe.motion.arrays import Array
from intermoe.reading import numbered_lines, read_json

MOTIONS, CAPTIONS, SPLITS, LICENSE = "motions_processed", "annots", "split", "LICENSE-DATA.txt"
TRAIN = "train"
MOST_TIMES = 1e4


@dataclass(frozen=True)
class Merged:
    """What was written: ``listed`` counts the lines of each split by source, ``left_out`` says what was not usable."""

    folder: Path
    listed: dict[str, dict[str, int]]
    left_out: list[str]


def merge(
    folders: Sequence[Path],
    out: Path,
    *,
    times: Mapping[str, float] | None = None,
    wordings: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Merged:
    """Write the folder ``out`` of all clips of ``folders``, whole or not at all.

    A folder of two persons has InterHuman's layout and is copied. Of a folder of single persons
    (``intermoe.data.solo``) every clip becomes one pair with another of its split, as long or longer, cut to its
    length and placed apart, the captions joined. ``items.json`` gets the entries of all, with their ``source``, the
    folder's name.

    Args:
        times: by source, how often its clips are drawn in an epoch of the training split: each is listed that often, a
            fraction by chance; 1 if nothing is said. Where ``times`` names a source whose ``items.json`` tags clips
            with an ``activity``, every activity is listed about equally often, each of its clips at least once, and
            ``times`` is about the mean over the clips. Other splits list every clip once.
        wordings: by activity, more captions for the clips of the training split that are tagged with it. A clip's own
            are repeated, so that they are drawn about as often as these. Other splits keep the captions they have.
        seed: of what is drawn by chance.
        strict: raise for a clip that cannot be used, instead of leaving it out.

    Raises:
        ValueError: two folders of one name, a clip's name in two folders, ``times`` of no source, out of range or of
            which no training clip is left, ``wordings`` of an activity that no training clip is tagged with or of other
            than single lines, an ``items.json`` that is malformed; with ``strict`` a clip that cannot be used
            (``ItemError``).
        FileExistsError: ``out`` is there. NotADirectoryError, FileNotFoundError: no folder, or none of a known layout.
    """
    sources = {folder.resolve().name: folder for folder in folders}
    if len(sources) < len(folders):
        raise ValueError(f"folders: expected names that differ, got {', '.join(f.resolve().name for f in folders)}")
    times = dict(times or {})
    for name, value in times.items():
        if name not in sources:
            raise ValueError(f"times: expected any of {', '.join(sources)}, got {name!r}")
        if not 0 <= value <= MOST_TIMES:
            raise ValueError(f"times: expected a number from 0 to {MOST_TIMES:g} for {name}, got {value}")
    if sources and all(times.get(name, 1) == 0 for name in sources):
        raise ValueError(f"times: expected a number > 0 for any of {', '.join(sources)}, got 0 for each")
    for root in folders:
        if not root.is_dir():
            raise NotADirectoryError(f"folders: not a folder: {root}")
    for activity, each in (wordings or {}).items():
        if not each or any(len(caption.splitlines()) != 1 or not caption.strip() for caption in each):
            raise ValueError(f"wordings: expected captions of one line for {activity}, got {list(each)!r:.80}")
    entries = {source: _entries(root / ITEMS) for source, root in sources.items()}
    tagged = {tagged_activity(entry) for each in entries.values() for entry in each.values()}
    _check_activities(wordings or {}, tagged)
    refuse_existing(out)
    merging = _Merging(strict, dict(wordings or {}))
    with replacing_folder(out, exclusive=True) as temporary:
        for folder in (*(f"{MOTIONS}/{person}" for person in PERSONS), CAPTIONS, SPLITS):
            (temporary / folder).mkdir(parents=True)
        for number, (source, root) in enumerate(sources.items()):
            rng = np.random.default_rng((seed, number))
            clips = _solo_pairs(root, rng) if SoloReader.reads(root) else _pairs(root)
            merging.add(source, root, clips, temporary, entries[source], times.get(source), rng)
        merging.finish(temporary)
    return Merged(out, merging.listed, merging.left_out)


@dataclass(frozen=True)
class _Pair:
    """One clip to be written: of two persons' files, each a file to copy or its columns."""

    split: str
    name: str
    motion: tuple[Path, Path] | tuple[Array, Array]
    captions: Path | tuple[str, ...]


class _Merging:
    def __init__(self, strict: bool, wordings: Mapping[str, Sequence[str]]) -> None:
        self.strict = strict
        self.wordings = wordings
        self.worded: set[str] = set()
        self.splits: dict[str, list[str]] = {}
        self.listed: dict[str, dict[str, int]] = {}
        self.left_out: list[str] = []
        self.items: list[dict[str, Any]] = []
        self.owner: dict[str, str] = {}

    def add(
        self,
        source: str,
        root: Path,
        clips: Iterator[_Pair | ItemError],
        out: Path,
        entries: Mapping[str, Any],
        times: float | None,
        rng: np.random.Generator,
    ) -> None:
        found: dict[str, list[str]] = {}
        for clip in clips:
            if isinstance(clip, ItemError):
                if self.strict:
                    raise clip
                self.left_out.append(f"{source}: {clip}")
                continue
            if self.owner.setdefault(clip.name, source) != source:
                raise ValueError(
                    f"folders: expected names that differ, got {clip.name} in {self.owner[clip.name]} and {source}"
                )
            self._write(clip, out, tagged_activity(entries.get(clip.name)) if clip.split == TRAIN else None)
            found.setdefault(clip.split, []).append(clip.name)
        if not found:
            raise FileNotFoundError(
                f"{root}: no clip that can be used (expected {InterHumanReader.layout}, or {SoloReader.layout})"
            )
        for split, names in found.items():
            counts = [1] * len(names)
            if split == TRAIN and times is not None:
                counts = _listings(names, entries, times, rng)
            lines = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
            self.splits.setdefault(split, []).extend(lines)
            self.listed.setdefault(split, {})[source] = len(lines)
            self.items += [{**entries.get(name, {"name": name, "split": split}), "source": source} for name in names]
        if (root / LICENSE).is_file():
            shutil.copyfile(root / LICENSE, out / f"{Path(LICENSE).stem}.{source}.txt")

    def finish(self, out: Path) -> None:
        if TRAIN in self.splits and not self.splits[TRAIN]:
            sources = ", ".join(self.listed[TRAIN])
            raise ValueError(f"times: expected some clip to be listed in split {TRAIN}, got none of {sources}")
        _check_activities(self.wordings, self.worded)
        for split, names in self.splits.items():
            (out / SPLITS / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        write_json(out / ITEMS, self.items, indent=0)

    def _write(self, clip: _Pair, out: Path, activity: str | None) -> None:
        for person, motion in zip(PERSONS, clip.motion, strict=True):
            path = out / MOTIONS / person / f"{clip.name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)  # a name may have folders
            if isinstance(motion, Path):
                shutil.copyfile(motion, path)
            else:
                np.save(path, np.asarray(motion))
        path = out / CAPTIONS / f"{clip.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        more = () if activity is None else self.wordings.get(activity, ())
        if isinstance(clip.captions, Path) and not more:
            shutil.copyfile(clip.captions, path)
            return
        own = clip.captions
        if isinstance(own, Path):
            own = tuple(line for _, line in numbered_lines(own))
        if more:
            self.worded.add(str(activity))
            own *= max(1, round(len(more) / len(own)))
        path.write_text("".join(f"{caption}\n" for caption in (*own, *more)), encoding="utf-8")


def _entries(path: Path) -> dict[str, Any]:
    """What an ``items.json`` says of each clip. Raises ``ValueError`` that names file and entry."""
    items = read_json(path) if path.is_file() else []
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected a list of entries, got {type(items).__name__}")
    for number, item in enumerate(items):
        if not (isinstance(item, dict) and isinstance(item.get("name"), str)):
            raise ValueError(f"{path}: entry {number}: expected a mapping with a name, got {str(item)[:60]}")
    try:
        json.dumps(items, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: expected finite numbers: {error}") from None
    return {item["name"]: item for item in items}


def _check_activities(wordings: Collection[str], tagged: Collection[str | None]) -> None:
    for activity in wordings:
        if activity not in tagged:
            raise ValueError(f"wordings: expected activities that training clips are tagged with, got {activity!r}")


def _listings(names: Sequence[str], entries: Mapping[str, Any], times: float, rng: np.random.Generator) -> list[int]:
    """How often each clip is listed: ``times`` on average, activities alike where they are known."""
    activities = [tagged_activity(entries.get(name)) for name in names]
    if None in activities:
        return [int(times + draw) for draw in rng.random(len(names))]
    sizes = Counter(activities)
    each = times * len(names) / len(sizes)
    return [max(1, round(each / sizes[activity])) if each else 0 for activity in activities]


def _pairs(root: Path) -> Iterator[_Pair | ItemError]:
    reader = InterHumanReader(root)
    for split in reader.splits():
        for name in reader.names(split)[0]:
            try:
                read_sequence(reader, split, name)
            except ItemError as error:
                yield error
                continue
            first, second = (root / MOTIONS / person / f"{name}.npy" for person in PERSONS)
            yield _Pair(split, name, (first, second), root / CAPTIONS / f"{name}.txt")


def _solo_pairs(root: Path, rng: np.random.Generator) -> Iterator[_Pair | ItemError]:
    reader = SoloReader(root)
    for split in reader.splits():
        clips = []
        for name in reader.names(split):
            try:
                clips.append(read_named(name, functools.partial(reader.read, name)))
            except ItemError as error:
                yield error
        if len(clips) < 2:
            yield ItemError("no partner", f"split {split}: {len(clips)} clips")
            continue
        for first, other in zip(clips, partners([len(clip) for clip in clips], rng), strict=True):
            second = clips[other]
            files = []
            for clip, positions in zip((first, second), compose(first, second, rng), strict=True):
                columns = np.zeros((len(positions), FILE_WIDTH), np.float32)
                columns[:, :66], columns[:, 186:312] = positions, clip.rotations[: len(positions)]
                files.append(columns)
            captions = tuple(join_captions(a, b) for a, b in zip(first.captions, second.captions, strict=False))
            yield _Pair(split, f"{first.name}+{second.name}", (files[0], files[1]), captions)
